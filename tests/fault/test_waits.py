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
from airflow_childrun.store.api import Owner
from airflow_childrun.store.codec import decode_events
from airflow_childrun.store.sql.migrate import upgrade
from airflow_childrun.store.sql.store import SqlStore
from airflow_childrun.store.verify import verify_tree

pytestmark = pytest.mark.fault
WAIT_S = 8
WAIT_US = WAIT_S * 1_000_000
LONGEST_S = 60
CLEAN = multiprocessing.get_context("forkserver")
"""Processes that begin with a single thread, whatever else runs in this one."""
CLEAN.set_forkserver_preload([__name__])
LATE_US = 30_000_000
"""However slow the machine: a wait that began anew would end later than its record says by WAIT_S at least."""
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


def engine_on(url: str, number: int) -> ExecutionEngine:
    limits = Limits(poll_s=0.05, inbox_poll_s=0.1)
    owner = Owner(f"process {number}", "task", number)
    return ExecutionEngine(House(SqlStore(url), RegistryResolver(), standard(), limits=limits, owner=owner))


def drive(url: str, run_ids: list[UUID], number: int) -> None:
    """Be a process that drives runs to their ends."""
    engine = engine_on(url, number)
    for run_id in run_ids:
        engine.supervisor.hand_over(run_id)
    for run_id in run_ids:
        engine.resume(run_id)
    engine.close()


def killed_while(url: str, run_ids: list[UUID], number: int, waits: Callable[[], bool]) -> None:
    """Drive runs in a process of its own, and kill that once they all wait."""
    process = CLEAN.Process(target=drive, args=(url, run_ids, number))
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
    killed_while(url, list(run_ids), 2, have_been_entered_again)
    last = CLEAN.Process(target=drive, args=(url, list(run_ids), 3))
    last.start()
    last.join(LONGEST_S)
    for run_id, name in run_ids.items():
        done = watcher.get_runs([run_id])[run_id]
        assert done.status == ("Failed" if name == "takes_too_long" else "Completed")
        events = decode_events(watcher.read_events(run_id))
        (until,) = {until for _, event in events for until in ends_of_waits(event)}
        assert done.ended_at is not None
        assert 0 <= done.ended_at - until < LATE_US
        assert until - done.created_at < WAIT_US + LATE_US
        assert verify_tree(watcher, run_id) == []
    watcher.close()


def ends_of_waits(event: Any) -> list[int]:
    """Return when a recorded wait of some seconds is over."""
    if isinstance(event, DomainEvent) and event.name == "wait_opened":
        return [event.payload["until"]] if event.payload["until"] - time.time_ns() // 1000 < LATE_US * 10 else []
    if isinstance(event, StateFailed):
        return [] if event.retry_at is None else [event.retry_at]
    return [event.deadline_at] if isinstance(event, StateEntered) and event.deadline_at else []
