"""What a store tells: rows, events, entries, pages; all of it read, none of it written.

What is made for every event and every commit is a tuple: to make a frozen dataclass takes several times as long.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple
from uuid import UUID

RunKind = Literal["operation", "task_instance"]
RunStatus = Literal["Pending", "Running", "Completed", "Failed", "Cancelled"]
TERMINAL: frozenset[str] = frozenset({"Completed", "Failed", "Cancelled"})


class Head(NamedTuple):
    """Where a run stands after a commit.

    :param seq: number of its last event (1-based; 0 = no events)
    :param hash: chain hash of that event (64 hex digits)
    :param inbox_seq: number of the last entry posted to it (0 = none)
    """

    seq: int
    hash: str
    epoch: int
    inbox_seq: int


@dataclass(frozen=True, slots=True)
class AirflowCoordinates:
    """Where in Airflow a run of kind ``task_instance`` stands."""

    dag_id: str
    dag_run_id: str
    task_id: str
    map_index: int = -1


class StoredEvent(NamedTuple):
    r"""An event as it was stored.

    :param body: canonical JSON bytes
    :param hash: ``SHA256("childrun/event/v1\\0" || run_id || seq || recorded_at || previous hash || body_digest)``
    :param known_digest: SHA-256 of ``body`` (32 bytes), if whoever read the event has just worked it out; never what was
        stored, and None again where ``body`` is replaced
    """

    run_id: UUID
    seq: int
    recorded_at: int
    body: bytes
    hash: str
    commit_id: UUID
    epoch: int
    known_digest: bytes | None = None


class RunRow(NamedTuple):
    """A run as its row tells it; all but the lease can be rebuilt from the events.

    :param wake_at: when it goes on by itself (a backoff, a sleep), or None
    :param lease_session_id: who owns it, or did when its session expired or was superseded; None = nobody, a closed
        session, or a host run
    :param lease_expires_at: when that session is over; None = nobody, or over already
    """

    run_id: UUID
    kind: RunKind
    parent_run_id: UUID | None
    root_run_id: UUID
    depth: int
    slot_id: UUID
    generation: int
    op_id: str
    op_version: str
    manifest_id: str
    initial_snapshot_id: str
    plan_id: str | None
    status: RunStatus
    head: Head
    checkpoint_seq: int
    checkpoint_hash: str
    checkpoint_snapshot_id: str
    final_snapshot_id: str | None
    error_code: str | None
    deadline_at: int | None
    wake_at: int | None
    created_at: int
    updated_at: int
    ended_at: int | None
    lease_session_id: UUID | None
    lease_expires_at: int | None
    airflow: AirflowCoordinates | None

    @property
    def is_terminal(self) -> bool:
        """Whether the run has ended; a host run never does."""
        return self.status in TERMINAL


@dataclass(frozen=True, slots=True)
class InboxEntry:
    """An entry of a run's inbox; ``n`` is 1-based and contiguous per run."""

    run_id: UUID
    n: int
    post_id: UUID
    kind: str
    body: bytes
    recorded_at: int


class FactEntry(NamedTuple):
    """A row of the index of facts."""

    run_id: UUID
    seq: int
    key_digest: str
    payload_id: str | None
    request_digest: str | None
    failed: bool


@dataclass(frozen=True, slots=True)
class Session:
    """A living process, as the store sees it."""

    session_id: UUID
    expires_at: int
    now: int


@dataclass(frozen=True, slots=True)
class RunFilter:
    """Which runs :meth:`Store.find_runs` returns; what is None does not matter, the rest must all hold.

    ``unowned``: no living session holds the lease. ``dag_id`` and so on are those of host runs. ``id_range``: the lowest and
    the highest run id, both inclusive.
    """

    kind: RunKind | None = None
    statuses: frozenset[RunStatus] | None = None
    root_run_id: UUID | None = None
    parent_run_id: UUID | None = None
    slot_ids: frozenset[UUID] | None = None
    id_range: tuple[UUID, UUID] | None = None
    op_id: str | None = None
    unowned: bool | None = None
    dag_id: str | None = None
    dag_run_id: str | None = None
    task_id: str | None = None


@dataclass(frozen=True, slots=True)
class RunPage:
    """Some runs in the order that was asked for, and where to go on; ``cursor`` None = that was all."""

    rows: tuple[RunRow, ...]
    cursor: str | None
