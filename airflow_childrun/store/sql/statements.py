"""The statements of the store that are not hot, built once per schema; nothing here is executed. The others: ``texts``."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, get_args
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Executable,
    Select,
    Update,
    and_,
    bindparam,
    not_,
    or_,
    select,
    union_all,
    update,
)
from sqlalchemy.sql.base import ReadOnlyColumnCollection

from airflow_childrun.store.api import RunFilter, RunStatus
from airflow_childrun.store.cursor import position_of
from airflow_childrun.store.sql.column_types import UuidBytes
from airflow_childrun.store.sql.dialects.base import StoreDialect
from airflow_childrun.store.sql.schema import Tables

_NARROW = ("root_run_id", "parent_run_id", "slot_ids", "id_range")
"""What an index of its own finds few rows by."""
_STATUSES = sorted(get_args(RunStatus))
_Columns = ReadOnlyColumnCollection[str, Any]


class Statements:
    """The store's statements on some tables, in some dialect.

    Parameters have their column's name; ``the_`` and plurals mark those of conditions.
    """

    def __init__(self, tables: Tables, dialect: StoreDialect) -> None:
        self.tables = tables
        self.dialect = dialect
        run, session = tables.run, tables.session
        self.now: Select[Any] = select(dialect.now().label("now"))
        self.runs: Select[Any] = select(
            run,
            session.c.expires_at.label("session_expires_at"),
            session.c.ended.label("session_ended"),
            dialect.now().label("now"),
        ).select_from(run.outerjoin(session, session.c.session_id == run.c.lease_session_id))
        self.children = self.runs.where(run.c.parent_run_id == bindparam("the_parent", type_=UuidBytes)).order_by(
            run.c.created_at, run.c.run_id
        )
        self.slot: Select[Any] = select(run.c.run_id).where(
            run.c.slot_id == bindparam("the_slot", type_=UuidBytes),
            run.c.generation == bindparam("the_generation"),
        )
        session = self.tables.session
        self.owned: Select[Any] = (
            select(run.c.run_id)
            .join_from(run, session, session.c.session_id == run.c.lease_session_id)
            .where(run.c.parent_run_id == bindparam("the_parent", type_=UuidBytes), run.c.op_id == bindparam("the_op"))
            .where(session.c.ended.is_(None), session.c.expires_at > bindparam("the_now"))
        )
        self._events()
        self._artifacts_and_inbox()
        self._sessions()

    def _events(self) -> None:
        event, fact = self.tables.event, self.tables.fact
        of_run = event.c.run_id == bindparam("the_run", type_=UuidBytes)
        self.event: Select[Any] = select(event).where(of_run, event.c.seq == bindparam("the_seq"))
        self.facts: Select[Any] = (
            select(fact).where(fact.c.run_id == bindparam("the_run", type_=UuidBytes)).order_by(fact.c.seq)
        )
        self.facts_by_key = self.facts.where(fact.c.key_digest.in_(bindparam("digests", expanding=True)))

    def _artifacts_and_inbox(self) -> None:
        artifact, inbox = self.tables.artifact, self.tables.inbox
        of_tree = artifact.c.root_run_id == bindparam("the_root", type_=UuidBytes)
        self.artifact_kinds: Select[Any] = select(artifact.c.id, artifact.c.kind).where(of_tree)
        self.posted: Select[Any] = select(inbox.c.run_id, inbox.c.post_id, inbox.c.n).where(
            inbox.c.run_id.in_(bindparam("run_ids", expanding=True)),
            inbox.c.post_id.in_(bindparam("post_ids", expanding=True)),
        )
        self.inbox: Select[Any] = (
            select(inbox)
            .where(inbox.c.run_id == bindparam("the_run", type_=UuidBytes), inbox.c.n > bindparam("after"))
            .order_by(inbox.c.n)
        )

    def _sessions(self) -> None:
        session = self.tables.session
        this = session.c.session_id == bindparam("the_session", type_=UuidBytes)
        self.insert_session: Executable = self.dialect.insert_new(session)
        self.prolong_session: Update = (
            update(session)
            .where(this, session.c.ended.is_(None), session.c.expires_at > bindparam("the_now"))
            .values(expires_at=bindparam("new_end"))
        )
        self.close_session: Update = update(session).where(this, session.c.ended.is_(None)).values(ended="closed")
        self.supersede_sessions: Update = (
            update(session)
            .where(
                session.c.owner_key_digest == bindparam("the_owner", type_=session.c.owner_key_digest.type),
                session.c.incarnation < bindparam("the_incarnation"),
                session.c.ended.is_(None),
            )
            .values(ended="superseded")
        )

    def find_runs(self, where: RunFilter, cursor: str | None, limit: int, *, newest_first: bool) -> Select[Any]:
        """Build the query of a page: one row more than asked says whether there is another page."""
        run = self.tables.run
        query = self.runs.where(*self._conditions(where))
        after = position_of(cursor)
        if after is not None:
            query = query.where(_behind(run.c, *after, newest_first=newest_first))
        if where.statuses is None and all(getattr(where, name) is None for name in _NARROW):
            # The first ones of each status, each in the order of its index: no page sorts every row.
            parts = (
                select(_ordered(query.where(part), run.c, limit, newest_first=newest_first).subquery())
                for part in _by_status(run.c.status)
            )
            whole = union_all(*parts).subquery()
            return _ordered(select(whole), whole.c, limit, newest_first=newest_first)
        return _ordered(query, run.c, limit, newest_first=newest_first)

    def _conditions(self, where: RunFilter) -> list[ColumnElement[bool]]:
        run, session = self.tables.run, self.tables.session
        equal = ("kind", "root_run_id", "parent_run_id", "op_id", "dag_id", "dag_run_id", "task_id")
        found: list[ColumnElement[bool]] = [
            run.c[name] == getattr(where, name) for name in equal if getattr(where, name) is not None
        ]
        if where.statuses is not None:
            found.append(run.c.status.in_(sorted(where.statuses)))
        if where.slot_ids is not None:
            found.append(run.c.slot_id.in_(sorted(where.slot_ids)))
        if where.id_range is not None:
            found.append(run.c.run_id.between(*where.id_range))
        if where.unowned is not None:
            alive = and_(
                session.c.session_id.is_not(None),
                session.c.ended.is_(None),
                session.c.expires_at > self.dialect.now(),
            )
            found.append(not_(alive) if where.unowned else alive)
        return found


def _behind(columns: _Columns, created_at: int, run_id: UUID, *, newest_first: bool) -> ColumnElement[bool]:
    """Return the condition "stands behind this position in the order"."""
    at, key = columns["created_at"], columns["run_id"]
    if newest_first:
        return or_(at < created_at, and_(at == created_at, key < run_id))
    return or_(at > created_at, and_(at == created_at, key > run_id))


def _by_status(status: ColumnElement[str]) -> list[ColumnElement[bool]]:
    """Return conditions of which exactly one holds for a row: a known status each, and the gaps between them.

    A damaged row has another status, and must be found as well.
    """
    gaps = [and_(status > below, status < above) for below, above in pairwise(_STATUSES)]
    return [*(status == known for known in _STATUSES), or_(status < _STATUSES[0], *gaps, status > _STATUSES[-1])]


def _ordered(query: Select[Any], columns: _Columns, limit: int, *, newest_first: bool) -> Select[Any]:
    order = (columns["created_at"], columns["run_id"])
    return query.order_by(*(column.desc() for column in order) if newest_first else order).limit(limit + 1)
