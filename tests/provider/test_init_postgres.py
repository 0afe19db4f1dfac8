"""``childrun init`` on PostgreSQL: the login that tasks get can do its work and nothing else."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Iterator

import psycopg
import pytest

from tests.postgres import PostgresServer
from tests.provider.conftest import AirflowHome

pytestmark = pytest.mark.provider


def login_of(connection: dict[str, object]) -> str:
    """Return the libpq URL of an Airflow connection as :meth:`AirflowHome.connection` returns it."""
    return "postgresql://{login}:{password}@{host}:{port}/{schema}".format(**connection)


def refused(url: str, statement: str) -> str:
    with psycopg.connect(url, autocommit=True) as connection, pytest.raises(psycopg.Error) as caught:
        connection.execute(statement)  # type: ignore[call-overload, unused-ignore]
    return str(caught.value.sqlstate)


INSUFFICIENT_PRIVILEGE = "42501"


def test_the_login_sees_the_store_alone(postgres_home: AirflowHome, postgres_server: PostgresServer) -> None:
    """Airflow's tables, another team's schema, roles and foreign schemas are refused; the store itself works."""
    with postgres_home.console() as childrun:
        ours = childrun("init", "--worker-host", "127.0.0.1")
        team = childrun("init", "--schema", "team_b", "--conn-id", "team_b")
        check = childrun("check", "--json")
    assert ours.status == 0, ours.text
    assert team.status == 0, team.text
    findings = {each["test"]: each for each in map(json.loads, check.out.splitlines())}
    durability = findings.pop("durability")
    assert (durability["status"], "fsync = off" in durability["about"]) == ("warning", True), "as the tests' server is"
    assert {each["status"] for each in findings.values()} == {"ok"}
    url = login_of(postgres_home.connection())
    for statement in (
        "SELECT * FROM connection",
        "SELECT * FROM public.connection",
        "SELECT * FROM public.variable",
        "DELETE FROM public.dag_run",
        "SELECT * FROM team_b.childrun_run",
        "CREATE TABLE team_b.mine (n int)",
        "CREATE SCHEMA mine",
        "CREATE ROLE mine",
        "SET ROLE postgres",
    ):
        assert refused(url, statement) in {INSUFFICIENT_PRIVILEGE, "42P01"}, statement
    # A search path that finds Airflow's tables does not make them readable.
    assert refused(f"{url}?options=-csearch_path%3Dpublic", "SELECT * FROM connection") == INSUFFICIENT_PRIVILEGE
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT count(*) FROM childrun_run").fetchone() == (0,)
        flags = "SELECT rolsuper OR rolcreaterole OR rolcreatedb OR rolbypassrls FROM pg_roles WHERE rolname = user"
        assert connection.execute(flags).fetchone() == (False,)


def test_a_second_run_changes_nothing_and_a_rotation_only_the_password(postgres_home: AirflowHome) -> None:
    """Deployment id, login, password and worker host stay; --rotate-password makes the old password invalid."""
    with postgres_home.console() as childrun:
        first = childrun("init", "--worker-host", "localhost")
        assert first.status == 0, first.text
        made = postgres_home.connection()
        again = childrun("init")
        assert again.status == 0, again.text
        assert "created" not in again.text
        assert postgres_home.connection() == made
        rotated, check = childrun("init", "--rotate-password"), childrun("check")
    assert made["host"] == "localhost"
    assert rotated.status == 0, rotated.text
    assert check.status == 0, check.text
    after = postgres_home.connection()
    same = ("host", "port", "schema", "login", "extra")
    assert {name: after[name] for name in same} == {name: made[name] for name in same}
    with pytest.raises(psycopg.OperationalError, match="authentication failed"):
        psycopg.connect(login_of(made))
    psycopg.connect(login_of(after)).close()


_AS_SHOWN = """
import json
from airflow.api_fastapi.core_api.datamodels.connections import ConnectionResponse
from airflow_childrun._airflow import read_metadata_connection
print("SHOWN " + ConnectionResponse.model_validate(read_metadata_connection("childrun_default")).model_dump_json())
"""
_IN_A_TASK = """
import logging, traceback
from airflow_childrun._airflow import mask_secret
from airflow_childrun.cli.target import settings_of_connection
from airflow_childrun.hooks.connection import open_store, forget_store
settings = settings_of_connection("childrun_default")
print(settings, repr(settings), settings.address)
store = open_store(settings)
print(store, repr(store))
logging.getLogger("task").warning("%s %r", settings, store)
forget_store(settings)
import dataclasses
broken = dataclasses.replace(settings, address=settings.address.set(port=1), digest="other")
try:
    open_store(broken)
