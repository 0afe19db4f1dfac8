"""Group commit: whoever finds the way free leads, and takes along everyone who waits. A lone commit runs inline."""

from __future__ import annotations

from uuid import UUID

from airflow_childrun.errors import StorageError, UnavailableError
from airflow_childrun.runtime.scheduler import Monitor, Scheduler
from airflow_childrun.store.api import Commit, Committed, Conflict, Store

Answer = Committed | Conflict | BaseException


class _Waiting:
    """A commit on its way, and what became of it.

    :param bell: wakes the thread that waits for it, and no other: to wake all would have each of them ask for the one
        lock of the process; None if that thread leads at once
    """

    __slots__ = ("_bell", "_leads", "answer", "commit")

    def __init__(self, commit: Commit, bell: Monitor | None) -> None:
        self.commit = commit
        self.answer: Answer | None = None
        self._bell = bell
        self._leads = bell is None

    @property
    def runs(self) -> set[UUID]:
        """The runs that it moves."""
        return {step.run_id for step in self.commit.steps}

    def wait(self) -> None:
        """Wait until it is answered, or its thread has to lead."""
        if self._bell is not None:
            with self._bell:
                while self.answer is None and not self._leads:
                    self._bell.wait()

    def settle(self, answer: Answer) -> None:
        """Answer it."""
        self.answer = answer
        self._ring()

    def lead(self) -> None:
        """Let its thread lead."""
        self._leads = True
        self._ring()

    def _ring(self) -> None:
        if self._bell is not None:
            with self._bell:
                self._bell.notify_all()


class Committer:
    """Submits the commits of one process.

    :param max_batch: how many commits share a transaction at most
    """

    def __init__(self, store: Store, scheduler: Scheduler, max_batch: int = 128) -> None:
        self._store = store
        self._scheduler = scheduler
        self._monitor = scheduler.monitor()
        self._max_batch = max_batch
        self._queue: list[_Waiting] = []
        self._leader: _Waiting | None = None

    def submit(self, commit: Commit) -> Committed | Conflict:
        """Make a commit happen, together with those that wait, and return its own answer.

        :raises UnavailableError: outcome unknown; submit the identical commit again
        :raises StorageError: what else the store has against it
        """
        mine, batch = self._join(commit)
        try:
            if not batch:
                mine.wait()
            if mine.answer is None:
                self._carry_out(batch or self._take_batch())
        except BaseException:
            self._withdraw(mine)
            raise
        if isinstance(mine.answer, BaseException):
            raise mine.answer
        if mine.answer is None:
            raise AssertionError("whoever leads carries out its own commit")
        return mine.answer

    def _join(self, commit: Commit) -> tuple[_Waiting, list[_Waiting]]:
        """Return a commit, and what its thread has to carry out at once: nothing, if somebody else leads."""
        with self._monitor:
            if self._leader is None:  # nobody waits then
                mine = self._leader = _Waiting(commit, None)
                return mine, [mine]
            mine = _Waiting(commit, self._scheduler.monitor())
            self._queue.append(mine)
            return mine, []

    def _withdraw(self, mine: _Waiting) -> None:
        """Let the others go on without a thread that was torn out of its wait: Airflow's timeout may come anywhere."""
        with self._monitor:
            if mine in self._queue:
                self._queue.remove(mine)
            if self._leader is mine:
                self._pass_on()

    def _pass_on(self) -> None:
        """Let the first one lead that still waits; with the monitor held."""
        self._leader = self._queue[0] if self._queue else None
        if self._leader is not None:
            self._leader.lead()

    def _take_batch(self) -> list[_Waiting]:
        """Take waiting commits in order, each run at most once: the leader's own is the first."""
        with self._monitor:
            batch: list[_Waiting] = []
            taken: set[UUID] = set()
            left: list[_Waiting] = []
            for waiting in self._queue:
                runs = waiting.runs
                if len(batch) < self._max_batch and taken.isdisjoint(runs):
                    batch.append(waiting)
                else:
                    left.append(waiting)
                taken |= runs
            self._queue = left
            return batch

    def _carry_out(self, batch: list[_Waiting]) -> None:
        answers: list[Answer] = []
        try:
            answers += self._ask(batch)
        finally:
            if not answers:
                # This thread dies in the store; the outcome is unknown: who waits submits the identical commit again.
                answers += [UnavailableError("the thread that led this group commit died")] * len(batch)
            for waiting, answer in zip(batch, answers, strict=True):
                waiting.settle(answer)
            with self._monitor:
                self._pass_on()

    def _ask(self, batch: list[_Waiting]) -> list[Answer]:
        """Hand a batch to the store; where it refuses the whole, each member alone: one bad member harms no other."""
        try:
            return [*self._store.commit([waiting.commit for waiting in batch])]
        except UnavailableError as error:
            return [error] * len(batch)
        except StorageError as error:
            if len(batch) == 1:
                return [error]
        return [answer for waiting in batch for answer in self._ask([waiting])]
