"""What a child that is a DAG run asks of Airflow: each of these functions is a step."""

from __future__ import annotations

import logging
from typing import Any, Literal

from airflow_childrun import _airflow
from airflow_childrun.errors import HostError
from airflow_childrun.hooks.airflow_api import AirflowApi

_log = logging.getLogger("airflow.task.childrun")
PARENT = "childrun_parent"
"""Under which key a DAG run's conf tells who asked for it."""
ACTIVE = ("queued", "running")
End = Literal["success", "failed", "missing"]


def is_paused(dag_id: str) -> bool:
    """Whether a DAG's runs would not start.

    :raises HostError: codes ``dag_not_found``, ``airflow_unavailable``
    """
    return _airflow.describe_dag(dag_id)[0]


def trigger_dag_run(dag_id: str, run_id: str, conf: dict[str, Any]) -> None:
    """Make a DAG run; one that is there already must be the one that this very child has asked for before.

    :raises HostError: codes ``dag_not_found``, ``dag_refused``, ``dag_run_foreign``, ``airflow_unavailable``
    """
    if _airflow.trigger_dag_run(dag_id, run_id, conf):
        _log.info("DAG run %s of DAG %s was triggered", run_id, dag_id)
        return
    if _airflow.dag_run_conf(dag_id, run_id).get(PARENT) != conf[PARENT]:
        raise HostError(
            f"DAG {dag_id!r} has a run {run_id} that this child did not ask for: its conf names another parent. Was this "
            "child purged, or does another store use the same deployment_id? Delete that DAG run, or clear with "
            'on_clear="respawn"',
            code="dag_run_foreign",
        )
    _log.info("DAG run %s of DAG %s is there already, and ours", run_id, dag_id)


def end_of_dag_run(dag_id: str, run_id: str) -> End:
    """Return how a DAG run ended.

    :raises HostError: codes ``dag_run_active`` (look again), ``airflow_unavailable``
    """
    state = _airflow.dag_run_state(dag_id, run_id)
    if state is None:
        return "missing"
    if state not in ACTIVE:
        return "success" if state == "success" else "failed"
    if state == "queued" and is_paused(dag_id):
        _log.warning("DAG %s is paused: its run %s waits until somebody unpauses it", dag_id, run_id)
    raise HostError(f"DAG run {run_id} of DAG {dag_id!r} is {state}", code="dag_run_active", retryable=True)


def failed_tasks(dag_id: str, run_id: str) -> list[str]:
    """Return the tasks of a DAG run that failed themselves."""
    states = _airflow.task_states(dag_id, run_id)
    return sorted(task_id for task_id, state in states.items() if state == "failed")


def read_result(dag_id: str, run_id: str, task_id: str, key: str) -> Any:
    """Return what a task of the DAG run pushed; None if it pushed nothing."""
    return _airflow.read_xcom(dag_id, run_id, task_id, key)


def clear_failed_tasks(api_conn_id: str, dag_id: str, run_id: str) -> None:
    """Have a failed DAG run go on with what failed in it.

    :raises HostError: codes ``dag_run_missing``, ``api_refused``, ``airflow_unavailable``
    """
    if not AirflowApi(api_conn_id).clear_failed(dag_id, run_id):
        raise HostError(missing(dag_id, run_id), code="dag_run_missing")


def missing(dag_id: str, run_id: str) -> str:
    """Say that a DAG run is gone."""
    return f"DAG run {run_id} of DAG {dag_id!r} was deleted"


def fail_dag_run(api_conn_id: str, dag_id: str, run_id: str) -> None:
    """End a DAG run and its tasks.

    :raises HostError: codes ``api_refused``, ``airflow_unavailable``
    """
    AirflowApi(api_conn_id).fail_dag_run(dag_id, run_id)
