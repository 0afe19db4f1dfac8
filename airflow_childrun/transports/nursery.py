"""What the runtime does for a parent's transport: look at children, have them driven, wait for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol
from uuid import UUID

from airflow_childrun.engine.ports import RunIdentity
from airflow_childrun.errors import AwaitTimeoutError
from airflow_childrun.store.api import Artifact, Cap, RunRow, RunStep

Settle = Callable[[Mapping[UUID, RunRow]], Mapping[UUID, RunRow]]
"""Waits for the newest generations of slots, and returns their last ones."""


class NextAttempt(Protocol):
    """The attempt that is to follow a child's failed one."""

    @property
    def row(self) -> RunRow:
        """The generation that failed."""

    @property
    def attempt(self) -> int:
        """Its number, from 1."""

    @property
    def at_us(self) -> int:
        """Before when it does not begin."""

    @property
    def afresh(self) -> bool:
        """Whether it forgets what the attempts before have recorded."""


class Opening(Protocol):
    """What opens a generation: its id, the step that creates it, what has to be stored with it."""

    @property
    def run_id(self) -> UUID:
        """The generation."""

    @property
    def step(self) -> RunStep:
        """What creates it."""

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        """What it names and is not stored yet."""


class Nursery(Protocol):
    """What the runtime does for the transport: look, drive, wait. Storage failures are Interrupts."""

    def find_run(self, run_id: UUID) -> RunRow | None:
        """Return a run's row."""

    def newest_generation(self, slot_id: UUID) -> RunRow:
        """Return the newest generation of a slot."""

    def now_us(self) -> int:
        """Return the store's time."""

    def hand_over(self, run_id: UUID, cap: Cap | None = None) -> None:
        """Let the process drive a child from now on."""

    def wait_terminal(self, run_id: UUID, until_us: int | None = None) -> RunRow:
        """Wait, holding no slot, until a run has ended.

        :raises AwaitTimeoutError: if it has not when the time is over
        :raises OtherIoError: code ``child_run_task_failed``, if nobody can drive it
        """

    def look_up(self, run_ids: Sequence[UUID]) -> None:
        """Read many rows at once, for the calls that follow."""

    def gather(self, run_ids: Sequence[UUID], settle: Settle, *, compact: bool) -> None:
        """Wait for many children at once and read how they ended, for the calls that follow.

        :param settle: waits for the newest generations of slots, and returns the last ones
        """

    def wait_some(self, run_ids: Sequence[UUID], until_us: int | None) -> set[UUID]:
        """Wait, holding no slot, until something has become of some children; return those that are still driven here.

        That is: one has failed that has a retry policy, none is driven here any more, or the time is over.
        """

    def get_runs(self, run_ids: Sequence[UUID]) -> dict[UUID, RunRow]:
        """Return the rows of those runs that exist."""

    def next_attempt(self, row: RunRow) -> NextAttempt | None:
        """Return the attempt that is to follow a child's failed one, or None."""

    def find_wait(self, key: str) -> tuple[int, int] | None:
        """Return number and end of the last wait that the asking run opened under a key, or None."""

    def too_late(self, run_id: UUID) -> AwaitTimeoutError:
        """Return the error for an await whose time is over."""

    def end_of(self, row: RunRow, *, compact: bool) -> dict[str, Any]:
        """Return how a terminal run ended: the await's answer."""

    def next_generation(self, row: RunRow, opener: RunIdentity, again: NextAttempt | None) -> Opening:
        """Return what opens the generation that follows a terminal one.

        :raises ChildRunError: why the operation cannot start afresh, after a clean-up
        """

    def must_heal(self, row: RunRow) -> bool:
        """Whether the asking run continues another and has not opened this slot's next generation yet."""

    def is_own_child(self, row: RunRow) -> bool:
        """Whether the asking run, or one that it continues, spawned the run."""

    def is_linked(self, fact_key: str) -> bool:
        """Whether the linkage event of the fact under a key stands in the asking run's stream."""
