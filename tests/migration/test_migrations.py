"""Migrations lead to the schema that the code describes, and the code knows what it can work with."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, create_engine, inspect, text

from airflow_childrun.errors import SchemaError, UnavailableError
from airflow_childrun.store.sql import migrate
from airflow_childrun.store.sql.schema import VERSION_TABLE, tables_in
from airflow_childrun.store.sql.store import SqlStore
from airflow_childrun.testing.store_harness import new_id, start

TABLES = {f"childrun_{name}" for name in ("run", "event", "fact", "artifact", "inbox", "session")}


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'store.db'}"


@pytest.fixture(params=["sqlite", "postgresql", "postgresql with schema"])
def place(request: pytest.FixtureRequest) -> tuple[str, str | None]:
    """Give an empty database: its URL and the schema to use."""
    if request.param == "sqlite":
        return request.getfixturevalue("sqlite_url"), None
    return request.getfixturevalue("postgres_url"), "childrun" if "schema" in request.param else None


def _shape(engine: Engine, schema: str | None) -> dict[str, Any]:
    """Describe every table as the database itself tells it."""
    inspector = inspect(engine)
    return {
        name: {
            "columns": [
                {key: str(column[key]) for key in ("name", "type", "nullable", "default")}
                for column in inspector.get_columns(name, schema)
            ],
            "key": inspector.get_pk_constraint(name, schema)["constrained_columns"],
            "indexes": sorted(
                (str(index["name"]), tuple(index["column_names"]), bool(index["unique"]))
                for index in inspector.get_indexes(name, schema)
            ),
            "foreign keys": inspector.get_foreign_keys(name, schema),
            "unique": inspector.get_unique_constraints(name, schema),
        }
        for name in inspector.get_table_names(schema)
        if name != VERSION_TABLE
    }


def test_migrated_schema_equals_fresh_schema_on_sqlite(tmp_path: Path) -> None:
    """What migrations make is what the tables' description makes."""
    _check_equal(f"sqlite:///{tmp_path / 'fresh.db'}", f"sqlite:///{tmp_path / 'migrated.db'}", None)


@pytest.mark.parametrize("schema", [None, "childrun"])
def test_migrated_schema_equals_fresh_schema_on_postgresql(
    postgres_databases: Callable[..., str], schema: str | None
) -> None:
    """What migrations make is what the tables' description makes, in the default schema and in one of its own."""
    _check_equal(postgres_databases(), postgres_databases(), schema)


def _check_equal(fresh_url: str, migrated_url: str, schema: str | None) -> None:
    migrate.upgrade(migrated_url, schema)
    fresh, migrated = create_engine(fresh_url), create_engine(migrated_url)
    with fresh.begin() as connection:
        if schema:
            connection.execute(text(f"CREATE SCHEMA {schema}"))
        tables_in(schema).metadata.create_all(connection)
    try:
        assert set(_shape(fresh, schema)) == TABLES
        assert _shape(migrated, schema) == _shape(fresh, schema)
        with migrated.connect() as connection:
            options: dict[str, Any] = {"compare_type": True, "include_schemas": schema is not None}
            options |= {"version_table": VERSION_TABLE, "version_table_schema": schema}
            context = MigrationContext.configure(connection, opts=options)
            assert compare_metadata(context, tables_in(schema).metadata) == []
    finally:
        fresh.dispose()
        migrated.dispose()


def test_upgrading_twice_changes_nothing(place: tuple[str, str | None]) -> None:
    """The second upgrade finds its version and leaves every row alone."""
    url, schema = place
    assert migrate.current_version(url, schema) is None
    assert migrate.upgrade(url, schema) == migrate.newest_version()
    store = SqlStore(url, schema)
    run_id = start(store)
    assert migrate.upgrade(url, schema) == migrate.current_version(url, schema) == migrate.newest_version()
    assert store.find_run(run_id) is not None
    store.close()


