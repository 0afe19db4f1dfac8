"""The stand: a real Airflow on PostgreSQL with its scheduler, API server, DAG processor and triggerer.

It starts the four components itself, each in a session of its own and on free ports, with LocalExecutor and short
timeouts; makes the store with the real ``childrun init``; and leaves no process behind.
``python -m tests.stack`` starts one for a person (docs/stand.md).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import httpx

from tests.postgres import PostgresServer
from tests.stack.browser import Browser
from tests.stack.witness import Witness

ROOT = Path(__file__).parents[2]
DAGS = Path(__file__).with_name("dags")
COMPONENTS = ("api-server", "scheduler", "dag-processor", "triggerer")
START_S = 120.0


class StandError(RuntimeError):
    """The stand does not stand; the message has the end of the log that says why."""


class Stand:
    """One Airflow. Make it with :func:`started`.

    :param home: its throwaway home; the folder ``dags`` in it holds what it loads
    :param environment: what a process needs to belong to it
    """

    def __init__(self, home: Path, environment: dict[str, str], base_url: str, witness: Witness) -> None:
        self.home = home
        self.environment = environment
        self.base_url = base_url
        self.witness = witness
        self.browser = Browser(base_url)
        self._components: dict[str, subprocess.Popen[bytes]] = {}

    def run(self, *command: str, timeout_s: float = 180) -> str:
        """Run a command in this Airflow, and return what it printed.

        :raises StandError: if it fails
        """
        done = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            cwd=self.home,
            timeout=timeout_s,
            env={**os.environ, **self.environment},
        )
        if done.returncode:
            raise StandError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def airflow(self, *arguments: str) -> str:
        """Run ``airflow``."""
        return self.run(sys.executable, "-m", "airflow", *arguments)

    def childrun(self, *arguments: str) -> str:
        """Run ``childrun``."""
        return self.run(sys.executable, "-m", "airflow_childrun.cli.main", *arguments)

    def start(self, name: str, *command: str, **environment: str) -> None:
        """Start one component.

        :param command: of ``airflow``; by default its name
        :param environment: what it needs beside what everything of this Airflow has
        """
        with self.log_of(name).open("ab") as log:
            self._components[name] = subprocess.Popen(
                [sys.executable, "-m", "airflow", *(command or (name,))],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.home,
                env={**os.environ, **self.environment, **environment},
                start_new_session=True,
            )

    def kill(self, name: str) -> None:
        """Kill one component and everything that it started."""
        process = self._components[name]
        while left := processes_of_sessions({process.pid}):
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        process.wait()

    def stop(self) -> None:
        """Stop every component, gently and then for sure, with everything that they started."""
        self.browser.close()
        for process in self._components.values():
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + 3
        for process in self._components.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
        # Task supervisors and their tasks stay in the session of the component that forked them; some make their own
        # process group, so sessions are swept and not groups.
        while left := processes_of_sessions(self.sessions):
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        for process in self._components.values():
            process.wait()

    def pid_of(self, name: str) -> int:
        """Return the process of a component: its session's leader."""
        return self._components[name].pid

    @property
    def sessions(self) -> set[int]:
        """The sessions in which everything runs that it started."""
        return {process.pid for process in self._components.values()}

    def log_of(self, component: str) -> Path:
        """Return where a component writes its log."""
        return self.home / f"{component}.log"

    def wait_for_log(self, component: str, pattern: str, timeout_s: float = 60) -> None:
        """Wait until a component has logged a line that matches.

        :raises StandError: if it does not
        """
        deadline = time.monotonic() + timeout_s
        while not re.search(pattern, self.log_of(component).read_text(errors="replace")):
            if time.monotonic() > deadline:
                raise StandError(f"{component} logged nothing like {pattern!r} within {timeout_s:.0f} s")
            time.sleep(0.1)

    def wait_until_ready(self) -> None:
        """Wait until all four components are healthy and every DAG of the folder is there.

        :raises StandError: if one of them ended, or a DAG cannot be imported
        """
        deadline = time.monotonic() + START_S
        wanted = {stem for path in (self.home / "dags").glob("*.py") for stem in dag_ids(path)}
        while not self._is_ready(wanted):
            for name, process in self._components.items():
                if process.poll() is not None:
                    raise StandError(f"{name} ended:\n{self.log_of(name).read_text()[-4000:]}")
            if time.monotonic() > deadline:
                tails = "\n".join(f"-- {name}\n{self.log_of(name).read_text()[-1500:]}" for name in self._components)
                raise StandError(f"not ready after {START_S:.0f} s, DAGs {self.browser.dag_ids()}:\n{tails}")
            time.sleep(0.1)

    def _is_ready(self, wanted: set[str]) -> bool:
        try:
            health = httpx.get(f"{self.base_url}/api/v2/monitor/health", timeout=5).json()
            if any(health[part]["status"] != "healthy" for part in ("scheduler", "dag_processor", "triggerer")):
                return False
            errors = self.browser.get("/importErrors")["import_errors"]
            if errors:
                raise StandError(f"a DAG file cannot be imported:\n{errors[0]['filename']}\n{errors[0]['stack_trace']}")
            return wanted <= self.browser.dag_ids()
        except (httpx.TransportError, ValueError, KeyError):
            return False

    def tasks(self) -> list[int]:
        """Return the processes in which tasks run now: a supervisor forked each, itself a worker of the scheduler's."""
        scheduler = self._components["scheduler"].pid
        parents = {pid: parent_of(pid) for pid in processes_of_sessions({scheduler})}
        workers = {pid for pid, parent in parents.items() if parent == scheduler}
        return [pid for pid, parent in parents.items() if parent in workers]


