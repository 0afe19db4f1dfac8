"""Airflow's own distributed executor: Redis, two Celery workers, 200 children, and one worker killed half way.

``python -m tests.stack.celery`` runs it and prints what each worker did; ``pytest -m celery`` does the same as a test. It
needs the extra ``celery`` and ``redis-server`` (Debian package ``redis-server``, or ``CHILDRUN_TEST_REDIS_SERVER``).

The workers have neither Airflow's database nor its stored connections: the store's connection comes from their
environment, as a secrets backend would give it, and reaches PostgreSQL over TCP. Their host names are not their machine's.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import UUID

from airflow_childrun.model.events import FACT_RECORDED, DomainEvent
from airflow_childrun.store.codec import decode_events
from tests.postgres import PostgresServer, start_embedded
from tests.stack.records import Records
from tests.stack.stand import Stand, free_port, processes_of_sessions, started
from tests.stack.witness import Call

DAGS = Path(__file__).with_name("celery_dags")
WORKERS = ("worker-one", "worker-two")
CHILDREN = 200
SLOTS = 4
CALL_S = 0.2
"""How long the world takes for an answer: children are to be found in the middle of something."""


class CeleryMissingError(RuntimeError):
    """What the scenario needs is not there; the message says what to do."""


@dataclass
class Outcome:
    """What happened.

    :param outputs: what each child returned: ``{item, workers}``
    :param repeated: calls that reached the world twice
    :param recorded_again: of these, calls whose answer had been recorded before: there must be none
    :param tokens: how many tokens the repeated calls carried
    :param hosts: host names of the workers, as Airflow has them
    """

    state: str
    outputs: list[dict[str, Any]]
    dag_runs: int
    killed: str
    killed_after: int
    seconds: float
    repeated: list[str]
    recorded_again: list[str]
    tokens: int
    hosts: set[str]
    findings: list[Any] = field(default_factory=list)

    @property
    def children_per_worker(self) -> Counter[str]:
        """How many children each worker brought to their end."""
        return Counter(output["workers"][-1] for output in self.outputs)

    @property
    def takeovers(self) -> int:
        """How many children one worker began and the other ended."""
        return sum(len(set(output["workers"])) > 1 for output in self.outputs)

    def __str__(self) -> str:
        per_worker = ", ".join(f"{name} {count}" for name, count in sorted(self.children_per_worker.items()))
        return (
            f"{len(self.outputs)} children in {self.dag_runs} DAG runs: {self.state} after {self.seconds:.1f} s\n"
            f"children per worker: {per_worker}; {self.killed} was killed when {self.killed_after} had ended\n"
            f"takeovers: {self.takeovers} children begun by one worker and ended by the other\n"
            f"calls in flight at the kill, made again with the same token: {len(self.repeated)}\n"
            f"recorded calls repeated: {len(self.recorded_again)}; findings of verify: {len(self.findings)}"
        )


def redis_server() -> str:
    """Return the program.

    :raises CeleryMissingError: if it, or Celery's provider, is not there
    """
    if find_spec("airflow.providers.celery") is None or find_spec("redis") is None:
        raise CeleryMissingError("pip install 'airflow-childrun[celery]' brings Airflow's Celery provider and redis")
    found = os.environ.get("CHILDRUN_TEST_REDIS_SERVER") or shutil.which("redis-server")
    if found is None:
        raise CeleryMissingError(
            "there is no redis-server: apt-get install redis-server, or name one in CHILDRUN_TEST_REDIS_SERVER"
        )
    return found


@contextlib.contextmanager
def redis() -> Iterator[str]:
    """Give the URL of a fresh Redis that keeps nothing on disk."""
    port = free_port()
    command = [redis_server(), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + 10
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            if time.monotonic() > deadline:
                raise CeleryMissingError("redis-server does not answer")
            time.sleep(0.05)
        yield f"redis://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def settings_of(url: str) -> dict[str, str]:
    """Return what makes a stand one of Celery."""
    return {
        "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
        "AIRFLOW__CORE__PARALLELISM": str(SLOTS * len(WORKERS)),
        "AIRFLOW__CELERY__BROKER_URL": f"{url}/0",
        "AIRFLOW__CELERY__RESULT_BACKEND": f"{url}/1",
        "AIRFLOW__CELERY__SYNC_PARALLELISM": "1",
        # A worker that dies takes with it what it had been given and had not begun.
        "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "40",
        "AIRFLOW__SCHEDULER__NUM_STUCK_IN_QUEUED_RETRIES": "20",
        "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "2",
    }


def start_workers(stand: Stand) -> None:
    """Make the store, and start workers that know it from their environment alone."""
    printed = stand.childrun("init", "--print-connection")
    (line,) = (line for line in printed.splitlines() if line.startswith("AIRFLOW_CONN_CHILDRUN_DEFAULT="))
    connection = line.partition("=")[2].strip("'")
    assert "127.0.0.1" in connection or "localhost" in connection, "the store is to be reached over TCP"
    for name in WORKERS:
        command = (
            "celery",
            "worker",
            "--celery-hostname",
            f"{name}@%h",
            "--concurrency",
            str(SLOTS),
            "--skip-serve-logs",
        )
        stand.start(
            name,
            *command,
            "--without-gossip",
            "--without-mingle",
            AIRFLOW_CONN_CHILDRUN_DEFAULT=connection,
            AIRFLOW__CORE__HOSTNAME_CALLABLE="tests.stack.host_name.of_worker",
            AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=f"sqlite:///{stand.home}/no-such-folder/none.db",
            AIRFLOW__API_AUTH__JWT_SECRET="a worker does not know it",
            CHILDRUN_WORKER=name,
        )


class Killer:
    """Kills a worker, and all that it started, in the middle of a call, once enough children have ended."""

    def __init__(self, stand: Stand, victim: str, after: int, last_call: str) -> None:
        self._stand = stand
        self._session = {stand.pid_of(victim)}
        self._after = after
        self._last_call = last_call
        self.killed_after = 0
        self.killed_at_us = 0

    def __call__(self, call: Call) -> None:
        """Take a call in, before it is answered."""
        time.sleep(CALL_S)
        # A child in its first call would leave nothing to take over.
        if self.killed_after or call.key.endswith("/0"):
            return
        done = sum(key.endswith(self._last_call) for key in self._stand.witness.counts())
        if done >= self._after and call.pid in (pids := processes_of_sessions(self._session)):
            self.killed_after, self.killed_at_us = done, time.time_ns() // 1000
            while pids:
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                pids = processes_of_sessions(self._session)


def play(stand: Stand, records: Records) -> Outcome:
    """Run the scenario."""
    items = [f"item{number:03}" for number in range(CHILDREN)]
    victim = WORKERS[1]
    killer = Killer(stand, victim, CHILDREN // 2, "/2")
    stand.witness.on_call = killer
    began = time.monotonic()
    stand.browser.trigger("stand_celery", "two_hundred", {"items": items})
    state = stand.browser.wait_for_run("stand_celery", "two_hundred", timeout_s=420)
    seconds = time.monotonic() - began
    runs = stand.browser.get("/dags/stand_celery_runner/dagRuns", limit=200)["dag_runs"]
    tasks = [stand.browser.task("stand_celery_runner", run["dag_run_id"], "drive") for run in runs]
    results = stand.browser.xcom("stand_celery", "two_hundred", "haul") if state == "success" else []
    repeated = [key for key, count in stand.witness.counts().items() if count > 1]
    run_ids = {result["output"]["item"]: UUID(result["child_run_id"]) for result in results}
    return Outcome(
        state,
        [result["output"] for result in results],
        len(runs),
        victim,
        killer.killed_after,
        seconds,
        repeated,
        [key for key in repeated if recorded_at(records, run_ids[key.partition("/")[0]], key) < killer.killed_at_us],
        len({call.token for key in repeated for call in stand.witness.seen(key)}),
        {task["hostname"] for task in tasks},
        records.findings("stand_celery", "two_hundred") if state == "success" else ["not looked at"],
    )


def recorded_at(records: Records, run_id: UUID, key: str) -> int:
    """Return when the answer to a call was recorded."""
    for stored, event in decode_events(records.store.read_events(run_id)):
        if isinstance(event, DomainEvent) and event.name == FACT_RECORDED and event.payload["key"].endswith(key):
            return stored.recorded_at
    return 0


@contextlib.contextmanager
def celery_stand(server: PostgresServer) -> Iterator[tuple[Stand, Records]]:
    """Give a stand with CeleryExecutor and two workers."""
    with redis() as url, started(server, DAGS, settings=settings_of(url), make_store=start_workers) as stand:
        records = Records(stand.environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"].replace("+psycopg2:", "+psycopg:"))
        try:
            yield stand, records
        finally:
            records.store.close()


def main() -> int:
    """Run it once; 0 if everything is as it must be."""
    redis_server()
    server, stop = start_embedded()
    try:
        with celery_stand(server) as (stand, records):
            outcome = play(stand, records)
            print(outcome, flush=True)
            if outcome.state != "success":
                print(stand.browser.log("stand_celery", "two_hundred", "haul", 1))
                for name in WORKERS:
                    print(f"-- {name}\n{stand.log_of(name).read_text()[-3000:]}")
    finally:
        stop()
    return int(outcome.state != "success" or bool(outcome.recorded_again) or bool(outcome.findings))


if __name__ == "__main__":
    sys.exit(main())
