"""A connection becomes a store, or an error that says what to do; its password goes nowhere else."""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

from airflow_childrun.errors import HostError, SchemaError, UnavailableError
from airflow_childrun.hooks import connection as module
from airflow_childrun.hooks.connection import (
    StoreSettings,
    forget_store,
    open_store,
    settings_from_connection,
    settings_from_url,
)
from airflow_childrun.store.sql import address, migrate

pytestmark = pytest.mark.provider

PASSWORD = "Zq7-not-to-be-seen"
ID = "0c1ffb3a-6b0e-4d2c-9a36-64b4b7f7a6f1"


@dataclass
class Fields:
    """What both classes of Airflow's connections have."""

    conn_id: str = "childrun_default"
    conn_type: str = "childrun"
    host: str | None = "db.example"
    port: int | None = 5432
    schema: str | None = "airflow"
    login: str | None = "childrun_airflow"
    password: str | None = PASSWORD
    extra: str | None = f'{{"dialect": "postgresql", "schema": "childrun", "deployment_id": "{ID}"}}'


def refused(fields: Fields) -> HostError:
    with pytest.raises(HostError) as caught:
        settings_from_connection(fields)
    shown = "".join(traceback.format_exception(caught.value)) + str(caught.value) + repr(caught.value)
    assert PASSWORD not in shown
    return caught.value


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    for store in module._open.values():
        store.close()
    module._open.clear()


# ------------------------------------------------------------------------------------------------------------- reading


def test_fields_become_a_url() -> None:
    """Host, port, database, login and password stand in their fields; nothing is parsed out of an Airflow URI."""
    settings = settings_from_connection(Fields(password="p@ss/w:rd%"))
    assert settings.address == sqlalchemy.URL.create(
        "postgresql+psycopg", "childrun_airflow", "p@ss/w:rd%", "db.example", 5432, "airflow"
    )
    assert (settings.schema, settings.deployment_id) == ("childrun", ID)


@pytest.mark.parametrize("query", ['{"sslmode": "require"}', '"sslmode=require"'])
def test_options_are_an_object_or_text(query: str) -> None:
    """The form of the web page can only enter text, JSON can say an object."""
    extra = f'{{"dialect": "postgresql", "query": {query}, "deployment_id": "{ID}"}}'
    assert dict(settings_from_connection(Fields(extra=extra)).address.query) == {"sslmode": "require"}


def test_a_whole_url_stands_in_the_password_field() -> None:
    """A URL that a secrets manager hands over as one piece is taken as it is."""
    url = f"postgres://me:{PASSWORD}@db.example/store?sslmode=require"
    fields = Fields(host=None, port=None, schema=None, login=None, password=url, extra=f'{{"deployment_id": "{ID}"}}')
    settings = settings_from_connection(fields)
    assert settings.address.render_as_string(hide_password=False) == url.replace("postgres:", "postgresql+psycopg:")


def test_sqlite_is_a_file(tmp_path: Path) -> None:
    """For SQLite the database is the file's absolute path."""
    fields = Fields(host=None, port=None, login=None, password=None, schema=str(tmp_path / "a.db"))
    fields.extra = f'{{"dialect": "sqlite", "deployment_id": "{ID}"}}'
    assert settings_from_connection(fields).address.database == str(tmp_path / "a.db")
    fields.schema = "a.db"
    assert "must be absolute" in refused(fields).info.message


def test_without_a_deployment_id_it_is_refused_with_the_remedy() -> None:
    """A copy of an Airflow must not adopt the original's runs, so the id has no default."""
    error = refused(Fields(conn_id="mine", extra='{"dialect": "postgresql"}'))
    assert error.code == "deployment_id_missing"
    assert "`childrun init --conn-id mine`" in error.info.message
    assert '{"deployment_id": "<a new random UUID>"}' in error.info.message


