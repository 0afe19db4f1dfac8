"""An operation plain, in ``.partial()`` and in ``default_args``: its DAG has the same hash in every process."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, Param

from airflow_childrun import AwaitChildRunOperator, Operation, SpawnChildRunOperator, operation


@operation(version="1")
def stable(io: Any, number: int) -> int:
    """Return the number."""
    return number


graph = Operation("stable_graph", version="3")


@graph.state
def only(number: int) -> int:
    """Return the number."""
    return number


def key_of(row: Any) -> Any:
    """Name an element."""
    return row["id"]


with DAG("stable_plain", schedule=None, params={"number": Param(1, **stable.input_schema())}):
    one = SpawnChildRunOperator(task_id="one", operation=stable, input=1, run_config={"skip_tags": ["x"]})
    many = SpawnChildRunOperator(
        task_id="many", operation=graph, inputs=[1, 2], child_key="id", wait_for_completion=False
    )
    named = SpawnChildRunOperator(task_id="named", op_id="stable", op_version="1", input=2)
    AwaitChildRunOperator(task_id="await", child_runs=many.output, retry_delay=timedelta(seconds=1))
    SpawnChildRunOperator(task_id="function_key", operation=stable, inputs=[{"id": 1}], child_key=key_of)

with DAG("stable_partial", schedule=None):
    mapped = SpawnChildRunOperator.partial(task_id="mapped", operation=stable, run_config={"skip_tags": ["x"]})
    mapped.expand(input=[1, 2])
    AwaitChildRunOperator.partial(task_id="await").expand(child_runs=[{}])

with DAG("stable_defaults", schedule=None, default_args={"operation": graph, "on_clear": "reuse"}):
    SpawnChildRunOperator(task_id="defaulted", input=1)
    SpawnChildRunOperator.partial(task_id="defaulted_mapped").expand(input=[1])
