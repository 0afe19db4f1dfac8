"""``childrun check`` and ``childrun migrate``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from rich.markup import escape

from airflow_childrun.cli import output
from airflow_childrun.cli.screen import show, table_with
from airflow_childrun.cli.target import settings_of
from airflow_childrun.clock import SystemClock, SystemEntropy
from airflow_childrun.errors import SchemaError, StorageError
from airflow_childrun.hooks.connection import StoreSettings, open_store
from airflow_childrun.store.api import Owner, Store
from airflow_childrun.store.sql import migrate as migrations
from airflow_childrun.store.sql.address import require_driver, require_file
from airflow_childrun.store.sql.provision import ensure_schema, forgetful_settings, readable_elsewhere

_CLOCK_TOLERANCE_S = 10
_COLOURS = {"ok": "green", "warning": "yellow", "failed": "red"}


@dataclass(frozen=True, slots=True)
class Finding:
    """What one test of a connection found."""

    test: str
    status: Literal["ok", "warning", "failed"]
    about: str


def run(arguments: argparse.Namespace) -> int:
    """Test a connection; exit 1 if something failed.

    :raises HostError: if there is no usable connection
    """
    settings = settings_of(arguments)
    findings = list(findings_of(settings))
    if arguments.output:
        for each in findings:
            output.write_json({"test": each.test, "status": each.status, "about": each.about})
    else:
        table = table_with("test", "status", "about", header=False)
        for each in findings:
            table.add_row(each.test, f"[{_COLOURS[each.status]}]{each.status}[/]", escape(each.about))
        show(table)
    return int(any(each.status == "failed" for each in findings))


def findings_of(settings: StoreSettings) -> Iterator[Finding]:
    """Test step by step; the first failure ends it.

    :raises HostError: code ``driver_missing``
    """
    require_driver(settings.address)
    yield Finding("connection", "ok", settings.place)
    if settings.conn_id:
        yield Finding("deployment", "ok", settings.deployment_id)
    steps: tuple[tuple[str, Callable[[], Finding]], ...] = (
        ("tables", lambda: _tables(settings)),
        ("rights", lambda: _rights(open_store(settings))),
        ("isolation", lambda: _isolation(settings)),
        ("durability", lambda: _durability(settings)),
        ("clock", lambda: _clock(open_store(settings))),
    )
    for name, step in steps:
        try:
            yield step()
        except StorageError as error:
            yield Finding(name, "failed", f"[{error.code}] {error.info.message}")
            return


def _tables(settings: StoreSettings) -> Finding:
    open_store(settings)
    version = migrations.current_version(settings.address, schema=settings.schema)
    return Finding("tables", "ok", f"version {version}")


def _rights(store: Store) -> Finding:
    session_id = SystemEntropy().new_id()
    store.open_session(session_id, Owner(label="childrun check"), ttl_us=1_000_000)
    store.close_session(session_id)
    return Finding("rights", "ok", "can read and write")


def _isolation(settings: StoreSettings) -> Finding:
    if settings.address.get_backend_name() == "sqlite":
        return Finding("isolation", "ok", "a file of its own")
    readable = readable_elsewhere(settings.address, settings.schema)
    if not readable:
        return Finding("isolation", "ok", "the login can read no other tables")
    named = ", ".join(readable[:5]) + (", ..." if len(readable) > 5 else "")  # noqa: PLR2004 - enough to recognise them
    return Finding("isolation", "warning", f"tasks can read more than the store with this login: {named}")


def _durability(settings: StoreSettings) -> Finding:
    found = forgetful_settings(settings.address)
    if not found:
        return Finding("durability", "ok", "what the database acknowledges outlives its crash")
    about = f"{', '.join(found)}: a database that crashes forgets calls that were made; they are made again"
    return Finding("durability", "warning", about)


def _clock(store: Store) -> Finding:
    ahead_s = (store.now_us() - SystemClock().now_us()) / 1_000_000
    if abs(ahead_s) <= _CLOCK_TOLERANCE_S:
        return Finding("clock", "ok", f"differs from this machine's by {abs(ahead_s):.1f} s")
    side = "ahead of" if ahead_s > 0 else "behind"
    about = f"the database is {abs(ahead_s):.0f} s {side} this machine; only the database's time decides about leases"
    return Finding("clock", "warning", about)


def migrate(arguments: argparse.Namespace) -> int:
    """Migrate the tables; with ``--check`` only say whether it is needed: 0 = no, 1 = yes.

    :raises SchemaError: if the tables are of another major version
    """
    settings = settings_of(arguments)
    require_driver(settings.address)
    if arguments.check:
        try:
            require_file(settings.address)
            migrations.check(settings.address, schema=settings.schema)
        except SchemaError as error:
            output.fail(error.code, error.info.message)
            return 1
        version, verb = migrations.current_version(settings.address, schema=settings.schema), "are"
    else:
        if settings.schema:
            ensure_schema(settings.address, settings.schema)
        version, verb = migrations.upgrade(settings.address, schema=settings.schema), "are now"
    if arguments.output:
        output.write_json({"version": version})
    else:
        output.write(f"tables {verb} at version {version} ({settings.place})")
    return 0