@pytest.mark.parametrize(
    ("change", "code", "told"),
    [
        ({"conn_type": "postgres"}, "connection_invalid", "`childrun init`"),
        ({"extra": '{"dialect": "oracle"}'}, "dialect_unknown", "'postgresql', 'sqlite'"),
        ({"extra": '{"dialect": "postgresql", "driver": "pg8000"}'}, "driver_unknown", "'psycopg'"),
        ({"extra": "{}"}, "connection_invalid", "'dialect'"),
        ({"extra": "[1]"}, "connection_invalid", "JSON object"),
        ({"extra": "{"}, "connection_invalid", "not JSON"),
        ({"extra": '{"dialect": "postgresql"}', "schema": None}, "connection_invalid", "database is missing"),
        ({"extra": '{"url": "x"}'}, "connection_invalid", "Extras are shown in clear"),
        ({"extra": '{"dialect": "postgresql", "password": "x"}'}, "connection_invalid", "shown in clear"),
        ({"extra": '{"dialect": "postgresql", "query": "sslpassword=x"}'}, "connection_invalid", "shown in clear"),
        (
            {"host": None, "login": None, "schema": None, "password": f"x y://{PASSWORD}@@["},
            "connection_invalid",
            "URL cannot be read",
        ),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], code: str, told: str) -> None:
    """Every wrong connection is named with its field and the remedy, and no value of it is repeated."""
    error = refused(Fields(**change))
    assert error.code == code
    assert told in error.info.message
    assert "'childrun_default'" in error.info.message


# ------------------------------------------------------------------------------------------------------------- secrecy


def test_the_password_is_in_no_text_of_the_settings(caplog: pytest.LogCaptureFixture) -> None:
    """Neither str nor repr nor a log line nor the digest shows it."""
    settings = settings_from_connection(Fields())
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("test").warning("%s %r %s", settings, settings, settings.address)
    shown = f"{settings} {settings!r} {settings.address} {settings.address!r} {settings.place} {caplog.text}"
    assert PASSWORD not in shown
    assert "childrun_airflow" in shown


def test_the_password_is_in_no_traceback() -> None:
    """Not even one that prints local variables, as pytest and rich do."""
    settings = settings_from_url(f"postgresql://u:{PASSWORD}@127.0.0.1:1/nowhere")
    try:
        open_store(settings)
    except UnavailableError as error:
        frames = traceback.TracebackException.from_exception(error, capture_locals=True)
        shown = "".join(frames.format(chain=True))
        assert "childrun check" in shown
        assert PASSWORD not in shown
    else:
        pytest.fail("nobody listens there")


# ------------------------------------------------------------------------------------------------------------- opening


@pytest.fixture
def sqlite_settings(tmp_path: Path) -> StoreSettings:
    url = f"sqlite:///{tmp_path}/store.db"
    migrate.upgrade(url)
    return settings_from_url(url)


def test_a_process_has_one_store_per_digest(sqlite_settings: StoreSettings, tmp_path: Path) -> None:
    """The same settings, read again, are the same store; others are not."""
    again = settings_from_url(f"sqlite:///{tmp_path}/store.db")
    assert open_store(sqlite_settings) is open_store(again)
    other = f"sqlite:///{tmp_path}/other.db"
    migrate.upgrade(other)
    assert open_store(settings_from_url(other)) is not open_store(again)


def test_a_forked_child_opens_its_own(sqlite_settings: StoreSettings) -> None:
    """A child neither uses nor closes what its parent opened."""
    parents = open_store(sqlite_settings)
    pid = os.fork()
    if pid == 0:
        own = open_store(sqlite_settings)
        os._exit(0 if own is not parents and own.now_us() > 0 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert open_store(sqlite_settings) is parents
    assert parents.now_us() > 0


def test_a_forgotten_store_is_opened_anew(sqlite_settings: StoreSettings) -> None:
    """After a failure the next call connects again."""
    first = open_store(sqlite_settings)
    forget_store(sqlite_settings)
    assert open_store(sqlite_settings) is not first


def test_a_missing_file_is_not_made(tmp_path: Path) -> None:
    """Opening a SQLite store on the wrong machine must not leave an empty one there."""
    settings = settings_from_url(f"sqlite:///{tmp_path}/absent.db")
    with pytest.raises(SchemaError, match="childrun migrate"):
        open_store(settings)
    assert list(tmp_path.iterdir()) == []


def test_missing_tables_name_the_command(tmp_path: Path) -> None:
    """An empty database is told from a broken one."""
    (tmp_path / "empty.db").touch()
    with pytest.raises(SchemaError, match="run `childrun migrate`") as caught:
        open_store(settings_from_url(f"sqlite:///{tmp_path}/empty.db"))
    assert "empty.db" in str(caught.value)


def test_another_major_version_is_refused(sqlite_settings: StoreSettings) -> None:
    """A schema that this release cannot work with is named with its version."""
    engine = sqlalchemy.create_engine(sqlite_settings.address)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("UPDATE alembic_version_childrun SET version_num = 'v2_0001'"))
    engine.dispose()
    with pytest.raises(SchemaError, match=r"v2_0001.*major version 1"):
        open_store(sqlite_settings)


