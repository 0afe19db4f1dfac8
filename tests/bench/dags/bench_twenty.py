"""Twenty pieces of work of two calls each, done by child runs; ``bench_peers`` has the same, done by DAG runs."""

from __future__ import annotations

from typing import Any

from airflow.sdk import DAG

from airflow_childrun import SpawnChildRunOperator, childrun_runner_dag, operation
from tests.bench.work_item import NUMBERS, ask


@operation(version="1")
def carried(io: Any, item: str) -> str:
    """Ask twice, and record both answers."""
    return " ".join(io.step(ask, f"{item}/{name}", key=name) for name in ("first", "second"))


childrun_runner_dag("bench_runner")

with DAG("bench_inline", schedule=None):
    SpawnChildRunOperator(task_id="work", operation=carried, inputs=[f"inline/{number}" for number in NUMBERS])

with DAG("bench_dag_run", schedule=None):
    SpawnChildRunOperator(
        task_id="work",
        operation=carried,
        inputs=[f"dag_run/{number}" for number in NUMBERS],
        dispatch="dag_run",
        runner_dag_id="bench_runner",
        batch_size=5,
    )
