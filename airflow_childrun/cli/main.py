"""The console script ``childrun``, and the same commands as ``airflow childrun``.

Airflow is imported only by a command that needs it.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

from airflow_childrun import __version__
from airflow_childrun.cli import output
from airflow_childrun.cli.commands import COMMANDS, Command, Group
from airflow_childrun.errors import ChildRunError

USAGE_ERROR = 2
_ABOUT = "Durable child runs for Apache Airflow."


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0 fine, 1 something is wrong, 2 wrong usage or configuration."""
    arguments = build_parser().parse_args(argv)
    return call(arguments.command, arguments)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of ``childrun``; parsed arguments hold the :class:`Command` as ``command``."""
    parser = argparse.ArgumentParser(prog="childrun", description=_ABOUT)
    parser.add_argument("--version", action="version", version=f"airflow-childrun {__version__}")
    places = parser.add_subparsers(metavar="COMMAND", required=True)
    for entry in COMMANDS:
        if isinstance(entry, Command):
            _add(places, entry)
            continue
        group = places.add_parser(entry.name, help=entry.help, description=entry.help)
        inner = group.add_subparsers(metavar="COMMAND", required=True)
        for command in entry.commands:
            _add(inner, command)
    return parser


def _add(places: Any, command: Command) -> None:
    parser = places.add_parser(command.name, help=command.help, description=command.help)
    for option in command.options:
        parser.add_argument(*option.flags, help=option.help, **option.more)
    parser.set_defaults(command=command)


def call(command: Command, arguments: argparse.Namespace) -> int:
    """Call what a command stands for, and turn an error into one line and exit status 2."""
    # Alembic tells of every migration; a command says in a line of its own what it did.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    module, _, function = command.target.partition(":")
    try:
        return int(getattr(importlib.import_module(module), function)(arguments) or 0)
    except ChildRunError as error:
        output.fail(error.code, error.info.message)
        for statement in getattr(error, "statements", ()):
            output.write(f"{statement};")
        return USAGE_ERROR
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has left; without this the interpreter complains when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def get_commands() -> list[Any]:
    """Return the commands for ``airflow childrun``; named in the provider's metadata."""
    from airflow_childrun._airflow import command_classes

    make_argument, make_action, make_group = command_classes()

    def convert(entry: Command | Group) -> Any:
        if isinstance(entry, Group):
            return make_group(name=entry.name, help=entry.help, subcommands=[convert(each) for each in entry.commands])
        return make_action(
            name=entry.name,
            help=entry.help,
            func=functools.partial(_call_in_airflow, entry),
            args=tuple(make_argument(option.flags, help=option.help, **option.more) for option in entry.options),
        )

    return [make_group(name="childrun", help=_ABOUT, subcommands=[convert(entry) for entry in COMMANDS])]


def _call_in_airflow(command: Command, arguments: argparse.Namespace) -> None:
    """Airflow ignores what a command returns."""
    status = call(command, arguments)
    if status:
        sys.exit(status)


if __name__ == "__main__":
    sys.exit(main())
