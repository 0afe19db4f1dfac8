"""Runs that are asked to end, and runs that run out of time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID, uuid4

import pytest

from airflow_childrun.authoring.operation import Operation, operation
from airflow_childrun.authoring.registry import RegistryResolver
from airflow_childrun.clock import SystemClock
from airflow_childrun.engine.inbox import CLOSE, WITHDRAW, request_body
from airflow_childrun.errors import Interrupt
from airflow_childrun.model.config import RunConfig
from airflow_childrun.model.events import RunCompleted, StateFailed
from airflow_childrun.model.manifest import build_manifest
from airflow_childrun.runtime.closing import cancel_run
from airflow_childrun.runtime.ends import end_of
from airflow_childrun.runtime.engine import ExecutionEngine
from airflow_childrun.runtime.house import House, Limits
from airflow_childrun.runtime.mail import CancelRequested, Mailbox
from airflow_childrun.secret_policy import standard
from airflow_childrun.store.api import InboxPost, RunRow
from airflow_childrun.store.codec import decode_events
from airflow_childrun.store.memory import MemoryStore
from airflow_childrun.store.verify import verify_run
from airflow_childrun.testing.clock import ManualClock

SOON_S = 10.0
began: dict[str, threading.Event] = {}
cleaned: list[str] = []


def reached(name: str) -> str:
    """Tell the test how far an operation is."""
    began.setdefault(name, threading.Event()).set()
    return name


@operation(version="1")
def sleeper(io: Any, name: str) -> str:
    io.step(reached, name)
    io.sleep(3600)
    return name


@operation(version="1")
def family(io: Any, names: list[str]) -> int:
    return sum(result.completed for result in io.map(sleeper, names, key=str))


@operation(version="1")
def leaves_a_child(io: Any, name: str) -> None:
    io.spawn(sleeper, name)
    while not began.setdefault(name, threading.Event()).wait(0.01):
        pass
    msg = "after the spawn"
    raise ValueError(msg)


@operation(version="1")
def hurried(io: Any, name: str) -> list[str | None]:
    (result,) = io.map(sleeper, [name], timeout=0.3)
    return [result.status, result.error.code if result.error else None]


tidy = Operation("tidy", version="1")


@tidy.state
def work(io: Any, name: str) -> str:
    io.step(reached, name)
    io.sleep(3600)
    return name


@tidy.on_cancel
def put_away(io: Any, name: str) -> str:
    cleaned.append(name)
    return str(io.step(reached, f"{name} put away"))


@pytest.fixture
def engine() -> Iterator[ExecutionEngine]:
    limits = Limits(inbox_poll_s=0.02, poll_s=0.02)
    made = ExecutionEngine(House(MemoryStore(SystemClock()), RegistryResolver(), standard(), limits=limits))
    yield made
    made.close()


def create(engine: ExecutionEngine, name: str, value: Any) -> UUID:
    return engine.create(build_manifest(name, "1", input=value, run_config=RunConfig()))


@contextmanager
def driven(engine: ExecutionEngine, run_id: UUID, *until: str) -> Iterator[None]:
    """Drive a run until its steps have been reached; the run goes on beside the test."""
    events = [began.setdefault(name, threading.Event()) for name in until]
    engine.supervisor.hand_over(run_id)
    for event in events:
        assert event.wait(SOON_S)
    yield


def row_of(engine: ExecutionEngine, run_id: UUID) -> RunRow:
    row = engine.house.find_run(run_id)
    assert row is not None
    return row


def eventually(check: Callable[[], bool]) -> None:
    until = time.monotonic() + SOON_S
    while not check():
        assert time.monotonic() < until, "it did not come about"
        time.sleep(0.01)


def test_a_sleeping_run_ends_soon_after_it_was_asked_to(engine: ExecutionEngine) -> None:
    run_id = create(engine, "sleeper", "asleep")
    with driven(engine, run_id, "asleep"):
        assert cancel_run(engine.house, run_id, "not wanted") == {run_id: "requested"}
        eventually(lambda: row_of(engine, run_id).is_terminal)
    events = [event for _, event in decode_events(engine.house.store.read_events(run_id))]
    last = events[-1]
    assert isinstance(last, RunCompleted)
    assert (last.status, last.reason) == ("Cancelled", {"code": "cancelled", "kind": "cancel", "reason": "not wanted"})
    assert verify_run(engine.house.store, run_id) == []


def test_a_process_that_hears_the_time_late_ends_what_it_was_asked_to(engine: ExecutionEngine) -> None:
    """A request that can be read was written, whatever the time is here; a grace counts from then."""
    run_id = create(engine, "sleeper", "behind")
    late = House(engine.house.store, RegistryResolver(), standard(), clock=ManualClock())
    engine.house.store.post([InboxPost(run_id, uuid4(), CLOSE, request_body("later", 60_000_000))])
    Mailbox(late, row_of(engine, run_id)).check()
    engine.house.store.post([InboxPost(run_id, uuid4(), CLOSE, request_body("now"))])
    with pytest.raises(CancelRequested, match="now"):
        Mailbox(late, row_of(engine, run_id)).check()


def test_children_end_before_their_parent(engine: ExecutionEngine) -> None:
    run_id = create(engine, "family", ["ann", "ben", "cleo"])
    with driven(engine, run_id, "ann", "ben", "cleo"):
        cancel_run(engine.house, run_id, "all of you")
        eventually(lambda: row_of(engine, run_id).is_terminal)
    parent, children = row_of(engine, run_id), engine.house.store.children_of(run_id)
    assert [child.status for child in children] == ["Cancelled"] * 3
    assert parent.ended_at is not None
    assert all(child.ended_at is not None and child.ended_at <= parent.ended_at for child in children)


def test_a_run_that_nobody_owns_ends_at_once_and_only_once(engine: ExecutionEngine) -> None:
    run_id = create(engine, "sleeper", "never begun")
    assert cancel_run(engine.house, run_id, "too late anyway") == {run_id: "cancelled"}
    assert row_of(engine, run_id).status == "Cancelled"
    head = row_of(engine, run_id).head
    assert cancel_run(engine.house, run_id, "again") == {run_id: "already_terminal"}
    assert row_of(engine, run_id).head == head
    assert engine.resume(run_id).phase == "Cancelled"


def test_clean_up_runs_once_as_a_recorded_state(engine: ExecutionEngine) -> None:
    run_id = create(engine, "tidy", "desk")
    with driven(engine, run_id, "desk"):
        cancel_run(engine.house, run_id, "evening")
        eventually(lambda: row_of(engine, run_id).is_terminal)
    assert cleaned.count("desk") == 1
    row = row_of(engine, run_id)
    assert row.status == "Cancelled"
    snapshot = end_of(engine.house.store, row, compact=False)["final_snapshot"]
    assert snapshot["tidy.main.on_cancel"] == "desk put away"


def test_clean_up_is_owed_by_whoever_drives_next(engine: ExecutionEngine) -> None:
    run_id = create(engine, "tidy", "attic")
    with driven(engine, run_id, "attic"):
        engine.supervisor.close()
        eventually(engine.supervisor.is_idle)
    assert cancel_run(engine.house, run_id, "spring") == {run_id: "requested"}
    assert not row_of(engine, run_id).is_terminal
    other = ExecutionEngine(House(engine.house.store, RegistryResolver(), standard()))
    assert other.resume(run_id).phase == "Cancelled"
    assert cleaned.count("attic") == 1
    other.close()


def test_a_crash_in_the_clean_up_is_followed_by_another(engine: ExecutionEngine, monkeypatch: Any) -> None:
    run_id = create(engine, "tidy", "cellar")

    def die(io: Any, name: str) -> str:
        raise Interrupt(name)

    state = tidy.clean_up
    assert state is not None
    with driven(engine, run_id, "cellar"), monkeypatch.context() as patched:
        patched.setattr(tidy, "clean_up", type(state).of(die, (), (), None, "Pure", None, name="on_cancel"))
        engine.supervisor.close()
        eventually(engine.supervisor.is_idle)
        cancel_run(engine.house, run_id, "flood")
        first = ExecutionEngine(House(engine.house.store, RegistryResolver(), standard()))
        first.supervisor.hand_over(run_id)
        eventually(first.supervisor.is_idle)
        first.close()
    assert not row_of(engine, run_id).is_terminal
    second = ExecutionEngine(House(engine.house.store, RegistryResolver(), standard()))
    assert second.resume(run_id).phase == "Cancelled"
    assert cleaned.count("cellar") == 1
    second.close()


def test_a_close_may_be_withdrawn_within_its_grace(engine: ExecutionEngine) -> None:
    store, run_id = engine.house.store, create(engine, "sleeper", "spared")
    with driven(engine, run_id, "spared"):
        store.post([InboxPost(run_id, uuid4(), CLOSE, request_body("the task was killed", grace_us=150_000))])
        store.post([InboxPost(run_id, uuid4(), WITHDRAW, b"{}")])
        time.sleep(0.4)
        assert not row_of(engine, run_id).is_terminal
        store.post([InboxPost(run_id, uuid4(), CLOSE, request_body("killed again", grace_us=150_000))])
        time.sleep(0.05)
        assert not row_of(engine, run_id).is_terminal
        eventually(lambda: row_of(engine, run_id).status == "Cancelled")


def test_a_parent_that_fails_takes_its_children_along(engine: ExecutionEngine) -> None:
    run_id = create(engine, "leaves_a_child", "left behind")
    assert engine.resume(run_id).phase == "Failed"
    (child,) = engine.house.store.children_of(run_id)
    eventually(lambda: row_of(engine, child.run_id).status == "Cancelled")
    entry = engine.house.store.read_inbox(child.run_id)[0]
    assert (entry.kind, entry.body) == ("close", b'{"reason":"its parent failed"}')


def test_a_child_out_of_time_fails_and_its_parent_is_told(engine: ExecutionEngine) -> None:
    run_id = create(engine, "hurried", "slow")
    assert engine.resume(run_id).phase == "Completed"
    row = row_of(engine, run_id)
    assert end_of(engine.house.store, row, compact=True)["output"] == ["Failed", "run_timed_out"]
    (child,) = engine.house.store.children_of(run_id)
    assert (row_of(engine, child.run_id).status, row_of(engine, child.run_id).error_code) == ("Failed", "run_timed_out")
    events = [event for _, event in decode_events(engine.house.store.read_events(child.run_id))]
    assert any(isinstance(event, StateFailed) and event.is_real for event in events)
