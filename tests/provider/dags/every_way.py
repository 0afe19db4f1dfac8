"""The operators in every way in which a DAG may use them; run by tests/provider/test_operators.py."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Param, get_current_context, task

from airflow_childrun import AwaitChildRunOperator, ChildRunHook, SpawnChildRunOperator, operation
from airflow_childrun.errors import StateError
from airflow_childrun.hooks.elements import SpawnOrder

MARKS = Path(os.environ.get("CHILDRUN_TEST_MARKS", "/nonexistent"))
DEFAULTS = {"retries": 0}


def mark(name: str) -> int:
    """Count how often something was done, over processes; return the count."""
    with (MARKS / name).open("a") as file:
        file.write("x")
    return (MARKS / name).stat().st_size


@operation(version="1")
def double(io: Any, number: int) -> int:
    """Return twice the number."""
    io.step(mark, f"double-{number}")
    return number * 2


@operation(version="1")
def lookup(io: Any, customer: dict[str, Any]) -> str:
    """Return the customer's name and what Airflow said of the run."""
    return f"{customer['name']} in {io.airflow['dag_id']}"


@operation(version="1")
def halve(io: Any, number: int) -> int:
    """Fail for odd numbers, for good."""
    if number % 2:
        raise StateError(f"{number} is odd", code="odd")
    return number // 2


@operation(version="1")
def flaky(io: Any, name: str) -> str:
    """Fail the first time, in a way that another try may mend."""
    io.step(mark, f"{name}-before")
    if mark(name) < 2:
        message = "not yet"
        raise ConnectionError(message)
    return "at last"


@operation(version="1")
def large(io: Any, size: int) -> str:
    """Return a long text."""
    return "x" * size


with DAG("plain", schedule=None, default_args=DEFAULTS):
    SpawnChildRunOperator(task_id="one", operation=double, input=21)
    SpawnChildRunOperator(task_id="many", operation=double, inputs=[3, 1, 3])
    SpawnChildRunOperator(task_id="nothing", operation=double, inputs=[])
    SpawnChildRunOperator(
        task_id="objects", operation=lookup, inputs=[{"id": 1, "name": "ann"}, {"id": 2, "name": "bo"}], child_key="id"
    )
    SpawnChildRunOperator(task_id="named", op_id="double", op_version="1", input=4)
    SpawnChildRunOperator(task_id="shared", op_id="shared_triple", op_version="1", input=5)

    @task
    def by_hand() -> list[int]:
        """Spawn, look, await."""
        hook, context = ChildRunHook(), get_current_context()
        handles = hook.spawn(context, SpawnOrder(double, [1, 2]))
        assert [hook.get_run(handle["child_run_id"]).status for handle in handles] == ["Pending", "Pending"]
        return [result["output"] for result in hook.await_runs(context, handles)]

    by_hand()

    @task
    def read(results: list[dict[str, Any]]) -> list[int]:
        """Read what the references name."""
        return [len(ChildRunHook().read_output(result)) for result in results]

    referred = SpawnChildRunOperator(
        task_id="referred", operation=large, inputs=[600_000, 600_001], results="references"
    )
    read(referred.output)

with DAG("xcom_args", schedule=None, default_args=DEFAULTS):

    @task
    def customers() -> list[dict[str, Any]]:
        """Return the list."""
        return [{"id": 1, "name": "ann"}, {"id": 2, "name": "bo"}]

    @task
    def numbers() -> list[int]:
        """Return numbers."""
        return [1, 2]

    @task
    def show(results: list[dict[str, Any]]) -> list[Any]:
        """Return the outputs."""
        return [result["output"] for result in results]

    listed = SpawnChildRunOperator(task_id="listed", operation=lookup, inputs=customers(), child_key="id")
    show(listed.output)
    mapped = SpawnChildRunOperator.partial(task_id="mapped", operation=double).expand(input=numbers())
    show.override(task_id="show_mapped")(mapped.output)
    SpawnChildRunOperator.partial(task_id="mapped_lists", operation=double).expand(inputs=[[1], [2, 3], []])

with DAG("apart", schedule=None, default_args=DEFAULTS):
    spawned = SpawnChildRunOperator(task_id="spawned", operation=double, inputs=[5, 6], wait_for_completion=False)
    single = SpawnChildRunOperator(task_id="single", operation=double, input=7, wait_for_completion=False)
    AwaitChildRunOperator(task_id="awaited", child_runs=spawned.output)
    AwaitChildRunOperator(task_id="awaited_one", child_runs=single.output)
    AwaitChildRunOperator.partial(task_id="awaited_each").expand(child_runs=spawned.output)
    each = SpawnChildRunOperator.partial(task_id="each", operation=double, wait_for_completion=False).expand(
        input=[8, 9]
    )
    AwaitChildRunOperator.partial(task_id="awaited_mapped").expand(child_runs=each.output)

with DAG("refused", schedule=None, default_args=DEFAULTS):
    SpawnChildRunOperator(task_id="raising", operation=halve, inputs=[4, 3, 5], retries=2)
    SpawnChildRunOperator(task_id="returning", operation=halve, inputs=[4, 3], failure_mode="return")
    SpawnChildRunOperator(task_id="too_large", operation=large, inputs=[600_000, 600_001], retries=2)
    SpawnChildRunOperator(task_id="unknown", op_id="no_such", op_version="1", input=1, retries=2)
    SpawnChildRunOperator(task_id="unfit", operation=double, inputs=[1, "two"], retries=2)
    alone = SpawnChildRunOperator(task_id="alone", operation=double, input=77, wait_for_completion=False, retries=2)
    SpawnChildRunOperator(task_id="after", operation=double, input=78) << alone

with DAG("retried", schedule=None):
    SpawnChildRunOperator(task_id="flaky", operation=flaky, input="flaky", retry_delay=0)

NUMBERS = {"numbers": Param([1, 2], type="array")}

with DAG("templated", schedule=None, default_args=DEFAULTS, params=NUMBERS, render_template_as_native_obj=True):
    on_clear = "{{ 'reuse' if params.numbers else 'auto' }}"
    SpawnChildRunOperator(task_id="native", operation=double, inputs="{{ params.numbers }}", on_clear=on_clear)

with DAG("templated_text", schedule=None, default_args=DEFAULTS, params=NUMBERS):
    SpawnChildRunOperator(task_id="text", operation=double, inputs="{{ params.numbers }}")
