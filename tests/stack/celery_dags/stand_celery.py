"""Two hundred children on Celery workers; which worker did what stands in their outputs."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from typing import Any
from urllib.request import urlopen

from airflow.sdk import DAG

from airflow_childrun import SpawnChildRunOperator, childrun_runner_dag, operation

CALLS = 3


@operation(version="1")
def haul(io: Any, item: str) -> dict[str, Any]:
    """Ask the witness a few times; say who asked."""
    keys = [f"{item}/{number}" for number in range(CALLS)]
    return {"item": item, "workers": [io.step(ask, key, io.idempotency_token(key), key=key) for key in keys]}


def ask(key: str, token: str) -> str:
    """Ask the witness, and return on which worker that was."""
    url = f"{os.environ['CHILDRUN_WITNESS']}/call/{key}?pid={os.getpid()}&token={token}"
    with urlopen(url) as answer:  # noqa: S310 - the witness
        json.load(answer)
    return os.environ["CHILDRUN_WORKER"]


childrun_runner_dag("stand_celery_runner", operations=[haul], max_concurrency=4, retry_delay=timedelta(seconds=1))

with DAG("stand_celery", schedule=None, render_template_as_native_obj=True):
    SpawnChildRunOperator(
        task_id="haul",
        operation=haul,
        inputs="{{ dag_run.conf['items'] }}",
        dispatch="dag_run",
        runner_dag_id="stand_celery_runner",
        batch_size=10,
        retry_delay=timedelta(seconds=1),
    )