except Exception as error:
    print("".join(traceback.TracebackException.from_exception(error, capture_locals=True).format()))
"""


def test_the_password_is_shown_nowhere(postgres_home: AirflowHome, postgres_server: PostgresServer) -> None:
    """Not by init, REST, lists, extras, logs, tracebacks with local variables, or the server's catalogue of statements."""
    made = postgres_home.childrun("init")
    assert made.status == 0, made.text
    connection = postgres_home.connection()
    password = connection["password"]
    assert len(password) >= 40
    in_a_task = postgres_home.python(_AS_SHOWN + _IN_A_TASK)
    assert "SHOWN {" in in_a_task.out, in_a_task.text
    assert "childrun check" in in_a_task.out, in_a_task.text
    exported = postgres_home.airflow("connections", "export", "/dev/stdout", "--file-format", "json")
    listed = postgres_home.airflow("connections", "list", "-o", "json")
    assert "childrun_default" in listed.out, listed.text
    made_of = json.loads(exported.out[exported.out.index("{") : exported.out.rindex("}") + 1])["childrun_default"]
    # Airflow exports passwords, to import them again: of ours, too, in the one field that it treats as a password.
    assert (exported.text.count(password), made_of.pop("password")) == (1, password)
    (stored,) = postgres_server.execute(f"SELECT rolpassword FROM pg_authid WHERE rolname = '{connection['login']}'")
    shown = (
        made.text,
        in_a_task.text,
        listed.text,
        json.dumps(made_of),
        json.dumps(connection["extra"]),
        str(stored[0]),
    )
    for text in shown:
        assert password not in text
    assert str(stored[0]).startswith("SCRAM-SHA-256$")


def test_what_is_already_there_is_not_taken(postgres_home: AirflowHome) -> None:
    """An existing login without a connection, and a connection to another store, are refused with the ways out."""
    with postgres_home.console() as childrun:
        first, other = childrun("init"), childrun("init", "--conn-id", "other")
        elsewhere = childrun("init", "--url", f"sqlite:///{postgres_home.path}/other.db")
    assert first.status == 0, first.text
    assert other.status == 2
    assert "[role_exists]" in other.err
    assert "--rotate-password" in other.err
    assert "--role" in other.err
    assert elsewhere.status == 2
    assert "[connection_differs]" in elsewhere.err


def test_sharing_airflows_login_says_what_that_means(postgres_home: AirflowHome) -> None:
    """The explicit switch works, and prints what every task can then read; check repeats it."""
    with postgres_home.console() as childrun:
        shared, check = childrun("init", "--share-metadata-credentials"), childrun("check", "--json")
    assert shared.status == 0, shared.text
    assert "WARNING" in shared.err
    assert "public.connection" in shared.err
    findings = {each["test"]: each for each in map(json.loads, check.out.splitlines())}
    assert findings["isolation"]["status"] == "warning"
    assert findings["rights"]["status"] == "ok"
    assert check.status == 0


