"""DAG runs as the children of a task, through its tries and clears: on SQLite, with a stand-in for Airflow's answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.serialization.serialized_objects import DagSerialization

from airflow_childrun import ChildRunHook, SpawnChildRunOperator
from airflow_childrun.errors import ChildRunFailedError, HostError, InputError
from airflow_childrun.hooks.airflow_api import AirflowApi
from airflow_childrun.hooks.dag_runs import DagChild
from airflow_childrun.hooks.elements import SpawnOrder
from airflow_childrun.hooks.operations import make_resolver
from airflow_childrun.hooks.settings import DEFAULTS
from airflow_childrun.runtime.closing import cancel_run
from airflow_childrun.runtime.house import House
from airflow_childrun.runtime.recover import sweep
from airflow_childrun.secret_policy import standard
from airflow_childrun.store.api import Owner, RunFilter
from tests.provider.dag_runs import FakeAirflow
from tests.provider.kit import Ticket, sqlite_connection

pytestmark = pytest.mark.provider

CONFS = [{"source": "web"}, {"source": "shop"}]


@pytest.fixture
def airflow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeAirflow]:
    """Give an Airflow that knows the DAG ``load``, and a store."""
    with sqlite_connection(monkeypatch, tmp_path):
        yield FakeAirflow({"load": False}, xcoms={("load", "count"): 3}).install(monkeypatch)


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, airflow: FakeAirflow) -> list[tuple[str, str]]:
    """Give what the REST API was asked; it does it."""
    asked: list[tuple[str, str]] = []

    def clear_failed(self: Any, dag_id: str, run_id: str) -> bool:
        asked.append(("clear", run_id))
        airflow.runs[dag_id, run_id]["state"] = "success"
        return True

    def fail_dag_run(self: Any, dag_id: str, run_id: str) -> bool:
        asked.append(("fail", run_id))
        airflow.runs[dag_id, run_id]["state"] = "failed"
        return True

    monkeypatch.setattr(AirflowApi, "__init__", lambda self, conn_id: None)
    monkeypatch.setattr(AirflowApi, "clear_failed", clear_failed)
    monkeypatch.setattr(AirflowApi, "fail_dag_run", fail_dag_run)
    return asked


def loads(api_conn_id: str | None = None) -> SpawnOrder:
    """Ask for two runs of the DAG."""
    return SpawnOrder(DagChild("load", "count", api_conn_id=api_conn_id), CONFS, child_key="source")


def run(ticket: Ticket, wanted: SpawnOrder, **more: Any) -> list[dict[str, Any]]:
    return ChildRunHook().spawn_and_await(ticket.context(), wanted, **more)


def test_dag_runs_are_children_like_others(airflow: FakeAirflow) -> None:
    """Results in order, keys by the DAG's id, rows in the tree of the parent's DAG run."""
    results = run(Ticket(), loads())
    assert [(result["key"], result["status"], result["output"]) for result in results] == [
        ("load/web", "Completed", 3),
        ("load/shop", "Completed", 3),
    ]
    assert {found["conf"]["source"] for found in airflow.runs.values()} == {"web", "shop"}
    rows = ChildRunHook().find_runs(RunFilter(op_id="airflow_dag_run")).rows
    assert {str(row.root_run_id) for row in rows} == {result["root_run_id"] for result in results}


def test_a_single_dag_run_is_named_like_its_dag(airflow: FakeAirflow) -> None:
    (result,) = run(Ticket(), SpawnOrder(DagChild("load"), [{"a": 1}], single=True))
    assert (result["key"], result["output"]) == ("load", None)


def test_without_credentials_a_retry_is_a_new_dag_run(airflow: FakeAirflow) -> None:
    """Of the child that failed alone, in the next generation of its slot."""
    airflow.ends["load"] = ["failed", "success", "success"]
    with pytest.raises(ChildRunFailedError, match=r"failed in load\n"):
        run(Ticket(), loads())
    assert len(airflow.runs) == 2
    results = run(Ticket().retry(), loads())
    assert {result["status"] for result in results} == {"Completed"}
    assert sorted(result["generation"] for result in results) == [1, 2]
    assert len(airflow.runs) == 3


def test_with_credentials_a_retry_clears_what_failed(airflow: FakeAirflow, api: list[tuple[str, str]]) -> None:
    """The same DAG run goes on, once for each retry."""
    airflow.ends["load"] = ["failed", "success"]
    with pytest.raises(ChildRunFailedError):
        run(Ticket(), loads("airflow_api"))
    (failed,) = (run_id for (_, run_id), found in airflow.runs.items() if found["state"] == "failed")
    results = run(Ticket().retry(), loads("airflow_api"))
    assert {result["status"] for result in results} == {"Completed"}
    assert api == [("clear", failed)]
    assert len(airflow.runs) == 2


def test_what_a_clear_does(airflow: FakeAirflow, api: list[tuple[str, str]]) -> None:
    """``reuse`` triggers nothing; green children start afresh as new DAG runs, with credentials, too."""
    first = Ticket()
    run(first, loads("airflow_api"))
    second = first.clear()
    run(second, loads("airflow_api"), on_clear="reuse")
    assert len(airflow.runs) == 2
    run(second.clear(), loads("airflow_api"))
    assert len(airflow.runs) == 4
    assert api == []


def test_a_deleted_dag_run_is_replaced_by_a_retry(airflow: FakeAirflow) -> None:
    airflow.ends["load"] = ["failed", "success"]
    with pytest.raises(ChildRunFailedError):
        run(Ticket(), loads())
    airflow.runs.clear()
    assert {result["status"] for result in run(Ticket().retry(), loads())} == {"Completed"}


def test_dag_runs_may_be_triggered_and_awaited_elsewhere(airflow: FakeAirflow) -> None:
    """Handles come back while the DAG runs work; each is triggered once."""
    airflow.ends["load"] = ["running", "running"]
    handles = ChildRunHook().spawn(Ticket().context(), loads())
    assert len(airflow.runs) == 2
    assert [ChildRunHook().get_run(handle["child_run_id"]).status for handle in handles] == ["Running", "Running"]
    for found in airflow.runs.values():
        found["state"] = "success"
    results = ChildRunHook().await_runs(Ticket("await").context(), handles)
    assert [result["output"] for result in results] == [3, 3]
    assert len(airflow.triggers) == 2


def test_a_dag_run_that_cannot_be_triggered_fails_the_task_that_does_not_wait(airflow: FakeAirflow) -> None:
    airflow.dags["load"] = True
    with pytest.raises(ChildRunFailedError, match="DAG 'load' is paused") as failed:
        ChildRunHook().spawn(Ticket().context(), loads())
    assert failed.value.retryable
    airflow.dags.clear()
    with pytest.raises(ChildRunFailedError, match="not found") as failed:
        ChildRunHook().spawn(Ticket("other").context(), loads())
    assert not failed.value.retryable


def test_a_cancelled_child_ends_its_dag_run_if_it_may(airflow: FakeAirflow, api: list[tuple[str, str]]) -> None:
    """With credentials; without, the child ends and the DAG run goes on."""
    for number, conn_id in enumerate((None, "airflow_api")):
        airflow.ends["load"] = ["running", "running"]
        ticket = Ticket(f"task {number}")
        handles = ChildRunHook().spawn(ticket.context(), loads(conn_id))
        hook = ChildRunHook()
        task, _, _ = hook._begin(ticket.context())
        for handle in handles:
            cancel_run(task._house, hook.get_run(handle["child_run_id"]).run_id, "not wanted")
        task.in_background(task.close)
        with pytest.raises(ChildRunFailedError, match="2 of 2 child runs did not complete"):
            ChildRunHook().await_runs(Ticket(f"await {number}").context(), handles)
        states = [airflow.runs[key]["state"] for key in airflow.triggers[-2:]]
        assert states == (["running"] * 2 if conn_id is None else ["failed"] * 2)
    assert [what for what, _ in api] == ["fail", "fail"]


def test_recover_ends_the_dag_runs_that_a_stopped_task_left(airflow: FakeAirflow, api: list[tuple[str, str]]) -> None:
    """Whose task is over, and whose policy is to end with it; it needs no DAG file."""
    airflow.ends["load"] = ["running", "running"]
    order = replace(loads("airflow_api"), parent_close_policy="cancel")
    ChildRunHook().spawn(Ticket().context(), order)
    store = ChildRunHook().get_conn()

    house = House(store, make_resolver(DEFAULTS, None), standard(), owner=Owner("recover"))
    found = sweep(house, lambda *_: "over")
    assert len(found.ended) == 2
    assert [what for what, _ in api] == ["fail", "fail"]
    assert {found["state"] for found in airflow.runs.values()} == {"failed"}


def test_the_log_of_a_dag_run_that_failed_has_no_traceback_of_ours(
    airflow: FakeAirflow, caplog: pytest.LogCaptureFixture
) -> None:
    airflow.ends["load"] = ["failed", "success"]
    with pytest.raises(ChildRunFailedError):
        run(Ticket(), loads())
    told = [record for record in caplog.records if "dag_run_failed" in record.getMessage()]
    assert told
    assert all(record.exc_info is None for record in told)


def test_a_list_that_changed_fails_a_retry(airflow: FakeAirflow) -> None:
    run(Ticket(), loads())
    changed = SpawnOrder(DagChild("load"), [{"source": "other"}], child_key="source")
    with pytest.raises(HostError, match="load/other"):
        run(Ticket().retry(), changed)


# ------------------------------------------------------------------------------------------------------- the operator


def as_context(ticket: Ticket) -> Any:
    return ticket.context()


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    (
        {"dag_id": "x", "op_id": "y"},
        "operation_twice",
        "give an operation or dag_id=, not both",
    ),
    ({"dag_id": "x", "parent_close_policy": "cancel"}, "dag_cancel_needs_api", "needs airflow_api_conn_id="),
    ({"dag_id": "x", "parent_close_policy": "kill"}, "argument_invalid", "parent_close_policy is 'kill'"),
    ({"op_id": "x", "op_version": "1", "result_task_id": "t"}, "dag_argument_alone", "belong to dag_id="),
]


@pytest.mark.parametrize(("arguments", "code", "told"), REFUSED, ids=[row[1] for row in REFUSED])
def test_what_cannot_work_is_refused_at_parse_time(arguments: dict[str, Any], code: str, told: str) -> None:
    with pytest.raises(InputError) as refused:
        SpawnChildRunOperator(task_id="t", **arguments)
    assert refused.value.code == code
    assert told in str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "policy"),
    [
        ({"dag_id": "load"}, "abandon"),
        ({"dag_id": "load", "airflow_api_conn_id": "airflow_api"}, "cancel"),
        ({"dag_id": "load", "airflow_api_conn_id": "airflow_api", "parent_close_policy": "abandon"}, "abandon"),
    ],
)
def test_dag_runs_end_with_their_parent_only_if_they_can(
    airflow: FakeAirflow, api: list[tuple[str, str]], arguments: dict[str, Any], policy: str
) -> None:
    """The policy stands in the history, and no await needs to follow a task that only triggers."""
    airflow.ends["load"] = ["running"]
    with DAG("parent", schedule=None):
        task = SpawnChildRunOperator(task_id="t", input={"a": 1}, wait_for_completion=False, **arguments)
    handle = task.execute(as_context(Ticket()))
    first = ChildRunHook().read_events(handle["child_run_id"])[0]["event"]["Kernel"]["RunStarted"]
    assert first["parent_close_policy"] == policy


def test_the_dag_of_the_task_and_the_dag_of_its_children_are_two(airflow: FakeAirflow) -> None:
    """Also mapped, and in what Airflow stores of the DAG; the id is a template."""
    with DAG("parent", schedule=None) as dag:
        plain = SpawnChildRunOperator(task_id="plain", dag_id="{{ 'lo' }}ad", result_task_id="count", inputs=CONFS)
        SpawnChildRunOperator.partial(task_id="mapped", dag_id="load", child_key="source").expand(inputs=[CONFS])
    assert plain.dag_id == "parent"
    plain.child_key = "source"
    stored = DagSerialization.from_dict(DagSerialization.to_dict(dag))
    assert {task.dag_id for task in stored.tasks} == {"parent"}
    plain.render_template_fields(as_context(Ticket()))
    assert [result["output"] for result in plain.execute(as_context(Ticket()))] == [3, 3]