def test_a_missing_driver_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever installed the package without PostgreSQL learns what to install."""
    monkeypatch.setattr(address, "find_spec", lambda name: None)
    with pytest.raises(HostError, match=r"pip install 'airflow-childrun\[postgres\]'") as caught:
        open_store(settings_from_connection(Fields()))
    assert caught.value.code == "driver_missing"


def test_an_unreachable_store_names_place_reason_and_command() -> None:
    """Which database, what the driver said, and what tests it."""
    extra = f'{{"dialect": "postgresql", "deployment_id": "{ID}"}}'
    settings = settings_from_connection(Fields(conn_id="mine", host="127.0.0.1", port=1, extra=extra))
    with pytest.raises(UnavailableError) as caught:
        open_store(settings)
    text = str(caught.value)
    assert "connection 'mine', postgresql childrun_airflow@127.0.0.1:1/airflow" in text
    assert "refused" in text
    assert "`childrun check --conn-id mine`" in text


def test_a_rotated_password_is_used_once_it_is_read_again(
    postgres_url: str, postgres_server: Any, request: pytest.FixtureRequest
) -> None:
    """A refused login is not cached: after reading the connection again, the store opens."""
    role = f"rotated_{os.getpid()}"
    postgres_server.execute(f"CREATE ROLE {role} LOGIN SUPERUSER PASSWORD 'new-password'")
    request.addfinalizer(lambda: postgres_server.execute(f"DROP ROLE {role}"))
    migrate.upgrade(postgres_url)
    host = postgres_url.partition("@")[2]
    old, new = (settings_from_url(f"postgresql://{role}:{word}@{host}") for word in ("old-password", "new-password"))
    for _ in range(2):
        with pytest.raises(UnavailableError, match="authentication failed"):
            open_store(old)
    assert old.digest != new.digest
    assert open_store(new).now_us() > 0
    forget_store(new)


# ---------------------------------------------------------------------------------------------------- asking Airflow


_READ = """
import asyncio
from airflow_childrun._airflow import registered_secrets
from airflow_childrun.errors import HostError
from airflow_childrun.hooks.connection import read_store_settings, read_store_settings_async
for read in (read_store_settings, lambda name: asyncio.run(read_store_settings_async(name))):
    for name in ("from_environment", "from_uri", "from_url", "absent"):
        try:
            print("READ", read(name).place)
        except HostError as error:
            print("READ", error)
    print("READ", len([value for value in registered_secrets() if "inside-a-url" == value]), "masked")
"""


def test_airflow_hands_over_connections(new_airflow_home: Callable[..., Any]) -> None:
    """JSON and URI forms of a connection are read, and a missing one names the command, from threads and event loops."""
    json_form = (
        f'{{"conn_type": "childrun", "schema": "/a/b.db", "extra": {{"dialect": "sqlite", "deployment_id": "{ID}"}}}}'
    )
    uri_form = f"childrun://u:{PASSWORD}@h:5432/d?dialect=postgresql&deployment_id={ID}&schema=childrun&query=sslmode%3Drequire"
    url_form = (
        '{"conn_type": "childrun", "password": "postgresql://u:inside-a-url@h/d", "extra": {"deployment_id": "'
        + ID
        + '"}}'
    )
    done = new_airflow_home().python(
        _READ,
        AIRFLOW_CONN_FROM_URL=url_form,
        AIRFLOW_CONN_FROM_ENVIRONMENT=json_form,
        AIRFLOW_CONN_FROM_URI=uri_form,
        _AIRFLOW_PROCESS_CONTEXT="client",
    )
    lines = [line.removeprefix("READ ") for line in done.out.splitlines() if line.startswith("READ ")]
    assert len(lines) == 10, done.text
    assert lines[:5] == lines[5:]
    assert lines[0] == "connection 'from_environment', sqlite /a/b.db"
    assert lines[1] == "connection 'from_uri', postgresql u@h:5432/d, schema childrun"
    assert lines[2] == "connection 'from_url', postgresql u@h/d"
    assert lines[4] == "1 masked"
    assert lines[3].startswith("[connection_missing] there is no connection 'absent'")
    assert "`childrun init --conn-id absent`" in lines[3]
    assert PASSWORD not in done.text
