"""The store on SQLAlchemy Core: SQLite and PostgreSQL."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import URL, Executable
from sqlalchemy import Row as SqlRow

from airflow_childrun.clock import Clock, SystemClock
from airflow_childrun.errors import ChildRunError, OtherStorageError
from airflow_childrun.store.api import (
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
from airflow_childrun.store.cursor import cursor_of
from airflow_childrun.store.decision import as_seen
from airflow_childrun.store.sql import raw_rows, rows
from airflow_childrun.store.sql.commit import Committer
from airflow_childrun.store.sql.engine import Database
from airflow_childrun.store.sql.purge import Purge
from airflow_childrun.store.sql.schema import tables_in
from airflow_childrun.store.sql.session import Sessions
from airflow_childrun.store.sql.statements import Statements
from airflow_childrun.store.sql.texts import CHUNK, Row

_LAST_SEQ = 2**63 - 1
_DIGEST = re.compile("[0-9a-f]{64}")

T = TypeVar("T")


class SqlStore:
    """A :class:`~airflow_childrun.store.api.Store` in SQLite or PostgreSQL.

    Connects at the first use; at most two connections per process. Never creates or changes tables: ``migrate.py`` does.

    :param url: SQLAlchemy URL; ``postgresql://`` means psycopg 3
    :param schema: PostgreSQL schema of the tables; None = where the search path leads
    :param clock: SQLite's time; PostgreSQL has its own
    :raises InputError: if the URL is none, or of a database that the store does not speak
    """

    def __init__(self, url: str | URL, schema: str | None = None, clock: Clock | None = None) -> None:
        self.database = Database(url, clock or SystemClock())
        self.schema = schema
        self._statements = Statements(tables_in(schema), self.database.dialect)
        self._texts = self.database.texts(tables_in(schema))
        self._committer = Committer(self.database, self._statements, self._texts)
        self._sessions = Sessions(self.database, self._statements)
        self._purge = Purge(self.database, self._statements.tables)

    def __repr__(self) -> str:
        return f"SqlStore({self.database.place!r}, schema={self.schema!r})"

    def commit(self, commits: Sequence[Commit]) -> list[Committed | Conflict]:
        """Make each commit happen or not, in one transaction, and answer in the same order."""
        return self._checked(lambda: self._committer.commit(commits))

    def read_events(
        self, run_id: UUID, from_seq: int = 1, to_seq: int | None = None, limit: int | None = None
    ) -> list[StoredEvent]:
        """Return the events ``from_seq`` to ``to_seq``, both inclusive, ascending; an unknown run has none."""
        bounds = (run_id.bytes, from_seq, _LAST_SEQ if to_seq is None else to_seq)
        text = self._texts.events if limit is None else f"{self._texts.events} LIMIT {int(limit)}"
        return [raw_rows.event_in(run_id, row) for row in self._driver_rows(text, bounds)]

    def read_ends(self, run_ids: Iterable[UUID]) -> dict[UUID, list[StoredEvent]]:
        """Return the first event and the last two of each of those runs that exist, ascending by seq."""
        found: dict[UUID, list[StoredEvent]] = {}
        ids = (run_id.bytes for run_id in dict.fromkeys(run_ids))
        for event in map(raw_rows.event_of, self._by_ids(self._texts.ends, (), ids)):
            found.setdefault(event.run_id, []).append(event)
        return found

    def find_run(self, run_id: UUID) -> RunRow | None:
        """Return the row of a run, or None."""
        return self.get_runs([run_id]).get(run_id)

    def get_runs(self, run_ids: Iterable[UUID]) -> dict[UUID, RunRow]:
        """Return the rows of those runs that exist."""
        ids = (run_id.bytes for run_id in dict.fromkeys(run_ids))
        found = (_raw_seen(row) for row in self._by_ids(self._texts.runs, (), ids))
        return {row.run_id: row for row in found}

    def find_runs(
        self, where: RunFilter, cursor: str | None = None, limit: int = 100, *, newest_first: bool = False
    ) -> RunPage:
        """Return a page of the runs that ``where`` describes, in order of creation (then id), or in the reverse order."""
        query = self._statements.find_runs(where, cursor, limit, newest_first=newest_first)
        found = [_seen(row) for row in self._all(query, {})]
        page = tuple(found[:limit])
        return RunPage(page, cursor_of(page[-1]) if page and len(found) > limit else None)

    def children_of(self, run_id: UUID) -> list[RunRow]:
        """Return all runs that ``run_id`` spawned, in order of creation (then id)."""
        return [_seen(row) for row in self._all(self._statements.children, {"the_parent": run_id})]

    def get_facts(self, run_id: UUID, key_digests: Iterable[str] | None = None) -> list[FactEntry]:
        """Return the index of facts of a run, ascending by seq, for some keys or for all."""
        if key_digests is None:
            return [rows.fact_of(row) for row in self._all(self._statements.facts, {"the_run": run_id})]
        found = [
            rows.fact_of(row)
            for chunk in _chunks(_digests(key_digests))
            for row in self._all(self._statements.facts_by_key, {"the_run": run_id, "digests": chunk})
        ]
        return sorted(found, key=lambda fact: fact.seq)

    def get_artifacts(self, root_run_id: UUID, ids: Iterable[str]) -> dict[str, bytes]:
        """Return the bodies of those artifacts that exist in the tree, each verified against its id."""
        wanted = map(bytes.fromhex, _digests(ids))
        found = {
            row[0].hex(): rows.plain(row[1], row[2], f"artifact {row[0].hex()}")
            for row in self._by_ids(self._texts.artifacts, (root_run_id.bytes,), wanted)
        }
        for key, body in found.items():
            if body_digest(body) != key:
                raise artifact_changed(root_run_id, key)
        return found

    def find_artifact_kinds(self, root_run_id: UUID) -> dict[str, str]:
        """Return id -> kind of every artifact in the tree."""
        return {row.id: row.kind for row in self._all(self._statements.artifact_kinds, {"the_root": root_run_id})}

    def post(self, posts: Sequence[InboxPost]) -> dict[UUID, int | None]:
        """Put entries into inboxes; post id -> its number, or None if the run is terminal or not there."""
        return self._checked(lambda: self._committer.post(posts))

    def read_inbox(self, run_id: UUID, after: int = 0) -> list[InboxEntry]:
        """Return the entries of a run's inbox with a number above ``after``, ascending."""
        return [rows.entry_of(row) for row in self._all(self._statements.inbox, {"the_run": run_id, "after": after})]

    def open_session(self, session_id: UUID, owner: Owner, ttl_us: int) -> Session:
        """Open a session that is over ``ttl_us`` after its last renewal; it supersedes lower incarnations of its key."""
        return self._checked(lambda: self._sessions.open(session_id, owner, ttl_us))

    def renew_session(self, session_id: UUID, ttl_us: int) -> Session | None:
        """Put the end off to now + ``ttl_us``; None if the session is over (it stays so)."""
        return self._checked(lambda: self._sessions.renew(session_id, ttl_us))

    def close_session(self, session_id: UUID) -> None:
        """End a session: the leases that it holds are free. Idempotent."""
        self._checked(lambda: self._sessions.close(session_id))

    def find_idle_trees(self, idle_since: int, after: UUID | None = None, limit: int = 100) -> list[UUID]:
        """Return roots of trees whose operations have all ended and in which nothing happened since a time.

        Ordering: by id; ``after`` is the last one of the page before. Host runs do not keep a tree.
        """
        return self._checked(lambda: self._purge.find(idle_since, after, limit))

    def delete_tree(self, root_run_id: UUID, idle_since: int) -> int | None:
        """Delete a tree whole, and return how many runs it had; None if it is not idle any more, or not there.

        Atomic: a writer that comes meanwhile finds all of it, or its runs ``missing``.
        """
        return self._checked(lambda: self._purge.delete(root_run_id, idle_since))

    def delete_sessions(self, over_since: int) -> int:
        """Delete sessions that were over before a time and hold no lease, and return how many."""
        return self._checked(lambda: self._purge.delete_sessions(over_since))

    def now_us(self) -> int:
        """Return the store's time."""
        return int(self._all(self._statements.now, {})[0].now)

    def close(self) -> None:
        """Close every connection of this process; the next use opens new ones."""
        self.database.close()

    def _all(self, statement: Executable, parameters: dict[str, Any]) -> Sequence[SqlRow[Any]]:
        return self._checked(
            lambda: self.database.read(lambda connection: connection.execute(statement, parameters).all())
        )

    def _by_ids(self, text: str, before: Row, ids: Iterable[bytes]) -> Iterator[Row]:
        """Run a query about some ids, so many at a time as a statement may name."""
        for chunk in _chunks(ids, self.database.dialect.ids_at_once):
            condition, parameters = self.database.dialect.one_of(chunk)
            yield from self._driver_rows(text.format(condition), (*before, *parameters))

    def _driver_rows(self, text: str, parameters: Row) -> Sequence[Row]:
        return self._checked(lambda: self.database.query(text, parameters))

    def _checked(self, work: Callable[[], T]) -> T:
        """Run ``work``; if it fails for no reason that the database names, look whether the schema is the reason."""
        try:
            return work()
        except OtherStorageError as error:
            if error.code != OtherStorageError.default_code:
                raise
            # SQLite reports a missing table as it reports any wrong statement.
            self._explain(error)
            raise

    def _explain(self, error: ChildRunError) -> None:
        from airflow_childrun.store.sql.migrate import check  # Alembic is for whoever needs it

        try:
            check(self.database.engine(), self.schema)
        except ChildRunError as reason:
            raise reason from error


def _seen(row: SqlRow[Any]) -> RunRow:
    return as_seen(rows.run_of(row), rows.session_of(row), row.now)


def _raw_seen(values: Row) -> RunRow:
    stored = raw_rows.run_of(values)
    return as_seen(stored, raw_rows.session_of(values, stored), values[raw_rows.NOW])


def _digests(texts: Iterable[str]) -> list[str]:
    """Return those of the texts that can stand in a column of digests; nothing is stored under the others."""
    return [text for text in dict.fromkeys(texts) if _DIGEST.fullmatch(text)]


def _chunks(values: Iterable[T], most: int = CHUNK) -> Iterator[list[T]]:
    rest = iter(values)
    while chunk := list(islice(rest, most)):
        yield chunk
