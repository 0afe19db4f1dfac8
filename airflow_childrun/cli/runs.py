"""``childrun runs list``, ``show`` and ``events``."""

from __future__ import annotations

import argparse
from itertools import islice
from typing import Any

from rich.json import JSON
from rich.markup import escape
from rich.table import Table

from airflow_childrun.canonical import decode_stored
from airflow_childrun.cli import output
from airflow_childrun.cli.reading import SeenRun, all_runs, children_of, find_run, moment, newest, seen, span, urgency
from airflow_childrun.cli.screen import show, table_with
from airflow_childrun.cli.target import store_of
from airflow_childrun.errors import CorruptionError
from airflow_childrun.model.events import DomainEvent, Event, RunCompleted, RunStarted, StateFailed
from airflow_childrun.store.api import RunFilter, RunRow, Store
from airflow_childrun.store.codec import decode_events

COLOURS = {"Pending": "dim", "Running": "cyan", "Completed": "green", "Failed": "red", "Cancelled": "yellow"}
_CHILDREN_SHOWN = 10


def coloured(status: str) -> str:
    """Return a status with its colour."""
    return f"[{COLOURS[status]}]{status}[/]"


def list_runs(arguments: argparse.Namespace) -> int:
    """List runs, the newest first."""
    store = store_of(arguments)
    where = RunFilter(
        kind=arguments.kind,
        statuses=frozenset(arguments.status) if arguments.status else None,
        parent_run_id=find_run(store, arguments.parent).run_id if arguments.parent else None,
        op_id=arguments.operation,
        dag_id=arguments.dag_id,
        dag_run_id=arguments.dag_run_id,
    )
    found = seen(store, islice(all_runs(store, where, newest_first=True), arguments.limit or None))
    if arguments.output:
        for each in found:
            output.write_json(each.to_json())
    else:
        show(table_of(found) if found else "no runs")
    return 0


def table_of(runs: list[SeenRun]) -> Table:
    """Return a table of runs; its columns are stable."""
    table = table_with("RUN", "STATUS", "OPERATION", "KEY", "GEN", "STARTED (UTC)", "DURATION", "ERROR")
    for column in (table.columns[0], table.columns[1], table.columns[5], table.columns[6]):
        column.no_wrap = True
    for each in runs:
        row = each.row
        table.add_row(
            str(row.run_id),
            "-" if row.kind == "task_instance" else coloured(row.status),
            escape(each.operation),
            escape(each.key or ""),
            str(row.generation),
            moment(row.created_at),
            "" if row.kind == "task_instance" else span(each.duration_us),
            escape(row.error_code or ""),
        )
    return table


def show_run(arguments: argparse.Namespace) -> int:
    """Show one run: its row, its newest snapshot, its children (of each slot the newest generation), failures first."""
    store = store_of(arguments)
    row = find_run(store, arguments.run_id)
    (run,) = seen(store, [row])
    children = newest(children_of(store, row.run_id))
    is_task = row.kind == "task_instance"
    snapshot, damage = (None, None) if is_task else _snapshot(store, row)
    if arguments.output:
        counts = {status: sum(child.status == status for child in children) for status in COLOURS}
        output.write_json({**run.to_json(), "children": counts, "snapshot": snapshot})
    else:
        _show_for_people(store, run, snapshot, children)
    if damage is not None:
        # After all that can still be read.
        raise damage
    return 0


def _show_for_people(store: Store, run: SeenRun, snapshot: Any, children: list[RunRow]) -> None:
    row = run.row
    facts = table_with("", "", header=False)
    for name, value in _lines(run):
        facts.add_row(f"[bold]{name}[/]", value)
    show(facts)
    if snapshot is not None:
        show("\n[bold]snapshot[/]" + (" (the last; the run has not ended)" if not row.is_terminal else ""))
        show(JSON(output.json_text(snapshot)))
    if children:
        show(f"\n[bold]children[/] {len(children)}: {summary(children)}")
        show(table_of(seen(store, sorted(children, key=urgency)[:_CHILDREN_SHOWN])))
        if len(children) > _CHILDREN_SHOWN:
            show(f"... `childrun runs list --parent {row.run_id}` shows the rest")


