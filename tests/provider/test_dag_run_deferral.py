"""Tasks that wait for DAG runs leave their worker: what they leave behind, what brings them back, what they find then."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from airflow.sdk import DAG

from airflow_childrun import AwaitChildRunOperator, ChildRunHook, SpawnChildRunOperator
from airflow_childrun._airflow import AirflowException, TaskDeferred
from airflow_childrun.errors import UnavailableError
from airflow_childrun.hooks import driving
from airflow_childrun.hooks.connection import open_store, read_store_settings
from airflow_childrun.hooks.dag_runs import DagChild
from airflow_childrun.hooks.elements import SpawnOrder
from airflow_childrun.model.events import WAIT_OPENED
from airflow_childrun.store.api import RunFilter, Store
from airflow_childrun.testing.clock import ManualClock
from airflow_childrun.triggers import childrun, dag_runs
from airflow_childrun.triggers.wire import DagRunKwargs
from tests.provider.dag_runs import FakeAirflow
from tests.provider.kit import Ticket, sqlite_connection
from tests.provider.test_triggers import again, context, fire, leave

pytestmark = pytest.mark.provider

CONFS = [{"source": "web"}, {"source": "shop"}]


@pytest.fixture
def airflow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeAirflow]:
    """Give an Airflow whose DAG runs go on until a test ends them; nothing waits longer than it must."""
    monkeypatch.setattr(driving, "INLINE_S", 0.0)
    monkeypatch.setattr(childrun, "LEAST_AWAY_S", 0.05)
    monkeypatch.setattr(dag_runs, "SHORTEST_INTERVAL_S", 0.02)

    async def settings(conn_id: str) -> Any:
        return read_store_settings(conn_id)

    monkeypatch.setattr("airflow_childrun.triggers.reader.read_store_settings_async", settings)
    with sqlite_connection(monkeypatch, tmp_path):
        ends = {"load": ["running"] * 9}
        yield FakeAirflow({"load": False}, ends, xcoms={("load", "count"): 3}).install(monkeypatch)


@pytest.fixture
def store(airflow: FakeAirflow) -> Store:
    """Give the store of the default connection."""
    return open_store(read_store_settings())


def spawn(**more: Any) -> SpawnChildRunOperator:
    arguments: dict[str, Any] = {"inputs": CONFS, "child_key": "source", "deferrable": True, "poll_interval": 0.02}
    return SpawnChildRunOperator(task_id="t", dag_id="load", result_task_id="count", **{**arguments, **more})


def awaited(deferred: TaskDeferred) -> list[DagRunKwargs]:
    """Return the DAG runs that a trigger looks at, as they stand in Airflow's database."""
    found: list[DagRunKwargs] = deferred.trigger.serialize()[1]["dag_runs"]
    return found


def end(airflow: FakeAirflow, *states: str) -> None:
    """End the DAG runs, in the order in which they were triggered."""
    for key, state in zip(airflow.triggers, states, strict=True):
        airflow.runs[key]["state"] = state


def waits_of(store: Store, ticket: Ticket) -> list[int]:
    """Return how many waits each child of a task has opened."""
    rows = store.find_runs(RunFilter(op_id="airflow_dag_run"), None, 9).rows
    events = [ChildRunHook().read_events(row.run_id) for row in rows]
    return [sum(event["event"].get("Domain", {}).get("name") == WAIT_OPENED for event in each) for each in events]


def test_a_task_leaves_as_soon_as_its_dag_runs_are_triggered_and_returns_their_results(
    airflow: FakeAirflow, store: Store
) -> None:
    """The next looks are seconds away, and nobody waits for them; back, each DAG run is looked at once, at once."""
    deferred = leave(spawn(), Ticket())
    assert {(run["dag_id"], run["dag_run_id"]) for run in awaited(deferred)} == set(airflow.runs)
    assert {run["calls"] for run in awaited(deferred)} == {"last"}
    kwargs = deferred.trigger.serialize()[1]
    assert (len(kwargs["inboxes"]), kwargs["wake_at"]) == (2, None)
    end(airflow, "success", "success")
    event = fire(again(deferred)).payload
    assert event == {"reason": "dag_runs", "detail": "the DAG runs are over"}
    before = airflow.looks
    results = spawn().execute_complete(context(Ticket()), event)
    assert [(result["status"], result["output"]) for result in results] == [("Completed", 3)] * 2
    assert airflow.looks - before == 2
    assert len(airflow.triggers) == 2
    assert waits_of(store, Ticket()) == [1, 1]


