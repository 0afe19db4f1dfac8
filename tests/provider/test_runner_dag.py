"""The runner DAG as a real Airflow has it, and its DAG runs as an administrator's process asks for them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from airflow_childrun import _airflow, childrun_runner_dag, operation
from airflow_childrun.errors import InputError, OperationError
from airflow_childrun.hooks import dispatching
from airflow_childrun.hooks.dispatching import Dispatch, check_reachable
from tests.provider.conftest import AirflowHome

pytestmark = pytest.mark.provider
FILE = """
from airflow.sdk import DAG
from airflow_childrun import childrun_runner_dag, operation

@operation(version="2")
def heavy(number: int) -> int:
    return number

childrun_runner_dag("heavy_runner", operations=[heavy], pool="gpus", queue="big", priority_weight=7, max_active_runs=3)
"""
ASK = """
import json
from airflow_childrun._airflow import metadata_session
from airflow_childrun.errors import HostError
from airflow_childrun.hooks.dispatching import DatabaseDagRuns
from airflow.models.dag import DagModel, DagTag
from airflow.models.dagrun import DagRun
from airflow.models.serialized_dag import SerializedDagModel

runs = DatabaseDagRuns()
made = [runs.trigger("heavy_runner", "childrun__one", {"childrun": {"run_ids": ["x"]}}) for _ in range(2)]
try:
    runs.trigger("no_such_dag", "one", {})
except HostError as error:
    refused = error.code
with metadata_session() as session:
    dag = session.query(DagModel).filter(DagModel.dag_id == "heavy_runner").one()
    task = SerializedDagModel.get_dag("heavy_runner", session=session).get_task("drive")
    conf = session.query(DagRun.conf).filter(DagRun.run_id == "childrun__one").scalar()
    print("FOUND " + json.dumps({
        "paused": dag.is_paused, "file": dag.relative_fileloc, "active": dag.max_active_runs,
        "tags": sorted(tag.name for tag in session.query(DagTag).filter(DagTag.dag_id == "heavy_runner")),
        "task": [task.pool, task.queue, task.priority_weight, task.retries],
        "made": made, "refused": refused, "conf": conf,
        "state": runs.state("heavy_runner", "childrun__one"), "none": runs.state("heavy_runner", "two"),
        "count": runs.count_active("heavy_runner", ["childrun__one", "two"]),
    }))
"""


@pytest.mark.slow
def test_airflow_has_the_dag_unpaused_and_an_administrator_its_dag_runs(airflow_home: AirflowHome) -> None:
    """Parsed by Airflow itself: file, tags, limits; a DAG run is made once, however often it is asked for."""
    folder = airflow_home.path / "runner"
    folder.mkdir()
    (folder / "heavy.py").write_text(FILE)
    where = {"AIRFLOW__CORE__DAGS_FOLDER": str(folder)}
    done = airflow_home.airflow("dags", "reserialize", **where)
    assert done.status == 0, done.text
    asked = airflow_home.python(ASK, **where)
    (line,) = (line for line in asked.out.splitlines() if line.startswith("FOUND "))
    assert json.loads(line.removeprefix("FOUND ")) == {
        "paused": False,
        "file": "heavy.py",
        "active": 3,
        "tags": ["childrun", "operation:heavy@2"],
        "task": ["gpus", "big", 7, 2],
        "made": [True, False],
        "refused": "dag_not_found",
        "conf": {"childrun": {"run_ids": ["x"]}},
        "state": "queued",
        "none": None,
        "count": 1,
    }


def test_the_dag_stands_where_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file is that of its author, not one of this package; what is no operation is refused."""
    monkeypatch.setattr(dispatching, "RUNNERS", {})
    dag = childrun_runner_dag("light_runner")
    assert dag.fileloc == __file__
    assert [task.task_id for task in dag.tasks] == ["drive"]
    wrong: Any = [len]
    with pytest.raises(InputError) as raised:
        childrun_runner_dag("wrong_runner", operations=wrong)
    assert raised.value.code == "operation_invalid"


def test_what_the_runner_could_not_drive_is_refused_before_it_is_spawned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reachable: by the runner's tag, by standing in its file; else refused, naming both remedies."""
    tags: set[str] = set()
    monkeypatch.setattr(_airflow, "describe_dag", lambda _: (False, frozenset(tags)))

    @operation(version="1")
    def carried(number: int) -> int:
        return number

    dispatch = Dispatch("some_runner")
    with pytest.raises(OperationError, match=r"operations=\[\.\.\.\].*operations_modules") as raised:
        check_reachable(carried, dispatch, "here.py")
    assert raised.value.code == "operation_not_reachable"
    monkeypatch.setitem(dispatching.RUNNERS, "some_runner", dispatching.Runner("here.py", frozenset()))
    check_reachable(carried, dispatch, "here.py")
    with pytest.raises(OperationError):
        check_reachable(carried, dispatch, "there.py")
    tags.add("operation:carried@1")
    check_reachable(carried, dispatch, "there.py")
    check_reachable(carried, None, None)
