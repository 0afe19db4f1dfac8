"""The PostgreSQL of the tests is a real one, isolated per test, and never left out by accident."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from tests.postgres import PostgresServer, start_embedded

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]


def connect(url: str) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(url.replace("postgresql+psycopg://", "postgresql://"), autocommit=True)


def test_every_database_is_fresh(postgres_databases: Callable[..., str]) -> None:
    """What one test writes, another never sees, unless it asks for a copy."""
    first = postgres_databases()
    with connect(first) as connection:
        connection.execute("CREATE TABLE t (n int)")
    name = first.rpartition("/")[2].partition("?")[0]
    for url, expected in ((postgres_databases(), None), (postgres_databases(name), "t")):
        with connect(url) as connection:
            row = connection.execute("SELECT to_regclass('t')::text").fetchone()
        assert row == (expected,)


def test_sqlalchemy_reaches_it(postgres_url: str) -> None:
    """The URL is one that SQLAlchemy and Airflow take as it is."""
    import sqlalchemy

    engine = sqlalchemy.create_engine(postgres_url)
    with engine.connect() as connection:
        assert connection.dialect.name == "postgresql"
        assert connection.scalar(sqlalchemy.text("SELECT current_database()")) == engine.url.database
    engine.dispose()


def test_the_embedded_server_checks_passwords_and_listens_on_both_roads(postgres_server: PostgresServer) -> None:
    """A wrong password is refused, and TCP and the Unix socket reach the same server."""
    if postgres_server.origin != "embedded":
        pytest.skip("how a given server authenticates is its owner's business")
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(postgres_server.admin_url.replace("postgres:", "postgres:wrong", 1))
    with connect(postgres_server.url("postgres", unix_socket=True)) as connection:
        assert connection.execute("SELECT inet_server_addr()").fetchone() == (None,)


def test_the_server_ends_with_whoever_started_it() -> None:
    """After a stop nobody answers, and its folder is gone."""
    server, stop = start_embedded()
    assert server.execute("SELECT 1") == [(1,)]
    stop()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(server.admin_url, connect_timeout=2)
    assert server.socket_dir is not None
    assert not Path(server.socket_dir).exists()


def run_pytest(tmp_path: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    test = tmp_path / "test_it.py"
    test.write_text("def test_with(postgres_url):\n    pass\n\ndef test_without():\n    pass\n")
    command = [sys.executable, "-m", "pytest", "-p", "tests.postgres", "-c", str(ROOT / "pyproject.toml"), "-q"]
    return subprocess.run(
        [*command, "--rootdir", str(ROOT), str(test), *arguments],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    )


def test_a_missing_server_fails_the_tests(tmp_path: Path) -> None:
    """Without a PostgreSQL the tests that need one fail: they are not skipped."""
    url = "postgresql://nobody:x@127.0.0.1:1/none"
    done = run_pytest(tmp_path, CHILDRUN_TEST_POSTGRES_URL=url)
    assert done.returncode == 1, done.stdout
    assert "1 passed, 1 error" in done.stdout


def test_leaving_them_out_is_an_explicit_choice(tmp_path: Path) -> None:
    """--no-postgres deselects, which the summary says, and CI=true refuses it."""
    done = run_pytest(tmp_path, "--no-postgres", CI="")
    assert "1 passed, 1 deselected" in done.stdout, done.stdout + done.stderr
    refused = run_pytest(tmp_path, "--no-postgres", CI="true")
    assert refused.returncode == 4
    assert "refused with CI=true" in refused.stderr


def test_a_killed_session_leaves_no_server_behind() -> None:
    """SIGKILL of the session's process ends its server too."""
    script = (
        "import os, signal\n"
        "from tests.postgres import start_embedded\n"
        "server, _ = start_embedded()\n"
        "print(server.admin_url, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, cwd=ROOT)
    url = done.stdout.strip()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            psycopg.connect(url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return
        time.sleep(0.1)
    pytest.fail("the server still answers")
