"""Every command as data: ``childrun`` and ``airflow childrun`` are both built of it, and nothing is imported to do so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from airflow_childrun.hooks.settings import DEFAULT_CONN_ID


@dataclass(frozen=True, slots=True)
class Option:
    """An argument, in the terms of :mod:`argparse`."""

    flags: tuple[str, ...]
    help: str
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Command:
    """A command; ``target`` is ``module:function``, imported when it is called with the parsed arguments.

    The function returns the exit status: 0 = fine, 1 = it found something wrong. Wrong usage and configuration is 2.
    """

    name: str
    help: str
    target: str
    options: tuple[Option, ...] = ()


@dataclass(frozen=True, slots=True)
class Group:
    """Commands under one name."""

    name: str
    help: str
    commands: tuple[Command, ...]


def _option(*flags: str, help: str, **more: Any) -> Option:
    return Option(flags, help, more)


def _flag(*flags: str, help: str, **more: Any) -> Option:
    return Option(flags, help, {"action": "store_true", **more})


_CONN_ID = _option("--conn-id", help=f"the Airflow connection of the store (default: {DEFAULT_CONN_ID})")
_URL = _option(
    "--url",
    help="the store's own URL instead of a connection: needs no Airflow; '-' reads it from the standard input, which"
    " keeps the password out of the list of processes",
)
_SCHEMA = _option("--schema", help="with --url: the database schema of the tables")
# Airflow keeps its log lines off the standard output for commands with an option of this name.
_JSON = _flag("--json", dest="output", help="print JSON, one value a line")
_STORE = (_CONN_ID, _URL, _SCHEMA)
_RUN = _option("run_id", help="a run's id, or its beginning as far as it is unique")

_INIT = Command(
    "init",
    "Make the tables and the connection: once, by an administrator.",
    "airflow_childrun.cli.init:run",
    (
        _CONN_ID,
        _option(
            "--url",
            help="put the store there instead of into Airflow's database; '-' reads the URL from the standard input",
        ),
        _option("--schema", help="the database schema (PostgreSQL; default in Airflow's database: childrun)"),
        _option("--role", help="name of the login to be made (PostgreSQL; default: <schema>_<database>)"),
        _flag("--create-role", help="with --url: the URL is an administrator's; make a schema and a login of its own"),
        _flag("--rotate-password", help="give an existing login a new password"),
        _option("--worker-host", help="the name under which workers reach the database, if it is another"),
        _option("--deployment-id", help="what tells this Airflow from every other (default: a random UUID, once)"),
        _flag(
            "--share-metadata-credentials",
            help="let tasks use Airflow's own login to its database: they can then read and change everything in it",
        ),
        _flag("--print-connection", help="print the connection for a secrets backend instead of writing it to Airflow"),
        _JSON,
    ),
)
_CHECK = Command(
    "check",
    "Test the connection: reach, login, tables, rights, durability, clock.",
    "airflow_childrun.cli.check:run",
    (*_STORE, _JSON),
)
_MIGRATE = Command(
    "migrate",
    "Bring the tables to this release's version.",
    "airflow_childrun.cli.check:migrate",
    (*_STORE, _flag("--check", help="only say whether it is needed: exit 1 if so"), _JSON),
)
_DEMO = Command(
    "demo",
    "Watch a run being killed half way and finish all the same, in a throwaway Airflow.",
    "airflow_childrun.demo.main:run_demo",
    (_flag("--keep", help="leave the home of that Airflow behind, to be looked at"),),
)
_VERIFY = Command(
    "verify",
    "Check histories against their hashes, and rows against histories.",
    "airflow_childrun.cli.verify:run",
    (
        _option("run_id", nargs="?", help="a run's id, or its beginning as far as it is unique"),
        _flag("--all", help="every run of the store"),
        *_STORE,
        _JSON,
    ),
)
_CANCEL = Command(
    "cancel",
    "Ask a run, and everything below it, to end.",
    "airflow_childrun.cli.cancel:run",
    (_RUN, _option("--reason", default="childrun cancel", help="stands in its history"), *_STORE, _JSON),
)
_PURGE = Command(
    "purge",
    "Delete trees of runs that are over and old, or whose DAG run is gone.",
    "airflow_childrun.cli.purge:run",
    (
        _option("--older-than", metavar="AGE", help="such as 12h, 30d, 8w: nothing happened since"),
        _flag("--orphaned", help="only trees whose DAG run Airflow does not know any more"),
        _flag("--dry-run", help="only say how many"),
        *_STORE,
        _JSON,
    ),
)
_RECOVER = Command(
    "recover",
    "Sweep up runs that nobody owns: end what is to end, say what is left. Safe at any time.",
    "airflow_childrun.cli.recover:run",
    (*_STORE, _JSON),
)
_RUNS = Group(
    "runs",
    "Look at runs.",
    (
        Command(
            "list",
            "List runs, the newest first.",
            "airflow_childrun.cli.runs:list_runs",
            (
                _option(
                    "--status",
                    action="append",
                    choices=["Pending", "Running", "Completed", "Failed", "Cancelled"],
                    help="only these (may be repeated)",
                ),
                _option(
                    "--kind", choices=["operation", "task_instance"], help="only operations, or only Airflow tasks"
                ),
                _option("--operation", help="only runs of this operation"),
                _option("--parent", metavar="RUN_ID", help="only children of this run"),
                _option("--dag-id", help="only task instances of this DAG"),
                _option("--dag-run-id", help="only task instances of this DAG run"),
                _option("--limit", type=int, default=50, help="how many (default: 50; 0 = all)"),
                *_STORE,
                _JSON,
            ),
        ),
        Command("show", "Show one run.", "airflow_childrun.cli.runs:show_run", (_RUN, *_STORE, _JSON)),
        Command("events", "Show a run's history.", "airflow_childrun.cli.runs:show_events", (_RUN, *_STORE, _JSON)),
        Command(
            "tree",
            "Show a run and everything below it.",
            "airflow_childrun.cli.tree:show_tree",
            (
                _RUN,
                _flag("--root", help="begin at the root of the tree, wherever the run stands in it"),
                _option(
                    "--width", type=int, default=20, help="how many children of one run to show (default: 20; 0 = all)"
                ),
                *_STORE,
                _JSON,
            ),
        ),
    ),
)

COMMANDS: tuple[Command | Group, ...] = (_INIT, _CHECK, _MIGRATE, _RUNS, _CANCEL, _RECOVER, _PURGE, _VERIFY, _DEMO)
"""All commands, in the order in which one meets them."""
