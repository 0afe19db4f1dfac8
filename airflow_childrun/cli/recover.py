"""``childrun recover``: runs that nobody owns and that have not ended."""

from __future__ import annotations

import argparse
from collections.abc import Collection

from airflow_childrun.cli import output
from airflow_childrun.cli.screen import show, table_with
from airflow_childrun.cli.target import settings_of
from airflow_childrun.hooks.connection import open_store
from airflow_childrun.hooks.maintenance import AirflowDatabase, recover
from airflow_childrun.hooks.settings import DEFAULTS, read_settings
from airflow_childrun.runtime.recover import Sweep
from airflow_childrun.secret_policy import standard, strict


def run(arguments: argparse.Namespace) -> int:
    """Sweep once; exit 1 if runs are left that nobody will go on with by himself."""
    place = settings_of(arguments)
    settings = DEFAULTS if arguments.url else read_settings()
    policy = strict() if settings.preset == "strict" else standard(tuple if arguments.url else _registered)
    airflow = None if arguments.url else AirflowDatabase()
    found = recover(open_store(place), settings, policy, airflow, place.deployment_id or None)
    if arguments.output:
        output.write_json(found.to_json())
    else:
        _print(found)
    return int(bool(found.left))


def _registered() -> Collection[str]:
    """Return what this process's connections made secret: the clean-up that runs here must not record it either."""
    from airflow_childrun._airflow import registered_secrets

    return registered_secrets()


def _print(found: Sweep) -> None:
    if found.left:
        table = table_with("RUN", "LEFT BECAUSE")
        for run_id, why in found.left.items():
            table.add_row(str(run_id), why)
        show(table, "")
    if found.unreachable:
        show(
            f"operations that this process does not know: {', '.join(sorted(found.unreachable))}. List their modules in "
            "[childrun] operations_modules, or let the task that spawned them run again",
            "",
        )
    show(
        f"{len(found.ended)} ended, {len(found.in_grace)} asked to end and still in their grace, "
        f"{len(found.awaited)} awaited by an active task or driven by a DAG run, {len(found.dispatched)} of them dispatched "
        f"anew, {len(found.left)} left"
    )
