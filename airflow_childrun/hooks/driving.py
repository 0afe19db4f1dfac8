"""Driving runs for a task process: everything happens beside the main thread, which only waits and reports."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar
from uuid import UUID

from airflow_childrun.errors import ChildRunError, HostError, StoreInterrupt
from airflow_childrun.hooks.observer import TaskObserver
from airflow_childrun.model.config import Duration
from airflow_childrun.runtime.child_retry import Again, next_attempt
from airflow_childrun.runtime.dispatch import Dispatcher
from airflow_childrun.runtime.house import House
from airflow_childrun.runtime.scheduler import Monitor
from airflow_childrun.runtime.supervisor import Supervisor
from airflow_childrun.runtime.waiting import Hold
from airflow_childrun.store.api import RunRow, Store

T = TypeVar("T")
_log = logging.getLogger("airflow.task.childrun")
REPORT_EVERY_S = 10.0
AWAIT_TIMED_OUT = "await_timed_out"
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 2.0
"""Between two looks at children that DAG runs drive."""
LOOK_EVERY_S = 5.0
"""Between two looks at the DAG runs themselves."""
STOPPED = "this task was told to stop. Its child runs keep what they recorded: a retry or a clear of this task goes on from there"


@dataclass
class Progress:
    """How far a task's children are; read by the main thread while another one counts."""

    total: int = 0
    ended: int = 0
    failed: int = 0
    reported: tuple[int, int] = (0, 0)

    def report(self) -> None:
        """Log a line if there is news."""
        if self.total and self.reported != (self.ended, self.failed):
            self.reported = (self.ended, self.failed)
            failed = f", {self.failed} of them failed or cancelled" if self.failed else ""
            _log.info("child runs: %d of %d ended%s", self.ended, self.total, failed)


