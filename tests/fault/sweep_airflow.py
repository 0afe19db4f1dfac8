"""The sweep's stage in Airflow: tasks run by Airflow's own task runner, and a stand-in for the supervisor that they talk to.

Every request of a task goes over one channel: its connection, DAG runs, XComs, the deferral, the end of the try. Before and
after each stands a numbered place. What the stand-in was told outlives the task's process, as it does in Airflow.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import structlog
from airflow.sdk import DAG
from airflow.sdk.api.datamodels import _generated as wire
from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
from airflow.sdk.execution_time import comms, task_runner

from airflow_childrun import SpawnChildRunOperator, childrun_runner_dag
from airflow_childrun.hooks import childrun as hook_module
from airflow_childrun.hooks import dag_runs, driving
from airflow_childrun.hooks.dispatching import operation_tag
from airflow_childrun.store.api import Store
from tests.fault.sweep_stage import QUICK, Places, sweep_leaf

DAG_ID, RUNNER, LOADED = "sweep", "sweep_runner", "sweep_loaded"
COUNTED = 3
START = datetime(2026, 1, 1, tzinfo=UTC)
OVER = ("success", "failed")
SHOWN = ("MaskSecret", "SetRenderedFields", "SetRenderedMapIndex")
ENDS = {"DeferTask": "deferred", "SucceedTask": "success", "RetryTask": "up_for_retry", "TaskState": "failed"}
Key = tuple[str, ...]


class Airflow:
    """What Airflow knows of DAG runs, task instances and XComs: in a file, for the processes of one play.

    :param url: of the store, which is what the connection says
    """

    def __init__(self, file: Path, url: str, places: Places) -> None:
        self._file = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
        self._file.execute("PRAGMA synchronous = OFF")
        self._file.execute("CREATE TABLE IF NOT EXISTS known (key TEXT PRIMARY KEY, value TEXT)")
        self._lock = threading.RLock()
        self._url = url
        self._places = places
        self.task: Key = ()

    def read(self, *key: str) -> Any:
        """Return what is known, or None."""
        with self._lock:
            row = self._file.execute("SELECT value FROM known WHERE key = ?", (json.dumps(key),)).fetchone()
        return None if row is None else json.loads(row[0])

    def write(self, value: Any, *key: str) -> None:
        with self._lock:
            self._file.execute("INSERT OR REPLACE INTO known VALUES (?, ?)", (json.dumps(key), json.dumps(value)))

    def keys(self, *begin: str) -> list[Key]:
        """Return every key that begins so, in the order in which they came to be known."""
        with self._lock:
            rows = self._file.execute("SELECT key FROM known ORDER BY rowid").fetchall()
        return [key for (text,) in rows if (key := tuple(json.loads(text)))[: len(begin)] == begin]

    def send(self, msg: Any) -> Any:
        """Answer a task's request, as the supervisor does: what it did stays, whether or not the task lives to hear it."""
        name = type(msg).__name__
        self._places.here(f"before Airflow's {name}")
        with self._lock:
            answer = getattr(self, f"_on_{name}", self._on_report)(msg)
        self._places.here(f"after Airflow's {name}")
        return answer

    def _on_GetConnection(self, msg: Any) -> Any:
        nothing: dict[str, Any] = dict.fromkeys(("host", "schema", "login", "port"))
        extra = json.dumps({"deployment_id": "sweep"})
        return comms.ConnectionResult(
            conn_id=msg.conn_id, conn_type="childrun", password=self._url, extra=extra, **nothing
        )

    def _on_GetDag(self, msg: Any) -> Any:
        tags = [operation_tag(sweep_leaf.name, sweep_leaf.version)]
        nothing: dict[str, Any] = dict.fromkeys(
            ("bundle_name", "bundle_version", "relative_fileloc", "owners", "next_dagrun")
        )
        return comms.DagResult(dag_id=msg.dag_id, is_paused=False, tags=tags, **nothing)

    def _on_TriggerDagRun(self, msg: Any) -> Any:
        if self.read("run", msg.dag_id, msg.run_id) is not None:
            return comms.ErrorResponse(error=ErrorType.DAGRUN_ALREADY_EXISTS)
        self.write({"state": "queued", "conf": msg.conf}, "run", msg.dag_id, msg.run_id)
        return comms.OKResponse(ok=True)

    def _on_GetDagRunState(self, msg: Any) -> Any:
        found = self._run(msg)
        if msg.dag_id == LOADED:
            # Nobody plays its tasks: it is over once it was looked at twice.
            after = {"queued": "running", "running": "success"}.get(found["state"], found["state"])
            self.write({**found, "state": after}, "run", msg.dag_id, msg.run_id)
        return comms.DagRunStateResult(state=found["state"])

    def _on_GetDagRun(self, msg: Any) -> Any:
        found = self._run(msg)
        return comms.DagRunResult(**_dag_run(msg.dag_id, msg.run_id, found["conf"]).model_dump())

    def _on_GetDRCount(self, msg: Any) -> Any:
        states = [(self.read("run", msg.dag_id, run_id) or {"state": None})["state"] for run_id in msg.run_ids]
        return comms.DRCount(count=sum(state in msg.states for state in states))

    def _on_GetXCom(self, msg: Any) -> Any:
        value = COUNTED if msg.dag_id == LOADED else self.read("xcom", msg.dag_id, msg.run_id, msg.task_id, msg.key)
        return comms.XComResult(key=msg.key, value=value)

    def _on_SetXCom(self, msg: Any) -> None:
        self.write(msg.value, "xcom", msg.dag_id, msg.run_id, msg.task_id, msg.key)

    def _on_DeleteXCom(self, msg: Any) -> None:
        self.write(None, "xcom", msg.dag_id, msg.run_id, msg.task_id, msg.key)

    def _on_report(self, msg: Any) -> None:
        """Note how a try ended; forget what is only shown."""
        name = type(msg).__name__
        if name in SHOWN:
            return
        after = {"state": ENDS[name]}
        if after["state"] == "deferred":
            after |= {"next_method": msg.next_method, "next_kwargs": msg.next_kwargs}
        self.write({**self.read(*self.task), **after}, *self.task)

    def _run(self, msg: Any) -> Any:
        found = self.read("run", msg.dag_id, msg.run_id)
        if found is None:
            detail = {"status_code": 404, "detail": "there is no such DAG run"}
            raise AirflowRuntimeError(comms.ErrorResponse(error=ErrorType.GENERIC_ERROR, detail=detail))
        return found