class Roles:
    """Roles made for a test, dropped after it with all that they own in its database."""

    def __init__(self, server: PostgresServer, url: str) -> None:
        self.server = server
        self.url = url.replace("+psycopg", "")
        self.names: list[str] = []

    def make(self, attributes: str = "") -> str:
        """Create a role and return its name."""
        name = f"admin_{os.getpid()}_{len(self.names)}"
        self.server.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'admin' {attributes}")
        self.names.append(name)
        return name

    def execute(self, statements: str) -> None:
        """Run statements as the superuser in the test's database."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(statements)  # type: ignore[call-overload, unused-ignore]


@pytest.fixture
def roles(postgres_server: PostgresServer, postgres_url: str) -> Iterator[Roles]:
    made = Roles(postgres_server, postgres_url)
    yield made
    for name in reversed(made.names):
        made.execute(f'DROP OWNED BY "{name}" CASCADE')
        made.execute(f'DROP ROLE "{name}"')


def as_role(url: str, name: str) -> str:
    return f"postgresql://{name}:admin@{url.partition('@')[2]}"


def run_init(
    new_airflow_home: Callable[..., AirflowHome], *arguments: str, stdin: str | None = None
) -> tuple[int, str, str]:
    """Run ``childrun init`` where Airflow has no configuration at all."""
    home = new_airflow_home()
    bare = {name: "" for name in home.environment if name.startswith("AIRFLOW__DATABASE__")}
    done = home.childrun("init", *arguments, stdin=stdin, **bare)
    assert not (home.path / "airflow.cfg").exists()
    return done.status, done.out, done.err


def test_without_the_right_to_create_roles_it_prints_the_sql(
    new_airflow_home: Callable[..., AirflowHome],
    postgres_url: str,
    postgres_server: PostgresServer,
    roles: Roles,
) -> None:
    """Exit 2, nothing made, and SQL that an administrator can run as it is: afterwards its login works with --url."""
    weak = roles.make()
    database = postgres_url.rpartition("/")[2].partition("?")[0]
    url = as_role(postgres_url, weak)
    status, out, err = run_init(new_airflow_home, "--url", url, "--create-role", "--print-connection")
    assert status == 2
    assert "error [init_not_allowed]" in err
    assert "admin" not in out
    made = f"childrun_{database}"
    assert postgres_server.execute(f"SELECT count(*) FROM pg_roles WHERE rolname = '{made}'") == [(0,)]
    roles.execute(out.replace("<choose a password>", "chosen"))
    roles.names.append(made)
    own = f"postgresql://{made}:chosen@{postgres_url.partition('@')[2]}"
    status, out, err = run_init(new_airflow_home, "--url", "-", "--schema", "childrun", "--print-connection", stdin=own)
    assert status == 0, err
    assert json.loads(shlex.split(out)[0].partition("=")[2])["login"] == made


def test_an_administrator_who_is_no_superuser_is_enough(
    new_airflow_home: Callable[..., AirflowHome],
    postgres_url: str,
    postgres_server: PostgresServer,
    roles: Roles,
) -> None:
    """CREATEROLE and CREATE on the database suffice, as on managed servers; what is printed is a usable connection."""
    admin = roles.make("CREATEROLE")
    database = postgres_url.rpartition("/")[2].partition("?")[0]
    postgres_server.execute(f'GRANT CREATE ON DATABASE "{database}" TO {admin}')
    arguments = ["--url", as_role(postgres_url, admin), "--create-role", "--print-connection", "--json"]
    status, out, err = run_init(new_airflow_home, *arguments, "--deployment-id", "the-same")
    assert status == 0, err
    printed = json.loads(out)
    roles.names.append(printed["login"])
    assert printed["extra"]["deployment_id"] == "the-same"
    with new_airflow_home().console(AIRFLOW_CONN_CHILDRUN_DEFAULT=out.strip()) as childrun:
        check, again = childrun("check"), childrun("init", *arguments)
    assert check.status == 0, check.text
    assert again.status == 2
    assert "[role_exists]" in again.err
