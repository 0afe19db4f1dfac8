"""``childrun runs tree``: a run and everything below it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from uuid import UUID

from rich.markup import escape
from rich.tree import Tree

from airflow_childrun.cli import output
from airflow_childrun.cli.reading import SeenRun, all_runs, children_of, find_run, newest, seen, span, urgency
from airflow_childrun.cli.runs import COLOURS, summary
from airflow_childrun.cli.screen import show
from airflow_childrun.cli.target import store_of
from airflow_childrun.errors import NotFoundError
from airflow_childrun.store.api import RunFilter, RunRow, Store

_SIGNS = {"Pending": "○", "Running": "◐", "Completed": "●", "Failed": "✗", "Cancelled": "⊘"}


def show_tree(arguments: argparse.Namespace) -> int:
    """Show a run and everything below it; where one run has many children, those that failed are never left out.

    The id may be that of a root that is no run, such as a DAG run's: then everything below it is shown.
    """
    store = store_of(arguments)
    tops = tops_of(store, arguments.run_id, from_root=arguments.root)
    if arguments.output:
        for row in tops:
            for each in walk(store, row):
                output.write_json(each.to_json())
    else:
        show(*(tree_of(store, row, arguments.width) for row in tops))
    return 0


def tops_of(store: Store, text: str, *, from_root: bool) -> list[RunRow]:
    """Return the run that an id names, or the topmost runs of the tree that it is the root of.

    :raises NotFoundError: if it is neither
    """
    try:
        row = find_run(store, text)
    except NotFoundError:
        # A tree below a DAG run has no run of its own as its root.
        tops = _below_root(store, text)
        if not tops:
            raise
        return tops
    return _below_root(store, str(row.root_run_id)) if from_root else [row]


def _below_root(store: Store, text: str) -> list[RunRow]:
    try:
        root = UUID(text)
    except ValueError:
        return []
    return newest(row for row in all_runs(store, RunFilter(root_run_id=root)) if row.parent_run_id is None)


def walk(store: Store, row: RunRow) -> Iterator[SeenRun]:
    """Yield the run and all below it, parents before children."""
    yield from seen(store, [row])
    for child in children_of(store, row.run_id):
        yield from walk(store, child)


def tree_of(store: Store, row: RunRow, width: int, *, label: Callable[[SeenRun], str] | None = None) -> Tree:
    """Draw a run and all below it.

    :param width: how many children of one run to draw; 0 = all. The others are counted by status
    :param label: how to write a run
    """
    write = label or label_of
    (top,) = seen(store, [row])
    tree = Tree(write(top), guide_style="dim")
    _grow(store, tree, row.run_id, width, write)
    return tree


def _grow(store: Store, tree: Tree, run_id: UUID, width: int, write: Callable[[SeenRun], str]) -> None:
    slots = newest(children_of(store, run_id))
    children = sorted(slots, key=urgency)
    chosen = {row.run_id for row in children[: width or None]}
    shown = [row for row in slots if row.run_id in chosen]
    for each in seen(store, shown):
        _grow(store, tree.add(write(each)), each.row.run_id, width, write)
    rest = children[len(shown) :]
    if rest:
        tree.add(f"[dim]... {len(rest)} more:[/] {summary(rest)}")


def label_of(run: SeenRun) -> str:
    """Return a run on one line: sign, key, operation, status, duration, generation, error, id."""
    row = run.row
    if row.kind == "task_instance":
        dag_run = f"  [dim]{escape(row.airflow.dag_run_id)}[/]" if row.airflow else ""
        return f"[bold]{escape(run.operation)}[/]{dag_run}"
    colour = COLOURS[row.status]
    name = f"[bold]{escape(run.key)}[/]  {escape(row.op_id)}" if run.key else f"[bold]{escape(row.op_id)}[/]"
    parts = [f"[{colour}]{_SIGNS[row.status]}[/] {name}", f"[{colour}]{row.status}[/]"]
    if row.status != "Pending":
        parts.append(span(run.duration_us))
    if row.generation > 1:
        parts.append(f"generation {row.generation}")
    if row.error_code:
        parts.append(f"[red]{escape(row.error_code)}[/]")
    return "  ".join([*parts, f"[dim]{row.run_id}[/]"])
