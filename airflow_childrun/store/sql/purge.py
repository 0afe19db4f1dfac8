"""Retention: whole trees that are over, deleted in one transaction each, safe beside writers."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, and_, bindparam, case, delete, func, not_, select

from airflow_childrun.store.api import TERMINAL
from airflow_childrun.store.sql.column_types import UuidBytes
from airflow_childrun.store.sql.engine import Database
from airflow_childrun.store.sql.schema import Tables


class Purge:
    """Finds and deletes trees; a host run never counts when it is asked whether a tree is over."""

    def __init__(self, database: Database, tables: Tables) -> None:
        self._database = database
        self._tables = tables

    def find(self, idle_since: int, after: UUID | None, limit: int) -> list[UUID]:
        """Return roots of idle trees, by id."""
        run = self._tables.run
        query = (
            select(run.c.root_run_id)
            .group_by(run.c.root_run_id)
            .having(func.max(run.c.updated_at) < idle_since, func.sum(case((self._is_open(), 1), else_=0)) == 0)
            .order_by(run.c.root_run_id)
            .limit(limit)
        )
        if after is not None:
            query = query.where(run.c.root_run_id > bindparam("after", after, type_=UuidBytes))
        return self._database.read(lambda connection: list(connection.execute(query).scalars()))

    def delete(self, root_run_id: UUID, idle_since: int) -> int | None:
        """Delete a tree, unless something has happened in it since."""
        return self._database.write(lambda connection: self._delete(connection, root_run_id, idle_since))

    def _delete(self, connection: Connection, root_run_id: UUID, idle_since: int) -> int | None:
        run = self._tables.run
        dialect = self._database.dialect
        dialect.take_time(connection)
        # Another task of the same DAG run locks no row of the tree, and needs the artifacts that are there.
        dialect.close_tree(connection, root_run_id.bytes)
        # Every other writer locks the row of a run that it moves, or that it spawns from: whoever comes now waits, then
        # finds the run gone.
        query = (
            select(run.c.run_id, run.c.updated_at, self._is_open().label("is_open"))
            .where(run.c.root_run_id == root_run_id)
            .order_by(run.c.run_id)
            .with_for_update()
        )
        found = connection.execute(query).all()
        if not found or any(row.is_open or row.updated_at >= idle_since for row in found):
            return None
        members = select(run.c.run_id).where(run.c.root_run_id == root_run_id)
        for table in (self._tables.event, self._tables.fact, self._tables.inbox):
            connection.execute(delete(table).where(table.c.run_id.in_(members)))
        for table in (self._tables.artifact, run):
            connection.execute(delete(table).where(table.c.root_run_id == root_run_id))
        return len(found)

    def delete_sessions(self, over_since: int) -> int:
        """Delete sessions that nobody holds a lease by and that were over before a time."""
        run, session = self._tables.run, self._tables.session
        held = select(run.c.lease_session_id).where(run.c.lease_session_id.is_not(None))
        statement: Any = delete(session).where(session.c.expires_at < over_since, not_(session.c.session_id.in_(held)))
        return self._database.write(lambda connection: int(connection.execute(statement).rowcount))

    def _is_open(self) -> ColumnElement[bool]:
        run = self._tables.run
        return and_(run.c.kind == "operation", not_(run.c.status.in_(sorted(TERMINAL))))
