"""Whether a commit happens, and what it then writes: decided here for every store, from rows that its caller has locked.

Nothing here reads or writes. A store fills a :class:`Picture`, calls :func:`decide`, and writes what stands in
``picture.writes`` afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Literal, NamedTuple
from uuid import UUID

from airflow_childrun.errors import CorruptionError, OtherStorageError
from airflow_childrun.store.api import (
    GENESIS_HASH,
    STILL,
    TERMINAL,
    Artifact,
    Cap,
    Commit,
    Committed,
    Conflict,
    FactEntry,
    Head,
    InboxEntry,
    InboxPost,
    Moves,
    NewRun,
    ReleaseLease,
    RunRow,
    RunStep,
    StoredEvent,
    TakeLease,
)
from airflow_childrun.store.chain import body_digest, raw_event_hash

_COLUMNS = Moves._fields[2:]
"""What moves a column of its own name: all but the status and the place of the checkpoint."""


@dataclass(frozen=True, slots=True)
class StoredSession:
    """A session as its row tells it; ``ended`` says how it ended before its time."""

    session_id: UUID
    key: str
    incarnation: int
    expires_at: int
    ended: Literal["closed", "superseded"] | None = None

    def is_over(self, now: int) -> bool:
        """Whether it owns nothing any more."""
        return self.ended is not None or now >= self.expires_at


class LastEventless(NamedTuple):
    """The last step without events that a run took: such a commit has no other place for its identity."""

    commit_id: UUID
    epoch: int
    recorded_at: int


class StoredRun(NamedTuple):
    """A run's row as it is stored: ``row.lease_expires_at`` is None, it belongs to the session."""

    row: RunRow
    last_eventless: LastEventless | None = None


Found = tuple[RunStep, StoredRun | None]
"""A step, and the run that it names, if that exists."""


@dataclass(slots=True)
class Writes:
    """What the members of a batch that pass write, in the order in which they were decided."""

    created: dict[UUID, StoredRun] = field(default_factory=dict)
    changed: dict[UUID, StoredRun] = field(default_factory=dict)
    artifacts: dict[tuple[UUID, str], Artifact] = field(default_factory=dict)
    events: list[StoredEvent] = field(default_factory=list)
    facts: list[FactEntry] = field(default_factory=list)
    entries: list[InboxEntry] = field(default_factory=list)

    def put_run(self, run_id: UUID, stored: StoredRun) -> None:
        """Remember a run's new row, under what has to be done to it."""
        (self.created if self.created and run_id in self.created else self.changed)[run_id] = stored


@dataclass(slots=True)
class Picture:
    """What a batch sees of the store; moves on with each member that passes.

    :param runs: every run that a step or a post names, if it exists
    :param sessions: the sessions that hold those runs, if they exist
    :param posted: number of each post that stands in an inbox already, by (run id, post id)
    :param find_event: looks up one event by (run id, seq); asked only when a head was found taken
    :param find_slot: looks up the run that is this (slot id, generation)
    :param find_owned: looks up the children of a parent and an operation whose lease a living session holds
    :param owned: those of the lanes that were asked for, as they are by now
    """

    now: int
    runs: dict[UUID, StoredRun]
    sessions: dict[UUID, StoredSession]
    posted: dict[tuple[UUID, UUID], int]
    find_event: Callable[[UUID, int], StoredEvent | None]
    find_slot: Callable[[UUID, int], UUID | None]
    find_owned: Callable[[UUID, str], set[UUID]]
    owned: dict[tuple[UUID, str], set[UUID]] = field(default_factory=dict)
    writes: Writes = field(default_factory=Writes)


