"""The supervisor: drives many runs side by side in one process, and waits for their ends."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from uuid import UUID

from airflow_childrun.errors import (
    Abandoned,
    CancelInterrupt,
    ChildRunError,
    DeadlineInterrupt,
    Interrupt,
    LeaseLost,
    NoPlace,
    NotFoundError,
    StorageError,
    StoreInterrupt,
)
from airflow_childrun.runtime.driver import RunDriver
from airflow_childrun.runtime.house import House
from airflow_childrun.runtime.journal import RunJournal
from airflow_childrun.runtime.lanes import Lanes
from airflow_childrun.runtime.mail import Mailbox
from airflow_childrun.runtime.rest import LEAVING_S, Rest, rest_of
from airflow_childrun.runtime.run_io import Surroundings
from airflow_childrun.runtime.waiting import AT_ONCE, LONGEST_LOOK_S, NEVER, Hold, Stay
from airflow_childrun.store.api import Cap, RunRow

_log = logging.getLogger("airflow_childrun")
CONFLICT_TRIES = 20


class Supervisor:
    """Drives runs from the moment that they are handed over."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._monitor = house.slots.monitor
        self._active: dict[UUID, RunJournal | None] = {}
        self._gone: set[UUID] = set()  # handed over, and not active any more: sets meet without asking for hashes
        self._undrivable: dict[UUID, ChildRunError] = {}
        self._mailboxes: dict[UUID, Mailbox] = {}
        self._holds: dict[UUID, Hold] = {}
        self._carries_mail = False
        self._unwell: set[UUID] = set()
        self._lanes = Lanes(house.store, house.slots, house.scheduler, house.limits.poll_s)
        self.stopped: set[UUID] = set()

    def hand_over(self, run_id: UUID, cap: Cap | None = None) -> None:
        """Drive a run as soon as a slot is free; one that is being driven, or has ended, stays as it is.

        :param cap: under which it is known to stand; the run's own history tells it too, once it is read
        """
        with self._monitor:
            if run_id in self._active or self._house.slots.is_closed:
                if run_id not in self._active:
                    self._gone.add(run_id)
                return
            self._active[run_id] = None
            self._gone.discard(run_id)
            self._undrivable.pop(run_id, None)
            self.stopped.discard(run_id)
            if not self._carries_mail:
                self._carries_mail = True
                self._house.scheduler.start("childrun inbox", self._carry_mail)
        self._lanes.submit(run_id, cap, self._beginner(run_id))

    def wait(self, run_id: UUID, hold: Hold | None = None, until_us: int | None = None) -> RunRow:
        """Wait until a run has ended, driving it if nobody else does; a slot that is held is given back meanwhile.

        :param until_us: the store's time, in microseconds UTC, after which the run is returned as it is; None = never
        :raises Abandoned: if the process gives up
        :raises ChildRunError: if the run cannot be driven here
        """
        row = self._find(run_id)
        if row.is_terminal:
            return row
        self.hand_over(run_id)
        self._house.slots.promote(run_id)
        if hold is None:
            return self._watch(run_id, Hold(self._house), until_us)
        hold.release()
        try:
            row = self._watch(run_id, hold, until_us)
        except (ChildRunError, CancelInterrupt, DeadlineInterrupt):
            # The handler is told and goes on, so it needs its slot as after any other answer.
            hold.take_again()
            raise
        hold.take_again()
        return row

    def wait_all(self, run_ids: Sequence[UUID], hold: Hold) -> None:
        """Drive runs until none of them is driven here any more; the slot is given back meanwhile.

        :raises Abandoned: if the process gives up
        """
        wanted = set(run_ids)
        self._drive_while(run_ids, hold, lambda: not wanted.isdisjoint(self._active))

    def wait_some(self, run_ids: Sequence[UUID], hold: Hold, until_us: int | None = None) -> set[UUID]:
        """Drive runs until none of them is driven here any more; return those that are.

        Sooner where one has failed that has a retry policy, or a time has come.

        :param until_us: in microseconds UTC, by the store's clock
        :raises Abandoned: if the process gives up
        """
        wanted = set(run_ids)
        until, now_us = NEVER if until_us is None else until_us, self._house.now_us

        def is_quiet() -> bool:
            if not wanted.isdisjoint(self._unwell) or now_us() >= until:
                return False
            return until_us is not None or not wanted.isdisjoint(self._active)

        self._drive_while(run_ids, hold, is_quiet, lambda: max(0.0, (until - now_us()) / 1_000_000), until)
        with self._monitor:
            self._unwell -= wanted
            return wanted & self._active.keys()

    def _drive_while(
        self,
        run_ids: Sequence[UUID],
        hold: Hold,
        condition: Callable[[], bool],
        longest_s: Callable[[], float] = lambda: LONGEST_LOOK_S,
        rest_us: int = NEVER,
    ) -> None:
        for run_id in run_ids:
            self.hand_over(run_id)
        for run_id in reversed(run_ids):
            self._house.slots.promote(run_id)
        if not condition():
            return
        hold.release()
        try:
            hold.wait_while(condition, longest_s, Stay(rest_us))
        except (CancelInterrupt, DeadlineInterrupt):
            hold.take_again()
            raise
        hold.take_again()

    def ring(self, run_ids: Iterable[UUID]) -> None:
        """Have runs of this process look into their inboxes at once."""
        with self._monitor:
            for run_id in run_ids:
                if run_id in self._mailboxes:
                    self._mailboxes[run_id].ring()
            self._monitor.notify_all()

    def wait_while_active(self, run_ids: Iterable[UUID], timeout_s: float | None) -> set[UUID]:
        """Wait until one of these runs, handed over, is not driven any more, or the time is over; return the others."""
        wanted = set(run_ids)
        with self._monitor:
            if wanted and wanted.isdisjoint(self._gone):
                self._house.slots.listen(timeout_s)
            return wanted - self._gone

    def wait_for_news(self, timeout_s: float) -> None:
        """Wait until anything happens to a run of this process, or the time is over, or, by Abandoned, the process gives up."""
        with self._monitor:
            self.check_open()
            self._house.slots.listen(timeout_s)
            self.check_open()

    def park(self, known: Mapping[UUID, int], least_s: float, *, lives_on: bool) -> Rest | None:
        """Give everything up whose next step is ``least_s`` or more away, leases included; None if there is anything sooner.

        The threads that wait are abandoned where they are, since the process leaves; in one that lives on they unwind.

        :param known: last inbox entries of the runs that are driven here; None is returned if one of them is not any more
        """
        with self._monitor:
            self.check_open()
            rest = rest_of(self._house.slots, self._active, self._holds, self._mailboxes, self._lanes.queued(known))
            if rest is None or not rest.outlasts(known, self._house.now_us() + round(least_s * 1_000_000)):
                return None
            if not lives_on:
                self._house.slots.freeze()
        if lives_on:
            self._unwind()
        else:
            self._close_session()
        return rest

    def error_of(self, run_id: UUID) -> ChildRunError | None:
        """Return why a run cannot be driven here, or None."""
        return self._undrivable.get(run_id)

    def close(self) -> None:
        """Give every run up: waits and the next io raise Abandoned.

        Each lease is released when its thread has ended, and the session with the last of them.
        """
        self._house.slots.close()
        with self._monitor:
            journals = [journal for journal in self._active.values() if journal is not None]
            self._gone.update(run_id for run_id, journal in self._active.items() if journal is None)
            self._active = {run_id: journal for run_id, journal in self._active.items() if journal is not None}
            self._monitor.notify_all()
        for journal in journals:
            journal.kill()
        self._close_session_if_last()

    def check_open(self) -> None:
        """Raise Abandoned if the process has given up."""
        if self._house.slots.is_closed:
            raise Abandoned("this process gave the run up while it waited")

    def is_idle(self) -> bool:
        """Whether nothing is driven."""
        return not self._active

    def wait_until_idle(self, timeout_s: float) -> None:
        """Wait until one more run is not driven any more, or the time is over."""
        with self._monitor:
            if self._active:
                self._house.slots.listen(timeout_s)

    def may_drive(self, row: RunRow) -> bool:
        """Whether nobody else owns a run, and this process can be sure of its own leases."""
        keeper = self._house.keeper
        return keeper.is_safe and (row.lease_expires_at is None or keeper.owns(row.lease_session_id))

    def _unwind(self) -> None:
        """Give everything up, and wait until the threads have ended."""
        self.close()
        until_s = self._house.scheduler.now_s() + LEAVING_S
        while not self.is_idle() and self._house.scheduler.now_s() < until_s:
            self.wait_until_idle(1.0)

    def _beginner(self, run_id: UUID) -> Callable[[], None]:
        return lambda: self._house.scheduler.start(f"childrun {run_id}", lambda: self._drive(run_id))

    def _drive(self, run_id: UUID) -> None:
        """Drive one run in this thread, whatever happens."""
        self._holds[run_id] = hold = Hold(self._house)
        waits_for_its_turn = is_unwell = False
        try:
            is_unwell = self._drive_until_settled(run_id, hold)
        except NoPlace:
            waits_for_its_turn = True
        except Abandoned:
            _log.info("child run %s: given up by this process", run_id)
        except LeaseLost as lost:
            _log.warning("child run %s: %s; this process leaves it alone", run_id, lost)
        except StoreInterrupt as broken:
            self._give_up(run_id, broken.cause or ChildRunError(str(broken)))
        except Interrupt as interrupt:
            _log.warning("child run %s: left open: %s", run_id, interrupt)
        except ChildRunError as error:
            self._give_up(run_id, error)
        except BaseException as error:
            _log.exception("child run %s: the engine failed", run_id)
            self._give_up(run_id, ChildRunError(f"{type(error).__name__} in the engine; see the log", code="run_error"))
            raise
        finally:
            hold.release()
            if not waits_for_its_turn:
                self._leave(run_id, is_unwell=is_unwell)

    def _leave(self, run_id: UUID, *, is_unwell: bool) -> None:
        with self._monitor:
            # Not before: whoever waits takes the mark of one that is still driven for one that it has seen.
            self._unwell.update([run_id] if is_unwell else [])
            self._active.pop(run_id, None)
            self._gone.add(run_id)
            self._mailboxes.pop(run_id, None)
            self._holds.pop(run_id, None)
            self._house.slots.tell()
        self._lanes.leave(run_id)
        self._close_session_if_last()

    def _close_session_if_last(self) -> None:
        """End the session once the process has given up and no thread of a run is left."""
        if self._house.slots.is_closed and self.is_idle():
            self._close_session()

    def _close_session(self) -> None:
        """End the session: every lease of this process is free."""
        try:
            self._house.keeper.close()
        except StorageError as error:
            _log.warning("the session of this process ends by itself later: %s", error)

    def _drive_until_settled(self, run_id: UUID, hold: Hold) -> bool:
        """Take a run over; begin anew where another writer came in between. Return whether it may be tried again."""
        for last in (*[False] * (CONFLICT_TRIES - 1), True):
            newborn = self._house.cradle.take(run_id)
            row = self._find(run_id) if newborn is None else newborn.row
            around = Surroundings(
                self.hand_over, self._may_begin, self.wait, self.wait_all, self.wait_some, self.ring, hold
            )
            driver = RunDriver(self._house, row, around, newborn)
            try:
                if self._driven(run_id, driver) == "stopped":
                    self.stopped.add(run_id)
            except LeaseLost:
                if last or (driver.journal is not None and driver.journal.has_written):
                    raise
            else:
                return driver.may_be_tried_again
        raise AssertionError("the last try returns or raises")

    def _may_begin(self, run_id: UUID, cap: Cap | None) -> bool:
        return self._lanes.may_begin(run_id, cap, self._beginner(run_id))

    def _driven(self, run_id: UUID, driver: RunDriver) -> str:
        try:
            driver.on_open = lambda journal, mailbox: self._register(run_id, journal, mailbox)
            return driver.drive()
        except Abandoned:
            driver.outlast_handlers()
            if driver.journal is not None:
                driver.journal.revive()
                driver.journal.release()
            raise
        except NoPlace:
            if driver.journal is not None:
                with self._monitor:
                    self._mailboxes.pop(run_id, None)
                    if run_id in self._active:
                        self._active[run_id] = None
                self._lanes.refused(run_id)
            raise
        except Interrupt:
            driver.outlast_handlers()
            if driver.journal is not None and self._house.keeper.owns(driver.journal.session_id):
                self._let_go(driver.journal)
            raise

    def _let_go(self, journal: RunJournal) -> None:
        """Give up a run that this process leaves alone: a session that goes on must not keep a lease that nobody uses."""
        try:
            journal.let_go()
        except StoreInterrupt:
            self._house.keeper.abandon(journal.session_id)

    def _register(self, run_id: UUID, journal: RunJournal, mailbox: Mailbox) -> None:
        # Without the monitor, which all threads want: whoever closes says so first, and looks for journals then.
        if run_id in (active := self._active):
            self._mailboxes[run_id], active[run_id] = mailbox, journal
        if self._house.slots.is_closed:
            journal.kill()

    def _carry_mail(self) -> None:
        """Look, now and then, whether anything came for the runs that are driven: one query for all of them."""
        while True:
            self._house.scheduler.sleep(self._house.limits.inbox_poll_s)
            with self._monitor:
                boxes = dict(self._mailboxes)
                if self._house.slots.is_closed or not self._active:
                    self._carries_mail = False
                    return
            try:
                rows = self._house.store.get_runs(boxes)
            except StorageError:
                continue
            news = [boxes[row.run_id].note(row.head.inbox_seq) for row in rows.values()]
            if any(news):
                with self._monitor:
                    self._monitor.notify_all()

    def _give_up(self, run_id: UUID, error: ChildRunError) -> None:
        _log.error("child run %s cannot be driven here: %s", run_id, error)
        with self._monitor:
            self._undrivable[run_id] = error

    def _watch(self, run_id: UUID, hold: Hold, until_us: int | None) -> RunRow:
        """Wait for a run that this process or another one drives, or until the time is over."""
        now_s, now_us = self._house.scheduler.now_s, self._house.now_us
        until = NEVER if until_us is None else until_us
        while True:
            hold.wait_while(
                lambda: run_id in self._active and now_us() < until,
                lambda: max(0.0, (until - now_us()) / 1_000_000),
                Stay(until),
            )
            with self._monitor:
                self.check_open()
                error = self._undrivable.get(run_id)
            row = self._find(run_id)
            if row.is_terminal or now_us() >= until:
                return row
            if error is not None:
                raise error
            if self.may_drive(row):
                self.hand_over(run_id)
            else:
                look_at = now_s() + min(self._house.limits.poll_s, (until - now_us()) / 1_000_000)
                hold.wait_while(lambda: now_s() < look_at, lambda: look_at - now_s(), Stay(AT_ONCE))  # noqa: B023

    def _find(self, run_id: UUID) -> RunRow:
        row = self._house.find_run(run_id)
        if row is None:
            raise NotFoundError(f"there is no run {run_id}; see `childrun runs list`", code="run_not_found")
        return row
