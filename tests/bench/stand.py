"""DAG runs on a real Airflow: what its user waits for, scheduler and start of processes included.

One stand serves all of them, set as Airflow is by default.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

from airflow_childrun.hooks.settings import DEFAULTS
from tests.postgres import PostgresServer
from tests.stack.browser import Browser
from tests.stack.stand import started

DAGS = Path(__file__).with_name("dags")
OURS = ("bench_inline", "bench_dag_run")
PEERS = ("bench_peer_deferring", "bench_peer_waiting")
SETTINGS = {
    "AIRFLOW__CORE__PARALLELISM": "32",
    "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "30",
    "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "300",
    "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "2",
    "AIRFLOW__CORE__MIN_SERIALIZED_DAG_UPDATE_INTERVAL": "30",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "5",
    "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "1",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "300",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "10",
    "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "5",
    "AIRFLOW__CHILDRUN__SESSION_TTL_S": str(DEFAULTS.session_ttl_s),
}
RUN_S = 240.0
LOOK_S = 1.0
"""How often is asked whether a run is over: what it took is what Airflow says, and who asks is in its way."""


@dataclass
class Airflow:
    """Runs DAGs of the bench, one run at a time; made by :func:`airflow`.

    :param seconds: by DAG, from each successful run's request to its end
    :param failed: by DAG, how many runs failed
    """

    browser: Browser
    seconds: dict[str, list[float]] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)
    _number: int = 0

    def run(self, dag_id: str, **conf: Any) -> str | None:
        """Run a DAG, and return its run's id; None if it failed."""
        self._number += 1
        run_id = f"bench{self._number}"
        self.browser.trigger(dag_id, run_id, conf)
        if self._end(dag_id, run_id) != "success":
            self.failed[dag_id] = self.failed.get(dag_id, 0) + 1
            return None
        found = self.browser.get(f"/dags/{dag_id}/dagRuns/{run_id}")
        wall = datetime.fromisoformat(found["end_date"]) - datetime.fromisoformat(found["queued_at"])
        self.seconds.setdefault(dag_id, []).append(wall.total_seconds())
        print(f"... {dag_id} {conf or ''}: {wall.total_seconds():.1f} s", file=sys.stderr)
        return run_id

    def _end(self, dag_id: str, run_id: str) -> str:
        """Return how a run ended; one that does not is marked failed, and is no longer in the way of the next."""
        try:
            return self.browser.wait_for_run(dag_id, run_id, RUN_S, LOOK_S)
        except AssertionError:
            self.browser.mark_run(dag_id, run_id, "failed")
            return "failed"

    def peak_mib(self, count: int) -> float:
        """Return the most memory that the task had at once which drove so many children."""
        run_id = self.succeeding("bench_thousand", count=count)
        path = f"/dags/bench_thousand/dagRuns/{run_id}/taskInstances/children/xcomEntries/peak_mib"
        return float(self.browser.get(path, deserialize=True)["value"])

    def succeeding(self, dag_id: str, **conf: Any) -> str:
        """Run a DAG of ours, and return its run's id.

        :raises RuntimeError: if it failed
        """
        run_id = self.run(dag_id, **conf)
        if run_id is None:
            raise RuntimeError(f"a run of {dag_id} failed")
        return run_id

    def middle(self, dag_id: str) -> float:
        """Return the median of its successful runs.

        :raises RuntimeError: if there is none
        """
        if not self.seconds.get(dag_id):
            raise RuntimeError(f"no run of {dag_id} was a success")
        return median(self.seconds[dag_id])


@contextmanager
def airflow(server: PostgresServer) -> Iterator[Airflow]:
    """Start an Airflow that has the bench's DAGs."""
    with started(server, DAGS, settings=SETTINGS, say=lambda text: print(f"... {text}", file=sys.stderr)) as stand:
        made = Airflow(stand.browser)
        made.succeeding("bench_empty")
        made.seconds.clear()  # the first run of all is that of a cold scheduler
        yield made


@dataclass(frozen=True, slots=True)
class Thousand:
    """Medians: seconds of a DAG run with the children, of an empty one, and how many MiB the children took."""

    seconds: float
    empty: float
    mib: float


def thousand(stand: Airflow, times: int, count: int) -> Thousand:
    """Run ``count`` children in a DAG run of two tasks, none in the same one, and two tasks that do nothing."""
    more, seconds = [], []
    for _ in range(times):
        stand.succeeding("bench_empty")
        peak = stand.peak_mib(count)
        seconds.append(stand.seconds["bench_thousand"][-1])
        more.append(peak - stand.peak_mib(0))
    found = Thousand(median(seconds), stand.middle("bench_empty"), median(more))
    if found.seconds <= found.empty or found.mib <= 0:
        raise RuntimeError(f"{count} children cost nothing: {found}")
    return found


@dataclass(frozen=True, slots=True)
class Twenty:
    """Medians in seconds, and which runs of the peer failed, as a sentence."""

    inline: float
    dag_run: float
    peer: float
    note: str


def twenty(stand: Airflow, times: int) -> Twenty:
    """Do 20 pieces of work as child runs and as triggered DAG runs, in turn; the peer's faster way counts."""
    for _ in range(times):
        for dag_id in OURS:
            stand.succeeding(dag_id)
        for dag_id in PEERS:
            stand.run(dag_id)
    inline, dag_run = map(stand.middle, OURS)
    ways = {name: stand.middle(name) for name in PEERS if stand.seconds.get(name)}
    if not ways:
        raise RuntimeError("no run of the peer was a success")
    said = (f"{name.rpartition('_')[2]} {ways.get(name, 0):.1f} s, {stand.failed.get(name, 0)}" for name in PEERS)
    return Twenty(inline, dag_run, min(ways.values()), f"{' and '.join(said)} of {times} runs failed")