def check_batch(commits: Sequence[Commit]) -> None:
    """Refuse a batch that no caller can mean.

    :raises OtherStorageError: code ``commit_invalid``
    :raises CorruptionError: if an artifact's id is not that of its body
    """
    seen: set[UUID] = set()
    for commit in commits:
        for step in commit.steps:
            if step.run_id in seen:
                raise _invalid(f"run {step.run_id} stands in two steps of one batch; submit them one after the other")
            seen.add(step.run_id)
            if step.create is not None and (step.expected_head != 0 or not step.events):
                raise _invalid(f"run {step.run_id} is created without its first event, or with an expected head")
        for artifact in commit.artifacts:
            if body_digest(artifact.body) != artifact.id:
                raise CorruptionError(
                    f"artifact {artifact.id} ({artifact.kind}) has other bytes than its id says; nothing was stored"
                )


def named_runs(commits: Iterable[Commit]) -> set[UUID]:
    """Return every run that a step or a post names: those rows must be locked."""
    named: set[UUID] = set()
    for commit in commits:
        for step in commit.steps:
            named.add(step.run_id)
            if isinstance(step.lease, TakeLease) and step.lease.cap is not None:
                named.add(step.lease.cap.parent_run_id)
        for post in commit.posts:
            named.add(post.run_id)
    return named


def decide(commits: Sequence[Commit], picture: Picture) -> list[Committed | Conflict]:
    """Decide each commit in turn; ``picture.writes`` holds afterwards what those that happen now write."""
    return [_decide_one(commit, picture) for commit in commits]


def decide_posts(posts: Sequence[InboxPost], picture: Picture, at: int) -> dict[UUID, int | None]:
    """Give each post its number in the inbox; None where the run is terminal or not there."""
    numbers: dict[UUID, int | None] = {}
    for post in posts:
        known = picture.posted.get((post.run_id, post.post_id))
        stored = picture.runs.get(post.run_id)
        if known is None and stored is not None and stored.row.status not in TERMINAL:
            known = stored.row.head.inbox_seq + 1
            entry = InboxEntry(post.run_id, known, post.post_id, post.kind, post.body, at)
            picture.writes.entries.append(entry)
            picture.posted[post.run_id, post.post_id] = known
            row = stored.row
            row = row._replace(head=row.head._replace(inbox_seq=known), updated_at=max(at, row.updated_at))
            _put(picture, stored._replace(row=row))
        numbers[post.post_id] = known
    return numbers


def created_row(step: RunStep, answer: Committed) -> RunRow | None:
    """Return the row that a step with nothing but a run's first event has made; None for other steps."""
    if step.create is None or len(step.events) != 1 or step.lease is not None or step.moves != STILL:
        return None
    head = answer.heads[step.run_id]
    row = _new_row(step.run_id, step.create, answer.recorded_at)
    return row._replace(head=head, checkpoint_seq=1, checkpoint_hash=head.hash)


def session_is_over(session_id: UUID) -> OtherStorageError:
    """Build the error for a session that is opened again after its end."""
    return OtherStorageError(f"session {session_id} is over and stays so; open one with a new id", code="session_over")


def as_seen(stored: StoredRun, session: StoredSession | None, now: int) -> RunRow:
    """Return a run's row as readers see it: with the end of its lease, without an owner who gave everything back."""
    row = stored.row
    if row.lease_session_id is None:
        return row
    if session is not None and session.ended == "closed":
        return row._replace(lease_session_id=None)
    if session is None or session.is_over(now):
        return row
    return row._replace(lease_expires_at=session.expires_at)


def _invalid(message: str) -> OtherStorageError:
    return OtherStorageError(message, code="commit_invalid")


def _put(picture: Picture, stored: StoredRun) -> None:
    run_id = stored.row.run_id
    picture.runs[run_id] = stored
    picture.writes.put_run(run_id, stored)


