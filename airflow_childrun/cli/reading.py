"""Runs as people and programs read them: found by the beginning of an id, and shown with stable names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from airflow_childrun.errors import CorruptionError, InputError, NotFoundError
from airflow_childrun.runtime.histories import read_start
from airflow_childrun.runtime.overdue import as_read, find_as_read
from airflow_childrun.store.api import RunFilter, RunRow, Store

PAGE = 500
_FULL = 32
_HEX = frozenset("0123456789abcdef")
_NAMED = 5
_URGENCY = ("Failed", "Running", "Cancelled", "Pending", "Completed")


@dataclass(frozen=True, slots=True)
class SeenRun:
    """A run with what its row does not hold: the fact key under which its parent spawned it."""

    row: RunRow
    key: str | None
    now: int

    @property
    def operation(self) -> str:
        """What it runs; for a host run the task instance."""
        at = self.row.airflow
        if at is None:
            return f"{self.row.op_id}@{self.row.op_version}"
        index = f"[{at.map_index}]" if at.map_index >= 0 else ""
        return f"{at.dag_id}.{at.task_id}{index}"

    @property
    def duration_us(self) -> int:
        """From its creation to its end, or until now."""
        return (self.row.ended_at or self.now) - self.row.created_at

    def to_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints; names and meanings are stable, times are microseconds since 1970, UTC."""
        row, at = self.row, self.row.airflow
        return {
            "run_id": str(row.run_id),
            "kind": row.kind,
            "status": row.status,
            "operation": row.op_id,
            "version": row.op_version,
            "key": self.key,
            "generation": row.generation,
            "parent_run_id": _text(row.parent_run_id),
            "root_run_id": str(row.root_run_id),
            "slot_id": str(row.slot_id),
            "depth": row.depth,
            "events": row.head.seq,
            "created_at": row.created_at,
            "ended_at": row.ended_at,
            "duration_us": self.duration_us,
            "deadline_at": row.deadline_at,
            "wake_at": row.wake_at,
            "error_code": row.error_code,
            "final_snapshot_id": row.final_snapshot_id,
            "lease_session_id": _text(row.lease_session_id),
            "airflow": None
            if at is None
            else {
                "dag_id": at.dag_id,
                "dag_run_id": at.dag_run_id,
                "task_id": at.task_id,
                "map_index": at.map_index,
            },
        }


def find_run(store: Store, text: str) -> RunRow:
    """Return the run whose id begins with ``text``.

    :raises InputError: code ``run_id_invalid`` or ``run_id_ambiguous``
    :raises NotFoundError: if there is none
    """
    digits = text.strip().lower().replace("-", "")
    if not digits or set(digits) - _HEX or len(digits) > _FULL:
        raise InputError(f"{text!r} is no run id and no beginning of one: hexadecimal digits", code="run_id_invalid")
    if len(digits) == _FULL:
        row = store.find_run(UUID(digits))
        found = as_read(store, [row] if row else [])
    else:
        ends = UUID(digits.ljust(_FULL, "0")), UUID(digits.ljust(_FULL, "f"))
        found = as_read(store, store.find_runs(RunFilter(id_range=ends), limit=_NAMED).rows)
    if not found:
        raise NotFoundError(f"there is no run {text!r} in this store; `childrun runs list` shows what there is")
    if len(found) > 1:
        raise InputError(
            f"{text!r} is the beginning of several run ids, among them {', '.join(str(row.run_id) for row in found)}",
            code="run_id_ambiguous",
        )
    return found[0]


def all_runs(store: Store, where: RunFilter | None = None, *, newest_first: bool = False) -> Iterator[RunRow]:
    """Yield every run, a page at a time, in order of creation or in the reverse order.

    One that is over though nobody has written so reads as Cancelled.
    """
    cursor = None
    while True:
        page = find_as_read(store, where or RunFilter(), cursor, PAGE, newest_first=newest_first)
        yield from page.rows
        cursor = page.cursor
        if cursor is None:
            return


def newest(rows: Iterable[RunRow]) -> list[RunRow]:
    """Return each slot's newest generation, in the order in which the slots were opened."""
    found: dict[UUID, RunRow] = {}
    for row in rows:
        known = found.get(row.slot_id)
        if known is None or known.generation < row.generation:
            found[row.slot_id] = row
    return list(found.values())


def children_of(store: Store, run_id: UUID) -> list[RunRow]:
    """Return a run's children of every generation, as they are to be shown."""
    return as_read(store, store.children_of(run_id))


def urgency(row: RunRow) -> int:
    """Return a sort key that puts first what one looks for."""
    return _URGENCY.index(row.status)


def seen(store: Store, rows: Iterable[RunRow]) -> list[SeenRun]:
    """Look up what the rows do not hold; one query a run."""
    now = store.now_us()
    return [SeenRun(row, _key_of(store, row), now) for row in rows]


def _key_of(store: Store, row: RunRow) -> str | None:
    if row.parent_run_id is None:
        return None
    try:
        parent = read_start(store, row.run_id).parent
    except CorruptionError:
        # A list must not end at a run that is damaged: `childrun verify` says what is wrong with it.
        return None
    return parent.fact_key if parent else None


def moment(at: int | None) -> str:
    """Return a time for people, in UTC."""
    if at is None:
        return "-"
    return (datetime.fromtimestamp(0, UTC) + timedelta(microseconds=at)).strftime("%Y-%m-%d %H:%M:%S")


def span(duration_us: int) -> str:
    """Return a duration for people: ``42 ms``, ``3.1 s``, ``2 min 05 s``, ``1 h 04 min``."""
    milliseconds = max(duration_us, 0) // 1000
    seconds = milliseconds // 1000
    if milliseconds < 1000:  # noqa: PLR2004 - units
        return f"{milliseconds} ms"
    if seconds < 60:  # noqa: PLR2004
        return f"{milliseconds / 1000:.1f} s"
    if seconds < 3600:  # noqa: PLR2004
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds // 60 % 60:02d} min"


def _text(value: object) -> str | None:
    return None if value is None else str(value)
