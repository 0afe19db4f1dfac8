"""Twenty pieces of work of two calls each, done by child runs and by ``TriggerDagRunOperator``."""

from __future__ import annotations

import os
from typing import Any
from urllib.request import urlopen

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import DAG, task

from airflow_childrun import SpawnChildRunOperator, childrun_runner_dag, operation

NUMBERS = range(20)


def ask(name: str) -> str:
    """Ask the bench's own server, which answers at once."""
    with urlopen(f"{os.environ['CHILDRUN_WITNESS']}/call/{name}") as answer:  # noqa: S310 - the witness
        answer.read()
    return name


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

# The same work done as Airflow does it: a DAG run per item, awaited by a mapped operator.
with DAG("bench_peer_item", schedule=None, max_active_runs=50):

    @task
    def carry(dag_run: Any = None) -> str:
        """Ask twice."""
        return " ".join(ask(f"{dag_run.conf['item']}/{name}") for name in ("first", "second"))

    carry()


def trigger_all(*, deferrable: bool) -> None:
    """Trigger and await a DAG run per item."""
    TriggerDagRunOperator.partial(
        task_id="work",
        trigger_dag_id="bench_peer_item",
        logical_date=None,
        wait_for_completion=True,
        poke_interval=1,
        deferrable=deferrable,
    ).expand(conf=[{"item": f"peer/{number}"} for number in NUMBERS])


with DAG("bench_peer_deferring", schedule=None):
    trigger_all(deferrable=True)

with DAG("bench_peer_waiting", schedule=None):
    trigger_all(deferrable=False)