def parent_of(pid: int) -> int:
    """Return a process's parent, 0 if it is gone."""
    try:
        return int((Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def dag_ids(path: Path) -> list[str]:
    """Return the ids of the DAGs that a file of ours defines."""
    return re.findall(r"DAG\(\s*\"(\w+)\"", path.read_text())


def processes_of_sessions(sessions: set[int]) -> list[int]:
    """Return the living processes of these sessions."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) in sessions and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment_of(home: Path, metadata_url: str, port: int, witness: Witness) -> dict[str, str]:
    """Return the configuration of a stand, as environment variables."""
    sections: dict[str, dict[str, object]] = {
        "core": {
            "load_examples": False,
            "dags_folder": home / "dags",
            "fernet_key": "r1wTtnq_DVp6PUnDkqnKS2gFuwlVXOjbJ9WvQ9Ht4hw=",
            "executor": "LocalExecutor",
            "parallelism": 4,
            "simple_auth_manager_all_admins": True,
            "execution_api_server_url": f"http://127.0.0.1:{port}/execution/",
            "dags_are_paused_at_creation": False,
            "min_serialized_dag_update_interval": 1,
        },
        "database": {
            "sql_alchemy_conn": metadata_url,
            "sql_alchemy_conn_async": metadata_url.replace("+psycopg2:", "+psycopg:"),
        },
        "api": {"host": "127.0.0.1", "port": port, "base_url": f"http://127.0.0.1:{port}", "workers": 1},
        "api_auth": {"jwt_secret": secrets.token_hex(32)},
        "logging": {
            "base_log_folder": home / "logs",
            "worker_log_server_port": free_port(),
            "trigger_log_server_port": free_port(),
        },
        "scheduler": {
            "scheduler_heartbeat_sec": 1,
            "scheduler_idle_sleep_time": 0.2,
            "task_instance_heartbeat_timeout": 20,
            "task_instance_heartbeat_timeout_detection_interval": 1,
            "enable_health_check": False,
        },
        "workers": {"min_heartbeat_interval": 1},
        "dag_processor": {"refresh_interval": 2, "min_file_process_interval": 2, "parsing_processes": 1},
        "usage_data_collection": {"enabled": False},
        "childrun": {"session_ttl_s": 10},
    }
    environment = {
        f"AIRFLOW__{section.upper()}__{option.upper()}": str(value)
        for section, options in sections.items()
        for option, value in options.items()
    }
    path = os.pathsep.join(filter(None, (str(home / "site"), str(ROOT), os.environ.get("PYTHONPATH"))))
    outside = {
        "CHILDRUN_WITNESS": witness.url,
        "CHILDRUN_STAND": str(home),
        "AIRFLOW_CONN_ORDERS_API": witness.url,
        "AIRFLOW_CONN_WAREHOUSE": json.dumps({"conn_type": "sqlite", "schema": str(home / "warehouse.db")}),
    }
    return {**environment, **outside, "AIRFLOW_HOME": str(home), "PYTHONPATH": path}


@contextlib.contextmanager
def started(
    server: PostgresServer,
    *folders: Path,
    say: Callable[[str], None] = lambda _: None,
    settings: Mapping[str, str] = MappingProxyType({}),
    make_store: Callable[[Stand], object] = lambda stand: stand.childrun("init"),
) -> Iterator[Stand]:
    """Give a running stand on a fresh database of a server; it is gone afterwards.

    :param folders: whose files become its DAGs; by default those of the tests
    :param settings: environment variables that differ from those of :func:`environment_of`
    :param make_store: makes the store and the connection to it
    """
    home = Path(tempfile.mkdtemp(prefix="childrun-stand-"))
    database = server.new_database()
    witness = Witness()
    port = free_port()
    environment = environment_of(home, server.url(database, driver="psycopg2"), port, witness) | dict(settings)
    stand = Stand(home, environment, f"http://127.0.0.1:{port}", witness)
    try:
        (home / "dags").mkdir()
        # A copy, so that somebody who edits the package while the stand stands does not pull it from under running tasks.
        ours = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "airflow_childrun", home / "site" / "airflow_childrun", ignore=ours)
        for folder in folders or (DAGS,):
            for path in folder.glob("*.py"):
                shutil.copy2(path, home / "dags" / path.name)
        say("migrating Airflow's metadata database")
        stand.airflow("db", "migrate")
        say("starting " + ", ".join(COMPONENTS))
        for name in COMPONENTS:
            stand.start(name)
        make_store(stand)
        stand.wait_until_ready()
        yield stand
    finally:
        stand.stop()
        witness.close()
        server.drop_database(database)
        for (role,) in server.execute(f"SELECT rolname FROM pg_roles WHERE rolname LIKE '%{database}'"):
            server.execute(f'DROP ROLE "{role}"')
        shutil.rmtree(home, ignore_errors=True)
