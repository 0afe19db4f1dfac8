"""Slots and their generations: which is the newest, and how the next one continues it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from uuid import UUID

from airflow_childrun.engine.ports import RunIdentity
from airflow_childrun.engine.prepare import Lineage, create_step
from airflow_childrun.ids import child_run_id
from airflow_childrun.model.events import ENGINE, Continues, Parent
from airflow_childrun.runtime.histories import load_history
from airflow_childrun.store.api import RunFilter, RunRow, RunStep, Store

PAGE = 500


def all_runs(store: Store, where: RunFilter) -> Iterator[RunRow]:
    """Return every run that a filter describes, page by page."""
    cursor: str | None = None
    while True:
        page = store.find_runs(where, cursor, PAGE)
        yield from page.rows
        cursor = page.cursor
        if cursor is None:
            return


def newest_of(store: Store, slot_ids: Iterable[UUID]) -> dict[UUID, RunRow]:
    """Return the newest generation of each slot that has one, by slot id."""
    newest: dict[UUID, RunRow] = {}
    wanted = list(dict.fromkeys(slot_ids))
    for start in range(0, len(wanted), PAGE):
        where = RunFilter(slot_ids=frozenset(wanted[start : start + PAGE]))
        for row in all_runs(store, where):
            if row.slot_id not in newest or newest[row.slot_id].generation < row.generation:
                newest[row.slot_id] = row
    return newest


def get_many(store: Store, run_ids: Iterable[UUID]) -> dict[UUID, RunRow]:
    """Return the rows of those runs that exist, some hundred to a query."""
    found: dict[UUID, RunRow] = {}
    wanted = list(dict.fromkeys(run_ids))
    for start in range(0, len(wanted), PAGE):
        found |= store.get_runs(wanted[start : start + PAGE])
    return found


def continuation(store: Store, row: RunRow, opener: RunIdentity) -> tuple[UUID, RunStep]:
    """Return id and creating step of the next generation, which continues a terminal run at its last checkpoint.

    :raises NotFoundError: code ``run_not_found``
    """
    history = load_history(store, row.run_id)
    before = history.start
    parent = before.parent or Parent(run_id=str(opener.run_id), fact_key="", slot_owner_id=str(opener.chain_id))
    key, owner = parent.fact_key, UUID(parent.slot_owner_id)
    generation = row.generation + 1
    run_id = child_run_id(owner, key, generation)
    started = before.model_copy(
        update={
            "engine": before.engine or ENGINE,
            "op_version": row.op_version,
            "initial_snapshot_id": history.checkpoint_id,
            "parent": parent.model_copy(update={"run_id": str(opener.run_id)}),
            "root_run_id": str(row.root_run_id),
            "generation": generation,
            "deadline_at": _deadline(store, row, opener),
            "continues": Continues(run_id=str(row.run_id), seq=row.head.seq, hash=row.head.hash),
        }
    )
    lineage = Lineage(
        run_id=run_id,
        root_run_id=row.root_run_id,
        depth=row.depth,
        slot_id=row.slot_id,
        generation=generation,
        parent_run_id=opener.run_id,
        slot_owner_id=owner,
        fact_key=key,
    )
    return run_id, create_step(started, lineage)


def _deadline(store: Store, row: RunRow, opener: RunIdentity) -> int | None:
    """Give the next generation as long as the one before had, within its opener's deadline."""
    own = None if row.deadline_at is None else store.now_us() + row.deadline_at - row.created_at
    return min((at for at in (own, opener.deadline_at) if at is not None), default=None)
