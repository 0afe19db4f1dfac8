"""The trigger on a real store: what it waits for, when it brings a task back, what it does when its task is killed."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from airflow.sdk import DAG, Asset

from airflow_childrun import ChildRunHook, operation
from airflow_childrun._airflow import TaskDeferred, TaskSuccessEvent
from airflow_childrun.authoring.registry import RegistryResolver
from airflow_childrun.errors import InputError
from airflow_childrun.hooks import driving
from airflow_childrun.hooks.connection import open_store, read_store_settings
from airflow_childrun.hooks.elements import SpawnOrder
from airflow_childrun.operators.childrun import AwaitChildRunOperator, SpawnChildRunOperator
from airflow_childrun.runtime.closing import cancel_run
from airflow_childrun.runtime.engine import ExecutionEngine
from airflow_childrun.runtime.house import House
from airflow_childrun.secret_policy import standard
from airflow_childrun.store.api import Commit, Owner, RunStep, Store, TakeLease
from airflow_childrun.triggers import childrun as module
from airflow_childrun.triggers import wire
from tests.provider.kit import Ticket, sqlite_connection

pytestmark = pytest.mark.provider


@operation(name="trigger_nap", version="1")
def nap(io: Any, seconds: int) -> int:
    """Sleep."""
    io.sleep(seconds)
    return seconds


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Store]:
    """Give the store of the default connection; nothing waits longer than it must."""
    monkeypatch.setattr(driving, "INLINE_S", 0.0)
    monkeypatch.setattr(module, "LEAST_AWAY_S", 0.05)

    async def settings(conn_id: str) -> Any:
        return read_store_settings(conn_id)

    monkeypatch.setattr("airflow_childrun.triggers.reader.read_store_settings_async", settings)
    with sqlite_connection(monkeypatch, tmp_path):
        yield open_store(read_store_settings())


def spawn(seconds: int = 3600, **more: Any) -> SpawnChildRunOperator:
    return SpawnChildRunOperator(
        task_id="t", operation=nap, inputs=[seconds], deferrable=True, poll_interval=0.02, **more
    )


def leave(task: Any, ticket: Ticket) -> TaskDeferred:
    with pytest.raises(TaskDeferred) as raised:
        task._run(ticket.context(), come_back=False)
    return raised.value


def context(ticket: Ticket) -> Any:
    return ticket.context()


def again(deferred: TaskDeferred) -> module.ChildRunTrigger:
    """Make the trigger of what was written, as a triggerer does."""
    classpath, kwargs = deferred.trigger.serialize()
    assert classpath == wire.CLASSPATH
    return module.ChildRunTrigger(**kwargs)


def fire(trigger: module.ChildRunTrigger, timeout_s: float = 20) -> Any:
    async def first() -> Any:
        async for event in trigger.run():
            return event
        return None

    return asyncio.run(asyncio.wait_for(first(), timeout_s))


def own(task: str, store: Store, run_id: UUID) -> None:
    """Let a living process own a run."""
    session = UUID(int=77)
    store.open_session(session, Owner(task), 60_000_000)
    row = store.get_runs([run_id])[run_id]
    store.commit([Commit(UUID(int=78), (RunStep(run_id, row.head.seq, row.head.epoch, lease=TakeLease(session)),))])


def test_a_sleeper_is_woken_and_its_task_completes(store: Store) -> None:
    """Away for the rest of a sleep that another try finds over."""
    deferred = leave(spawn(), Ticket())
    assert deferred.method_name == wire.NEXT_METHOD
    kwargs = deferred.trigger.serialize()[1]
    assert (len(kwargs["inboxes"]), kwargs["driven"], kwargs["ending"]) == (1, [], None)
    assert kwargs["wake_at"] > store.now_us()
    kwargs["wake_at"] = store.now_us()
    assert fire(module.ChildRunTrigger(**kwargs)).payload == {"reason": "woke", "detail": ""}


def test_a_cancel_brings_the_task_back(store: Store) -> None:
    deferred = leave(spawn(failure_mode="return"), Ticket())
    (run_id,) = map(UUID, deferred.trigger.serialize()[1]["inboxes"])
    house = House(store, RegistryResolver(), standard())
    cancel_run(house, run_id, "enough")
    assert fire(again(deferred)).payload["reason"] == "ended"
    found = spawn(failure_mode="return").execute_complete(context(Ticket()), {"reason": "ended", "detail": ""})
    assert [result["status"] for result in found] == ["Cancelled"]


def test_a_run_that_vanished_brings_the_task_back_and_the_task_fails_clearly(store: Store) -> None:
    kwargs = leave(spawn(), Ticket()).trigger.serialize()[1]
    kwargs["driven"], kwargs["inboxes"] = [str(UUID(int=9))], {}
    assert fire(module.ChildRunTrigger(**kwargs)).payload["reason"] == "gone"


def test_an_await_of_what_others_drive_is_ended_by_the_trigger(store: Store) -> None:
    """With the very results that the task would return."""
    handles = ChildRunHook().spawn(Ticket("s").context(), SpawnOrder(nap, [0]))
    run_id = UUID(handles[0]["child_run_id"])
    own("other", store, run_id)
    with DAG("d", schedule=None):
        task = AwaitChildRunOperator(
            task_id="a", child_runs=handles, deferrable=True, poll_interval=0.02, end_from_trigger=True
        )
    deferred = leave(task, Ticket("a"))
    assert deferred.trigger.serialize()[1]["driven"] == [str(run_id)]
    assert deferred.trigger.serialize()[1]["closing"]["drove"] == []
    store.close_session(UUID(int=77))
    assert fire(again(deferred)).payload["reason"] == "unowned"
    ExecutionEngine(House(store, RegistryResolver(), standard())).resume(run_id)
    event = fire(again(deferred))
    assert isinstance(event, TaskSuccessEvent)
    assert event.xcoms is not None
    assert event.xcoms["return_value"] == task._run(context(Ticket("a")), come_back=True)


def test_a_kill_in_the_triggerer_asks_the_children_to_end(store: Store) -> None:
    deferred = leave(spawn(), Ticket())
    (run_id,) = map(UUID, deferred.trigger.serialize()[1]["inboxes"])
    asyncio.run(again(deferred).on_kill())
    assert [entry.kind for entry in store.read_inbox(run_id)] == ["close"]
    assert fire(again(deferred)).payload["reason"] == "asked"


def test_a_task_with_outlets_cannot_end_in_the_triggerer() -> None:
    with pytest.raises(InputError) as raised:
        spawn(end_from_trigger=True, outlets=[Asset("x")])
    assert raised.value.code == "end_from_trigger_outlets"


def test_a_thousand_triggers_ask_one_question_per_interval(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of one connection and interval; what each costs in memory is printed."""
    handles = ChildRunHook().spawn(Ticket("s").context(), SpawnOrder(nap, list(range(3600, 4600))))
    calls: list[int] = []
    real = type(store).get_runs

    def count(self: Any, run_ids: Any) -> Any:
        wanted = list(run_ids)
        calls.append(len(wanted))
        return real(self, wanted)

    monkeypatch.setattr(type(store), "get_runs", count)

    def trigger(handle: Any) -> module.ChildRunTrigger:
        return module.ChildRunTrigger(
            childrun_conn_id="childrun_default",
            poll_interval=1.0,
            driven=[],
            remote=[handle["child_run_id"]],
            inboxes={},
        )

    async def wait() -> float:
        async def one(handle: Any) -> None:
            async for _ in trigger(handle).run():
                return

        tracemalloc.start()
        loop = asyncio.get_running_loop()
        began = loop.time()
        tasks = [asyncio.ensure_future(one(handle)) for handle in handles]
        await asyncio.sleep(3.5)
        lasted, grown = loop.time() - began, tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        for task in tasks:
            task.cancel()
        with capsys.disabled():
            print(f"\n1,000 triggers: {calls} runs asked in {lasted:.1f} s; {grown / 1024 / 1000:.1f} KiB each")
        return lasted

    lasted = asyncio.run(wait())
    assert set(calls) == {1000}
    assert 2 <= len(calls) <= lasted + 1
