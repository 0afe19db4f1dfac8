"""DAG runs as a trigger process sees them: asked of Airflow over the channel that every trigger may use."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TypeVar

from airflow_childrun import _airflow
from airflow_childrun.clock import Clock, SystemClock
from airflow_childrun.errors import ChildRunError, UnavailableError
from airflow_childrun.runtime.dispatch import ACTIVE, MOST_ASKED
from airflow_childrun.triggers.poller import Poller
from airflow_childrun.triggers.wire import ChildRunEvent, DagRunKwargs

T = TypeVar("T")
Key = tuple[str, str]
"""DAG id and run id."""
Ends = Mapping[Key, str]
"""How DAG runs have ended, those that have: ``success``, ``failed``, ``missing``."""
SHORTEST_INTERVAL_S = 5.0
"""Each question takes the one channel that all triggers of a process share."""
OUTAGE_S = 120.0
"""After so long without an answer the task comes back and looks itself: as often as it would without a triggerer."""
TOGETHER_S = 3600.0
"""For how long an end may wait for those of the others before the task comes back to record it."""


class DagRunWatcher:
    """Sees when DAG runs that a task waits for have ended: one return to a worker for all of them, if that may be."""

    def __init__(self, dag_runs: Iterable[DagRunKwargs], clock: Clock | None = None) -> None:
        self._calls = {(run["dag_id"], run["dag_run_id"]): run["calls"] for run in dag_runs}
        self._now_s = (clock or SystemClock()).monotonic_s
        self._first_end_s: float | None = None

    def asked(self) -> Collection[Key]:
        """Return the DAG runs that have not ended."""
        return self._calls.keys()

    def look(self, seen: Ends) -> ChildRunEvent | None:
        """Say why the task has to come back, or None."""
        for key in seen.keys() & self._calls.keys():
            calls = self._calls.pop(key)
            if calls == "any" or (calls == "failure" and seen[key] != "success"):
                return _event(f"DAG run {key[1]} of DAG {key[0]!r} is over: {seen[key]}")
            if self._first_end_s is None:
                self._first_end_s = self._now_s()
        if not self._calls:
            return _event("the DAG runs are over")
        if self._first_end_s is not None and self._now_s() - self._first_end_s >= TOGETHER_S:
            return _event(f"DAG runs are over; {len(self._calls)} are not")
        return None


def make_dag_run_poller(interval_s: float) -> Poller[Key, Ends]:
    """Return what asks Airflow for the DAG runs of all triggers of a process."""
    return Poller(ask_airflow, max(interval_s, SHORTEST_INTERVAL_S), outage_s=OUTAGE_S)


async def ask_airflow(keys: Collection[Key]) -> Ends:
    """Return how DAG runs have ended, those that have: one question per DAG while none of its runs has.

    :raises UnavailableError: if Airflow does not answer, or cannot be asked from here
    """
    by_dag: dict[str, list[str]] = {}
    for dag_id, run_id in sorted(keys):
        by_dag.setdefault(dag_id, []).append(run_id)
    ends: dict[Key, str] = {}
    try:
        for dag_id, run_ids in by_dag.items():
            for start in range(0, len(run_ids), MOST_ASKED):
                ends |= await _ends_of(dag_id, run_ids[start : start + MOST_ASKED])
    except Exception as error:
        # Whatever it is: the worker, which has another channel, asks itself in the end, and says what is wrong.
        told = error.info.message if isinstance(error, ChildRunError) else f"{type(error).__name__}: {error}"
        raise UnavailableError(f"DAG runs cannot be looked at: {told}", code="airflow_unavailable") from error
    return ends


async def _ends_of(dag_id: str, run_ids: list[str]) -> dict[Key, str]:
    if len(run_ids) == 1:
        state = await _in_thread(lambda: _airflow.dag_run_state(dag_id, run_ids[0]))
        return {} if state in ACTIVE else {(dag_id, run_ids[0]): state or "missing"}
    if await _in_thread(lambda: _airflow.count_active_dag_runs(dag_id, run_ids)) == len(run_ids):
        return {}
    half = len(run_ids) // 2
    return await _ends_of(dag_id, run_ids[:half]) | await _ends_of(dag_id, run_ids[half:])


async def _in_thread(ask: Callable[[], T]) -> T:
    """Ask beside the loop, which carries the question; the channel of ``dag.test`` takes one caller, and blocks nobody else."""
    return ask() if _airflow.channel_is_shared() else await asyncio.to_thread(ask)


def _event(detail: str) -> ChildRunEvent:
    return {"reason": "dag_runs", "detail": detail}
