"""Children that DAG runs of a runner DAG drive; it stands in the same file, which is enough for it to know their operation."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from typing import Any
from urllib.request import urlopen

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import DAG, task

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

# The same work done as Airflow does it: a DAG run per item, awaited by a mapped operator.
with DAG("stand_peer_item", schedule=None, max_active_runs=50) as peer:

    @task
    def carry(dag_run: Any = None) -> str:
        """Ask twice."""
        return " ".join(ask(f"{dag_run.conf['item']}/{name}", "") for name in ("first", "second"))

    carry()

with DAG("stand_peer", schedule=None, render_template_as_native_obj=True):
    TriggerDagRunOperator.partial(
        task_id="work",
        trigger_dag_id="stand_peer_item",
        logical_date=None,
        wait_for_completion=True,
        poke_interval=1,
        deferrable=True,  # 20 that wait inline would hold every slot of the stand
    ).expand(conf=[{"item": f"peer/{number}"} for number in range(20)])
