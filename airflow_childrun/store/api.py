"""What a store is: the page that whoever writes a store of his own reads first.

A store holds *runs*. Each run has an append-only *event stream* and a row (:class:`RunRow`) that is a projection of it;
beside them stand content-addressed *artifacts*, an *inbox* per run and *sessions*, which own leases on runs.

There is one verb for progress, :meth:`Store.commit`, and one for the end of all, :meth:`Store.delete_tree`. What it takes is plain data: it can be batched, sent over a wire,
submitted again, replayed by a simulator. Everything else only reads, except for the verbs of a session
and :meth:`Store.post`. A store starts no threads. Times are integer microseconds, UTC, of the *store's* clock.

Three things are checked on every commit, and never left to isolation levels, clocks or error texts:

- ``expected_head``: compare-and-set on the stream's head;
- ``epoch``: the fencing number of the run's lease, raised each time that the lease changes hands;
- ``commit_id``: a commit that was submitted before and did happen answers with its original result.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol
from uuid import UUID

from airflow_childrun.store.values import (
    TERMINAL,
    AirflowCoordinates,
    FactEntry,
    Head,
    InboxEntry,
    RunFilter,
    RunKind,
    RunPage,
    RunRow,
    RunStatus,
    Session,
    StoredEvent,
)

__all__ = [
    "GENESIS_HASH",
    "TERMINAL",
    "AirflowCoordinates",
    "Artifact",
    "Cap",
    "Commit",
    "Committed",
    "Conflict",
    "FactEntry",
    "FactRow",
    "Head",
    "InboxEntry",
    "InboxPost",
    "Moves",
    "NewEvent",
    "NewRun",
    "Owner",
    "ReleaseLease",
    "RunFilter",
    "RunKind",
    "RunPage",
    "RunRow",
    "RunStatus",
    "RunStep",
    "Session",
    "Store",
    "StoredEvent",
    "TakeLease",
]

GENESIS_HASH = "0" * 64
"""The previous hash of a stream's first event (64 hex digits)."""


class Artifact(NamedTuple):
    """A content-addressed blob: ``id`` is the lower-case hex SHA-256 of the plain ``body``.

    Identity is ``(root_run_id, id)``: artifacts are shared inside a tree of runs, never across trees.
    """

    root_run_id: UUID
    id: str
    kind: str
    body: bytes


class FactRow(NamedTuple):
    """What the index of facts keeps of a ``fact_recorded`` or ``fact_failed`` event.

    :param key_digest: SHA-256 hex of the fact key; several rows may share it (a later one supersedes)
    :param request_digest: SHA-256 hex of the canonical request; None in a V1 stream
    """

    key_digest: str
    payload_id: str | None
    request_digest: str | None
    failed: bool


class NewEvent(NamedTuple):
    """An event to be appended: canonical JSON bytes, and its row in the index of facts if it is one."""

    body: bytes
    fact: FactRow | None = None


class Moves(NamedTuple):
    """How a run's row changes with a commit; None leaves a column as it is.

    ``checkpoint_at`` is the index, among the commit's events for the run, of the event that is the new checkpoint.
    Computed by ``airflow_childrun.store.projection`` from the events alone, so that it can be rebuilt.
    ``wake_at``: 0 clears it; ``error_code``: "" clears it.
    """

    status: RunStatus | None = None
    checkpoint_at: int | None = None
    checkpoint_snapshot_id: str | None = None
    final_snapshot_id: str | None = None
    error_code: str | None = None
    wake_at: int | None = None


STILL = Moves()
"""Nothing changes."""


class NewRun(NamedTuple):
    """The row of a run that a commit creates; the same commit appends its first event.

    :param slot_id: id of the slot's first generation (its own id for generation 1 and for a run without parent)
    :param parent_run_id: the run that spawned it
    :param plan_id: artifact id of the plan's description; None for V1 and host runs
    :param deadline_at: when it is to end at the latest
    """

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
    plan_id: str | None = None
    deadline_at: int | None = None
    airflow: AirflowCoordinates | None = None


