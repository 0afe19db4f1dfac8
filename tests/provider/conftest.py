"""A real Airflow for tests: throwaway homes with a migrated metadata database, and the commands run in them.

An ``airflow`` command costs some seconds, so homes are shared: what a test writes into one, it names after itself or
removes again. :meth:`AirflowHome.console` runs many of our commands in one process.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from cryptography.fernet import Fernet

from tests.postgres import PostgresServer

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 180
FERNET_KEY = "r1wTtnq_DVp6PUnDkqnKS2gFuwlVXOjbJ9WvQ9Ht4hw="

_CONSOLE = """
import contextlib, io, json, sys
from airflow_childrun.cli.main import main
for line in sys.stdin:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(json.loads(line))
        except SystemExit as end:
            status = end.code
    print("RESULT " + json.dumps([status, out.getvalue(), err.getvalue()]), flush=True)
"""


@dataclass(frozen=True)
class Done:
    """What a command did."""

    status: int
    out: str
    err: str

    @property
    def text(self) -> str:
        """Everything that it printed."""
        return self.out + self.err


@dataclass(frozen=True)
class AirflowHome:
    """An Airflow installation's home with its metadata database.

    :param environment: what a process needs beyond ours to be in it
    """

    path: Path
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, *command: str, stdin: str | None = None, **environment: str) -> Done:
        """Run any command in this home."""
        done = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            input=stdin,
            cwd=self.path,
            timeout=TIMEOUT_S,
            env={**os.environ, **self.environment, **environment},
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def airflow(self, *arguments: str, **environment: str) -> Done:
        """Run ``airflow``."""
        return self.run(sys.executable, "-m", "airflow", *arguments, **environment)

    def childrun(self, *arguments: str, stdin: str | None = None, **environment: str) -> Done:
        """Run ``childrun``."""
        return self.run(sys.executable, "-m", "airflow_childrun.cli.main", *arguments, stdin=stdin, **environment)

    @contextlib.contextmanager
    def console(self, **environment: str) -> Iterator[Callable[..., Done]]:
        """Give a function that runs ``childrun`` commands one by one in one process, which imports Airflow once."""
        process = subprocess.Popen(
            [sys.executable, "-c", _CONSOLE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=self.path,
            env={**os.environ, **self.environment, **environment},
        )
        assert process.stdin
        assert process.stdout
        commands, answers = process.stdin, process.stdout

        def run(*arguments: str) -> Done:
            commands.write(f"{json.dumps(arguments)}\n")
            commands.flush()
            for line in answers:
                if line.startswith("RESULT "):
                    return Done(*json.loads(line.removeprefix("RESULT ")))
            pytest.fail("the console died")

        with process:
            yield run
            commands.close()

    def python(self, script: str, *arguments: str, **environment: str) -> Done:
        """Run a script."""
        return self.run(sys.executable, "-c", script, *arguments, **environment)

    def connection(self, conn_id: str = "childrun_default") -> dict[str, Any]:
        """Return a connection as Airflow stored it, decrypted: read directly, since ``airflow`` takes seconds."""
        columns = ("conn_type", "host", "port", "schema", "login", "password", "extra")
        query = sqlalchemy.text(f"SELECT {', '.join(columns)} FROM connection WHERE conn_id = :conn_id")
        engine = sqlalchemy.create_engine(self.environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"])
        with engine.connect() as connection:
            row = dict(zip(columns, connection.execute(query, {"conn_id": conn_id}).one(), strict=True))
        engine.dispose()
        for name in ("password", "extra"):
            # The cipher text is what proves that Airflow encrypted it.
            row[name] = Fernet(FERNET_KEY).decrypt(row[name]).decode() if row[name] else None
        return {**row, "extra": json.loads(row["extra"])}


@pytest.fixture(scope="session")
def provider_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Give the PYTHONPATH with which Airflow finds the provider, also where it is not installed."""
    path = [str(ROOT)]
    try:
        importlib.metadata.distribution("airflow-childrun")
    except importlib.metadata.PackageNotFoundError:
        # A checkout on sys.path has no entry points; the metadata of an installation, made from pyproject.toml, has.
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        info = tmp_path_factory.mktemp("installed") / "airflow_childrun-0.1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: airflow-childrun\nVersion: 0.1.0\n")
        groups = {"console_scripts": project["scripts"], **project["entry-points"]}
        lines = [
            f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in entries.items())
            for group, entries in groups.items()
        ]
        (info / "entry_points.txt").write_text("\n".join(lines))
        path.insert(0, str(info.parent))
    return os.pathsep.join(path)


@pytest.fixture(scope="session")
def new_airflow_home(tmp_path_factory: pytest.TempPathFactory, provider_path: str) -> Callable[..., AirflowHome]:
    """Give a function that makes a home around a metadata database; it migrates nothing.

    :param url: of the metadata database; default: a SQLite file in the home
    """

    def make(url: str | None = None, **environment: str) -> AirflowHome:
        path = tmp_path_factory.mktemp("airflow")
        (path / "dags").mkdir()
        base = {
            "AIRFLOW_HOME": str(path),
            "PYTHONPATH": provider_path,
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__DAGS_FOLDER": str(path / "dags"),
            "AIRFLOW__CORE__FERNET_KEY": FERNET_KEY,
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": url or f"sqlite:///{path}/airflow.db",
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        }
        if url:
            # Airflow would take asyncpg, which nothing of ours needs.
            base["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC"] = url.replace("+psycopg2:", "+psycopg:")
        return AirflowHome(path, {**base, **environment})

    return make


@pytest.fixture(scope="session")
def airflow_home(new_airflow_home: Callable[..., AirflowHome]) -> AirflowHome:
    """Give a home on SQLite with a migrated metadata database; one per session."""
    home = new_airflow_home()
    done = home.airflow("db", "migrate")
    assert done.status == 0, done.text
    return home


@pytest.fixture(scope="session")
def metadata_template(postgres_server: PostgresServer, new_airflow_home: Callable[..., AirflowHome]) -> Iterator[str]:
    """Give the name of a PostgreSQL database with Airflow's migrated tables, to be copied; one per session."""
    name = postgres_server.new_database()
    done = new_airflow_home(postgres_server.url(name, driver="psycopg2")).airflow("db", "migrate")
    assert done.status == 0, done.text
    yield name
    postgres_server.drop_database(name)


@pytest.fixture
def postgres_home(
    postgres_server: PostgresServer, metadata_template: str, new_airflow_home: Callable[..., AirflowHome]
) -> Iterator[AirflowHome]:
    """Give a fresh home on PostgreSQL with a migrated metadata database; costs a copy of a database."""
    name = postgres_server.new_database(metadata_template)
    yield new_airflow_home(postgres_server.url(name, driver="psycopg2"))
    postgres_server.drop_database(name)
    # Roles outlive their database; with it gone, nothing depends on them.
    for (role,) in postgres_server.execute(f"SELECT rolname FROM pg_roles WHERE rolname LIKE '%{name}'"):
        postgres_server.execute(f'DROP ROLE "{role}"')
