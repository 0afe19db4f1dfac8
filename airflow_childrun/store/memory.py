"""A store in memory: the reference that the contract is tested against, and what tests and simulations run on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from uuid import UUID

from airflow_childrun.clock import Clock
from airflow_childrun.store.api import (
    Artifact,
    Commit,
    Committed,
    Conflict,
    FactEntry,
    InboxEntry,
    InboxPost,
    Owner,
    RunFilter,
    RunPage,
    RunRow,
    Session,
    StoredEvent,
)
from airflow_childrun.store.chain import artifact_changed, body_digest
from airflow_childrun.store.cursor import cursor_of, position_of
from airflow_childrun.store.decision import (
    Picture,
    StoredRun,
    StoredSession,
    as_seen,
    check_batch,
    decide,
    decide_posts,
    named_runs,
    session_is_over,
)


class MemoryStore:
    """Everything in dictionaries, one lock around each call; its time is the clock's."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        # One lock around the dictionaries, as a database has its own: the runtime's threads share the store.
        self._lock = threading.Lock()
        self._runs: dict[UUID, StoredRun] = {}
        self._slots: dict[tuple[UUID, int], UUID] = {}
        self._by_slot: dict[UUID, list[UUID]] = {}
        self._events: dict[UUID, list[StoredEvent]] = {}
        self._facts: dict[UUID, list[FactEntry]] = {}
        self._artifacts: dict[UUID, dict[str, Artifact]] = {}
        self._inbox: dict[UUID, list[InboxEntry]] = {}
        self._sessions: dict[UUID, StoredSession] = {}

    def commit(self, commits: Sequence[Commit]) -> list[Committed | Conflict]:
        """Make each commit happen or not, in one transaction, and answer in the same order."""
        check_batch(commits)
        with self._lock:
            picture = self._picture(named_runs(commits), (post for commit in commits for post in commit.posts))
            results = decide(commits, picture)
            self._write(picture)
        return results

    def read_events(
        self, run_id: UUID, from_seq: int = 1, to_seq: int | None = None, limit: int | None = None
    ) -> list[StoredEvent]:
        """Return the events ``from_seq`` to ``to_seq``, both inclusive, ascending; an unknown run has none."""
        with self._lock:
            found = self._events.get(run_id, [])[max(from_seq, 1) - 1 : to_seq]
        return found if limit is None else found[:limit]

    def read_ends(self, run_ids: Iterable[UUID]) -> dict[UUID, list[StoredEvent]]:
        """Return the first event and the last two of each of those runs that exist, ascending by seq."""
        with self._lock:
            streams = {run_id: self._events[run_id] for run_id in run_ids if run_id in self._events}
        return {run_id: [*events[:1], *events[1:][-2:]] for run_id, events in streams.items()}

    def find_run(self, run_id: UUID) -> RunRow | None:
        """Return the row of a run, or None."""
        return self.get_runs([run_id]).get(run_id)

    def get_runs(self, run_ids: Iterable[UUID]) -> dict[UUID, RunRow]:
        """Return the rows of those runs that exist."""
        now = self._clock.now_us()
        with self._lock:
            return {run_id: self._seen(self._runs[run_id], now) for run_id in run_ids if run_id in self._runs}

    def find_runs(
        self, where: RunFilter, cursor: str | None = None, limit: int = 100, *, newest_first: bool = False
    ) -> RunPage:
        """Return a page of the runs that ``where`` describes, in order of creation (then id), or in the reverse order."""
        after = position_of(cursor)
        matching = self._select(_matcher(where), where.slot_ids)
        found = [
            row
            for row in (reversed(matching) if newest_first else matching)
            if after is None
            or ((row.created_at, row.run_id) < after if newest_first else (row.created_at, row.run_id) > after)
        ]
        rows = tuple(found[:limit])
        return RunPage(rows, cursor_of(rows[-1]) if rows and len(found) > limit else None)

    def children_of(self, run_id: UUID) -> list[RunRow]:
        """Return all runs that ``run_id`` spawned, in order of creation (then id)."""
        return self._select(lambda row: row.parent_run_id == run_id)

    def get_facts(self, run_id: UUID, key_digests: Iterable[str] | None = None) -> list[FactEntry]:
        """Return the index of facts of a run, ascending by seq, for some keys or for all."""
        with self._lock:
            found = list(self._facts.get(run_id, []))
        if key_digests is None:
            return found
        wanted = frozenset(key_digests)
        return [fact for fact in found if fact.key_digest in wanted]

    def get_artifacts(self, root_run_id: UUID, ids: Iterable[str]) -> dict[str, bytes]:
        """Return the bodies of those artifacts that exist in the tree, each verified against its id."""
        with self._lock:
            tree = self._artifacts.get(root_run_id, {})
            found = {key: tree[key].body for key in ids if key in tree}
        for key, body in found.items():
            if body_digest(body) != key:
                raise artifact_changed(root_run_id, key)
        return found

    def find_artifact_kinds(self, root_run_id: UUID) -> dict[str, str]:
        """Return id -> kind of every artifact in the tree."""
        with self._lock:
            return {artifact.id: artifact.kind for artifact in self._artifacts.get(root_run_id, {}).values()}

    def post(self, posts: Sequence[InboxPost]) -> dict[UUID, int | None]:
        """Put entries into inboxes; post id -> its number, or None if the run is terminal or not there."""
        with self._lock:
            picture = self._picture({post.run_id for post in posts}, posts)
            numbers = decide_posts(posts, picture, picture.now)
            self._write(picture)
        return numbers

    def read_inbox(self, run_id: UUID, after: int = 0) -> list[InboxEntry]:
        """Return the entries of a run's inbox with a number above ``after``, ascending."""
        with self._lock:
            return self._inbox.get(run_id, [])[max(after, 0) :]

    def open_session(self, session_id: UUID, owner: Owner, ttl_us: int) -> Session:
        """Open a session that is over ``ttl_us`` after its last renewal; it supersedes lower incarnations of its key."""
        now = self._clock.now_us()
        with self._lock:
            known = self._sessions.get(session_id)
            if known is not None and known.is_over(now):
                raise session_is_over(session_id)
            for other in list(self._sessions.values()):
                if owner.key and other.key == owner.key and other.incarnation < owner.incarnation and not other.ended:
                    self._sessions[other.session_id] = replace(other, ended="superseded")
            self._sessions[session_id] = StoredSession(session_id, owner.key, owner.incarnation, now + ttl_us)
        return Session(session_id, now + ttl_us, now)

    def renew_session(self, session_id: UUID, ttl_us: int) -> Session | None:
        """Put the end off to now + ``ttl_us``; None if the session is over (it stays so)."""
        now = self._clock.now_us()
        with self._lock:
            session = self._sessions.get(session_id)
            if session is None or session.is_over(now):
                return None
            self._sessions[session_id] = replace(session, expires_at=now + ttl_us)
        return Session(session_id, now + ttl_us, now)

    def close_session(self, session_id: UUID) -> None:
        """End a session: the leases that it holds are free. Idempotent."""
        with self._lock:
            session = self._sessions.get(session_id)
            if session is not None and session.ended is None:
                self._sessions[session_id] = replace(session, ended="closed")

    def find_idle_trees(self, idle_since: int, after: UUID | None = None, limit: int = 100) -> list[UUID]:
        """Return roots of trees whose operations have all ended and in which nothing happened since a time.

        Ordering: by id; ``after`` is the last one of the page before. Host runs do not keep a tree.
        """
        with self._lock:
            idle = sorted(root for root in self._roots() if self._is_idle(root, idle_since))
        return [root for root in idle if after is None or root > after][:limit]

    def delete_tree(self, root_run_id: UUID, idle_since: int) -> int | None:
        """Delete a tree whole, and return how many runs it had; None if it is not idle any more, or not there.

        Atomic: a writer that comes meanwhile finds all of it, or its runs ``missing``.
        """
        with self._lock:
            members = [run_id for run_id, stored in self._runs.items() if stored.row.root_run_id == root_run_id]
            if not members or not self._is_idle(root_run_id, idle_since):
                return None
            for run_id in members:
                row = self._runs.pop(run_id).row
                self._by_slot[row.slot_id].remove(run_id)
                del self._slots[(row.slot_id, row.generation)]
                for table in (self._events, self._facts, self._inbox):
                    table.pop(run_id, None)
            self._artifacts.pop(root_run_id, None)
            return len(members)

    def delete_sessions(self, over_since: int) -> int:
        """Delete sessions that were over before a time and hold no lease, and return how many."""
        with self._lock:
            held = {stored.row.lease_session_id for stored in self._runs.values()}
            over = [
                key for key, session in self._sessions.items() if session.expires_at < over_since and key not in held
            ]
            for key in over:
                del self._sessions[key]
            return len(over)

    def _roots(self) -> set[UUID]:
        return {stored.row.root_run_id for stored in self._runs.values()}

    def _is_idle(self, root_run_id: UUID, idle_since: int) -> bool:
        rows = [stored.row for stored in self._runs.values() if stored.row.root_run_id == root_run_id]
        return all(row.updated_at < idle_since and (row.is_terminal or row.kind != "operation") for row in rows)

    def now_us(self) -> int:
        """Return the store's time."""
        return self._clock.now_us()

    def close(self) -> None:
        """Do nothing: there are no connections, and what is stored stays."""

    def _picture(self, run_ids: set[UUID], posts: Iterable[InboxPost]) -> Picture:
        runs = {run_id: stored for run_id in run_ids if (stored := self._runs.get(run_id)) is not None}
        return Picture(
            now=self._clock.now_us(),
            runs=runs,
            sessions=self._sessions,
            posted={
                (entry.run_id, entry.post_id): entry.n for post in posts for entry in self._inbox.get(post.run_id, [])
            },
            find_event=self._find_event,
            find_slot=lambda slot_id, generation: self._slots.get((slot_id, generation)),
            find_owned=self._find_owned,
        )

    def _find_owned(self, parent_run_id: UUID, op_id: str) -> set[UUID]:
        now = self._clock.now_us()
        found = (stored.row for stored in self._runs.values())
        return {
            row.run_id
            for row in found
            if row.parent_run_id == parent_run_id
            and row.op_id == op_id
            and (session := self._sessions.get(row.lease_session_id or UUID(int=0))) is not None
            and not session.is_over(now)
        }

    def _find_event(self, run_id: UUID, seq: int) -> StoredEvent | None:
        events = self._events.get(run_id, [])
        return events[seq - 1] if 1 <= seq <= len(events) else None

    def _write(self, picture: Picture) -> None:
        writes = picture.writes
        self._runs.update(writes.changed)
        for run_id, new in writes.created.items():
            self._runs[run_id] = new
            self._by_slot.setdefault(new.row.slot_id, []).append(run_id)
            self._slots[new.row.slot_id, new.row.generation] = run_id
        for (root, key), artifact in writes.artifacts.items():
            self._artifacts.setdefault(root, {}).setdefault(key, artifact)
        for event in writes.events:
            self._events.setdefault(event.run_id, []).append(event)
        for fact in writes.facts:
            self._facts.setdefault(fact.run_id, []).append(fact)
        for entry in writes.entries:
            self._inbox.setdefault(entry.run_id, []).append(entry)

    def _candidates(self, slot_ids: frozenset[UUID] | None) -> Iterable[StoredRun]:
        """Look only at the slots that are named, if any are."""
        if slot_ids is None:
            return self._runs.values()
        return [self._runs[run_id] for slot_id in slot_ids for run_id in self._by_slot.get(slot_id, ())]

    def _seen(self, stored: StoredRun, now: int) -> RunRow:
        holder = stored.row.lease_session_id
        return as_seen(stored, self._sessions.get(holder) if holder else None, now)

    def _select(self, matches: Callable[[RunRow], bool], slot_ids: frozenset[UUID] | None = None) -> list[RunRow]:
        now = self._clock.now_us()
        with self._lock:
            rows = [self._seen(stored, now) for stored in self._candidates(slot_ids)]
        return sorted(filter(matches, rows), key=lambda row: (row.created_at, row.run_id))


def _matcher(where: RunFilter) -> Callable[[RunRow], bool]:
    def matches(row: RunRow) -> bool:
        plain = ("kind", "root_run_id", "parent_run_id", "op_id")
        if any(getattr(where, name) not in (None, getattr(row, name)) for name in plain):
            return False
        if where.statuses is not None and row.status not in where.statuses:
            return False
        if where.slot_ids is not None and row.slot_id not in where.slot_ids:
            return False
        if where.id_range is not None and not where.id_range[0] <= row.run_id <= where.id_range[1]:
            return False
        if where.unowned is not None and where.unowned != (row.lease_expires_at is None):
            return False
        places = ("dag_id", "dag_run_id", "task_id")
        return all(getattr(where, name) in (None, getattr(row.airflow, name, None)) for name in places)

    return matches
