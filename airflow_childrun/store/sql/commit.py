"""Group commit: one transaction for all commits that wait, each decided by itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from uuid import UUID

from sqlalchemy import Connection

from airflow_childrun.errors import UnavailableError
from airflow_childrun.store.api import Commit, Committed, Conflict, InboxPost, StoredEvent
from airflow_childrun.store.decision import (
    Picture,
    StoredRun,
    StoredSession,
    Writes,
    check_batch,
    decide,
    decide_posts,
    named_runs,
)
from airflow_childrun.store.sql import raw_rows, rows
from airflow_childrun.store.sql.engine import Database, settled
from airflow_childrun.store.sql.errors import SurpriseError
from airflow_childrun.store.sql.lone_commit import answer_of, is_lone
from airflow_childrun.store.sql.statements import Statements
from airflow_childrun.store.sql.texts import CHUNK, Row, Texts, Writing


class Committer:
    """Runs batches against a database."""

    def __init__(self, database: Database, statements: Statements, texts: Texts) -> None:
        self._database = database
        self._statements = statements
        self._texts = texts

    def commit(self, commits: Sequence[Commit]) -> list[Committed | Conflict]:
        """Make each commit happen or not; any surprise makes each member go alone, once."""
        check_batch(commits)
        if not commits:
            return []
        answer = self._lone(commits[0]) if len(commits) == 1 else None
        if answer is not None:
            return [answer]
        try:
            results = self._attempt(commits)
        except SurpriseError:
            return [self._alone(commit) for commit in commits]
        return [self._asked_again(commit, result) for commit, result in zip(commits, results, strict=True)]

    def post(self, posts: Sequence[InboxPost]) -> dict[UUID, int | None]:
        """Put entries into inboxes."""
        if not posts:
            return {}

        def transaction(connection: Connection) -> dict[UUID, int | None]:
            picture = self._look(connection, {post.run_id for post in posts}, posts)
            numbers = decide_posts(posts, picture, picture.now)
            self._write(connection, picture.writes)
            return numbers

        return self._database.write(transaction)

    def _lone(self, commit: Commit) -> Committed | None:
        """Make a commit happen the short way; None where that cannot be, or where it did not happen that way."""
        if not is_lone(commit):
            return None
        make = self._database.dialect.make_alone
        try:
            row = self._database.past(lambda connection: make(connection, self._texts, commit))
        except (SurpriseError, UnavailableError):
            # Whether it happened is not known; submitted again, it is known by its id.
            return None
        return answer_of(commit, row) if row else None

    def _asked_again(self, commit: Commit, result: Committed | Conflict) -> Committed | Conflict:
        """Decide a refused commit that creates runs once more, in a transaction that begins now.

        The statement that waited for the lock of its parent sees that row as it is now, but not the runs that whoever held
        the lock has just created: they may be this very commit's, submitted before.
        """
        if isinstance(result, Committed) or all(step.create is None for step in commit.steps):
            return result
        return self._alone(commit)

    def _alone(self, commit: Commit) -> Committed | Conflict:
        return settled(lambda: self._attempt([commit], careful=True), self._database.place)[0]

    def _attempt(self, commits: Sequence[Commit], *, careful: bool = False) -> list[Committed | Conflict]:
        locked = False

        def transaction(connection: Connection) -> list[Committed | Conflict]:
            nonlocal locked
            posts = [post for commit in commits for post in commit.posts]
            roots = _joined_trees(commits)
            if roots:
                self._database.dialect.bound(connection)
                self._database.dialect.join_trees(connection, roots)
            picture = self._look(connection, named_runs(commits), posts, careful=careful, binds=not roots)
            locked = True
            results = decide(commits, picture)
            self._write(connection, picture.writes)
            return results

        try:
            return self._database.transaction(transaction, is_bound=False)
        except UnavailableError:
            # Nothing was written yet: the pooled connection was stale, or there is no database at all.
            if locked:
                raise
            return self._database.transaction(transaction, is_bound=False)

    def _look(
        self,
        connection: Connection,
        run_ids: set[UUID],
        posts: Iterable[InboxPost],
        *,
        careful: bool = False,
        binds: bool = False,
    ) -> Picture:
        """Lock the rows of the runs and read all that a decision asks for.

        :param careful: look for taken slots
        :param binds: say how long the transaction may last
        """
        statements = self._statements
        found: dict[UUID, StoredRun] = {}
        sessions: dict[UUID, StoredSession] = {}
        now = None
        for row in self._locked(connection, run_ids, binds=binds):
            stored = raw_rows.run_of(row)
            found[stored.row.run_id] = stored
            if (session := raw_rows.session_of(row, stored)) is not None:
                sessions[session.session_id] = session
            now = max(now or 0, row[raw_rows.NOW])
        if now is None:
            now = connection.scalar(statements.now)
        by_run = {(post.run_id, post.post_id) for post in posts if post.run_id in found}
        posted = {}
        if by_run:
            keys = {"run_ids": list({key[0] for key in by_run}), "post_ids": [key[1] for key in by_run]}
            posted = {(row.run_id, row.post_id): row.n for row in connection.execute(statements.posted, keys)}

        def find_event(run_id: UUID, seq: int) -> StoredEvent | None:
            row = connection.execute(statements.event, {"the_run": run_id, "the_seq": seq}).one_or_none()
            return rows.event_of(row) if row is not None else None

        def find_slot(slot_id: UUID, generation: int) -> UUID | None:
            # The unique index answers for free, as a surprise; only the second time we look.
            if not careful:
                return None
            keys = {"the_slot": slot_id, "the_generation": generation}
            taken: UUID | None = connection.scalar(statements.slot, keys)
            return taken

        def find_owned(parent_run_id: UUID, op_id: str) -> set[UUID]:
            keys = {"the_parent": parent_run_id, "the_op": op_id, "the_now": now}
            return set(connection.scalars(statements.owned, keys))

        return Picture(now, found, sessions, posted, find_event, find_slot, find_owned)

    def _write(self, connection: Connection, writes: Writes) -> None:
        work = [(writing, values) for writing, values in self._work(writes) if values]
        if work:
            self._database.dialect.write_and_commit(connection, work)
        else:
            connection.rollback()

    def _locked(self, connection: Connection, run_ids: Iterable[UUID], *, binds: bool) -> list[Row]:
        dialect = self._database.dialect
        found: list[Row] = []
        ids = sorted(run_id.bytes for run_id in run_ids)
        for start in range(0, len(ids), CHUNK):
            condition, parameters = dialect.one_of(ids[start : start + CHUNK])
            text = self._texts.locked_runs.format(condition) + dialect.lock_text
            found += dialect.lock(connection, text, parameters, binds=binds and start == 0)
        return found

    def _work(self, writes: Writes) -> list[tuple[Writing, list[Row]]]:
        """Order the writes: ids ascending within each table, so that batches of two processes never deadlock."""
        texts = self._texts
        created = sorted(writes.created.values(), key=lambda stored: stored.row.run_id.bytes)
        changed = sorted(writes.changed.values(), key=lambda stored: stored.row.run_id.bytes)
        artifacts = sorted(map(raw_rows.artifact_values, writes.artifacts.values()))
        events = sorted((event.run_id.bytes, event.seq, event) for event in writes.events)
        return [
            (texts.insert_runs, [raw_rows.all_values(stored) for stored in created]),
            (texts.insert_artifacts, artifacts),
            (texts.insert_events, [raw_rows.event_values(event) for _, _, event in events]),
            (texts.insert_facts, [raw_rows.fact_values(fact) for fact in writes.facts]),
            (texts.insert_entries, [raw_rows.entry_values(entry) for entry in writes.entries]),
            (texts.move_runs, [raw_rows.moved_values(stored) for stored in changed]),
        ]


def _joined_trees(commits: Iterable[Commit]) -> list[bytes]:
    """Return, ascending, the roots of trees that get a run without a parent, whose row would keep the tree from deletion."""
    new = [(step.run_id, step.create) for commit in commits for step in commit.steps if step.create is not None]
    roots = {run.root_run_id for run_id, run in new if run.parent_run_id is None and run.root_run_id != run_id}
    return sorted(root.bytes for root in roots)
