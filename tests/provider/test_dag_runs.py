"""The operations whose run is a DAG run: triggered once, looked after, its end recorded; and the REST API behind one of them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from airflow_childrun import _airflow
from airflow_childrun.errors import HostError, InputError
from airflow_childrun.hooks import dag_run_steps
from airflow_childrun.hooks.airflow_api import AirflowApi
from airflow_childrun.hooks.dag_runs import DAG_RUN, DAG_RUN_OVER_API, DagChild
from airflow_childrun.testing.operations import OperationTester, RunRecord
from tests.provider.dag_runs import FakeAirflow

pytestmark = pytest.mark.provider

CHILD = DagChild("child", result_task_id="count")
OVER_API = DagChild("child", api_conn_id="airflow_api")


@pytest.fixture
def airflow(monkeypatch: pytest.MonkeyPatch) -> FakeAirflow:
    return FakeAirflow({"child": False}, xcoms={("child", "count"): 17}).install(monkeypatch)


@pytest.fixture(autouse=True)
def parent(childrun: OperationTester) -> None:
    childrun.airflow = {"dag_id": "parent", "run_id": "manual__1"}


def error_of(run: RunRecord) -> tuple[str, str, bool]:
    assert run.error is not None
    return run.error.code, run.error.message, run.error.retryable


def test_a_dag_run_is_triggered_and_its_result_is_the_output(childrun: OperationTester, airflow: FakeAirflow) -> None:
    """Its conf is the input, and says who asked for it."""
    run = childrun.run(DAG_RUN, CHILD.encode_input({"source": "web"}))
    assert run.output == 17
    ((dag_id, run_id),) = airflow.triggers
    assert dag_id == "child"
    assert run_id.startswith("childrun__")
    conf = airflow.runs[dag_id, run_id]["conf"]
    parent = conf.pop("childrun_parent")
    assert conf == {"source": "web"}
    assert (parent["dag_id"], parent["run_id"]) == ("parent", "manual__1")


def test_an_answer_that_is_lost_makes_no_second_dag_run(childrun: OperationTester, airflow: FakeAirflow) -> None:
    """Asked again, Airflow says that the run exists, and its conf that it is ours."""
    airflow.lost = 1
    run = childrun.run(DAG_RUN, CHILD.encode_input(None))
    assert run.completed
    assert len(airflow.triggers) == 2
    assert len(airflow.runs) == 1


def test_a_dag_run_of_somebody_else_is_not_taken(childrun: OperationTester, airflow: FakeAirflow) -> None:
    run = childrun.run(DAG_RUN, CHILD.encode_input(None))
    ((key, found),) = airflow.runs.items()
    found["conf"]["childrun_parent"]["nonce"] = "of a store that was purged"
    again = OperationTester(airflow=childrun.airflow).run(DAG_RUN, CHILD.encode_input(None))
    assert run.completed
    code, message, retryable = error_of(again)
    assert (code, retryable) == ("dag_run_foreign", False)
    assert key[1] in message


def test_a_dag_run_that_failed_names_its_failed_tasks(childrun: OperationTester, airflow: FakeAirflow) -> None:
    airflow.ends["child"] = ["failed"]
    code, message, retryable = error_of(childrun.run(DAG_RUN, CHILD.encode_input(None)))
    assert (code, retryable) == ("dag_run_failed", True)
    assert message.endswith("of DAG 'child' failed in load")


def test_a_dag_run_that_is_deleted_is_no_endless_wait(
    childrun: OperationTester, airflow: FakeAirflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    airflow.ends["child"] = ["running"]

    def look(dag_id: str, run_id: str) -> str | None:
        airflow.looks += 1
        return "running" if airflow.looks < 3 else None

    monkeypatch.setattr(_airflow, "dag_run_state", look)
    code, message, retryable = error_of(childrun.run(DAG_RUN, CHILD.encode_input(None)))
    assert (code, retryable) == ("dag_run_missing", True)
    assert "was deleted; a retry of this task triggers another one" in message


@pytest.mark.parametrize(
    ("dags", "code", "told", "retryable"),
    [
        ({"child": True}, "dag_paused", "DAG 'child' is paused: its run would never start", True),
        ({}, "dag_not_found", "DAG 'child': not found", False),
    ],
)
def test_a_dag_that_cannot_run_is_named(
    childrun: OperationTester, airflow: FakeAirflow, dags: dict[str, bool], code: str, told: str, *, retryable: bool
) -> None:
    """Nothing was triggered then."""
    airflow.dags = dags
    found = error_of(childrun.run(DAG_RUN, CHILD.encode_input(None)))
    assert (found[0], found[2]) == (code, retryable)
    assert told in found[1]
    assert airflow.runs == {}


@pytest.mark.parametrize("minutes", [1, 10, 600])
def test_a_long_run_is_looked_at_rarely_and_not_too_late(
    childrun: OperationTester, airflow: FakeAirflow, monkeypatch: pytest.MonkeyPatch, minutes: int
) -> None:
    """Soon at first, then every two minutes: an end is known two minutes later at most."""
    began: list[int] = []

    def look(dag_id: str, run_id: str) -> str:
        airflow.looks += 1
        began.append(childrun.clock.now_us())
        return "running" if childrun.clock.now_us() - began[0] < minutes * 60_000_000 else "success"

    monkeypatch.setattr(_airflow, "dag_run_state", look)
    assert childrun.run(DAG_RUN, CHILD.encode_input(None)).completed
    assert began[-1] - began[0] <= (minutes + 2) * 60_000_000
    assert airflow.looks <= 7 + minutes // 2


def test_a_conf_that_is_no_object_is_refused() -> None:
    with pytest.raises(InputError, match="conf of a run of DAG 'child' is of type list: give an object"):
        CHILD.encode_input([1])


@pytest.mark.parametrize("state", ["success", "failed"])
def test_both_operations_survive_a_crash_at_every_io(
    childrun: OperationTester, airflow: FakeAirflow, state: str
) -> None:
    """The stand-in keeps its DAG runs from one life to the next, so each is triggered for a new one."""
    childrun.fake(dag_run_steps.trigger_dag_run)
    childrun.fake(dag_run_steps.end_of_dag_run, answers=[HostError("x", code="dag_run_active", retryable=True), state])
    childrun.fake(dag_run_steps.failed_tasks, answer=["load"])
    assert childrun.check_reentry(DAG_RUN, CHILD.encode_input({"a": 1})).ended > 10


def test_with_the_api_a_run_goes_on_too(childrun: OperationTester, airflow: FakeAirflow) -> None:
    childrun.fake(dag_run_steps.trigger_dag_run)
    childrun.fake(dag_run_steps.end_of_dag_run, "success")
    assert childrun.check_reentry(DAG_RUN_OVER_API, OVER_API.encode_input({"a": 1})).ended > 8


# ------------------------------------------------------------------------------------------------------------ REST API


class Api:
    """An API server that wants a token, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, Any]] = []
        self.status = 200
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self._answer()

            def do_PATCH(self) -> None:
                self._answer()

            def _answer(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                api.asked.append((self.command, self.path, body))
                is_login = self.path == "/auth/token"
                allowed = is_login or self.headers["Authorization"] == "Bearer let-me-in"
                answer = json.dumps({"access_token": "let-me-in"} if is_login else {}).encode()
                self.send_response((201 if is_login else api.status) if allowed else 401)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def port(self) -> int:
        return int(self.server.server_address[1])


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    made = Api()
    know_api(monkeypatch, host="127.0.0.1", port=made.port, login="ann", password="secret of ann")
    yield made
    made.server.shutdown()
    made.server.server_close()


def know_api(monkeypatch: pytest.MonkeyPatch, **fields: Any) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_AIRFLOW_API", json.dumps({"conn_type": "http", **fields}))


def test_the_api_is_asked_as_the_connections_user(api: Api) -> None:
    """Ids with unusual letters stay one part of the path."""
    assert AirflowApi("airflow_api").fail_dag_run("a.b", "scheduled__2026-01-01T00:00:00+00:00/x")
    assert AirflowApi("airflow_api").clear_failed("a.b", "r")
    login = ("POST", "/auth/token", {"username": "ann", "password": "secret of ann"})
    run_path = "/api/v2/dags/a.b/dagRuns/scheduled__2026-01-01T00%3A00%3A00%2B00%3A00%2Fx"
    assert api.asked == [
        login,
        ("PATCH", run_path, {"state": "failed"}),
        login,
        ("POST", "/api/v2/dags/a.b/dagRuns/r/clear", {"dry_run": False, "only_failed": True}),
    ]


@pytest.mark.parametrize(
    ("status", "code", "retryable"), [(403, "api_refused", False), (429, "airflow_unavailable", True)]
)
def test_a_refusal_names_the_connection_and_no_secret(api: Api, status: int, code: str, *, retryable: bool) -> None:
    api.status = status
    with pytest.raises(HostError) as refused:
        AirflowApi("airflow_api").clear_failed("d", "r")
    assert (refused.value.code, refused.value.retryable) == (code, retryable)
    assert "airflow_api" in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_dag_run_that_is_not_there_is_no_error(api: Api) -> None:
    api.status = 404
    assert not AirflowApi("airflow_api").fail_dag_run("d", "r")


def test_a_connection_that_leads_nowhere_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HostError, match="'no_such' of airflow_api_conn_id does not exist"):
        AirflowApi("no_such")
    know_api(monkeypatch, schema="ftp", host="h")
    with pytest.raises(HostError, match="names no API server"):
        AirflowApi("airflow_api")
    know_api(monkeypatch, host="http://127.0.0.1:9", password="token")
    with pytest.raises(HostError) as down:
        AirflowApi("airflow_api").clear_failed("d", "r")
    assert (down.value.code, down.value.retryable) == ("airflow_unavailable", True)
