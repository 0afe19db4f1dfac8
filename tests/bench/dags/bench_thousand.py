"""A thousand children of one state, 1 KiB in and 1 KiB out."""

from __future__ import annotations

from typing import Any

from airflow.sdk import DAG, task

from airflow_childrun import SpawnChildRunOperator, operation

SIZE = 1024


@operation(version="1")
def echo(text: str) -> str:
    """Return as much as was given."""
    return text[::-1]


with DAG("stand_thousand", schedule=None) as dag:

    @task
    def texts(dag_run: Any = None) -> list[str]:
        """Make inputs of 1 KiB, each another one."""
        return [f"{number:08}".ljust(SIZE, "x") for number in range(dag_run.conf["count"])]

    # 1,000 results of 1 KiB take a little more than the 1 MiB that XCom gets by default, so references come back.
    children = SpawnChildRunOperator(task_id="children", operation=echo, inputs=texts(), results="references")

    @task
    def check(results: Any) -> int:
        """Read every output, and return how many are right."""
        from airflow_childrun import ChildRunHook

        hook = ChildRunHook()
        outputs = [hook.read_output(result) for result in results]
        right = [f"{number:08}".ljust(SIZE, "x")[::-1] for number in range(len(results))]
        return sum(output == wanted for output, wanted in zip(outputs, right, strict=True))

    check(children.output)
