"""Keeping a store in order: sweep up what nobody owns, delete trees that are over. For commands and the maintenance DAG."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

from airflow_childrun.errors import InputError
from airflow_childrun.hooks.dispatching import DatabaseDagRuns, TaskDagRuns
from airflow_childrun.hooks.operations import make_resolver
from airflow_childrun.hooks.settings import Settings
from airflow_childrun.runtime.dispatch import DagRuns
from airflow_childrun.runtime.engine import ExecutionEngine
from airflow_childrun.runtime.house import House, Limits
from airflow_childrun.runtime.recover import Sweep, TaskState, is_of, sweep, task_state
from airflow_childrun.secret_policy import SecretPolicy
from airflow_childrun.store.api import AirflowCoordinates, Owner, RunFilter, RunRow, Store

BATCH = 200
REMOVED = "removed"
_UNITS_S = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_AGE = re.compile(r"([1-9][0-9]{0,5})([mhdw])")


class Airflow(Protocol):
    """What has to be known of Airflow."""

    dag_runs: DagRuns

    def look_at_task(self, dag_id: str, dag_run_id: str, task_id: str, map_index: int) -> tuple[bool, str | None]:
        """Return whether a DAG run exists and has not ended, and its task instance's state (``removed``: there is none)."""

    def existing_dag_runs(self, dag_id: str, run_ids: Collection[str]) -> set[str]:
        """Return those of a DAG's runs that exist."""


class AirflowDatabase:
    """Airflow's metadata database, which an administrator's process may read."""

    dag_runs: DagRuns = DatabaseDagRuns()

    def look_at_task(self, dag_id: str, dag_run_id: str, task_id: str, map_index: int) -> tuple[bool, str | None]:
        """Ask the database."""
        from airflow_childrun._airflow import look_at_task

        return look_at_task(dag_id, dag_run_id, task_id, map_index)

    def existing_dag_runs(self, dag_id: str, run_ids: Collection[str]) -> set[str]:
        """Ask the database."""
        from airflow_childrun._airflow import existing_dag_runs

        return existing_dag_runs(dag_id, run_ids)


class AirflowOfTask:
    """What a running task may ask Airflow: a task has no way to the metadata database.

    :param ti: the task instance of the task's context
    """

    dag_runs: DagRuns = TaskDagRuns()

    def __init__(self, ti: Any) -> None:
        self._ti = ti

    def look_at_task(self, dag_id: str, dag_run_id: str, task_id: str, map_index: int) -> tuple[bool, str | None]:
        """Ask the API server: two requests."""
        from airflow_childrun._airflow import OPEN_DAG_RUN_STATES

        states = list(OPEN_DAG_RUN_STATES)
        is_open = self._ti.get_dr_count(dag_id=dag_id, run_ids=[dag_run_id], states=states) > 0
        found = self._ti.get_task_states(
            dag_id=dag_id, map_index=map_index, task_ids=[task_id], run_ids=[dag_run_id]
        ).get(dag_run_id, {})
        name = task_id if map_index < 0 else f"{task_id}_{map_index}"
        state = found.get(name, REMOVED)
        return is_open, None if state is None else str(state)

    def existing_dag_runs(self, dag_id: str, run_ids: Collection[str]) -> set[str]:
        """Count runs, and halve where some are missing: a task can count only."""
        found: set[str] = set()
        waiting = [sorted(run_ids)]
        while waiting:
            part = waiting.pop()
            count = self._ti.get_dr_count(dag_id=dag_id, run_ids=part)
            if count == len(part):
                found.update(part)
            elif count:
                waiting += [part[: len(part) // 2], part[len(part) // 2 :]]
        return found


def recover(
    store: Store,
    settings: Settings,
    policy: SecretPolicy,
    airflow: Airflow | None,
    deployment_id: str | None,
    *,
    dag_file: str | None = None,
    one_at_a_time: bool = False,
) -> Sweep:
    """Sweep once; see :func:`~airflow_childrun.runtime.recover.sweep`.

    :param airflow: None if it cannot be asked
    :raises OperationError: code ``operations_module_broken``
    """
    limits = Limits(
        max_concurrency=1 if one_at_a_time else settings.max_concurrency,
        max_depth=settings.max_depth,
        session_ttl_s=settings.session_ttl_s,
    )
    resolver = make_resolver(settings, dag_file)
    engine = ExecutionEngine(House(store, resolver, policy, limits=limits, owner=Owner("childrun recover")))

    def look(at: AirflowCoordinates, last_try: Mapping[str, Any]) -> TaskState:  # noqa: ARG001 - its state says enough
        if airflow is None:
            return "unknown"
        is_open, state = airflow.look_at_task(at.dag_id, at.dag_run_id, at.task_id, at.map_index)
        return task_state(state, dag_run_is_open=is_open)

    try:
        return sweep(engine.house, look, deployment_id, engine, None if airflow is None else airflow.dag_runs)
    finally:
        engine.close()


@dataclass
class Purged:
    """What was, or would be, deleted.

    :param runs: None where nobody counted
    """

    trees: int = 0
    runs: int | None = None


def purge(
    store: Store, *, older_than_s: int = 0, orphans: tuple[Airflow, str] | None = None, dry_run: bool = False
) -> Purged:
    """Delete trees in which all operations have ended and nothing has happened for a while, one transaction each.

    A tree in which something happens meanwhile stays.

    :param orphans: only those whose DAG run is gone: whom to ask, and the deployment whose trees it knows of
    """
    # Taken before Airflow is asked: a DAG run that is made again under its old id touches its tree after this moment.
    idle_since = store.now_us() - older_than_s * 1_000_000
    found = Purged(runs=None if dry_run else 0)
    for page in _pages(store, idle_since):
        roots = page if orphans is None else _orphaned(store, page, *orphans)
        if found.runs is None:
            found.trees += len(roots)
            continue
        gone = [count for root in roots if (count := store.delete_tree(root, idle_since)) is not None]
        found.trees += len(gone)
        found.runs += sum(gone)
    if not dry_run:
        store.delete_sessions(idle_since)
    return found


def _pages(store: Store, idle_since: int) -> Iterator[list[UUID]]:
    after: UUID | None = None
    while page := store.find_idle_trees(idle_since, after, BATCH):
        yield page
        after = page[-1]


def _orphaned(store: Store, roots: list[UUID], airflow: Airflow, deployment_id: str) -> list[UUID]:
    """Return those trees of this deployment whose DAG run Airflow does not know any more."""
    hosts: dict[str, dict[str, UUID]] = {}
    for root in roots:
        host = _host_in(store, root)
        if host is not None and host.airflow is not None and is_of(deployment_id, host):
            hosts.setdefault(host.airflow.dag_id, {})[host.airflow.dag_run_id] = root
    return [
        root
        for dag_id, by_run in hosts.items()
        for run_id in by_run.keys() - airflow.existing_dag_runs(dag_id, by_run.keys())
        for root in (by_run[run_id],)
    ]


def _host_in(store: Store, root: UUID) -> RunRow | None:
    rows = store.find_runs(RunFilter(kind="task_instance", root_run_id=root), limit=1).rows
    return rows[0] if rows else None


def read_age(text: str) -> int:
    """Return an age such as ``30d`` in seconds.

    :raises InputError: code ``usage``
    """
    found = _AGE.fullmatch(text)
    if found is None:
        raise InputError(f"the age {text!r}: give a number and one of m, h, d, w, such as 30d", code="usage")
    return int(found[1]) * _UNITS_S[found[2]]