def test_two_upgrades_at_once_both_succeed(place: tuple[str, str | None]) -> None:
    """The second waits for the first, and then has nothing to do."""
    url, schema = place
    with ThreadPoolExecutor(4) as threads:
        versions = set(threads.map(lambda _: migrate.upgrade(url, schema), range(4)))
    assert versions == {migrate.newest_version()}


def test_an_engine_serves_as_well_as_a_url(place: tuple[str, str | None]) -> None:
    """Whoever has an engine keeps it: it is neither needed twice nor disposed of."""
    url, schema = place
    engine = create_engine(url)
    assert migrate.upgrade(engine, schema) == migrate.check(engine, schema) == migrate.current_version(engine, schema)
    engine.dispose()


def test_missing_tables_are_named_with_the_remedy(place: tuple[str, str | None]) -> None:
    """A task that finds no store learns which command makes it, and no table appears by itself."""
    url, schema = place
    store = SqlStore(url, schema)
    for attempt in (lambda: store.find_run(new_id()), lambda: start(store)):
        with pytest.raises(SchemaError, match="childrun migrate"):
            attempt()
    with pytest.raises(SchemaError, match=r"childrun_artifact.*childrun migrate"):
        migrate.check(url, schema)
    assert migrate.current_version(url, schema) is None
    store.close()


def _set_version(url: str, schema: str | None, version: str) -> None:
    engine = create_engine(url)
    table = f"{schema}.{VERSION_TABLE}" if schema else VERSION_TABLE
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE {table} SET version_num = :version"), {"version": version})
    engine.dispose()


def test_a_newer_schema_of_the_same_major_is_accepted(place: tuple[str, str | None]) -> None:
    """Images roll in either order: migrations only add."""
    url, schema = place
    migrate.upgrade(url, schema)
    _set_version(url, schema, "v1_0099")
    assert migrate.check(url, schema) == "v1_0099"
    assert migrate.upgrade(url, schema) == "v1_0099"


def test_an_older_schema_is_refused(place: tuple[str, str | None]) -> None:
    """Older tables may lack a column: the error names both versions and the command."""
    url, schema = place
    migrate.upgrade(url, schema)
    _set_version(url, schema, "v1_0000")
    with pytest.raises(SchemaError, match=r"v1_0000.*v1_0001.*childrun migrate"):
        migrate.check(url, schema)


@pytest.mark.parametrize("version", ["v2_0001", "v0_0001", "somebody else's"])
def test_another_major_version_is_refused(sqlite_url: str, version: str) -> None:
    """Neither looked at nor migrated: only the release that fits it may touch it."""
    migrate.upgrade(sqlite_url)
    _set_version(sqlite_url, None, version)
    for verb in (migrate.check, migrate.upgrade):
        with pytest.raises(SchemaError, match="major version 1"):
            verb(sqlite_url)


def test_an_unreachable_database_is_no_schema_error(tmp_path: Path) -> None:
    """A path that cannot be opened, a file that is no database: the error says so."""
    with pytest.raises(UnavailableError):
        migrate.check(f"sqlite:///{tmp_path / 'missing' / 'store.db'}")
    with pytest.raises(UnavailableError):
        migrate.upgrade("postgresql://nobody:secret@127.0.0.1:1/none")


def test_the_migration_files_are_installed_with_the_package() -> None:
    """Alembic finds its environment and the first version beside the code."""
    root = Path(migrate.__file__).parent / "migrations"
    assert (root / "env.py").is_file()
    assert [path.stem for path in sorted(root.glob("versions/v*.py"))] == ["v1_0001_initial"]


def test_sqlite_is_durable_and_in_wal_mode(sqlite_url: str) -> None:
    """Every connection of the store flushes at each commit and lets readers read beside the writer."""
    migrate.upgrade(sqlite_url)
    store = SqlStore(sqlite_url)
    pragmas = store.database.read(
        lambda connection: [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")
        ]
    )
    store.close()
    assert pragmas == ["wal", 2]
    assert sqlite3.connect(sqlite_url.removeprefix("sqlite:///")).execute("PRAGMA user_version").fetchone() == (0,)
