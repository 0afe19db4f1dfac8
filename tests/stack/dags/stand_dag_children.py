"""DAGs whose children are DAG runs."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, task

from airflow_childrun import AwaitChildRunOperator, SpawnChildRunOperator

ONCE: dict[str, Any] = {"retries": 0}
TWICE: dict[str, Any] = {"retries": 1, "retry_delay": timedelta(seconds=1)}

with DAG("stand_load", schedule=None):

    @task(retries=0)
    def extract(dag_run: Any = None) -> int:
        """Count."""
        return len(dag_run.conf["source"])

    @task(retries=0)
    def load(rows: Any, dag_run: Any = None) -> int:
        """Fail while the flag of the source is up."""
        if (Path(os.environ["CHILDRUN_STAND"]) / "flags" / f"load_{dag_run.conf['source']}").exists():
            raise RuntimeError("the warehouse is closed")
        return int(rows)

    load(extract())

with DAG("stand_load_paused", schedule=None, is_paused_upon_creation=True):
    SpawnChildRunOperator(task_id="never", dag_id="stand_load", **ONCE)

with DAG("stand_load_all", schedule=None, render_template_as_native_obj=True):
    SpawnChildRunOperator(
        task_id="load",
        dag_id="stand_load",
        inputs="{{ dag_run.conf['sources'] }}",
        child_key="source",
        result_task_id="load",
        **TWICE,
    )

with DAG("stand_load_over_api", schedule=None):
    SpawnChildRunOperator(
        task_id="load",
        dag_id="stand_load",
        input={"source": "over api"},
        result_task_id="load",
        airflow_api_conn_id="stand_api",
        **TWICE,
    )

with DAG("stand_load_apart", schedule=None):
    begun = SpawnChildRunOperator(
        task_id="begin", dag_id="stand_load", input={"source": "apart"}, wait_for_completion=False, **ONCE
    )
    AwaitChildRunOperator(task_id="await", child_runs=begun.output, **ONCE)

with DAG("stand_load_named", schedule=None):
    SpawnChildRunOperator(task_id="paused", dag_id="stand_load_paused", **ONCE)
    SpawnChildRunOperator(task_id="missing", dag_id="stand_no_such_dag", **ONCE)

with DAG("stand_slow_load", schedule=None):

    @task.sensor(poke_interval=10, mode="reschedule", retries=0)
    def wait(dag_run: Any = None) -> bool:
        """Wait while the flag of the source is up; no worker is taken between two looks."""
        return not (Path(os.environ["CHILDRUN_STAND"]) / "flags" / f"slow_{dag_run.conf['source']}").exists()

    wait() >> load(extract())

with DAG("stand_load_deferred", schedule=None, render_template_as_native_obj=True):
    SpawnChildRunOperator(
        task_id="load",
        dag_id="stand_slow_load",
        inputs="{{ dag_run.conf['sources'] }}",
        child_key="source",
        result_task_id="load",
        deferrable=True,
        **ONCE,
    )
