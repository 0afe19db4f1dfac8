"""A DAG as the child: operations whose run triggers a DAG run, looks after it, and records how it ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, get_args

from airflow_childrun.authoring.operation import Operation
from airflow_childrun.authoring.steps import Looks
from airflow_childrun.errors import HostError, InputError
from airflow_childrun.hooks.dag_run_steps import (
    PARENT,
    clear_failed_tasks,
    end_of_dag_run,
    fail_dag_run,
    failed_tasks,
    is_paused,
    missing,
    read_result,
    trigger_dag_run,
)
from airflow_childrun.model.config import Duration, Exponential, RetryPolicy, RunConfig
from airflow_childrun.model.requests import ClosePolicy
from airflow_childrun.runtime.generations import DAG_RUN_OPERATION

VERSION = "1"
RETURN_VALUE = "return_value"
SHOWN = 5
# Looks after 5, 15, 35, 75 s and so on: a worker learns of the end two minutes late at most, the triggerer sooner.
LOOKS = RetryPolicy(max_attempts=2**31, backoff=Exponential(base_delay=Duration(secs=5), max_delay=Duration(secs=120)))
ASKS = RetryPolicy(max_attempts=6, backoff=Exponential(base_delay=Duration(secs=1), max_delay=Duration(secs=30)))

DAG_RUN = Operation(DAG_RUN_OPERATION, version=VERSION)
"""Without credentials: a DAG run that failed stays failed, and one that nobody wants any more goes on."""

DAG_RUN_OVER_API = Operation(f"{DAG_RUN_OPERATION}_over_api", version=VERSION)
"""With the REST API: what failed is cleared, and what nobody wants any more is ended."""


@dataclass
class DagChild:
    """A DAG to be spawned: stands where an operation does; an input is the conf of a DAG run.

    :param result_task_id: the task whose XCom is the child's output
    :param api_conn_id: connection to Airflow's REST API
    """

    dag_id: str
    result_task_id: str | None = None
    result_key: str = RETURN_VALUE
    api_conn_id: str | None = None
    name: str = field(init=False)
    version: str = field(init=False)
    run_config: RunConfig = field(init=False)

    def __post_init__(self) -> None:
        """Stand for the operation that does what the credentials allow."""
        self._operation = DAG_RUN if self.api_conn_id is None else DAG_RUN_OVER_API
        self.name, self.version = self._operation.name, self._operation.version
        self.run_config = self._operation.run_config

    def encode_input(self, element: Any) -> Any:
        """Return the input of a run whose DAG run is to have ``element`` as its conf.

        :raises InputError: codes ``dag_conf_invalid``, ``value_not_encodable``
        """
        if element is not None and not isinstance(element, dict):
            raise InputError(
                f"the conf of a run of DAG {self.dag_id!r} is of type {type(element).__name__}: give an object",
                code="dag_conf_invalid",
            )
        wanted = {"dag_id": self.dag_id, "conf": element or {}}
        if self.api_conn_id is not None:
            wanted["api_conn_id"] = self.api_conn_id
        if self.result_task_id is not None:
            wanted |= {"result_task_id": self.result_task_id, "result_key": self.result_key}
        return self._operation.encode_input(wanted)

    def decode_output(self, value: Any) -> Any:
        """Return what the task pushed."""
        return value


def check_dag_child(child: DagChild, policy: ClosePolicy | None) -> ClosePolicy:
    """Return what becomes of children when their task ends badly.

    :param child: without ``dag_id``: the children are no DAG runs
    :param policy: what their author wants; None = what is usual
    :raises InputError: codes ``dag_argument_alone``, ``dag_cancel_needs_api``, ``argument_invalid``
    """
    if not child.dag_id:
        if child != DagChild("") or policy is not None:
            raise InputError(
                "result_task_id, result_key, airflow_api_conn_id and parent_close_policy belong to dag_id=",
                code="dag_argument_alone",
            )
        return "cancel"
    if policy is None:
        return "abandon" if child.api_conn_id is None else "cancel"
    if policy not in get_args(ClosePolicy):
        raise InputError(f"parent_close_policy is {policy!r}; it takes cancel, abandon", code="argument_invalid")
    if policy == "cancel" and child.api_conn_id is None:
        raise InputError(
            'parent_close_policy="cancel" needs airflow_api_conn_id=: a task may trigger and look at DAG runs, but not end '
            "them; give a connection to Airflow's REST API, or leave the policy out",
            code="dag_cancel_needs_api",
        )
    return policy


@DAG_RUN_OVER_API.state
@DAG_RUN.state
def dag_run_id(io: Any) -> str:
    """Name the DAG run: the same for whoever goes on with this child, another one for a child that starts afresh."""
    return f"childrun__{io.idempotency_token('dag run')}"


@DAG_RUN_OVER_API.state(side_effects="ApplySideEffect", idempotency="the id of the DAG run")
@DAG_RUN.state(side_effects="ApplySideEffect", idempotency="the id of the DAG run")
def trigger(io: Any, dag_id: str, conf: dict[str, Any], dag_run_id: str) -> None:
    """Trigger the DAG run; the nonce tells it from one that an earlier life of this store asked for."""
    if io.step(is_paused, dag_id, retry=ASKS):
        raise HostError(
            f"DAG {dag_id!r} is paused: its run would never start. Unpause it; a retry of this task triggers it then",
            code="dag_paused",
            retryable=True,
        )
    above = io.airflow or {}
    parent = {"dag_id": above.get("dag_id"), "run_id": above.get("run_id"), "nonce": io.random_bytes(8).hex()}
    io.step(trigger_dag_run, dag_id, dag_run_id, {**conf, PARENT: parent}, key="trigger", retry=ASKS)


@DAG_RUN.state(after="trigger")
def output(
    io: Any, dag_id: str, dag_run_id: str, result_task_id: str | None = None, result_key: str = RETURN_VALUE
) -> Any:
    """Wait for the end."""
    end = io.step(end_of_dag_run, dag_id, dag_run_id, key="end", retry=looks(dag_id, dag_run_id))
    if end == "missing":
        text = f"{missing(dag_id, dag_run_id)}; a retry of this task triggers another one"
        raise HostError(text, code="dag_run_missing", retryable=True)
    if end == "failed":
        raise dag_run_failed(io, dag_id, dag_run_id)
    return result_of(io, dag_id, dag_run_id, result_task_id, result_key)


def looks(dag_id: str, dag_run_id: str) -> Looks:
    """Return how a DAG run is looked at: here now and then, or by the triggerer in place of its task."""
    return Looks(LOOKS, {"dag_id": dag_id, "dag_run_id": dag_run_id})


def dag_run_failed(io: Any, dag_id: str, dag_run_id: str) -> HostError:
    """Return the error of a DAG run that failed, naming its failed tasks."""
    tasks = io.step(failed_tasks, dag_id, dag_run_id, retry=ASKS)
    told = ", ".join(tasks[:SHOWN]) + (f" and {len(tasks) - SHOWN} more" if len(tasks) > SHOWN else "")
    return HostError(
        f"DAG run {dag_run_id} of DAG {dag_id!r} failed" + (f" in {told}" if told else ""),
        code="dag_run_failed",
        retryable=True,
    )


def result_of(io: Any, dag_id: str, dag_run_id: str, task_id: str | None, key: str) -> Any:
    """Return what a task of a DAG run pushed."""
    return None if task_id is None else io.step(read_result, dag_id, dag_run_id, task_id, key, key="result", retry=ASKS)


def _over_api() -> None:
    """Declare what credentials make possible: these states have the names of those above."""

    def output(
        io: Any,
        dag_id: str,
        dag_run_id: str,
        api_conn_id: str,
        result_task_id: str | None = None,
        result_key: str = RETURN_VALUE,
    ) -> Any:
        number = 1
        while True:
            # Whoever comes back to an end that is known clears what failed.
            was_known = io.get_recorded_fact(f"output/end {number}") is not None
            end = io.step(end_of_dag_run, dag_id, dag_run_id, key=f"end {number}", retry=looks(dag_id, dag_run_id))
            if end == "success":
                return result_of(io, dag_id, dag_run_id, result_task_id, result_key)
            if end == "missing":
                text = f'{missing(dag_id, dag_run_id)}; clear with on_clear="respawn" to have another one'
                raise HostError(text, code="dag_run_missing")
            if not was_known:
                raise dag_run_failed(io, dag_id, dag_run_id)
            io.step(clear_failed_tasks, api_conn_id, dag_id, dag_run_id, key=f"clear {number}", retry=ASKS)
            number += 1

    def stop(io: Any, ctx: Any, dag_id: str, api_conn_id: str) -> None:
        named = ctx.read("dag_run_id")
        if named is not None:
            io.step(fail_dag_run, api_conn_id, dag_id, named, key="stop", retry=ASKS)

    DAG_RUN_OVER_API.state(after="trigger")(output)
    DAG_RUN_OVER_API.on_cancel(stop)


_over_api()
