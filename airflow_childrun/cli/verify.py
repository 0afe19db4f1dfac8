"""``childrun verify``: whether every history is what was written."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from rich.markup import escape

from airflow_childrun.cli import output
from airflow_childrun.cli.reading import all_runs
from airflow_childrun.cli.screen import show, table_with
from airflow_childrun.cli.target import store_of
from airflow_childrun.cli.tree import tops_of
from airflow_childrun.errors import InputError
from airflow_childrun.runtime.summaries import verify_summaries
from airflow_childrun.store.api import RunRow, Store
from airflow_childrun.store.verify import Finding, verify_run


def run(arguments: argparse.Namespace) -> int:
    """Verify a run with all below it, or every run; exit 1 if anything is found.

    :raises InputError: unless exactly one of a run id and ``--all`` was given
    """
    if bool(arguments.run_id) == bool(arguments.all):
        raise InputError("give the id of a run (it is verified with all below it), or --all", code="usage")
    store = store_of(arguments)
    rows = all_runs(store) if arguments.all else _below(store, tops_of(store, arguments.run_id, from_root=False))
    runs, events = 0, 0
    findings: list[Finding] = []
    for row in rows:
        runs, events = runs + 1, events + row.head.seq
        found = verify_run(store, row.run_id) or verify_summaries(store, row)
        findings += found
        if arguments.output:
            for each in found:
                output.write_json(_to_json(each))
    if arguments.output:
        output.write_json({"runs": runs, "events": events, "findings": len(findings)})
    else:
        _print(findings, runs, events)
    return int(bool(findings))


def _below(store: Store, tops: list[RunRow]) -> Iterator[RunRow]:
    waiting = list(tops)
    while waiting:
        row = waiting.pop()
        yield row
        waiting += reversed(store.children_of(row.run_id))


def _to_json(finding: Finding) -> dict[str, object]:
    return {
        "code": finding.code,
        "run_id": str(finding.run_id),
        "seq": finding.seq,
        "message": finding.message,
    }


def _print(findings: list[Finding], runs: int, events: int) -> None:
    if findings:
        table = table_with("RUN", "EVENT", "FINDING", "WHAT")
        table.columns[0].no_wrap = table.columns[2].no_wrap = True
        for each in findings:
            where = str(each.seq) if each.seq is not None else "-"
            table.add_row(str(each.run_id), where, f"[red]{each.code}[/]", escape(each.message))
        show(table, "")
    verdict = f"[red]{len(findings)} findings[/]" if findings else "[green]nothing wrong[/]"
    show(f"{verdict} in {runs} runs with {events} events")
