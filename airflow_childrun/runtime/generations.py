"""Slots and their generations: which is the newest, and how the next one continues it or starts afresh."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from uuid import UUID

from airflow_childrun.engine.decide import RECOVERY_LIMIT_EXCEEDED
from airflow_childrun.engine.history import RunHistory
from airflow_childrun.engine.ports import RunIdentity
from airflow_childrun.engine.prepare import Lineage, Request, create_step, prepare_run
from airflow_childrun.ids import child_run_id
from airflow_childrun.model.events import ENGINE, Continues, Parent
from airflow_childrun.runtime.histories import load_history, read_manifest, read_start, read_starts
from airflow_childrun.runtime.house import House
from airflow_childrun.store.api import Artifact, RunFilter, RunRow, RunStep, Store
from airflow_childrun.transports.nursery import NextAttempt

PAGE = 500
DAG_RUN_OPERATION = "airflow_dag_run"
"""The operation whose run is a DAG run that a task can trigger and look at, but neither end nor continue."""


@dataclass(frozen=True, slots=True)
class Succession:
    """What opens the next generation of a slot: its id, the step that creates it, what has to be stored with it."""

    run_id: UUID
    step: RunStep
    artifacts: tuple[Artifact, ...] = ()


def all_runs(store: Store, where: RunFilter) -> Iterator[RunRow]:
    """Return every run that a filter describes, page by page."""
    cursor: str | None = None
    while True:
        page = store.find_runs(where, cursor, PAGE)
        yield from page.rows
        cursor = page.cursor
        if cursor is None:
            return


def generations_of(store: Store, slot_ids: Iterable[UUID]) -> list[RunRow]:
    """Return every generation of some slots."""
    found: list[RunRow] = []
    wanted = list(dict.fromkeys(slot_ids))
    for start in range(0, len(wanted), PAGE):
        found += all_runs(store, RunFilter(slot_ids=frozenset(wanted[start : start + PAGE])))
    return found


def newest_of(store: Store, slot_ids: Iterable[UUID]) -> dict[UUID, RunRow]:
    """Return the newest generation of each slot that has one, by slot id."""
    return newest_among(generations_of(store, slot_ids))


def newest_among(rows: Iterable[RunRow]) -> dict[UUID, RunRow]:
    """Return the newest of those rows that share a slot, by slot id."""
    newest: dict[UUID, RunRow] = {}
    for row in rows:
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


def find_cleaned_up(store: Store, rows: Iterable[RunRow]) -> set[UUID]:
    """Return those runs whose clean-up (``on_cancel``) was entered: they are never continued, only started afresh.

    The same holds for DAG runs that only another DAG run can follow.
    """
    rows = list(rows)
    found = {row.run_id for row in rows if row.op_id == DAG_RUN_OPERATION}
    # It ends as Cancelled, but where too many of its processes die.
    maybe = [row for row in rows if row.status == "Cancelled" or row.error_code == RECOVERY_LIMIT_EXCEEDED]
    having = [run_id for run_id, start in read_starts(store, (row.run_id for row in maybe)).items() if start.on_cancel]
    return found | {run_id for run_id in having if load_history(store, run_id).has_cleaned_up}


def next_generation(house: House, row: RunRow, opener: RunIdentity, again: NextAttempt | None = None) -> Succession:
    """Return what opens the next generation of a terminal run: it continues, or starts afresh what was cleaned up.

    :param again: which attempt under its retry policy it is; None: the first one
    :raises NotFoundError: code ``run_not_found``
    :raises ChildRunError: why an operation that is to start afresh cannot
    """
    history = load_history(house.store, row.run_id)
    attempt = 1 if again is None else again.attempt
    if history.has_cleaned_up or row.op_id == DAG_RUN_OPERATION or (again is not None and again.afresh):
        return _afresh(house, row, opener, history, attempt)
    run_id, step = _continuing(house.store, row, opener, history, attempt)
    return Succession(run_id, step)


def continuation(store: Store, row: RunRow, opener: RunIdentity) -> tuple[UUID, RunStep]:
    """Return id and creating step of the next generation, which continues a terminal run at its last checkpoint.

    :raises NotFoundError: code ``run_not_found``
    """
    return _continuing(store, row, opener, load_history(store, row.run_id))


def _continuing(
    store: Store, row: RunRow, opener: RunIdentity, history: RunHistory, attempt: int = 1
) -> tuple[UUID, RunStep]:
    before = history.start
    parent = before.parent or _v1_parent(store, row)
    lineage = _lineage(row, opener, parent)
    started = before.model_copy(
        update={
            "engine": before.engine or ENGINE,
            "op_version": row.op_version,
            "initial_snapshot_id": history.checkpoint_id,
            "parent": parent.model_copy(update={"run_id": str(opener.run_id)}) if parent else None,
            "slot_id": None if parent else str(row.slot_id),
            "root_run_id": str(row.root_run_id),
            "depth": row.depth,
            "generation": lineage.generation,
            "child_attempt": attempt,
            "deadline_at": _deadline(store, row, opener),
            "continues": Continues(run_id=str(row.run_id), seq=row.head.seq, hash=row.head.hash),
        }
    )
    return lineage.run_id, create_step(started, lineage)


def _v1_parent(store: Store, row: RunRow) -> Parent | None:
    """Return under which key a V1 run was spawned, which its own first event does not say; None if it has no slot."""
    if row.parent_run_id is None:
        return None
    spawner = load_history(store, row.parent_run_id)
    keys = (key for key in spawner.facts.all_keys() if child_run_id(spawner.chain_id, key) == row.slot_id)
    key = next(keys, None)
    if key is None:
        return None
    return Parent(run_id=str(row.parent_run_id), fact_key=key, slot_owner_id=str(spawner.chain_id))


def _afresh(house: House, row: RunRow, opener: RunIdentity, history: RunHistory, attempt: int) -> Succession:
    """Ask once more for what the slot's chain was asked for, with the context that it began with."""
    before = history.start
    if before.parent is None:
        raise AssertionError(f"run {row.run_id} has no slot to open a generation of")
    request = Request(
        read_manifest(house.store, row.root_run_id, before),
        snapshot_id=read_start(house.store, history.chain_id).initial_snapshot_id,
        parent_close_policy=before.parent_close_policy,
        airflow=before.airflow,
        deadline_at=_deadline(house.store, row, opener),
        child_retry_policy=before.child_retry_policy,
        child_attempt=attempt,
        max_concurrency=before.max_concurrency,
        is_checked=True,
    )
    lineage = _lineage(row, opener, before.parent)
    prepared = prepare_run(request, lineage, house.resolver, house.policy)
    return Succession(lineage.run_id, prepared.step, prepared.artifacts)


def _lineage(row: RunRow, opener: RunIdentity, parent: Parent | None) -> Lineage:
    owner, key = (UUID(parent.slot_owner_id), parent.fact_key) if parent else (row.slot_id, "")
    return Lineage(
        run_id=child_run_id(owner, key, row.generation + 1),
        root_run_id=row.root_run_id,
        depth=row.depth,
        slot_id=row.slot_id,
        generation=row.generation + 1,
        parent_run_id=opener.run_id if parent else None,
        slot_owner_id=owner,
        fact_key=key,
    )


def _deadline(store: Store, row: RunRow, opener: RunIdentity) -> int | None:
    """Give the next generation as long as the one before had, within its opener's deadline."""
    own = None if row.deadline_at is None else store.now_us() + row.deadline_at - row.created_at
    return min((at for at in (own, opener.deadline_at) if at is not None), default=None)
