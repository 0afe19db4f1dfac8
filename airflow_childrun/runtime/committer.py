"""Group commit: whoever finds the way free leads, and takes along everyone who waits. A lone commit runs inline."""

from __future__ import annotations

from uuid import UUID

from airflow_childrun.errors import StorageError, UnavailableError
from airflow_childrun.runtime.scheduler import Scheduler
from airflow_childrun.store.api import Commit, Committed, Conflict, Store


class _Waiting:
    """A commit on its way, and what became of it."""

    __slots__ = ("answer", "commit")

    def __init__(self, commit: Commit) -> None:
        self.commit = commit
        self.answer: Committed | Conflict | BaseException | None = None

    @property
    def runs(self) -> set[UUID]:
        """The runs that it moves."""
        return {step.run_id for step in self.commit.steps}


class Committer:
    """Submits the commits of one process.

    :param max_batch: how many commits share a transaction at most
    """

    def __init__(self, store: Store, scheduler: Scheduler, max_batch: int = 128) -> None:
        self._store = store
        self._monitor = scheduler.monitor()
        self._max_batch = max_batch
        self._queue: list[_Waiting] = []
        self._led = False

    def submit(self, commit: Commit) -> Committed | Conflict:
        """Make a commit happen, together with those that wait, and return its own answer.

        :raises UnavailableError: outcome unknown; submit the identical commit again
        :raises StorageError: what else the store has against it
        """
        mine = _Waiting(commit)
        with self._monitor:
            self._queue.append(mine)
        while mine.answer is None:
            batch = self._lead_or_wait(mine)
            if batch:
                self._carry_out(batch)
        if isinstance(mine.answer, BaseException):
            raise mine.answer
        return mine.answer

    def _lead_or_wait(self, mine: _Waiting) -> list[_Waiting]:
        """Return a batch to carry out, or nothing once ``mine`` is answered."""
        with self._monitor:
            while self._led and mine.answer is None:
                self._monitor.wait()
            if mine.answer is not None:
                return []
            self._led = True
            return self._take_batch()

    def _take_batch(self) -> list[_Waiting]:
        """Take waiting commits in order, each run at most once."""
        if len(self._queue) == 1:
            alone, self._queue = self._queue, []
            return alone
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
        # Should this thread die in the store, the outcome is unknown: who waits submits the identical commit again.
        died = UnavailableError("the thread that led this group commit died")
        answers: list[Committed | Conflict | BaseException] = [died] * len(batch)
        try:
            answers = self._ask(batch)
        finally:
            with self._monitor:
                for waiting, answer in zip(batch, answers, strict=True):
                    waiting.answer = answer
                self._led = False
                self._monitor.notify_all()

    def _ask(self, batch: list[_Waiting]) -> list[Committed | Conflict | BaseException]:
        """Hand a batch to the store; where it refuses the whole, each member alone: one bad member harms no other."""
        try:
            return [*self._store.commit([waiting.commit for waiting in batch])]
        except UnavailableError as error:
            return [error] * len(batch)
        except StorageError as error:
            if len(batch) == 1:
                return [error]
        return [answer for waiting in batch for answer in self._ask([waiting])]
