"""Group commit: one transaction for all commits that wait, each decided by itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Executable

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
from airflow_childrun.store.sql import rows
from airflow_childrun.store.sql.engine import Database, settled
from airflow_childrun.store.sql.errors import SurpriseError
from airflow_childrun.store.sql.statements import Statements

Parameters = list[dict[str, Any]]


class Committer:
    """Runs batches against a database."""

    def __init__(self, database: Database, statements: Statements) -> None:
        self._database = database
        self._statements = statements

    def commit(self, commits: Sequence[Commit]) -> list[Committed | Conflict]:
        """Make each commit happen or not; any surprise makes each member go alone, once."""
        check_batch(commits)
        if not commits:
            return []
        try:
            return self._attempt(commits)
        except SurpriseError:
            return [self._alone(commit) for commit in commits]

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

    def _alone(self, commit: Commit) -> Committed | Conflict:
        return settled(lambda: self._attempt([commit], careful=True), self._database.place)[0]

    def _attempt(self, commits: Sequence[Commit], *, careful: bool = False) -> list[Committed | Conflict]:
        locked = False

        def transaction(connection: Connection) -> list[Committed | Conflict]:
            nonlocal locked
            posts = [post for commit in commits for post in commit.posts]
            picture = self._look(connection, named_runs(commits), posts, careful=careful)
            locked = True
            results = decide(commits, picture)
            self._write(connection, picture.writes)
            return results

        try:
            return self._database.transaction(transaction)
        except UnavailableError:
            # Nothing was written yet: the pooled connection was stale, or there is no database at all.
            if locked:
                raise
            return self._database.transaction(transaction)

    def _look(
        self, connection: Connection, run_ids: set[UUID], posts: Iterable[InboxPost], *, careful: bool = False
    ) -> Picture:
        """Lock the rows of the runs and read all that a decision asks for."""
        statements = self._statements
        found: dict[UUID, StoredRun] = {}
        sessions: dict[UUID, StoredSession] = {}
        now = None
        for row in connection.execute(statements.locked_runs, {"run_ids": list(run_ids)}) if run_ids else ():
            found[row.run_id] = rows.run_of(row)
            if (session := rows.session_of(row)) is not None:
                sessions[session.session_id] = session
            now = max(now or 0, row.now)
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

        return Picture(now, found, sessions, posted, find_event, find_slot)

    def _write(self, connection: Connection, writes: Writes) -> None:
        work = [(statement, parameters) for statement, parameters in self._work(writes) if parameters]
        if work:
            self._database.dialect.write_and_commit(connection, work)
        else:
            connection.rollback()

    def _work(self, writes: Writes) -> list[tuple[Executable, Parameters]]:
        """Order the writes: ids ascending within each table, so that batches of two processes never deadlock."""
        statements = self._statements
        created = sorted(writes.created.values(), key=lambda stored: stored.row.run_id)
        changed = sorted(writes.changed.values(), key=lambda stored: stored.row.run_id)
        artifacts = [writes.artifacts[key] for key in sorted(writes.artifacts)]
        events = sorted(writes.events, key=lambda event: (event.run_id, event.seq))
        return [
            (statements.insert_runs, [rows.all_columns(stored) for stored in created]),
            (statements.insert_artifacts, [rows.artifact_columns(artifact) for artifact in artifacts]),
            (statements.insert_events, [rows.event_columns(event) for event in events]),
            (statements.insert_facts, [rows.fact_columns(fact) for fact in writes.facts]),
            (statements.insert_entries, [rows.entry_columns(entry) for entry in writes.entries]),
            (
                statements.move_runs,
                [rows.moving_columns(stored) | {"the_run": stored.row.run_id} for stored in changed],
            ),
        ]