def _decide_one(commit: Commit, picture: Picture) -> Committed | Conflict:
    # Looked up once: to hash an id is a call of Python's.
    steps = [(step, picture.runs.get(step.run_id)) for step in commit.steps]
    original = _original_result(commit, steps, picture)
    if original is not None:
        return original
    for step, stored in steps:
        refusal = _refusal(step, stored, picture)
        if refusal is not None:
            return refusal
    # A database's clock may step back; the times in a stream do not.
    at = max([picture.now, *(stored.row.updated_at for _, stored in steps if stored is not None)])
    heads = {step.run_id: _take(step, stored, commit.commit_id, at, picture) for step, stored in steps}
    for artifact in commit.artifacts:
        picture.writes.artifacts.setdefault((artifact.root_run_id, artifact.id), artifact)
    if not commit.posts:
        return Committed(at, heads)
    numbers = decide_posts(commit.posts, picture, at)
    # A post to a run that the commit itself moves is counted in its head.
    heads = {run_id: picture.runs[run_id].row.head for run_id in heads}
    return Committed(at, heads, tuple(post_id for post_id, number in numbers.items() if number is None))


def _original_result(commit: Commit, steps: Sequence[Found], picture: Picture) -> Committed | None:
    """Return what a commit that happened before was answered then; None if it did not happen."""
    at = 0
    heads: dict[UUID, Head] = {}
    for step, stored in steps:
        if stored is None:
            return None
        seq = step.expected_head + len(step.events)
        head = stored.row.head
        if step.events:
            event = picture.find_event(step.run_id, seq) if head.seq >= seq else None
            if event is None or event.commit_id != commit.commit_id:
                return None
            heads[step.run_id] = Head(seq, event.hash, event.epoch, head.inbox_seq)
            at = event.recorded_at
            continue
        last = stored.last_eventless
        if last is not None and last.commit_id != commit.commit_id:
            last = None
        if last is None and not any(other.events for other in commit.steps):
            return None
        before = picture.find_event(step.run_id, seq) if head.seq != seq else None
        epoch = last.epoch if last else _epoch_after(step, head)
        heads[step.run_id] = Head(seq, before.hash if before else head.hash, epoch, head.inbox_seq)
        at = at or (last.recorded_at if last else 0)
    if not commit.steps:
        return None
    rejected = tuple(post.post_id for post in commit.posts if (post.run_id, post.post_id) not in picture.posted)
    return Committed(at, heads, rejected)


def _epoch_after(step: RunStep, head: Head) -> int:
    if step.epoch is None:
        return head.epoch
    return step.epoch + isinstance(step.lease, TakeLease)


def _refusal(step: RunStep, stored: StoredRun | None, picture: Picture) -> Conflict | None:
    if step.create is not None:
        if stored is not None:
            return Conflict(step.run_id, "exists", stored.row.head)
        if picture.find_slot(step.create.slot_id, step.create.generation) is not None:
            return Conflict(step.run_id, "exists", None)
        return None
    if stored is None:
        return Conflict(step.run_id, "missing", None)
    row = stored.row
    if step.epoch is not None and step.epoch != row.head.epoch:
        return Conflict(step.run_id, "epoch", row.head)
    if step.expected_head != row.head.seq:
        return Conflict(step.run_id, "head", row.head)
    if isinstance(step.lease, TakeLease) and row.lease_session_id not in (None, step.lease.session_id):
        holder = picture.sessions.get(row.lease_session_id)
        if holder is not None and not holder.is_over(picture.now):
            return Conflict(step.run_id, "lease", row.head)
    if isinstance(step.lease, TakeLease) and step.lease.cap is not None and _is_full(step.lease.cap, row, picture):
        return Conflict(step.run_id, "cap", row.head)
    return None


def _is_full(cap: Cap, row: RunRow, picture: Picture) -> bool:
    """Whether as many siblings of a run are owned as may be."""
    lane = (cap.parent_run_id, cap.op_id)
    if lane not in picture.owned:
        picture.owned[lane] = picture.find_owned(*lane)
        for stored in [*picture.writes.created.values(), *picture.writes.changed.values()]:
            _note_owner(stored.row, picture)
    return len(picture.owned[lane] - {row.run_id}) >= cap.most


def _note_owner(row: RunRow, picture: Picture) -> None:
    owned = picture.owned.get((row.parent_run_id, row.op_id)) if row.parent_run_id is not None else None
    if owned is None:
        return
    if row.lease_session_id is None:
        owned.discard(row.run_id)
    else:
        owned.add(row.run_id)


