"""``childrun recover``: runs that nobody owns and that have not ended."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from airflow_childrun.authoring.registry import RegistryResolver
from airflow_childrun.cli import output
from airflow_childrun.cli.screen import show, table_with
from airflow_childrun.cli.target import store_of
from airflow_childrun.runtime.house import House
from airflow_childrun.runtime.recover import Sweep, TaskState, sweep
from airflow_childrun.secret_policy import standard
from airflow_childrun.store.api import AirflowCoordinates


def run(arguments: argparse.Namespace) -> int:
    """Sweep once; exit 1 if runs are left that nobody will go on with by himself."""
    house = House(store_of(arguments), RegistryResolver(), standard())
    found = sweep(house, _unknown if arguments.url else look_at_task)
    if arguments.output:
        output.write_json(_to_json(found))
    else:
        _print(found)
    return int(bool(found.left))


def look_at_task(at: AirflowCoordinates, last_try: Mapping[str, Any]) -> TaskState:
    """Ask Airflow's metadata database about a task instance: by the id of its last try, then by its place."""
    from airflow_childrun._airflow import task_is_active

    return "active" if task_is_active(at.dag_id, at.dag_run_id, at.task_id, at.map_index, last_try) else "over"


def _unknown(at: AirflowCoordinates, last_try: Mapping[str, Any]) -> TaskState:  # noqa: ARG001 - there is no Airflow
    return "unknown"


def _to_json(found: Sweep) -> dict[str, Any]:
    return {
        "ended": [str(run_id) for run_id in found.ended],
        "in_grace": [str(run_id) for run_id in found.in_grace],
        "awaited": [str(run_id) for run_id in found.awaited],
        "left": {str(run_id): why for run_id, why in found.left.items()},
    }


def _print(found: Sweep) -> None:
    if found.left:
        table = table_with("RUN", "LEFT BECAUSE")
        for run_id, why in found.left.items():
            table.add_row(str(run_id), why)
        show(table, "")
    show(
        f"{len(found.ended)} ended, {len(found.in_grace)} asked to end and still in their grace, "
        f"{len(found.awaited)} awaited by an active task, {len(found.left)} left"
    )