@dataclass(frozen=True, slots=True)
class Cap:
    """How many children of one operation and parent may be owned at a time: living sessions hold their leases."""

    parent_run_id: UUID
    op_id: str
    most: int


@dataclass(frozen=True, slots=True)
class TakeLease:
    """Make ``session_id`` the owner and raise the epoch by one.

    Allowed if nobody holds the lease, if the holder's session is over (closed, expired or superseded), or if it is the
    same session. ``session_id`` None is a lease without expiry and without session (host runs): it only raises the epoch.

    :param cap: refuses the step, reason ``cap``, where as many of the run's siblings are owned; the parent's row is locked
    """

    session_id: UUID | None
    cap: Cap | None = None


@dataclass(frozen=True, slots=True)
class ReleaseLease:
    """Give the lease back: the run has no owner afterwards; the epoch stays."""


class RunStep(NamedTuple):
    """What one commit does to one run.

    :param expected_head: seq of the last event that the caller knows; 0 with ``create``
    :param epoch: the run row's epoch *before* this step; None with ``create``, or for a writer who fences by head alone
    :param lease: moves the lease in the same transaction. Events of the step carry the epoch *after* it. A step that ends
        the run leaves it without owner
    """

    run_id: UUID
    expected_head: int
    epoch: int | None
    events: tuple[NewEvent, ...] = ()
    moves: Moves = STILL
    create: NewRun | None = None
    lease: TakeLease | ReleaseLease | None = None


@dataclass(frozen=True, slots=True)
class InboxPost:
    """A request to a run that somebody else owns; ``post_id`` makes posting idempotent."""

    run_id: UUID
    post_id: UUID
    kind: str
    body: bytes


class Commit(NamedTuple):
    """A step of progress, all or nothing: artifacts put, events appended, entries posted, rows and leases moved.

    ``steps`` name each run once. Artifacts that exist already are left as they are.
    """

    commit_id: UUID
    steps: tuple[RunStep, ...]
    artifacts: tuple[Artifact, ...] = ()
    posts: tuple[InboxPost, ...] = ()


class Committed(NamedTuple):
    """The commit happened, now or when it was submitted before.

    :param recorded_at: the store's time that stands on its events
    :param heads: by run id, for each step; of a repeated commit the original ones, but for ``inbox_seq``, which is today's
    :param rejected_posts: ids of posts that came too late, their run being terminal or not there
    """

    recorded_at: int
    heads: Mapping[UUID, Head]
    rejected_posts: tuple[UUID, ...] = ()


@dataclass(frozen=True, slots=True)
class Conflict:
    """The commit did not happen and never will in this form.

    ``reason``: ``head`` (another event stands there), ``epoch`` (the lease changed hands), ``lease`` (the lease is held by
    a living session), ``cap`` (too many siblings are owned), ``exists`` (a run to be created is there), ``missing`` (a run
    is not there).
    ``head`` is where the run stands; None where it does not exist.
    """

    run_id: UUID
    reason: Literal["head", "epoch", "lease", "cap", "exists", "missing"]
    head: Head | None


@dataclass(frozen=True, slots=True)
class Owner:
    """Who opens a session.

    Sessions of the same non-empty ``key`` with a lower ``incarnation`` are over from that moment on: a task instance that
    comes back with a higher try number takes its runs over at once. ``label`` is for people.
    """

    label: str
    key: str = ""
    incarnation: int = 0