def test_a_task_that_comes_back_too_early_leaves_again(airflow: FakeAirflow, store: Store) -> None:
    """Something else brought it back: the waits of its children go on as if nobody had looked."""
    leave(spawn(), Ticket())
    with pytest.raises(TaskDeferred) as raised:
        spawn().execute_complete(context(Ticket()), {"reason": "asked", "detail": ""})
    assert len(awaited(raised.value)) == 2
    assert waits_of(store, Ticket()) == [1, 1]


@pytest.mark.parametrize(("state", "told"), [("failed", "failed in load"), (None, "was deleted")])
def test_what_became_of_a_dag_run_meanwhile_is_told(airflow: FakeAirflow, state: str | None, told: str) -> None:
    """It failed, or was deleted: the task comes back when the others have ended too, and fails; a retry makes a new one."""
    deferred = leave(spawn(), Ticket())
    end(airflow, "success", state or "running")
    if state is None:
        del airflow.runs[airflow.triggers[1]]
    assert fire(again(deferred)).payload["reason"] == "dag_runs"
    with pytest.raises(AirflowException, match=told):
        spawn().execute_complete(context(Ticket()), None)
    airflow.ends["load"] = ["success"]
    results = spawn()._run(context(Ticket().retry()), come_back=False)
    assert [result["output"] for result in results] == [3, 3]
    assert len(airflow.triggers) == 3


def test_an_await_of_dag_runs_leaves_too(airflow: FakeAirflow) -> None:
    """By the handles of a task that only triggered; ``end_from_trigger`` makes no difference: a worker fetches the results."""
    handles = ChildRunHook().spawn(
        Ticket("begin").context(), SpawnOrder(DagChild("load", "count"), CONFS, child_key="source")
    )
    with DAG("d", schedule=None):
        task = AwaitChildRunOperator(
            task_id="a", child_runs=handles, deferrable=True, poll_interval=0.02, end_from_trigger=True
        )
    deferred = leave(task, Ticket("a"))
    assert {run["calls"] for run in awaited(deferred)} == {"last"}
    end(airflow, "success", "success")
    event = fire(again(deferred)).payload
    assert event["reason"] == "dag_runs"
    assert [result["output"] for result in task.execute_complete(context(Ticket("a")), event)] == [3, 3]
    assert len(airflow.triggers) == 2


def test_a_child_that_is_tried_again_is_not_kept_waiting_by_the_others(airflow: FakeAirflow) -> None:
    """Its DAG run failed while another goes on; its last attempt, which no other follows, waits for the others."""
    policy = {"max_attempts": 2, "backoff": {"Fixed": {"delay": {"secs": 0, "nanos": 0}}}, "mode": "afresh"}
    deferred = leave(spawn(child_retry_policy=policy), Ticket())
    assert {run["calls"] for run in awaited(deferred)} == {"failure"}
    end(airflow, "running", "failed")
    event = fire(again(deferred)).payload
    assert event["detail"].endswith("is over: failed")
    with pytest.raises(TaskDeferred) as raised:
        spawn().execute_complete(context(Ticket()), event)
    assert len(airflow.triggers) == 3
    assert sorted(run["calls"] for run in awaited(raised.value)) == ["failure", "last"]


