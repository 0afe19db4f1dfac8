"""A second file with an operation called ``double``, which is another one."""

from __future__ import annotations

from typing import Any

from airflow.sdk import DAG

from airflow_childrun import Operation, SpawnChildRunOperator

double = Operation("double", version="1")


@double.state
def thousandfold(io: Any, number: int) -> int:
    """Return a thousand times the number."""
    return number * 1000


with DAG("same_name", schedule=None, default_args={"retries": 0}):
    SpawnChildRunOperator(task_id="other", operation=double, input=2)
    SpawnChildRunOperator(task_id="other_named", op_id="double", op_version="1", input=3)
