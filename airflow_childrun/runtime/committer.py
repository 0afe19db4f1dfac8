"""Group commit: whoever finds the way free leads, and takes along everyone who waits. A lone commit runs inline."""

from __future__ import annotations

from uuid import UUID

from airflow_childrun.errors import StorageError, UnavailableError
from airflow_childrun.runtime.scheduler import Monitor, Scheduler
from airflow_childrun.store.api import Commit, Committed, Conflict, Store

Answer = Committed | Conflict | BaseException


class _Waiting:
    """A commit on its way, and what became of it.

    :ivar bell: wakes the thread that waits for it, and no other: to wake all would have each of them ask for the one
        lock of the process; None if that thread leads at once
    :ivar batch: what its thread carries out, once it leads
    """

    __slots__ = ("_leads", "answer", "batch", "bell", "commit")

    def __init__(self, commit: Commit) -> None:
        self.commit = commit
        self.answer: Answer | None = None
        self.batch: list[_Waiting] = []
        self.bell: Monitor | None = None
        self._leads = False

    @property
    def runs(self) -> set[UUID]:
        """The runs that it moves."""
        return {step.run_id for step in self.commit.steps}

    def wait(self) -> None:
        """Wait until it is answered, or its thread has to lead."""
        if self.bell is not None:
            with self.bell:
                while self.answer is None and not self._leads:
                    self.bell.wait()

    def settle(self, answer: Answer) -> None:
        """Answer it."""
        self.answer = answer
        self._ring()

    def lead(self) -> None:
        """Let its thread lead."""
        self._leads = True
        self._ring()

    def _ring(self) -> None:
        if self.bell is not None:
            with self.bell:
                self.bell.notify_all()


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
        mine = _Waiting(commit)
        try:
            self._join(mine)
            mine.wait()
            if mine.answer is None:
                self._carry_out(mine.batch or self._take_batch(mine))
        except BaseException:
            self._withdraw(mine)
            raise
        finally:
            mine.batch = []  # it names itself there: all that was written would wait for the garbage collector
        if isinstance(mine.answer, BaseException):
            raise mine.answer
        if mine.answer is None:
            raise AssertionError("whoever leads carries out its own commit")
        return mine.answer

    def _join(self, mine: _Waiting) -> None:
        """Let a commit's thread lead, or wait for whoever does."""
        with self._monitor:
            if self._leader is None:  # nobody waits then
                mine.batch = [mine]
                self._leader = mine
            else:
                mine.bell = self._scheduler.monitor()
                self._queue.append(mine)

    def _withdraw(self, mine: _Waiting) -> None:
        """Let the others go on without a thread that was torn out of this: Airflow's timeout may come anywhere."""
        with self._monitor:
            self._queue = [waiting for waiting in self._queue if waiting is not mine and waiting not in mine.batch]
            if self._leader is mine:
                self._pass_on()
        for waiting in mine.batch:
            waiting.settle(waiting.answer or _torn())

    def _pass_on(self) -> None:
        """Let the first one lead that still waits; with the monitor held."""
        self._leader = self._queue[0] if self._queue else None
        if self._leader is not None:
            self._leader.lead()

    def _take_batch(self, mine: _Waiting) -> list[_Waiting]:
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
            mine.batch = batch
            self._queue = left
            return batch

    def _carry_out(self, batch: list[_Waiting]) -> None:
        for waiting, answer in zip(batch, self._ask(batch), strict=True):
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


def _torn() -> UnavailableError:
    """Return the answer to commits whose outcome is unknown: whoever waits submits the identical commit again."""
    return UnavailableError("the thread that led this group commit died")