class Driving:
    """One try of a task, as far as it drives runs and waits for them."""

    opens_attempts: ClassVar[bool] = False
    """Whether the children are this task's own: only their parent opens generations."""

    def __init__(self, house: House, observer: TaskObserver) -> None:
        self._house = house
        self._observer = observer
        self._supervisor = Supervisor(house)
        self._progress = Progress()
        self._rows_driven: Sequence[RunRow] = ()
        self._dispatcher: Dispatcher | None = None
        self._newest: dict[UUID, UUID] = {}
        self._following: dict[UUID, Again] = {}
        self._told_to_leave = False
        self._waiting: Monitor | None = None
        self._await_until_us: int | None = None

    @property
    def store(self) -> Store:
        """The store of this task."""
        return self._house.store

    def key_of(self, row: RunRow) -> str:
        """Return the key of one of the task's children."""
        return self._observer.key(row)

    def name_of(self, row: RunRow) -> str:
        """Return how people know one of the task's children."""
        return self._observer.name(row)

    def drive(self, rows: Sequence[RunRow], await_timeout: Duration | None = None) -> list[RunRow]:
        """Drive runs until each has ended, and everything that they left running; return their last rows.

        Those that DAG runs drive are only watched.

        :raises HostError: code ``await_timed_out``, if that takes longer than ``await_timeout``; the children are left as
            they are
        :raises ChildRunError: if one cannot be driven; the others have ended then
        """
        elsewhere = {row.run_id for row in rows if self._is_elsewhere(row.run_id)}
        self._rows_driven = [row for row in rows if self._is_ours(row)]
        self._progress.total = len(rows)
        waiting = {row.run_id for row in rows if not row.is_terminal}
        self._progress.ended = len(rows) - len(waiting)
        for row in rows:
            if row.run_id in waiting - elsewhere:
                self._supervisor.hand_over(row.run_id)
        if await_timeout is not None:
            self._await_until_us = self._house.now_us() + await_timeout.us
        here = waiting - elsewhere
        self._newest = {row.slot_id: row.run_id for row in rows}
        self._following = self._due(row for row in rows if row.is_terminal)
        self._watch(here, waiting & elsewhere)
        errors = self._settle(here)
        while not self._supervisor.is_idle():
            self._supervisor.wait_until_idle(self._wait_s())
        if self._dispatcher is not None:
            errors += self._dispatcher.errors.values()
        if errors:
            raise errors[0]
        last = self._house.store.get_runs(self._newest.values())
        return [last[self._newest[row.slot_id]] for row in rows]

    def _is_elsewhere(self, run_id: UUID) -> bool:
        """Whether DAG runs are to drive a run."""
        return self._dispatcher is not None and self._dispatcher.drives(run_id)

    def _is_ours(self, row: RunRow) -> bool:
        """Whether a run ends with this task, when that fails for good."""
        return not self._is_elsewhere(row.run_id)

    def close(self) -> None:
        """Give up what is still driven; the session ends with the last thread of a run."""
        self._supervisor.close()

    def leave(self, within_s: float) -> None:
        """Give up from a signal handler: what the store has to be told is told beside the main thread, and not for long."""
        left: list[bool] = []
        monitor = self._house.scheduler.monitor()

        def close() -> None:
            self._before_leaving()
            self.close()
            with monitor:
                left.append(True)
                monitor.notify_all()

        self._house.scheduler.start("childrun leave", close)
        with monitor:
            if not left:
                monitor.wait(within_s)
        self._told_to_leave = True
        if self._waiting is not None:
            with self._waiting:
                self._waiting.notify_all()

    def _before_leaving(self) -> None:
        """Tell the store what it has to know, before the runs are given up."""

    def in_background(self, work: Callable[[], T]) -> T:
        """Run ``work`` beside the main thread, which waits, interruptible by signals, and reports meanwhile.

        :raises HostError: code ``task_stopped``, once the process was told to leave: a handler inside a call to the outside
            world may not come back in time, and is abandoned
        :raises StorageError: if the store stays unavailable
        """
        self._waiting = monitor = self._house.scheduler.monitor()
        returned: list[T] = []
        raised: list[BaseException] = []
        ended: list[bool] = []

        def run() -> None:
            try:
                returned.append(work())
            except BaseException as error:  # noqa: BLE001 - raised again in the waiting thread
                raised.append(error)
            finally:
                with monitor:
                    ended.append(True)
                    monitor.notify_all()

        self._house.scheduler.start("childrun host", run)
        with monitor:
            while not ended and not self._told_to_leave:
                monitor.wait(REPORT_EVERY_S)
                self._progress.report()
        if returned:
            return returned[0]
        if self._told_to_leave:
            raise HostError(STOPPED, code="task_stopped", retryable=True)
        if isinstance(raised[0], StoreInterrupt) and raised[0].cause is not None:
            # An Interrupt is for handlers; whoever called from the task is told what is wrong.
            raise raised[0].cause from raised[0]
        raise raised[0]

    def _watch(self, here: set[UUID], elsewhere: set[UUID]) -> None:
        """Count ends while this process drives anything, or others do it for this task."""
        active, away = set(here), set(elsewhere)
        now_s = self._house.scheduler.now_s
        pause_s, look_at = FIRST_PAUSE_S, now_s() + LOOK_EVERY_S
        while active or away or self._following:
            longest_s = min(self._wait_s(), pause_s if away else 1.0, self._next_s())
            if active:
                active -= self._count(active - self._supervisor.wait_while_active(active, longest_s))
            else:
                self._pause(longest_s)
            begun = self._begin_due()
            active |= begun
            here |= begun
            if away:
                rows = self._house.patience.attempt(lambda: self._house.store.get_runs(away))  # noqa: B023
                if self._dispatcher is not None and now_s() >= look_at:
                    self._dispatcher.look(rows.values())
                    look_at = now_s() + LOOK_EVERY_S
                away -= self._count({row.run_id for row in rows.values() if row.is_terminal})
                away -= set() if self._dispatcher is None else self._dispatcher.errors.keys()
            pause_s = min(pause_s * 1.2, LONGEST_PAUSE_S)

    def _count(self, done: set[UUID]) -> set[UUID]:
        """Add to what is reported runs that are not driven any more."""
        if done:
            rows = self._house.patience.attempt(lambda: self._house.store.get_runs(done))
            following = self._due(rows.values())
            self._following |= following
            ended = [row for row in rows.values() if row.run_id not in following]
            self._progress.ended += sum(row.is_terminal for row in ended)
            self._progress.failed += sum(row.status in ("Failed", "Cancelled") for row in ended)
        return done

    def _pause(self, seconds: float) -> None:
        """Wait, unless this process is told to leave.

        :raises Abandoned: then
        """
        over_at = self._house.scheduler.now_s() + seconds

        def left_s() -> float:
            return over_at - self._house.scheduler.now_s()

        Hold(self._house).wait_while(lambda: left_s() > 0, left_s)

    def _due(self, rows: Iterable[RunRow]) -> dict[UUID, Again]:
        """Return the attempts that are to follow failed children, by the run that failed, and tell people."""
        store, found = self._house.store, {}
        for row in (row for row in rows if self.opens_attempts and not self._is_elsewhere(row.run_id)):
            again = self._house.patience.attempt(lambda: next_attempt(store, row))  # noqa: B023
            if again is not None:
                found[row.run_id] = again
                left_s = max(0.0, self._left_s(again))
                name = self._observer.name(row)
                _log.warning("child %s: failed [%s]; attempt %d in %.0f s", name, row.error_code, again.attempt, left_s)
        return found

    def _left_s(self, again: Again) -> float:
        return (again.at_us - self._house.now_us()) / 1_000_000

    def _next_s(self) -> float:
        """Return how long it takes until an attempt is due, a second at most."""
        return max(0.0, min([1.0, *(self._left_s(again) for again in self._following.values())]))

    def _begin_due(self) -> set[UUID]:
        """Begin the attempts whose time has come, and return their runs."""
        due = [again for again in self._following.values() if self._left_s(again) <= 0]
        for again in due:
            del self._following[again.row.run_id]
        return {self._begin_again(again).run_id for again in due}

    def _begin_again(self, again: Again) -> RunRow:
        """Open and drive a child's next attempt."""
        row = self._try_again(again)
        self._observer.keys[row.run_id] = self._observer.key(again.row)
        self._newest[row.slot_id] = row.run_id
        self._supervisor.hand_over(row.run_id)
        return row

    def _try_again(self, again: Again) -> RunRow:
        raise NotImplementedError(again)

    def _wait_s(self) -> float:
        """Return how long to wait before looking again.

        :raises HostError: code ``await_timed_out``
        """
        if self._await_until_us is None:
            return 1.0
        left_s = (self._await_until_us - self._house.now_us()) / 1_000_000
        if left_s <= 0:
            raise HostError(
                "the children of this task had not ended when its await_timeout was over. They are left as they are: a "
                "retry or a clear of this task goes on with them",
                code=AWAIT_TIMED_OUT,
                retryable=True,
            )
        return min(1.0, left_s)

    def _settle(self, waiting: set[UUID]) -> list[ChildRunError]:
        """Wait for those that another process drives; collect why some cannot be driven."""
        rows = self._house.patience.attempt(lambda: self._house.store.get_runs(waiting))
        errors: list[ChildRunError] = []
        for row in rows.values():
            if row.is_terminal:
                continue
            try:
                last = self._supervisor.wait(row.run_id, until_us=self._await_until_us)
                while following := self._due([last]):
                    again = following[last.run_id]
                    while (left_s := self._left_s(again)) > 0:
                        self._pause(min(self._wait_s(), left_s))
                    last = self._supervisor.wait(self._begin_again(again).run_id, until_us=self._await_until_us)
                self._wait_s()
            except HostError:
                raise
            except ChildRunError as error:
                name = self._observer.name(row)
                _log.error("child %s cannot be driven here: %s", name, error)
                errors.append(error)
        return errors
