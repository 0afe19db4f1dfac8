"""What a parent's transport asks of the runtime: look at children, have them driven, wait for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar
from uuid import UUID

from airflow_childrun.engine.history import ChildLink, RunHistory
from airflow_childrun.engine.ports import RunIdentity
from airflow_childrun.errors import (
    AwaitTimeoutError,
    ChildRunError,
    CorruptionError,
    OtherIoError,
    StorageError,
    StoreInterrupt,
)
from airflow_childrun.ids import child_run_id
from airflow_childrun.runtime.child_retry import Again, next_attempt
from airflow_childrun.runtime.ends import end_of, ends_of
from airflow_childrun.runtime.generations import (
    Succession,
    generations_of,
    get_many,
    newest_among,
    newest_of,
    next_generation,
)
from airflow_childrun.runtime.house import House
from airflow_childrun.store.api import Cap, RunRow
from airflow_childrun.transports.nursery import NextAttempt, Settle

T = TypeVar("T")


class HandOver(Protocol):
    """Gives a run to the process's supervisor."""

    def __call__(self, run_id: UUID, cap: Cap | None = None) -> None:
        """Drive it as soon as it is its turn."""


class RunNursery:
    """The children of one driven run.

    What :meth:`look_up` and :meth:`gather` read for many children at once is kept for the calls that follow, each of
    which asks for it once.

    :param hand_over: gives a run to the process's supervisor
    :param wait: waits for a run's end or a time, holding no slot
    :param wait_some: see :meth:`~airflow_childrun.runtime.supervisor.Supervisor.wait_some`
    """

    def __init__(
        self,
        house: House,
        history: RunHistory,
        hand_over: HandOver,
        wait: Callable[[UUID, int | None], RunRow],
        wait_some: Callable[[Sequence[UUID], int | None], set[UUID]],
    ) -> None:
        self._house = house
        self._history = history
        self._wait = wait
        self._wait_some = wait_some
        self._hand_over = hand_over
        self._rows: dict[UUID, RunRow | None] = {}
        self._newest: dict[UUID, RunRow] = {}
        self._ends: dict[tuple[UUID, bool], dict[str, Any]] = {}
        self._own: dict[UUID, ChildLink] = {}
        self._own_counted = 0

    def hand_over(self, run_id: UUID, cap: Cap | None = None) -> None:
        """Let the process drive a child from now on."""
        self._hand_over(run_id, cap)

    def now_us(self) -> int:
        """Return the store's time."""
        return self._house.now_us()

    def look_up(self, run_ids: Sequence[UUID]) -> None:
        """Read many rows at once."""
        found = self._patiently(lambda: get_many(self._house.store, run_ids))
        self._rows |= {run_id: found.get(run_id) for run_id in run_ids}

    def gather(self, run_ids: Sequence[UUID], settle: Settle, *, compact: bool) -> None:
        """Wait for many children at once, and read how they ended."""
        store = self._house.store
        # Most are the first generation of their slot, which has its id: one query finds them and those that followed.
        found = self._patiently(lambda: generations_of(store, run_ids))
        rows = {row.run_id: row for row in found}
        others = self._patiently(lambda: get_many(store, [run_id for run_id in run_ids if run_id not in rows]))
        rows |= others
        newest = self._known_newest(newest_among(found)) | self._newest_of([row.slot_id for row in others.values()])
        done = {slot: row for slot, row in settle(newest).items() if row.status == "Completed"}
        answers = self._patiently(lambda: ends_of(store, list(done.values()), compact=compact))
        self._rows |= {run_id: rows[run_id] for run_id in run_ids if run_id in rows}
        self._newest |= done
        self._ends |= {(run_id, compact): answer for run_id, answer in answers.items()}

    def wait_some(self, run_ids: Sequence[UUID], until_us: int | None) -> set[UUID]:
        """Wait, holding no slot, until something has become of some children; return those that are still driven here."""
        return self._wait_some(run_ids, until_us)

    def get_runs(self, run_ids: Sequence[UUID]) -> dict[UUID, RunRow]:
        """Return the rows of those runs that exist."""
        return self._patiently(lambda: get_many(self._house.store, run_ids))

    def next_attempt(self, row: RunRow) -> Again | None:
        """Return the attempt that is to follow a child's failed one, or None."""
        return self._patiently(lambda: next_attempt(self._house.store, row))

    def find_wait(self, key: str) -> tuple[int, int] | None:
        """Return number and end of the last wait that the run opened under a key, or None."""
        wait = self._history.waits.get(key)
        return None if wait is None else (wait.number, wait.until)

    def too_late(self, run_id: UUID) -> AwaitTimeoutError:
        """Return the error for an await whose time is over."""
        return AwaitTimeoutError(
            f"child run {run_id} had not ended when the await's time was over; it goes on, and may be awaited again"
        )

    def find_run(self, run_id: UUID) -> RunRow | None:
        """Return a run's row.

        :raises CorruptionError: if the stream tells of this child and there is no such row, or one of another manifest
        """
        row = self._rows.pop(run_id) if run_id in self._rows else self._house.find_run(run_id)
        self._note_children()
        started = self._history.started
        # A V1 crash may leave the linkage of a child that never came to be; it is started then.
        link = self._own.get(run_id) if started is not None and started.engine is not None else None
        if link is not None and (row is None or link.manifest_id not in (None, row.manifest_id)):
            raise self._gone(link)
        return row

    def _gone(self, link: ChildLink) -> CorruptionError:
        run_id, seq = link.child_run_id, link.at[1]
        return CorruptionError(
            f"the row of run {run_id}, which run {self._history.run_id} spawned at event {seq}, is gone or not "
            f"what was written; run `childrun verify {self._history.run_id}` and restore it from a backup",
            code="run_row_mismatch",
            details={"run_id": str(run_id), "seq": seq},
        )

    def newest_generation(self, slot_id: UUID) -> RunRow:
        """Return the newest generation of a slot."""
        known = self._newest.pop(slot_id, None)
        return known or self._newest_of([slot_id])[slot_id]

    def _newest_of(self, slot_ids: Sequence[UUID]) -> dict[UUID, RunRow]:
        """Return the newest generation of slots.

        :raises CorruptionError: if the stream tells of a newer one
        """
        return self._known_newest(self._patiently(lambda: newest_of(self._house.store, slot_ids)))

    def _known_newest(self, newest: dict[UUID, RunRow]) -> dict[UUID, RunRow]:
        """Refuse what is not the newest generation of its slot by this run's stream."""
        self._note_children()
        for slot_id, row in newest.items():
            link = self._own.get(slot_id)
            if link is not None and link.fact_key is not None:
                newer = self._own.get(child_run_id(self._history.chain_id, link.fact_key, row.generation + 1))
                if newer is not None:
                    raise self._gone(newer)
        return newest

    def wait_terminal(self, run_id: UUID, until_us: int | None = None) -> RunRow:
        """Wait, holding no slot, until a run has ended.

        :raises AwaitTimeoutError: if it has not when the time is over
        :raises OtherIoError: code ``child_run_task_failed``, if nobody can drive it
        """
        try:
            row = self._wait(run_id, until_us)
        except StorageError as error:
            raise StoreInterrupt(str(error), error) from error
        except ChildRunError as error:
            raise OtherIoError(
                f"child run {run_id} cannot be driven here: {error.info.message} [{error.code}]",
                code="child_run_task_failed",
                retryable=error.retryable,
                details={"code": error.code},
            ) from error
        if not row.is_terminal:
            raise self.too_late(run_id)
        return row

    def end_of(self, row: RunRow, *, compact: bool) -> dict[str, Any]:
        """Return how a terminal run ended."""
        known = self._ends.pop((row.run_id, compact), None)
        return known or self._patiently(lambda: end_of(self._house.store, row, compact=compact))

    def next_generation(self, row: RunRow, opener: RunIdentity, again: NextAttempt | None) -> Succession:
        """Return what opens the generation that follows a terminal one."""
        return self._patiently(lambda: next_generation(self._house, row, opener, again))

    def must_heal(self, row: RunRow) -> bool:
        """Whether this run continues another and has not opened this slot's next generation yet."""
        if self._history.segment == 0:
            return False
        own = (child for child in self._history.children if child.at[0] == self._history.segment)
        return all(child.child_run_id != row.run_id for child in own)

    def is_own_child(self, row: RunRow) -> bool:
        """Whether this run, or one that it continues, spawned the run."""
        self._note_children()
        return row.run_id in self._own or row.slot_id in self._own or row.parent_run_id == self._history.run_id

    def _note_children(self) -> None:
        """Take in what the run has spawned since the last look."""
        spawned = self._history.children
        self._own |= {child.child_run_id: child for child in spawned[self._own_counted :]}
        self._own_counted = len(spawned)

    def is_linked(self, fact_key: str) -> bool:
        """Whether the linkage event of the fact under a key stands in this run's stream."""
        return fact_key in self._history.linked

    def _patiently(self, work: Callable[[], T]) -> T:
        return self._house.patience.attempt(work)
