"""Children that DAG runs of a runner DAG drive; it stands in the same file, which is enough for it to know their operation."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from typing import Any
from urllib.request import urlopen

from airflow.sdk import DAG

from airflow_childrun import AwaitChildRunOperator, SpawnChildRunOperator, childrun_runner_dag, operation


@operation(version="1")
def carried(io: Any, item: str) -> str:
    """Ask twice; the witness answers when the test wants it."""
    name = f"{io.airflow['run_id']}/{item}"
    first = io.step(ask, f"{name}/first", io.idempotency_token("first"), key="first")
    second = io.step(ask, f"{name}/second", io.idempotency_token("second"), key="second")
    return f"{first} {second}"


def ask(key: str, token: str) -> str:
    """Ask the witness, and say which call it is."""
    url = f"{os.environ['CHILDRUN_WITNESS']}/call/{key}?pid={os.getpid()}&token={token}"
    with urlopen(url) as answer:  # noqa: S310 - the witness
        json.load(answer)
    return key.rpartition("/")[2]


childrun_runner_dag("stand_runner", retries=1, retry_delay=timedelta(seconds=1))

ELSEWHERE: dict[str, Any] = {"dispatch": "dag_run", "runner_dag_id": "stand_runner"}

with DAG("stand_dispatched", schedule=None, render_template_as_native_obj=True):
    SpawnChildRunOperator(
        task_id="work",
        operation=carried,
        inputs="{{ dag_run.conf['items'] }}",
        batch_size=5,
        retries=1,
        retry_delay=timedelta(seconds=1),
        **ELSEWHERE,
    )

with DAG("stand_dispatched_apart", schedule=None, render_template_as_native_obj=True):
    spawned = SpawnChildRunOperator(
        task_id="spawn",
        operation=carried,
        inputs="{{ dag_run.conf['items'] }}",
        wait_for_completion=False,
        **ELSEWHERE,
    )
    AwaitChildRunOperator(task_id="await", child_runs=spawned.output, deferrable=True)