def test_an_airflow_that_cannot_be_asked_has_the_task_look_itself(
    airflow: FakeAirflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a while, in place of ever; the worker finds what there is to find."""
    monkeypatch.setattr(dag_runs, "OUTAGE_S", 0.1)
    deferred = leave(spawn(), Ticket())
    airflow.deaf = True
    event = fire(again(deferred)).payload
    assert event == {
        "reason": "outage",
        "detail": "[airflow_unavailable] DAG runs cannot be looked at: Airflow is deaf",
    }
    airflow.deaf = False
    end(airflow, "success", "success")
    assert len(spawn().execute_complete(context(Ticket()), event)) == 2


def test_what_comes_from_the_store_brings_a_task_back_that_waits_for_dag_runs(
    airflow: FakeAirflow, store: Store
) -> None:
    """A kill asks nothing of children that are to go on without their parent; what others post is noticed."""
    deferred = leave(spawn(), Ticket())
    kwargs = deferred.trigger.serialize()[1]
    asyncio.run(again(deferred).on_kill())
    assert [store.read_inbox(UUID(run_id)) for run_id in kwargs["inboxes"]] == [[], []]
    kwargs["inboxes"] = dict.fromkeys(kwargs["inboxes"], -1)
    assert fire(childrun.ChildRunTrigger(**kwargs)).payload["reason"] == "asked"


# ------------------------------------------------------------------------------------------------- asking and watching


def running(airflow: FakeAirflow, count: int) -> list[tuple[str, str]]:
    keys = [("load", f"run {number}") for number in range(count)]
    airflow.runs.update({key: {"state": "running", "conf": {}} for key in keys})
    return keys


def test_many_dag_runs_are_few_questions(airflow: FakeAirflow) -> None:
    """One for each hundred of a DAG while none has ended; a few more find the ones that have, however they ended."""
    keys = running(airflow, 200)
    assert asyncio.run(dag_runs.ask_airflow(keys)) == {}
    assert (airflow.counts, airflow.looks) == (2, 0)
    airflow.runs[keys[7]]["state"], airflow.runs[keys[150]]["state"] = "success", "failed"
    del airflow.runs[keys[99]]
    found = asyncio.run(dag_runs.ask_airflow(keys))
    assert found == {keys[7]: "success", keys[150]: "failed", keys[99]: "missing"}
    assert airflow.counts + airflow.looks < 60


def test_whatever_goes_wrong_while_asking_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also an Airflow that knows no such question."""

    def unknown(dag_id: str, run_id: str) -> str:
        raise AttributeError("GetDagRunState")

    monkeypatch.setattr("airflow_childrun._airflow.dag_run_state", unknown)
    with pytest.raises(UnavailableError, match="GetDagRunState"):
        asyncio.run(dag_runs.ask_airflow([("load", "a")]))


def test_which_ends_bring_a_task_back_at_once() -> None:
    """Any, a failure, or that of the last; what has ended is not asked for again."""
    for calls, state, comes in (
        ("any", "success", True),
        ("failure", "failed", True),
        ("failure", "missing", True),
        ("failure", "success", False),
        ("last", "failed", False),
    ):
        one: Any = {"dag_id": "d", "dag_run_id": "one", "calls": calls}
        watcher = dag_runs.DagRunWatcher([one, {"dag_id": "d", "dag_run_id": "two", "calls": "last"}])
        assert watcher.look({}) is None
        assert (watcher.look({("d", "one"): state}) is not None) == comes
        assert set(watcher.asked()) == {("d", "two")}
        assert watcher.look({("d", "two"): "success"}) is not None


def test_an_end_is_recorded_within_the_hour_though_others_go_on() -> None:
    clock = ManualClock()
    both: list[DagRunKwargs] = [{"dag_id": "d", "dag_run_id": name, "calls": "last"} for name in ("one", "two")]
    watcher = dag_runs.DagRunWatcher(both, clock)
    assert watcher.look({("d", "one"): "success"}) is None
    clock.advance(3_599_000_000)
    assert watcher.look({}) is None
    clock.advance(1_000_000)
    event = watcher.look({})
    assert event is not None
    assert event["detail"] == "DAG runs are over; 1 are not"
