"""``childrun purge``: delete trees that are over and old."""

from __future__ import annotations

import argparse
import re
from uuid import UUID

from airflow_childrun.cli import output
from airflow_childrun.cli.screen import show
from airflow_childrun.cli.target import store_of
from airflow_childrun.errors import InputError
from airflow_childrun.store.api import Store

_UNITS_S = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_AGE = re.compile(r"([1-9][0-9]{0,5})([mhdw])")
BATCH = 200


def run(arguments: argparse.Namespace) -> int:
    """Delete trees in which all operations have ended and nothing happened for a while, one transaction each.

    :raises InputError: if the age is none
    """
    store = store_of(arguments)
    idle_since = store.now_us() - read_age(arguments.older_than) * 1_000_000
    trees, runs = _count(store, idle_since) if arguments.dry_run else _delete(store, idle_since)
    if not arguments.dry_run:
        store.delete_sessions(idle_since)
    if arguments.output:
        output.write_json({"trees": trees, "runs": runs, "dry_run": arguments.dry_run})
    else:
        verb = "would be deleted" if arguments.dry_run else "deleted"
        counted = "" if runs is None else f" with {runs} runs"
        show(f"{trees} trees{counted} {verb}")
    return 0


def read_age(text: str) -> int:
    """Return an age such as ``30d`` in seconds.

    :raises InputError: code ``usage``
    """
    found = _AGE.fullmatch(text)
    if found is None:
        raise InputError(f"--older-than {text!r}: give a number and one of m, h, d, w, such as 30d", code="usage")
    return int(found[1]) * _UNITS_S[found[2]]


def _count(store: Store, idle_since: int) -> tuple[int, int | None]:
    trees, after = 0, None
    while page := _page(store, idle_since, after):
        trees, after = trees + len(page), page[-1]
    return trees, None


def _delete(store: Store, idle_since: int) -> tuple[int, int | None]:
    trees, runs, after = 0, 0, None
    while page := _page(store, idle_since, after):
        after = page[-1]
        gone = [store.delete_tree(root, idle_since) for root in page]
        trees += sum(count is not None for count in gone)
        runs += sum(count or 0 for count in gone)
    return trees, runs


def _page(store: Store, idle_since: int, after: UUID | None) -> list[UUID]:
    return store.find_idle_trees(idle_since, after, BATCH)