def _take(step: RunStep, stored: StoredRun | None, commit_id: UUID, at: int, picture: Picture) -> Head:
    """Append the step's events, move its row, and return where the run stands then."""
    if step.create is not None:
        stored = StoredRun(_new_row(step.run_id, step.create, at))
        picture.writes.created[step.run_id] = stored
    if stored is None:
        raise AssertionError(f"run {step.run_id} was decided without its row")
    row = stored.row
    epoch, owner = row.head.epoch, row.lease_session_id
    if isinstance(step.lease, TakeLease):
        epoch, owner = epoch + 1, step.lease.session_id
    elif isinstance(step.lease, ReleaseLease):
        owner = None
    if step.moves.status in TERMINAL:
        # The commit that ends a run may be the first of its owner's: it takes the lease, and cannot give it back as well.
        owner = None
    events = _chain(step, row.head, commit_id, epoch, at)
    picture.writes.events.extend(events)
    for event, new in zip(events, step.events, strict=True):
        if new.fact is not None:
            picture.writes.facts.append(FactEntry(step.run_id, event.seq, *new.fact))
    tip = events[-1] if events else None
    head = Head(tip.seq if tip else row.head.seq, tip.hash if tip else row.head.hash, epoch, row.head.inbox_seq)
    moved = _moved(step.moves, events, at)
    if step.create is not None and step.moves.checkpoint_at is None:
        moved |= {"checkpoint_seq": 1, "checkpoint_hash": events[0].hash}
    row = row._replace(head=head, lease_session_id=owner, updated_at=at, **moved)
    _note_owner(row, picture)
    last = stored.last_eventless if events else LastEventless(commit_id, epoch, at)
    _put(picture, StoredRun(row, last))
    return head


def _chain(step: RunStep, head: Head, commit_id: UUID, epoch: int, at: int) -> list[StoredEvent]:
    run_id, run, previous = step.run_id, step.run_id.bytes, bytes.fromhex(head.hash)
    events = []
    for seq, new in enumerate(step.events, head.seq + 1):
        previous = raw_event_hash(run, seq, at, previous, sha256(new.body).digest())
        events.append(StoredEvent(run_id, seq, at, new.body, previous.hex(), commit_id, epoch))
    return events


def _moved(moves: Moves, events: Sequence[StoredEvent], at: int) -> dict[str, Any]:
    # "" and 0 clear what None leaves as it is.
    moved = {name: value or None for name, value in zip(_COLUMNS, moves[2:], strict=True) if value is not None}
    if moves.status is not None:
        moved["status"] = moves.status
        if moves.status in TERMINAL:
            moved["ended_at"] = at
    if moves.checkpoint_at is not None:
        mark = events[moves.checkpoint_at]
        moved |= {"checkpoint_seq": mark.seq, "checkpoint_hash": mark.hash}
    return moved


def _new_row(run_id: UUID, new: NewRun, at: int) -> RunRow:
    return RunRow(
        run_id=run_id,
        kind=new.kind,
        parent_run_id=new.parent_run_id,
        root_run_id=new.root_run_id,
        depth=new.depth,
        slot_id=new.slot_id,
        generation=new.generation,
        op_id=new.op_id,
        op_version=new.op_version,
        manifest_id=new.manifest_id,
        initial_snapshot_id=new.initial_snapshot_id,
        plan_id=new.plan_id,
        status="Pending",
        head=Head(0, GENESIS_HASH, 0, 0),
        checkpoint_seq=0,
        checkpoint_hash=GENESIS_HASH,
        checkpoint_snapshot_id=new.initial_snapshot_id,
        final_snapshot_id=None,
        error_code=None,
        deadline_at=new.deadline_at,
        wake_at=None,
        created_at=at,
        updated_at=at,
        ended_at=None,
        lease_session_id=None,
        lease_expires_at=None,
        airflow=new.airflow,
    )
