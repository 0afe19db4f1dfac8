"""A throwaway Airflow: a home, a scheduler with LocalExecutor and an API server, on SQLite."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

import airflow_childrun
from airflow_childrun.errors import ChildRunError

COMPONENTS = ("api-server", "scheduler")
START_S, COMMAND_S = 120.0, 180.0
TAIL = 2500
_HEALTHY = ("metadatabase", "scheduler")

# `airflow db migrate`, `childrun init` and `airflow dags reserialize` in one process: Airflow takes seconds to import. The
# last one does the DAG processor's work for files that do not change, and saves its process.
_PREPARE = """
import sys
from airflow.cli.cli_parser import get_parser
from airflow_childrun.cli.main import main
def airflow(*words):
    arguments = get_parser().parse_args(words)
    arguments.func(arguments)
airflow("db", "migrate")
status = main(["init"])
airflow("dags", "reserialize")
sys.exit(status)
"""


class DemoError(ChildRunError):
    """Something is not as the demo promises."""

    default_code = "demo_failed"


class AirflowHome:
    """An Airflow of one's own; use it as a context manager, and nothing of it is left.

    :param dag_files: what stands in its folder of DAGs
    :param options: of Airflow's configuration, by section and name, beyond what keeps it small and apart from others
    :param connections: Airflow connections by id, as URLs
    :param keep: leave the folder behind, for who wants to look at it
    """

    def __init__(
        self,
        dag_files: list[Path],
        options: Mapping[str, Mapping[str, object]] | None = None,
        connections: Mapping[str, str] | None = None,
        *,
        keep: bool = False,
    ) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="childrun-demo-"))
        self.store_url = f"sqlite:///{self.path}/childrun.db"
        self.keep = keep
        port = free_port()
        self._base_url = f"http://127.0.0.1:{port}"
        self._dag_files = dag_files
        self._environment = _environment(self.path, port, options or {}, connections or {})
        self._components: dict[str, subprocess.Popen[bytes]] = {}
        self._token = ""

    def __enter__(self) -> Self:
        (self.path / "dags").mkdir()
        for file in self._dag_files:
            shutil.copy(file, self.path / "dags")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        if not self.keep:
            shutil.rmtree(self.path, ignore_errors=True)

    def prepare(self) -> None:
        """Make Airflow's tables, ours and the connection, and read the DAGs.

        :raises DemoError: if that fails
        """
        with (self.path / "prepare.log").open("wb") as log:
            done = subprocess.run(
                [sys.executable, "-c", _PREPARE],
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.path,
                env=self._environment,
                timeout=COMMAND_S,
            )
        if done.returncode:
            raise DemoError(f"the databases could not be made:\n{self._tail('prepare')}")

    def start(self) -> None:
        """Start the components and wait until they are healthy and know the DAGs.

        :raises DemoError: if they are not in time
        """
        for name in COMPONENTS:
            with (self.path / f"{name}.log").open("wb") as log:
                self._components[name] = subprocess.Popen(
                    [sys.executable, "-m", "airflow", name],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=self.path,
                    env=self._environment,
                    start_new_session=True,
                )
        self.wait_for("Airflow to start", self._is_ready, START_S)

    def wait_for(self, what: str, is_so: Callable[[], bool], within_s: float) -> None:
        """Wait until something is so, as long as Airflow lives.

        :raises DemoError: if it is not so in time
        """
        deadline = time.monotonic() + within_s
        while not self._holds(is_so):
            for name, process in self._components.items():
                if process.poll() is not None:
                    raise DemoError(f"Airflow's {name} ended with {process.returncode}:\n{self._tail(name)}")
            if time.monotonic() > deadline:
                tails = "\n".join(f"-- {name}\n{self._tail(name)}" for name in self._components)
                raise DemoError(f"waited {within_s:.0f} s for {what}, in vain. The ends of Airflow's logs:\n{tails}")
            time.sleep(0.1)

    @staticmethod
    def _holds(is_so: Callable[[], bool]) -> bool:
        # An API server that starts, or has much to do, refuses connections or answers late.
        with contextlib.suppress(OSError):
            return is_so()
        return False

    def get(self, path: str) -> Any:
        """Ask Airflow's REST API."""
        return self._ask("GET", f"/api/v2{path}")

    def trigger(self, dag_id: str, dag_run_id: str, conf: Mapping[str, Any] | None = None) -> None:
        """Start a DAG run."""
        body = {"dag_run_id": dag_run_id, "logical_date": None, "conf": dict(conf or {})}
        self._ask("POST", f"/api/v2/dags/{dag_id}/dagRuns", body)

    def task_log(self) -> str:
        """Return the end of the newest task log."""
        logs = sorted(self.path.glob("logs/dag_id=*/**/*.log"), key=lambda path: path.stat().st_mtime)
        return logs[-1].read_text()[-TAIL:] if logs else "(no task has written a log)"

    def _is_ready(self) -> bool:
        health = self.get("/monitor/health")
        if any(health[part]["status"] != "healthy" for part in _HEALTHY):
            return False
        broken = self.get("/importErrors")["import_errors"]
        if broken:
            raise DemoError(f"a DAG file cannot be imported:\n{broken[0]['stack_trace']}")
        return len(self.get("/dags")["dags"]) == len(self._dag_files)

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        if not self._token:
            self._token = self._open("GET", "/auth/token")["access_token"]
        return self._open(method, path, body)

    def _open(self, method: str, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(  # noqa: S310 - our own server
            self._base_url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {self._token}"},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            return json.load(answer)

    def _tail(self, name: str) -> str:
        return (self.path / f"{name}.log").read_text(errors="replace")[-TAIL:]

    def _stop(self) -> None:
        """Stop every component with everything that it started; nothing of this Airflow is to be saved."""
        # Some processes of Airflow make a process group of their own; none leaves the session it was started in.
        sessions = {process.pid for process in self._components.values()}
        while left := list(_processes_of(sessions)):
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        for process in self._components.values():
            process.wait()


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _processes_of(sessions: set[int]) -> Iterator[int]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError, PermissionError):
            if os.getsid(process.pid) in sessions and process.status() != psutil.STATUS_ZOMBIE:
                yield process.pid


def _environment(
    home: Path, port: int, options: Mapping[str, Mapping[str, object]], connections: Mapping[str, str]
) -> dict[str, str]:
    sections: dict[str, dict[str, object]] = {
        "core": {
            "load_examples": False,
            "dags_folder": home / "dags",
            "executor": "LocalExecutor",
            "parallelism": 2,
            "simple_auth_manager_all_admins": True,
            "execution_api_server_url": f"http://127.0.0.1:{port}/execution/",
            "dags_are_paused_at_creation": False,
            "default_task_retry_delay": 1,
        },
        "database": {"sql_alchemy_conn": f"sqlite:///{home}/airflow.db"},
        "api": {"host": "127.0.0.1", "port": port, "base_url": f"http://127.0.0.1:{port}", "workers": 1},
        "api_auth": {"jwt_secret": secrets.token_hex(32)},
        "logging": {"base_log_folder": home / "logs", "worker_log_server_port": free_port()},
        # Runs are triggered: no DAG of the home may start one by its schedule.
        "scheduler": {"use_job_schedule": False, "scheduler_idle_sleep_time": 0.2, "scheduler_heartbeat_sec": 1},
        "workers": {"min_heartbeat_interval": 1},
        "usage_data_collection": {"enabled": False},
    }
    for section, values in options.items():
        sections.setdefault(section, {}).update(values)
    configuration = {
        f"AIRFLOW__{section.upper()}__{option.upper()}": str(value)
        for section, values in sections.items()
        for option, value in values.items()
    }
    # Nothing of the Airflow that may be configured around us: this one must not touch it.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    package_root = str(Path(airflow_childrun.__file__).parents[1])
    path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), package_root)))
    given = {f"AIRFLOW_CONN_{name.upper()}": url for name, url in connections.items()}
    return {**inherited, **configuration, **given, "AIRFLOW_HOME": str(home), "PYTHONPATH": path}
