"""Twenty pieces of work of two calls each, as Airflow does them: a DAG run per item, awaited by a mapped operator.

A file of its own: each process of these tasks parses it, and ours is not in it.
"""

from __future__ import annotations

from typing import Any

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import DAG, task

from tests.bench.work_item import NUMBERS, ask

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
