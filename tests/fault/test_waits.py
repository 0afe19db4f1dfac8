"""SIGKILL in the middle of every wait: whoever goes on waits what is left, and no more."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from airflow_childrun.authoring.operation import operation
from airflow_childrun.authoring.registry import RegistryResolver
from airflow_childrun.errors import AwaitTimeoutError
from airflow_childrun.model.config import Duration, Fixed, RetryPolicy
from airflow_childrun.model.events import DomainEvent, StateEntered, StateFailed
from airflow_childrun.model.manifest import build_manifest
from airflow_childrun.runtime.engine import ExecutionEngine
from airflow_childrun.runtime.house import House, Limits
from airflow_childrun.secret_policy import standard
from airflow_childrun.store.api import Owner, Store
from airflow_childrun.store.codec import decode_events
from airflow_childrun.store.sql.migrate import upgrade
from airflow_childrun.store.sql.store import SqlStore
from airflow_childrun.store.verify import verify_tree

pytestmark = pytest.mark.fault
WAIT_S = 1800
"""Longer than any machine takes to come to a kill: what comes after the kills is told that the time has passed."""
LEFT_S = 3
LONGEST_S = 120
CLEAN = multiprocessing.get_context("forkserver")
"""Processes that begin with a single thread, whatever else runs in this one."""
CLEAN.set_forkserver_preload([__name__])
ONCE = RetryPolicy(max_attempts=2, backoff=Fixed(delay=Duration(secs=WAIT_S)))


@operation(version="1")
def sleeps(io: Any) -> str:
    io.sleep(WAIT_S)
    return "slept"


@operation(version="1")
def sleeps_for_long(io: Any) -> str:
    io.sleep(3600)
    return "never"


@operation(version="1", retry=ONCE)
def backs_off(io: Any) -> str:
    if not io.get_recorded_fact("main/tried"):
        io.record_value("tried", 1)
        raise ValueError("once")
    return "tried again"


@operation(version="1")
def awaits(io: Any) -> str:
    try:
        io.await_child(io.spawn(sleeps_for_long, timeout=WAIT_S + 1), timeout=WAIT_S)
    except AwaitTimeoutError as error:
        return error.code
    return "never"


@operation(version="1", timeout=WAIT_S)
def takes_too_long(io: Any) -> str:
    io.sleep(3600)
    return "never"


class Later:
    """The machine's clock, some time later."""

    def __init__(self, by_us: int) -> None:
        self._by_us = by_us

    def now_us(self) -> int:
        return time.time_ns() // 1000 + self._by_us

    def monotonic_s(self) -> float:
        return time.monotonic()


def engine_on(url: str, number: int, later_us: int = 0) -> ExecutionEngine:
    limits = Limits(poll_s=0.05, inbox_poll_s=0.1)
    owner = Owner(f"process {number}", "task", number)
    clock = Later(later_us)
    store = SqlStore(url, clock=clock)
    return ExecutionEngine(House(store, RegistryResolver(), standard(), limits=limits, owner=owner, clock=clock))


def drive(url: str, run_ids: list[UUID], number: int, later_us: int = 0) -> None:
    """Be a process that drives runs to their ends."""
    engine = engine_on(url, number, later_us)
    engine.house.keeper.session_id()  # ends the session of the process that was killed, as a task's next try does
    for run_id in run_ids:
        engine.supervisor.hand_over(run_id)
    for run_id in run_ids:
        engine.resume(run_id)
    engine.close()


def killed_while(url: str, run_ids: list[UUID], number: int, waits: Callable[[], bool]) -> None:
    """Drive runs in a process of its own, and kill that once they all wait."""
    process = CLEAN.Process(target=drive, args=(url, run_ids, number), daemon=True)
    process.start()
    until = time.monotonic() + LONGEST_S
    while not waits():
        assert time.monotonic() < until
        time.sleep(0.01)
    process.kill()
    process.join(LONGEST_S)
    assert process.exitcode == -signal.SIGKILL


def test_a_kill_in_the_middle_of_a_wait_neither_forgets_nor_repeats_it(tmp_path: Path) -> None:
    """Killed twice in a sleep, a backoff, an await and a state with a timeout: each end stands in the log once."""
    url = f"sqlite:///{tmp_path}/store.db"
    upgrade(url)
    creator = engine_on(url, 0)
    names = {op.name: op for op in (sleeps, backs_off, awaits, takes_too_long)}
    run_ids = {
        creator.create(build_manifest(name, "1", input=None, run_config=op.run_config)): name
        for name, op in names.items()
    }
    watcher = creator.house.store

    def have_opened() -> bool:
        return all(row.wake_at is not None for row in watcher.get_runs(run_ids).values())

    def have_been_entered_again() -> bool:
        return all(row.head.epoch == 2 for row in watcher.get_runs(run_ids).values())

    killed_while(url, list(run_ids), 1, have_opened)
    ends = {run_id: ends_of_waits(watcher, run_id) for run_id in run_ids}
    killed_while(url, list(run_ids), 2, have_been_entered_again)
    later_us = max(until for (until,) in ends.values()) - watcher.now_us() - LEFT_S * 1_000_000
    last = CLEAN.Process(target=drive, args=(url, list(run_ids), 3, later_us), daemon=True)
    last.start()
    last.join(LONGEST_S)
    for run_id, name in run_ids.items():
        done = watcher.get_runs([run_id])[run_id]
        # One that began its wait anew would be at it for half an hour.
        assert done.status == ("Failed" if name == "takes_too_long" else "Completed")
        assert ends_of_waits(watcher, run_id) == ends[run_id]
        (until,) = ends[run_id]
        assert done.ended_at is not None
        assert done.ended_at >= until
        assert verify_tree(watcher, run_id) == []
    watcher.close()


def ends_of_waits(store: Store, run_id: UUID) -> set[int]:
    """Return when the waits in a run's log are over, but for those of an hour."""
    found = {until for _, event in decode_events(store.read_events(run_id)) for until in _ends(event)}
    return {until for until in found if until - store.get_runs([run_id])[run_id].created_at < 3000 * 1_000_000}


def _ends(event: Any) -> list[int]:
    if isinstance(event, DomainEvent) and event.name == "wait_opened":
        return [event.payload["until"]]
    if isinstance(event, StateFailed):
        return [] if event.retry_at is None else [event.retry_at]
    return [event.deadline_at] if isinstance(event, StateEntered) and event.deadline_at else []