class Store(Protocol):
    """Where runs live.

    Every method may be called from any thread, and raises :class:`~airflow_childrun.errors.UnavailableError` if the
    database cannot be reached (for ``commit``: the outcome is then unknown, submit the identical commit again),
    :class:`~airflow_childrun.errors.SchemaError` if its tables are missing or of another major version, and
    :class:`~airflow_childrun.errors.CorruptionError` if stored bytes are not what they were.
    """

    def commit(self, commits: Sequence[Commit]) -> list[Committed | Conflict]:
        """Make each commit happen or not, in one transaction, and answer in the same order.

        Atomic: each commit all or nothing; one bad member harms no other.
        Idempotent: a commit whose ``commit_id`` stands on the events after its expected heads is answered with its original
        result (for a commit without events: whose id stands on the run row).
        Ordering: no run stands in more than one commit of a batch.
        """

    def read_events(
        self, run_id: UUID, from_seq: int = 1, to_seq: int | None = None, limit: int | None = None
    ) -> list[StoredEvent]:
        """Return the events ``from_seq`` to ``to_seq``, both inclusive, ascending; an unknown run has none.

        Does not verify the chain: ``airflow_childrun.store.chain`` does.

        :raises CorruptionError: code ``event_body_changed``, if the bytes of one are not what was written
        """

    def read_ends(self, run_ids: Iterable[UUID]) -> dict[UUID, list[StoredEvent]]:
        """Return the first event and the last two of each of those runs that exist, ascending by seq.

        As far as :meth:`read_events` with many runs at once; where the last ones stand is what the run's row says.
        """

    def find_run(self, run_id: UUID) -> RunRow | None:
        """Return the row of a run, or None."""

    def get_runs(self, run_ids: Iterable[UUID]) -> dict[UUID, RunRow]:
        """Return the rows of those runs that exist."""

    def find_runs(
        self, where: RunFilter, cursor: str | None = None, limit: int = 100, *, newest_first: bool = False
    ) -> RunPage:
        """Return a page of the runs that ``where`` describes, in order of creation (then id), or in the reverse order.

        A cursor goes on in the order of the page that returned it: pass the same ``newest_first``.
        """

    def children_of(self, run_id: UUID) -> list[RunRow]:
        """Return all runs that ``run_id`` spawned, in order of creation (then id)."""

    def get_facts(self, run_id: UUID, key_digests: Iterable[str] | None = None) -> list[FactEntry]:
        """Return the index of facts of a run, ascending by seq, for some keys or for all."""

    def get_artifacts(self, root_run_id: UUID, ids: Iterable[str]) -> dict[str, bytes]:
        """Return the bodies of those artifacts that exist in the tree, each verified against its id.

        :raises CorruptionError: code ``artifact_content_address_mismatch``, naming the id
        """

    def find_artifact_kinds(self, root_run_id: UUID) -> dict[str, str]:
        """Return id -> kind of every artifact in the tree."""

    def post(self, posts: Sequence[InboxPost]) -> dict[UUID, int | None]:
        """Put entries into inboxes; post id -> its number, or None if the run is terminal or not there.

        Idempotent: a post id that stands in the run's inbox answers with its number.
        """

    def read_inbox(self, run_id: UUID, after: int = 0) -> list[InboxEntry]:
        """Return the entries of a run's inbox with a number above ``after``, ascending."""

    def open_session(self, session_id: UUID, owner: Owner, ttl_us: int) -> Session:
        """Open a session that is over ``ttl_us`` after its last renewal; see :class:`Owner` for whom it supersedes.

        Idempotent: a living session of this id is renewed.
        :raises OtherStorageError: code ``session_over``, if the session is over: it stays so
        """

    def renew_session(self, session_id: UUID, ttl_us: int) -> Session | None:
        """Put the end off to now + ``ttl_us``; None if the session is over (it stays so)."""

    def close_session(self, session_id: UUID) -> None:
        """End a session: the leases that it holds are free. Idempotent."""

    def find_idle_trees(self, idle_since: int, after: UUID | None = None, limit: int = 100) -> list[UUID]:
        """Return roots of trees whose operations have all ended and in which nothing happened since a time.

        Ordering: by id; ``after`` is the last one of the page before. Host runs do not keep a tree.
        """

    def delete_tree(self, root_run_id: UUID, idle_since: int) -> int | None:
        """Delete a tree whole, and return how many runs it had; None if it is not idle any more, or not there.

        Atomic: a writer that comes meanwhile finds all of it, or its runs ``missing``.
        """

    def delete_sessions(self, over_since: int) -> int:
        """Delete sessions that were over before a time and hold no lease, and return how many."""

    def now_us(self) -> int:
        """Return the store's time."""

    def close(self) -> None:
        """Close every connection. The store can still be used afterwards: it opens new ones."""