def summary(rows: list[RunRow]) -> str:
    """Return how many runs have which status."""
    counts = {status: sum(row.status == status for row in rows) for status in COLOURS}
    return ", ".join(f"[{COLOURS[status]}]{count} {status}[/]" for status, count in counts.items() if count)


def _lines(run: SeenRun) -> list[tuple[str, str]]:
    row, at = run.row, run.row.airflow
    lines = [
        ("run", str(row.run_id)),
        ("operation", escape(run.operation)),
        ("status", coloured(row.status) + (f"  {escape(row.error_code)}" if row.error_code else "")),
        ("key", escape(run.key or "-")),
        ("generation", str(row.generation)),
        ("parent", str(row.parent_run_id or "-")),
        ("root", f"{row.root_run_id} (depth {row.depth})"),
        ("started", f"{moment(row.created_at)} UTC"),
        ("ended", f"{moment(row.ended_at)} UTC" if row.ended_at else "-"),
        ("duration", span(run.duration_us)),
        ("events", str(row.head.seq)),
    ]
    if at is not None:
        # A task instance has no end of its own: Airflow knows how it is.
        lines = [line for line in lines if line[0] not in {"status", "key", "parent", "ended", "duration"}]
        lines.insert(2, ("dag run", escape(at.dag_run_id)))
    if row.wake_at:
        lines.append(("goes on", f"{moment(row.wake_at)} UTC"))
    if row.deadline_at:
        lines.append(("deadline", f"{moment(row.deadline_at)} UTC"))
    if row.lease_session_id:
        lines.append(("owner", f"session {row.lease_session_id} until {moment(row.lease_expires_at)} UTC"))
    return lines


def _snapshot(store: Store, row: RunRow) -> tuple[Any, CorruptionError | None]:
    """Return a run's newest snapshot, or why it cannot be read."""
    artifact = row.final_snapshot_id or row.checkpoint_snapshot_id
    try:
        body = store.get_artifacts(row.root_run_id, [artifact]).get(artifact)
    except CorruptionError as error:
        return None, error
    return (None if body is None else decode_stored(body)), None


def show_events(arguments: argparse.Namespace) -> int:
    """Show a run's history."""
    store = store_of(arguments)
    row = find_run(store, arguments.run_id)
    stored = store.read_events(row.run_id)
    if arguments.output:
        for each in stored:
            event = decode_stored(each.body)
            output.write_json({"seq": each.seq, "recorded_at": each.recorded_at, "hash": each.hash, "event": event})
        return 0
    table = table_with("SEQ", "TIME (UTC)", "AFTER", "EVENT", "WHAT", right=frozenset({"SEQ", "AFTER"}))
    began = row.created_at
    for each, event in decode_events(stored):
        name = event.name if isinstance(event, DomainEvent) else event.tag
        table.add_row(
            str(each.seq),
            moment(each.recorded_at),
            f"+{span(each.recorded_at - began)}",
            _emphasised(event, escape(name)),
            escape(what(event)),
        )
    show(table)
    return 0


def _emphasised(event: Event, name: str) -> str:
    match event:
        case StateFailed():
            return f"[red]{name}[/]"
        case RunCompleted():
            return f"[{COLOURS[event.status]}]{name}[/]"
        case DomainEvent():
            return f"[dim]{name}[/]"
        case _:
            return f"[bold]{name}[/]"


def what(event: Event) -> str:
    """Return the telling part of an event."""
    match event:
        case RunStarted():
            again = f", generation {event.generation}" if event.generation > 1 else ""
            return f"{event.op_id}{again}"
        case StateFailed():
            info = event.error.info
            retry = f", again at {moment(event.retry_at)}" if event.retry_at else ""
            return f"{event.state_id}: [{info.get('code')}] {info.get('message', '')}{retry}"
        case RunCompleted():
            return event.status
        case DomainEvent():
            payload = event.payload if isinstance(event.payload, dict) else {}
            named = (f"{name}={payload[name]}" for name in ("key", "child_run_id", "status", "kind") if name in payload)
            return " ".join(named)
        case _:
            attempt = getattr(event, "attempt", 0)
            return event.state_id + (f" (attempt {attempt + 1})" if attempt else "")