def _dag_run(dag_id: str, run_id: str, conf: Any) -> wire.DagRun:
    nothing = ("logical_date", "data_interval_start", "data_interval_end", "end_date", "partition_key")
    known = {"dag_id": dag_id, "run_id": run_id, "conf": conf, "run_type": "manual", "state": "running"}
    times = {"run_after": START, "start_date": START, "consumed_asset_events": []}
    return wire.DagRun.model_validate({**dict.fromkeys(nothing), **known, **times})


class Worker:
    """Scheduler and worker in one: runs tasks one after the other, and what a dead process left of them as the next try.

    :param process: which process of the play this is: the ids of its tries are younger than those of the ones before
    """

    def __init__(self, airflow: Airflow, process: int, slots: int) -> None:
        self._airflow = airflow
        self._number = process * 1000
        with DAG(DAG_ID, schedule=None):
            self._spawn = SpawnChildRunOperator(
                task_id="spawn",
                operation=sweep_leaf,
                inputs=["one", "two", "three"],
                dispatch="dag_run",
                runner_dag_id=RUNNER,
                batch_size=2,
                deferrable=True,
                poll_interval=0.02,
            )
            self._load = SpawnChildRunOperator(
                task_id="load",
                dag_id=LOADED,
                inputs=[{"source": "a"}, {"source": "b"}],
                child_key="source",
                result_task_id="count",
                max_concurrency=slots,
            )
        self._runner = childrun_runner_dag(RUNNER, operations=[sweep_leaf], max_concurrency=slots)

    def work(self, run_id: str) -> None:
        """Run the tasks of a DAG run until both have succeeded."""
        for task in (self._spawn, self._load):
            while self._run(task, DAG_ID, run_id, {}) not in OVER:
                self._drive()
        # Whose process died after its last child's end is tried again all the same.
        self._drive()

    def _drive(self) -> None:
        """Run the task of every DAG run that was triggered for children."""
        for _, dag_id, run_id in self._airflow.keys("run", RUNNER):
            run = self._airflow.read("run", dag_id, run_id)
            if run["state"] not in OVER:
                state = self._run(self._runner.get_task("drive"), dag_id, run_id, run["conf"])
                if state in OVER:
                    self._airflow.write({**run, "state": state}, "run", dag_id, run_id)

    def _run(self, task: Any, dag_id: str, run_id: str, conf: Any) -> str:
        key = ("task", dag_id, run_id, task.task_id)
        found = self._airflow.read(*key) or {"state": None, "try": 0}
        if found["state"] in OVER:
            return str(found["state"])
        if found["state"] != "deferred":
            self._number += 1
            found = {"state": "running", "try": found["try"] + 1, "id": self._number}
            self._airflow.write(found, *key)
        self._airflow.task = key
        ti = self._task_instance(task, dag_id, run_id, found, conf)
        task_runner.run(ti, ti.get_template_context(), structlog.get_logger())
        return str(self._airflow.read(*key)["state"])

    def _task_instance(self, task: Any, dag_id: str, run_id: str, found: Any, conf: Any) -> Any:
        is_back = found["state"] == "deferred"
        pushed = [] if is_back else [key[-1] for key in self._airflow.keys("xcom", dag_id, run_id, task.task_id)]
        server = wire.TIRunContext(
            dag_run=_dag_run(dag_id, run_id, conf),
            max_tries=99,
            start_date=START,
            should_retry=True,
            xcom_keys_to_clear=pushed,
            **{name: found[name] for name in ("next_method", "next_kwargs") if is_back},
        )
        kind: Any = task_runner.RuntimeTaskInstance
        return kind.model_construct(
            # A UUIDv7 begins with the time at which it was made.
            id=UUID(int=found["id"] << 80),
            task_id=task.task_id,
            dag_id=dag_id,
            run_id=run_id,
            try_number=found["try"],
            dag_version_id=UUID(int=0),
            map_index=-1,
            task=task,
            max_tries=99,
            start_date=START,
            is_mapped=False,
            _ti_context_from_server=server,
            context_carrier={},
        )


