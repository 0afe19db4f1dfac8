"""``childrun cancel``: ask a run, and everything below it, to end."""

from __future__ import annotations

import argparse

from airflow_childrun.authoring.registry import RegistryResolver
from airflow_childrun.cli import output
from airflow_childrun.cli.reading import find_run
from airflow_childrun.cli.screen import show, table_with
from airflow_childrun.cli.target import store_of
from airflow_childrun.runtime.closing import cancel_run
from airflow_childrun.runtime.house import House
from airflow_childrun.secret_policy import standard

_WORDS = {
    "cancelled": "[green]cancelled[/]",
    "requested": "[yellow]requested[/]: its owner ends it at its next step or wait",
    "owed": "[yellow]requested[/]: nobody drives it, and its clean-up has to run first: `childrun recover` does, or its next try",
    "already_terminal": "had ended before",
}


def run(arguments: argparse.Namespace) -> int:
    """Cancel a run and its subtree, leaves first; exit 1 if it had ended before.

    :raises InputError: if the id is not that of one run
    """
    store = store_of(arguments)
    row = find_run(store, arguments.run_id)
    house = House(store, RegistryResolver(), standard())
    outcome = cancel_run(house, row.run_id, arguments.reason)
    if arguments.output:
        for run_id, what in outcome.items():
            output.write_json({"run_id": str(run_id), "outcome": what})
    else:
        table = table_with("RUN", "OUTCOME")
        asked = store.get_runs(run_id for run_id, what in outcome.items() if what == "requested")
        owed = {row.run_id for row in asked.values() if not row.is_terminal and row.lease_expires_at is None}
        for run_id, what in outcome.items():
            table.add_row(str(run_id), _WORDS["owed" if run_id in owed else what])
        show(table)
    return int(all(what == "already_terminal" for what in outcome.values()))
