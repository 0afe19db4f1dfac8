"""Moving the schema, and looking whether it fits this release. Only commands move it; tasks look at most."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Column, Connection, Engine, MetaData, String, Table, inspect, select
from sqlalchemy.schema import CreateSchema

from airflow_childrun.clock import SystemClock
from airflow_childrun.errors import SchemaError
from airflow_childrun.store.sql.dialects.base import StoreDialect
from airflow_childrun.store.sql.engine import Database, dialect_of, place_of, twice
from airflow_childrun.store.sql.errors import MIGRATE, translated
from airflow_childrun.store.sql.schema import VERSION_TABLE, tables_in

MAJOR = 1
"""Within a major version migrations only add: an older release works on a newer schema."""

T = TypeVar("T")

_REVISION = re.compile(r"v(\d+)_(\d{4})")


def newest_version() -> str:
    """Return the version that this release brings, such as ``v1_0001``."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    if head is None:
        raise SchemaError("this installation lacks its migrations; install airflow-childrun anew")
    return head


def upgrade(target: str | URL | Engine, schema: str | None = None) -> str:
    """Create the tables, or move them to this release's version; return it.

    Idempotent. Two at once: the second waits. A newer schema of the same major version is left as it is.

    :param schema: PostgreSQL schema of the tables; created if it is missing
    :raises SchemaError: if the schema is of another major version
    :raises UnavailableError: if the database cannot be reached
    """

    def move(connection: Connection, dialect: StoreDialect) -> str:
        dialect.lock_migrations(connection)
        if schema is not None and not inspect(connection).has_schema(schema):
            connection.execute(CreateSchema(schema, if_not_exists=True))
        version = _version(connection, schema)
        if version is not None and _number(version) >= _number(newest_version()):
            return version
        config = _config()
        config.attributes.update(connection=connection, schema=schema)
        command.upgrade(config, "head")
        return newest_version()

    return _ask(target, move, writes=True)


def current_version(target: str | URL | Engine, schema: str | None = None) -> str | None:
    """Return the schema's version, or None where there is none.

    :raises UnavailableError: if the database cannot be reached
    """
    return _ask(target, lambda connection, _: _version(connection, schema))


def check(target: str | URL | Engine, schema: str | None = None) -> str:
    """Return the schema's version if this release can work with it.

    :raises SchemaError: if tables are missing, or older than this release, or of another major version
    :raises UnavailableError: if the database cannot be reached
    """

    def look(connection: Connection, _: StoreDialect) -> tuple[str | None, set[str], str]:
        place = f"{place_of(connection.engine.url)}{f' (schema {schema})' if schema else ''}"
        return _version(connection, schema), set(inspect(connection).get_table_names(schema=schema)), place

    version, present, place = _ask(target, look)
    wanted = {table.name for table in tables_in(schema).metadata.tables.values()}
    if version is None or not wanted <= present:
        missing = ", ".join(sorted(wanted - present)) or VERSION_TABLE
        raise SchemaError(f"{place} has no store: {missing} missing; {MIGRATE}")
    if _number(version) < _number(newest_version()):
        raise SchemaError(
            f"{place} has version {version} of the store, this release needs {newest_version()}; {MIGRATE}"
        )
    return version


def _number(version: str) -> int:
    match = _REVISION.fullmatch(version)
    if match is None or int(match[1]) != MAJOR:
        raise SchemaError(
            f"the store has version {version}, this release works with major version {MAJOR}; install the release that "
            "fits it, or give this one a store of its own with `childrun init`"
        )
    return int(match[2])


def _version(connection: Connection, schema: str | None) -> str | None:
    if not inspect(connection).has_table(VERSION_TABLE, schema=schema):
        return None
    table = Table(VERSION_TABLE, MetaData(), Column("version_num", String(32)), schema=schema)
    version: str | None = connection.scalar(select(table.c.version_num))
    return version


def _config() -> Config:
    config = Config()
    # Alembic's configuration treats % as a mark of its own.
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _ask(target: str | URL | Engine, work: Callable[[Connection, StoreDialect], T], *, writes: bool = False) -> T:
    """Run ``work`` in a transaction, once more if somebody was in the way; an engine of our own is closed afterwards."""
    own: Database | None = None
    if isinstance(target, Engine):
        engine, dialect = target, dialect_of(target.url, SystemClock())
    else:
        own = Database(target, SystemClock())
        engine, dialect = own.engine(), own.dialect
    place = place_of(engine.url)

    def attempt() -> T:
        with translated(dialect, place), engine.connect() as connection:
            options = dialect.write_options if writes else {}
            with connection.execution_options(**options).begin():
                return work(connection, dialect)

    try:
        return twice(attempt, place)
    finally:
        if own is not None:
            own.close()
