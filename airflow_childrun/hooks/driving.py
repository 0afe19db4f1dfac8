"""Driving runs for a task process: everything happens beside the main thread, which only waits and reports."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar
from uuid import UUID

from airflow_childrun.engine.ports import Watch
from airflow_childrun.errors import HostError, StoreInterrupt
from airflow_childrun.hooks.deferral import (
    INLINE_S,
    LONG_WAIT_S,
    AwaitedDagRun,
    AwaitPolicy,
    Calls,
    Deferral,
    HostMark,
    Parked,
    await_timed_out,
)
from airflow_childrun.hooks.observer import TaskObserver
from airflow_childrun.runtime.awaiting import Awaiting
from airflow_childrun.runtime.child_retry import Again, next_attempt
from airflow_childrun.runtime.dispatch import Dispatcher
from airflow_childrun.runtime.histories import read_starts
from airflow_childrun.runtime.house import House
from airflow_childrun.runtime.scheduler import Monitor
from airflow_childrun.runtime.supervisor import Supervisor
from airflow_childrun.runtime.waiting import NEVER
from airflow_childrun.store.api import RunRow, Store

T = TypeVar("T")
_log = logging.getLogger("airflow.task.childrun")
REPORT_EVERY_S = 10.0
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
        self._rows_awaited: Sequence[RunRow] = ()
        self._look_at_s = 0.0
        self._awaiting: Awaiting | None = None
        self._left_running: Sequence[UUID] = ()

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

    def drive(self, rows: Sequence[RunRow], policy: AwaitPolicy | None = None) -> list[RunRow]:
        """Drive runs until each has ended, and everything that they left running; return their last rows.

        Those that DAG runs drive are only watched.

        :raises ChildRunError: if one cannot be driven; the others have ended then
        :raises HostError: code ``await_timed_out``; the children are left as they are
        :raises Deferral: if the policy lets the task leave its worker, and there is nothing to do for a while
        """
        policy = policy or AwaitPolicy(poll_interval_s=self._house.limits.poll_s)
        self._rows_awaited = rows
        self._rows_driven = [row for row in rows if self._is_ours(row)]
        self._progress.total = len(rows)
        self._progress.ended = sum(row.is_terminal for row in rows)
        self._awaiting = awaiting = Awaiting(
            self._house,
            self._supervisor,
            rows,
            is_remote=lambda row: self._is_elsewhere(row.run_id),
            poll_s=policy.poll_interval_s,
        )
        for run_id in self._left_running:
            self._supervisor.hand_over(run_id)
        self._newest = {row.slot_id: row.run_id for row in rows}
        self._following = self._due(row for row in rows if row.is_terminal)
        leave_at_s = self._house.scheduler.now_s() + INLINE_S
        while not awaiting.is_over or self._following:
            self._count(awaiting.step(self._next_s()))
            for row in self._begin_due():
                awaiting.add(row)
            self._look_at_dag_runs(awaiting)
            if policy.give_up_at is not None and self._house.clock.now_us() >= policy.give_up_at:
                raise await_timed_out()
            if policy.deferrable and self._house.scheduler.now_s() >= leave_at_s:
                self._leave_worker(awaiting, policy)
        for row in rows:
            if row.run_id in awaiting.errors:
                _log.error("child %s cannot be driven here: %s", self.name_of(row), awaiting.errors[row.run_id])
        if awaiting.errors:
            raise next(iter(awaiting.errors.values()))
        last = self._house.store.get_runs(self._newest.values())
        return [last[self._newest[row.slot_id]] for row in rows]

    def _is_elsewhere(self, run_id: UUID) -> bool:
        """Whether DAG runs are to drive a run."""
        return self._dispatcher is not None and self._dispatcher.drives(run_id)

    def _is_ours(self, row: RunRow) -> bool:
        """Whether a run ends with this task, when that fails for good."""
        return not self._is_elsewhere(row.run_id)

    def _look_at_dag_runs(self, awaiting: Awaiting) -> None:
        """Notice now and then DAG runs that were lost; a child that nobody will go on with is waited for no longer."""
        now_s = self._house.scheduler.now_s()
        if self._dispatcher is None or now_s < self._look_at_s:
            return
        self._look_at_s = now_s + LOOK_EVERY_S
        self._dispatcher.look(awaiting.elsewhere.values())
        awaiting.give_up(self._dispatcher.errors)

    def _leave_worker(self, awaiting: Awaiting, policy: AwaitPolicy) -> None:
        """Leave if every run that is driven here waits for long or for a DAG run, and others drive the rest.

        :raises Deferral: then
        """
        if (awaiting.is_over and not self._following) or any(
            self._left_s(again) < LONG_WAIT_S for again in self._following.values()
        ):
            return
        entries = {row.run_id: row.head.inbox_seq for row in self._rows_awaited}
        known = {run_id: entries.get(run_id, 0) for run_id in awaiting.here}
        rest = self._supervisor.park(known, LONG_WAIT_S, lives_on=policy.lives_on)
        if rest is None:
            return
        remote = awaiting.remote()
        wake_at = min([rest.wake_at, *(again.at_us for again in self._following.values())])
        raise Deferral(
            Parked(
                run_ids=tuple(row.run_id for row in self._rows_awaited),
                keys=tuple(map(self.key_of, self._rows_awaited)),
                driven=frozenset(awaiting.elsewhere.keys() - remote),
                remote=frozenset(remote),
                inboxes=rest.inboxes,
                wake_at=None if wake_at == NEVER else wake_at,
                host=self._mark(),
                dag_runs=self._awaited_dag_runs(rest.watched),
            )
        )

    def _awaited_dag_runs(self, watched: Mapping[UUID, Watch]) -> tuple[AwaitedDagRun, ...]:
        """Return the DAG runs that runs driven here wait for."""
        starts = self._house.patience.attempt(lambda: read_starts(self._house.store, watched))
        own = set(self._newest.values())

        def calls(run_id: UUID) -> Calls:
            policy = starts[run_id].child_retry_policy
            if run_id not in own:
                return "any"
            is_last = policy is None or starts[run_id].child_attempt >= policy.attempts
            return "last" if is_last else "failure"

        return tuple(AwaitedDagRun(**watch, calls=calls(run_id)) for run_id, watch in watched.items())

    def _mark(self) -> HostMark | None:
        """Return in whose name the children may be asked to end while the task is away."""
        return None

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

    def _count(self, ended: Sequence[RunRow]) -> None:
        """Add to what is reported runs that have ended, unless another attempt is to follow."""
        following = self._due(ended)
        self._following |= following
        for row in ended:
            if row.run_id not in following:
                self._progress.ended += 1
                self._progress.failed += row.status in ("Failed", "Cancelled")

    def _begin_due(self) -> list[RunRow]:
        """Open the attempts whose time has come, and return their runs."""
        due = [again for again in self._following.values() if self._left_s(again) <= 0]
        for again in due:
            del self._following[again.row.run_id]
        return [self._begin_again(again) for again in due]

    def _begin_again(self, again: Again) -> RunRow:
        """Open a child's next attempt."""
        row = self._try_again(again)
        self._observer.keys[row.run_id] = self._observer.key(again.row)
        self._newest[row.slot_id] = row.run_id
        return row

    def _try_again(self, again: Again) -> RunRow:
        raise NotImplementedError(again)