def work(airflow: Airflow, run_id: str, store: Store, process: int, slots: int) -> None:
    """Run the tasks of a DAG run to their ends, whatever became of earlier processes that began to."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    changed: list[tuple[Any, str, Any]] = [
        (task_runner, "SUPERVISOR_COMMS", airflow),
        (hook_module, "open_store", lambda settings: store),
        # The waits of real life would be most of a play.
        (driving, "INLINE_S", 0.0),
        (dag_runs, "LOOKS", QUICK),
    ]
    for module, name, value in changed:
        setattr(module, name, value)
    Worker(airflow, process, slots).work(run_id)


def told(airflow: Airflow, run_id: str) -> Iterator[list[Any]]:
    """Say what Airflow was told: how each task ended, what it returned, and which DAG runs were triggered for what."""
    for task_id in ("spawn", "load"):
        returned = airflow.read("xcom", DAG_ID, run_id, task_id, "return_value")
        yield [task_id, airflow.read("task", DAG_ID, run_id, task_id)["state"], *_results(returned)]
    # Which of two children is first to have its DAG run triggered is a matter of chance.
    yield sorted([key[1], *_purpose(airflow.read(*key))] for key in airflow.keys("run"))


def _purpose(run: Any) -> list[str]:
    conf = run["conf"]
    return [run["state"], conf.get("source") or f"{len(conf['childrun']['run_ids'])} children"]


def _results(returned: Any) -> list[Any]:
    return [[result["key"], result["status"], result["output"]] for result in returned or []]
