"""Runs that are over though nobody has written so: unowned, asked to end, their grace past.

They read as Cancelled everywhere, and whoever touches one next writes so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from uuid import UUID

from airflow_childrun.engine.inbox import EndRequest
from airflow_childrun.errors import CorruptionError, InvalidHistoryError
from airflow_childrun.runtime.closing import end_unowned, may_be_overdue, overdue_request
from airflow_childrun.runtime.generations import get_many
from airflow_childrun.runtime.house import House
from airflow_childrun.store.api import RunFilter, RunPage, RunRow, RunStatus, Store

OPEN: frozenset[RunStatus] = frozenset({"Pending", "Running"})


def as_read(store: Store, rows: Iterable[RunRow]) -> list[RunRow]:
    """Return rows as they are to be shown, in their order; asks the store only about those that may be overdue."""
    shown, now_us = [], 0
    for row in rows:
        if may_be_overdue(row):
            now_us = now_us or store.now_us()
            request = _request(store, row, now_us)
            shown.append(row if request is None else _ended(row, request))
        else:
            shown.append(row)
    return shown


def find_as_read(
    store: Store, where: RunFilter, cursor: str | None = None, limit: int = 100, *, newest_first: bool = False
) -> RunPage:
    """Return a page of runs as they are to be shown; where statuses are asked for, it may be shorter than ``limit``."""
    wanted = where.statuses
    if wanted is None:
        page = store.find_runs(where, cursor, limit, newest_first=newest_first)
        return RunPage(tuple(as_read(store, page.rows)), page.cursor)
    if "Cancelled" in wanted:
        where = replace(where, statuses=wanted | OPEN)
    page = store.find_runs(where, cursor, limit, newest_first=newest_first)
    return RunPage(tuple(row for row in as_read(store, page.rows) if row.status in wanted), page.cursor)


def settle(house: House, rows: Iterable[RunRow]) -> dict[UUID, RunRow]:
    """Write the ends of overdue runs, and return their rows by id."""
    overdue = [row.run_id for row in rows if may_be_overdue(row) and end_unowned(house, row.run_id)]
    return get_many(house.store, overdue)


def _request(store: Store, row: RunRow, now_us: int) -> EndRequest | None:
    try:
        return overdue_request(store, row, now_us)
    except (CorruptionError, InvalidHistoryError):
        # A list must not end at a run that is damaged: `childrun verify` says what is wrong with it.
        return None


def _ended(row: RunRow, request: EndRequest) -> RunRow:
    return row._replace(
        status="Cancelled",
        final_snapshot_id=row.checkpoint_snapshot_id,
        wake_at=None,
        ended_at=max(request.effective_at, row.updated_at),
    )
