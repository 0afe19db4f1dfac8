"""The example ``ingest`` as the kill test needs it: the same operation, many tries one second apart, two children at a time."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG

from airflow_childrun import SpawnChildRunOperator
from dags_examples.ingest import ingest

with DAG("stand_ingest", schedule=None, render_template_as_native_obj=True):
    SpawnChildRunOperator(
        task_id="ingest",
        operation=ingest,
        inputs="{{ dag_run.conf['sources'] }}",
        child_key=str,
        max_concurrency=2,
        retries=60,
        retry_delay=timedelta(seconds=1),
    )
