"""SIGKILL in the middle of every wait: whoever goes on waits what is left, and no more."""

from __future__ import annotations

import os
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
WAIT_S = 2
WAIT_US = WAIT_S * 1_000_000
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
        io.await_child(io.spawn(sleeps_for_long, timeout=3 * WAIT_S), timeout=WAIT_S)
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


def killed_while(url: str, run_id: UUID, number: int, waits: Callable[[], bool]) -> None:
    """Drive a run in a process of its own, and kill that once the run waits."""
    pid = os.fork()
    if pid == 0:
        engine_on(url, number).resume(run_id)
        os._exit(0)
    until = time.monotonic() + 20
    while not waits():
        assert time.monotonic() < until
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status)


@pytest.mark.parametrize("name", ["sleeps", "backs_off", "awaits", "takes_too_long"])
def test_a_kill_in_the_middle_of_a_wait_neither_forgets_nor_repeats_it(tmp_path: Path, name: str) -> None:
    """Killed twice: its end stands in the log once, and the run goes on when it has come."""
    url = f"sqlite:///{tmp_path}/store.db"
    upgrade(url)
    store = SqlStore(url)
    config = {"backs_off": backs_off, "awaits": awaits}.get(name, sleeps).run_config
    run_id = engine_on(url, 0).create(build_manifest(name, "1", input=None, run_config=config))
    store.close()

    def has_opened() -> bool:
        row = SqlStore(url).find_run(run_id)
        return row is not None and row.wake_at is not None

    def has_been_entered_again() -> bool:
        row = SqlStore(url).find_run(run_id)
        return row is not None and row.head.epoch == 2

    killed_while(url, run_id, 1, has_opened)
    killed_while(url, run_id, 2, has_been_entered_again)
    last = engine_on(url, 3)
    ended = last.resume(run_id)
    assert ended.phase == ("Failed" if name == "takes_too_long" else "Completed")
    events = decode_events(SqlStore(url).read_events(run_id))
    recorded = {until for _, event in events for until in ends_of_waits(event)}
    assert len(recorded) == 1
    (until,) = recorded
    done = last.house.find_run(run_id)
    assert done is not None
    assert done.ended_at is not None
    assert 0 <= done.ended_at - until < LATE_US
    assert until - done.created_at < WAIT_US + LATE_US
    assert verify_tree(SqlStore(url), run_id) == []
    last.close()


def ends_of_waits(event: Any) -> list[int]:
    """Return when a recorded wait of some seconds is over."""
    if isinstance(event, DomainEvent) and event.name == "wait_opened":
        return [event.payload["until"]] if event.payload["until"] - time.time_ns() // 1000 < LATE_US * 10 else []
    if isinstance(event, StateFailed):
        return [] if event.retry_at is None else [event.retry_at]
    return [event.deadline_at] if isinstance(event, StateEntered) and event.deadline_at else []
