"""A thousand children of one state, 1 KiB in and 1 KiB out, beside a DAG run of two tasks that do nothing."""

from __future__ import annotations

import resource
from typing import Any

from airflow.sdk import DAG, task

from airflow_childrun import SpawnChildRunOperator, operation

SIZE = 1024


@operation(version="1")
def echo(text: str) -> str:
    """Return as much as was given."""
    return text[::-1]


class Measured(SpawnChildRunOperator):
    """Says how much memory its process had at once, at most."""

    def execute(self, context: Any) -> Any:
        """Spawn, drive and await; then check the number of results and push the peak in MiB."""
        results = super().execute(context)
        if [result["status"] for result in results] != ["Completed"] * context["dag_run"].conf["count"]:
            raise RuntimeError("a child did not complete")
        context["ti"].xcom_push(key="peak_mib", value=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return results


with DAG("bench_thousand", schedule=None):

    @task
    def texts(dag_run: Any = None) -> list[str]:
        """Make inputs of 1 KiB, each another one."""
        return [f"{number:08}".ljust(SIZE, "x") for number in range(dag_run.conf["count"])]

    # 1,000 results of 1 KiB take a little more than the 1 MiB that XCom gets by default, so references come back.
    Measured(task_id="children", operation=echo, inputs=texts(), results="references")

with DAG("bench_empty", schedule=None):

    @task
    def nothing() -> None:
        """Do nothing."""

    nothing() >> nothing.override(task_id="nothing_again")()
