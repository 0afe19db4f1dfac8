"""The worker's wall clock is set, an hour either way, in the middle of the work.

On PostgreSQL, whose time is the server's, nothing changes. On SQLite the machine's clock is the store's: sleeps and
deadlines follow it, and of ownership at worst this: a session is over too early, and the takeover is fenced like any other.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

from airflow_childrun.authoring.operation import Operation, operation
from airflow_childrun.authoring.registry import RegistryResolver
from airflow_childrun.model.config import RunConfig
from airflow_childrun.model.manifest import build_manifest
from airflow_childrun.runtime.engine import ExecutionEngine
from airflow_childrun.runtime.house import House, Limits
from airflow_childrun.secret_policy import standard
from airflow_childrun.store.api import Owner
from airflow_childrun.store.sql.migrate import upgrade
from airflow_childrun.store.sql.store import SqlStore
from airflow_childrun.store.verify import verify_tree

pytestmark = pytest.mark.fault
HOUR_US = 3_600_000_000
SLEEP_S = 0.6


class SetClock:
    """The machine's clock, as somebody sets it."""

    def __init__(self) -> None:
        self.off_by_us = 0

    def now_us(self) -> int:
        return time.time_ns() // 1000 + self.off_by_us

    def monotonic_s(self) -> float:
        return time.monotonic()


clock = SetClock()
calls: list[str] = []
hooks: dict[str, Callable[[], None]] = {}


def call(name: str) -> float:
    """Be the outside world; tell when the call came."""
    calls.append(name)
    hooks.get(name, lambda: None)()
    return time.monotonic()


@operation(version="1")
def clock_child(io: Any, number: int) -> int:
    io.step(call, f"child {number}")
    io.sleep(SLEEP_S)
    return number


clocked = Operation("clocked", version="1")


@clocked.state
def work(io: Any) -> list[int]:
    io.step(call, "before")
    io.sleep(SLEEP_S)
    io.step(call, "between")
    return [result.output for result in io.map(clock_child, [1, 2], timeout=600)]


@operation(version="1")
def clocked_steps(io: Any) -> int:
    return len([io.step(call_slowly, f"step {number}") for number in range(12)])


def call_slowly(name: str) -> float:
    time.sleep(0.15)
    return call(name)


@pytest.fixture(autouse=True)
def fresh() -> None:
    clock.off_by_us = 0
    calls.clear()
    hooks.clear()


def engine_on(url: str, name: str, ttl_s: float = 30.0) -> ExecutionEngine:
    limits = Limits(poll_s=0.05, inbox_poll_s=0.1, session_ttl_s=ttl_s)
    store = SqlStore(url, clock=clock)
    return ExecutionEngine(House(store, RegistryResolver(), standard(), limits=limits, owner=Owner(name), clock=clock))


def jump(off_by_us: int) -> Callable[[], None]:
    def set_clock() -> None:
        clock.off_by_us = off_by_us

    return set_clock


def create(engine: ExecutionEngine, name: str = "clocked") -> UUID:
    return engine.create(build_manifest(name, "1", input=None, run_config=RunConfig()))


@pytest.mark.parametrize("off_by_us", [HOUR_US, -HOUR_US])
@pytest.mark.parametrize("moment", ["before", "between", "child 1"])
def test_on_postgresql_a_clock_that_is_set_changes_nothing(postgres_url: str, moment: str, off_by_us: int) -> None:
    """Sleeps last as long as they should, no deadline is over, nobody loses a lease, every call comes once."""
    upgrade(postgres_url)
    engine = engine_on(postgres_url, "worker")
    hooks[moment] = jump(off_by_us)
    began = time.monotonic()
    result = engine.resume(create(engine))
    took = time.monotonic() - began
    assert result.phase == "Completed"
    assert sorted(calls) == ["before", "between", "child 1", "child 2"]
    assert 2 * SLEEP_S <= took < 20
    assert verify_tree(engine.house.store, result.run_id) == []
    engine.close()
    engine.house.store.close()


def test_on_postgresql_two_workers_whose_clocks_differ_share_a_tree(postgres_url: str) -> None:
    """A session that one of them holds is over for the other by the server's time alone."""
    upgrade(postgres_url)
    engine = engine_on(postgres_url, "right")
    run_id = create(engine)
    hooks["before"] = jump(HOUR_US)
    other = engine_on(postgres_url, "an hour ahead")
    first = threading.Thread(target=engine.resume, args=(run_id,), daemon=True)
    first.start()
    while "before" not in calls:
        time.sleep(0.01)
    assert other.resume(run_id).phase == "Completed"
    first.join(20)
    assert sorted(calls) == ["before", "between", "child 1", "child 2"]
    epochs = [one.epoch for one in engine.house.store.read_events(run_id)]
    assert max(epochs) == 1
    for each in (engine, other):
        each.close()
        each.house.store.close()


@pytest.mark.parametrize("off_by_us", [HOUR_US, -HOUR_US])
def test_on_sqlite_a_clock_that_is_set_costs_a_fenced_takeover_at_most(tmp_path: Any, off_by_us: int) -> None:
    """The run ends once, rightly; recorded calls are not repeated; the times in a stream do not go back."""
    url = f"sqlite:///{tmp_path / 'store.db'}"
    upgrade(url)
    engine, other = engine_on(url, "owner", ttl_s=1.0), engine_on(url, "other", ttl_s=1.0)
    run_id = create(engine, "clocked_steps")
    hooks["step 3"] = jump(off_by_us)
    first = threading.Thread(target=engine.resume, args=(run_id,), daemon=True)
    first.start()
    while "step 0" not in calls:
        time.sleep(0.01)
    assert other.resume(run_id).phase == "Completed"
    first.join(20)
    assert not first.is_alive()
    row = engine.house.find_run(run_id)
    assert row is not None
    assert row.status == "Completed"
    events = engine.house.store.read_events(run_id)
    assert [one.recorded_at for one in events] == sorted(one.recorded_at for one in events)
    epochs = [one.epoch for one in events]
    assert epochs == sorted(epochs)
    # Of the calls, only the one that was in flight at a takeover may have come again.
    assert len(calls) - 12 <= max(epochs) - 1
    assert verify_tree(engine.house.store, run_id) == []
    for each in (engine, other):
        each.close()
        each.house.store.close()
