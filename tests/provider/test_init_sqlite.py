"""``airflow db migrate`` and ``childrun init`` on an Airflow with SQLite."""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.provider.conftest import AirflowHome

pytestmark = pytest.mark.provider


def tables(path: Path) -> set[str]:
    with closing(sqlite3.connect(path)) as connection:
        names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        return {name for (name,) in names if "childrun" in name}


def test_airflow_is_undisturbed(airflow_home: AirflowHome) -> None:
    """With the package installed, the metadata database is migrated as ever, and holds nothing of ours."""
    assert tables(airflow_home.path / "airflow.db") == set()
    done = airflow_home.airflow("db", "check-migrations")
    assert done.status == 0, done.text
    listed = airflow_home.airflow("providers", "list", "-o", "json")
    (ours,) = (each for each in json.loads(listed.out) if each["package_name"] == "airflow-childrun")
    assert ours["description"].startswith("Durable child runs")


@pytest.fixture(scope="module")
def airflow_home(new_airflow_home: Callable[..., AirflowHome]) -> AirflowHome:
    """Give a home of this module's own: nobody has called `childrun init` in it."""
    home = new_airflow_home()
    done = home.airflow("db", "migrate")
    assert done.status == 0, done.text
    return home


def test_init_from_airflow_then_again_from_the_console(airflow_home: AirflowHome) -> None:
    """Both spellings are one command; the second run changes nothing, and Airflow's own tables stay alone."""
    with airflow_home.console() as childrun:
        missing = childrun("check")
    assert missing.status == 2
    assert missing.err.splitlines()[-1] == (
        "error [connection_missing]: there is no connection 'childrun_default': an administrator makes it, and the tables,"
        " with `childrun init`"
    )
    first = airflow_home.airflow("childrun", "init")
    assert first.status == 0, first.text
    assert "alembic" not in first.text
    made = airflow_home.connection()
    assert made["conn_type"] == "childrun"
    assert made["schema"] == str(airflow_home.path / "childrun.db")
    assert made["password"] is None
    uuid.UUID(made["extra"]["deployment_id"])
    with airflow_home.console() as childrun:
        again, check, another, listed = (
            childrun(*command)
            for command in (["init"], ["check", "--json"], ["init", "--deployment-id", "another"], ["runs", "list"])
        )
    assert again.status == 0, again.text
    assert airflow_home.connection() == made
    assert check.status == 0, check.text
    assert {json.loads(line)["status"] for line in check.out.splitlines()} == {"ok"}
    assert another.status == 2
    assert "[deployment_id_differs]" in another.err
    assert listed.out == "no runs\n"
    assert tables(airflow_home.path / "airflow.db") == set()
    assert "childrun_run" in tables(airflow_home.path / "childrun.db")


def test_commands_work_inside_airflow(airflow_home: AirflowHome) -> None:
    """Nested commands, their options and exit statuses survive Airflow's own command line."""
    with_json = airflow_home.airflow("childrun", "check", "--json", "--url", f"sqlite:///{airflow_home.path}/absent.db")
    assert with_json.status == 1
    assert [json.loads(line)["test"] for line in with_json.out.splitlines()] == ["connection", "tables"]
    nested = airflow_home.airflow("childrun", "runs", "show", "not-an-id", "--url", "sqlite:////absent.db")
    assert nested.status == 2
    assert "error [store_schema]" in nested.err


def test_metadata_tables_are_migrated_where_asked_for(new_airflow_home: Callable[..., AirflowHome]) -> None:
    """With the option on, `airflow db migrate` makes our tables beside Airflow's, and a shared store uses them."""
    home = new_airflow_home(AIRFLOW__CHILDRUN__METADATA_TABLES="True")
    done = home.airflow("db", "migrate")
    assert done.status == 0, done.text
    assert "childrun_run" in tables(home.path / "airflow.db")
    with home.console() as childrun:
        shared, check = childrun("init", "--share-metadata-credentials"), childrun("check")
    assert shared.status == 0, shared.text
    assert "every task can now read and change what Airflow's own login can" in shared.err
    assert check.status == 0, check.text
    assert not (home.path / "childrun.db").exists()


_BROKEN = """
import sys
sys.modules["psycopg"] = None  # as without the extra 'postgres'
from importlib.util import find_spec
import airflow_childrun.cli.metadata as metadata
from airflow_childrun.errors import HostError
def broken(url):
    raise HostError("the driver is not installed", code="driver_missing")
metadata.migrate_tables = metadata.check_tables = broken
from airflow.__main__ import main
sys.argv = ["airflow", "db", "migrate"]
main()
"""


def test_a_failure_of_ours_never_stops_airflows_migration(airflow_home: AirflowHome) -> None:
    """What goes wrong with our tables, also for want of a driver, is logged; Airflow's migration succeeds."""
    done = airflow_home.python(_BROKEN, AIRFLOW__CHILDRUN__METADATA_TABLES="True")
    assert done.status == 0, done.text
    assert "the driver is not installed" in done.text
    assert "childrun migrate" in done.text
    assert "Database migration done" in done.text


def test_an_airflow_that_was_never_migrated_is_named(new_airflow_home: Callable[..., AirflowHome]) -> None:
    """Without Airflow's tables there is one line that says so, not a traceback; a URL does without them."""
    home = new_airflow_home()
    url = f"sqlite:///{home.path}/own.db"
    with home.console() as childrun:
        refused, printed = childrun("init"), childrun("init", "--url", url, "--print-connection")
    assert refused.status == 2
    assert "error [metadata_unusable]" in refused.err.splitlines()[-1]
    assert printed.status == 0
    assert printed.out.startswith("AIRFLOW_CONN_CHILDRUN_DEFAULT='{")
