"""The runner DAG: its DAG runs drive child runs on whatever executor Airflow has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from airflow_childrun._airflow import DAG, BaseOperator, Context
from airflow_childrun.authoring.operation import Operation
from airflow_childrun.authoring.registry import Place
from airflow_childrun.errors import ChildRunError, InputError
from airflow_childrun.hooks.childrun import ChildRunHook
from airflow_childrun.hooks.dispatching import ERROR_KEY, RUNNER_TASK_ID, RUNNERS, Runner, keys_of, operation_tag
from airflow_childrun.hooks.runner import read_conf
from airflow_childrun.hooks.settings import DEFAULT_CONN_ID
from airflow_childrun.operators.childrun import DEFAULT_RETRIES
from airflow_childrun.operators.deferring import fail_task

RETRY_DELAY = timedelta(seconds=10)
"""Airflow's five minutes would be the time that a lost worker costs."""
TAG = "childrun"


class DriveChildRunsOperator(BaseOperator):
    """Drives the child runs that its DAG run's conf names, until each has ended, well or not.

    It is green once they have ended: what their ends mean is for the task that awaits them.

    :param operations: what it can drive, beside the operations of its DAG file and of the shared modules
    :param childrun_conn_id: connection of type ``childrun``
    :param max_concurrency: how many children of one DAG run work at the same time
    """

    ui_color = "#d7ecff"

    def __init__(
        self,
        *,
        operations: Sequence[Operation] = (),
        childrun_conn_id: str = DEFAULT_CONN_ID,
        max_concurrency: int | None = None,
        retries: int | None = DEFAULT_RETRIES,
        retry_delay: timedelta | float = RETRY_DELAY,
        **kwargs: Any,
    ) -> None:
        super().__init__(retries=retries, retry_delay=retry_delay, **kwargs)
        self.operations = tuple(operations)
        self.childrun_conn_id = childrun_conn_id
        self.max_concurrency = max_concurrency
        self._hook: ChildRunHook | None = None

    def execute(self, context: Context) -> dict[str, int]:
        """Drive; return how many children ended how."""
        self._hook = ChildRunHook(self.childrun_conn_id, self.max_concurrency)
        try:
            run_ids = read_conf(context["dag_run"].conf or {})
            rows = self._hook.drive(context, run_ids, self.operations)
        except ChildRunError as error:
            # Whoever awaits the children reads it there.
            context["ti"].xcom_push(key=ERROR_KEY, value=error.info.to_json())
            fail_task(error)
        return dict(Counter(row.status for row in rows))

    def on_kill(self) -> None:
        """Give up what this process drives, so that the next try goes on at once."""
        if self._hook is not None:
            self._hook.abandon()


def childrun_runner_dag(
    dag_id: str,
    *,
    operations: Sequence[Operation] = (),
    pool: str | None = None,
    queue: str | None = None,
    executor: str | None = None,
    priority_weight: int | None = None,
    max_active_runs: int | None = None,
    childrun_conn_id: str = DEFAULT_CONN_ID,
    max_concurrency: int | None = None,
    retries: int = DEFAULT_RETRIES,
    retry_delay: timedelta | float = RETRY_DELAY,
    executor_config: dict[str, Any] | None = None,
) -> DAG:
    """Make the DAG whose runs drive the children of tasks with ``dispatch="dag_run"``.

    It has one task, no schedule, and is not paused when Airflow first sees it.

    :param operations: what it can drive, beside the operations of its DAG file and of the modules that every worker imports
    :param pool: of the task, as ``queue``, ``executor``, ``priority_weight`` and ``executor_config``: Airflow's defaults
    :param max_active_runs: how many DAG runs work at the same time (default: Airflow's, 16)
    :param childrun_conn_id: connection of type ``childrun``, to the store of the tasks that dispatch
    :param max_concurrency: how many children of one DAG run work at the same time
    :param retries: of the task: a lost worker costs one; after the last, the awaiting task dispatches anew
    :raises InputError: code ``operation_invalid``
    """
    _check_operations(operations)
    dag = _empty_dag(dag_id, operations, max_active_runs)
    given = {"pool": pool, "queue": queue, "executor": executor, "priority_weight": priority_weight}
    with dag:
        DriveChildRunsOperator(
            task_id=RUNNER_TASK_ID,
            operations=operations,
            childrun_conn_id=childrun_conn_id,
            max_concurrency=max_concurrency,
            retries=retries,
            retry_delay=retry_delay,
            executor_config=executor_config,
            **{name: value for name, value in given.items() if value is not None},
        )
    RUNNERS[dag_id] = Runner(dag.fileloc, keys_of(operations))
    return dag


def _empty_dag(dag_id: str, operations: Sequence[Operation], max_active_runs: int | None) -> DAG:
    tags = {TAG, *(operation_tag(made.name, made.version) for made in operations)}
    limits: dict[str, Any] = {} if max_active_runs is None else {"max_active_runs": max_active_runs}
    dag = DAG(dag_id, schedule=None, catchup=False, is_paused_upon_creation=False, tags=tags, doc_md=_DOC, **limits)
    # Airflow takes the file of the nearest caller, which is this one.
    dag.fileloc = Place.of_caller(None).file
    return dag


def _check_operations(operations: Sequence[Any]) -> None:
    for made in operations:
        if not isinstance(made, Operation):
            raise InputError(
                f"operations has a {type(made).__name__}: decorate the function with @operation",
                code="operation_invalid",
            )


_DOC = """Drives child runs that tasks of other DAGs dispatch here. A DAG run's `conf` names its children; it is green once
they have ended, well or not: the task that awaits them says what their ends mean. Clear a DAG run to have what is left
of its children driven on."""
