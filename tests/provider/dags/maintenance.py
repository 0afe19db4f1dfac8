"""Children that nobody drives, and the DAG that tidies up; run by tests/provider/test_maintenance.py."""

from __future__ import annotations

from typing import Any

from airflow.sdk import DAG, task

from airflow_childrun import AwaitChildRunOperator, SpawnChildRunOperator, childrun_maintenance_dag, operation
from airflow_childrun.operators.maintenance import RecoverChildRunsOperator


@operation(version="1")
def twice(number: int) -> int:
    """Return it doubled."""
    return number * 2


def spawn() -> SpawnChildRunOperator:
    """Spawn two children for somebody else to drive."""
    return SpawnChildRunOperator(task_id="spawn", operation=twice, inputs=[1, 2], wait_for_completion=False)


with DAG("swept_while_open", schedule=None):
    spawned = spawn()
    awaited = AwaitChildRunOperator(task_id="await", child_runs=spawned.output)
    spawned >> RecoverChildRunsOperator(task_id="recover") >> awaited

with DAG("left_behind", schedule=None, default_args={"retries": 0}):

    @task
    def fails() -> Any:
        """Keep the awaiting task from running."""
        message = "the warehouse burns"
        raise RuntimeError(message)

    spawned = spawn()
    spawned >> fails() >> AwaitChildRunOperator(task_id="await", child_runs=spawned.output)

maintenance = childrun_maintenance_dag(schedule="@hourly", older_than=None, tags=["childrun"])
