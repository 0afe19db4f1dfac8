"""``childrun purge``: delete trees that are over and old, or whose DAG run is gone."""

from __future__ import annotations

import argparse

from airflow_childrun.cli import output
from airflow_childrun.cli.screen import show
from airflow_childrun.cli.target import settings_of
from airflow_childrun.errors import InputError
from airflow_childrun.hooks.connection import open_store
from airflow_childrun.hooks.maintenance import AirflowDatabase, purge, read_age


def run(arguments: argparse.Namespace) -> int:
    """Delete trees in which all operations have ended, one transaction each.

    :raises InputError: code ``usage``, if the age is none, or nothing says which trees
    """
    if not arguments.older_than and not arguments.orphaned:
        raise InputError("say which trees: --older-than AGE, --orphaned, or both", code="usage")
    if arguments.orphaned and arguments.url:
        raise InputError("--orphaned asks Airflow, so it goes with --conn-id, not with --url", code="usage")
    older_than_s = read_age(arguments.older_than) if arguments.older_than else 0
    settings = settings_of(arguments)
    orphans = (AirflowDatabase(), settings.deployment_id) if arguments.orphaned else None
    found = purge(open_store(settings), older_than_s=older_than_s, orphans=orphans, dry_run=arguments.dry_run)
    if arguments.output:
        output.write_json({"trees": found.trees, "runs": found.runs, "dry_run": arguments.dry_run})
    else:
        verb = "would be deleted" if arguments.dry_run else "deleted"
        counted = "" if found.runs is None else f" with {found.runs} runs"
        show(f"{found.trees} trees{counted} {verb}")
    return 0
