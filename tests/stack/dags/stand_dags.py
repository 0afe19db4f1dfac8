"""DAGs of the stand: small ones, steered by the tests through files and through the witness."""

from __future__ import annotations

import json
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from airflow.sdk import DAG, BaseHook, task

from airflow_childrun import (
    AwaitChildRunOperator,
    Operation,
    SpawnChildRunOperator,
    childrun_maintenance_dag,
    operation,
)

ALWAYS: dict[str, Any] = {"retries": 8, "retry_delay": timedelta(seconds=1)}
NEVER: dict[str, Any] = {"retries": 0}


def ask(key: str, token: str = "") -> int:
    """Ask the witness, who counts."""
    with urlopen(f"{os.environ['CHILDRUN_WITNESS']}/call/{key}?pid={os.getpid()}&token={token}") as answer:  # noqa: S310 - the witness
        return int(json.load(answer)["count"])


def has_flag(name: str) -> bool:
    """Whether a test put a flag up."""
    return (Path(os.environ["CHILDRUN_STAND"]) / "flags" / name.replace("/", "_")).exists()


# Three states: what the first two did stands at a checkpoint when the third fails.
work = Operation("work", version="1")


@work.state
def fetch(io: Any, item: str) -> str:
    """Ask for the item."""
    io.step(ask, f"{io.airflow['run_id']}/{item}/fetch", key="fetch")
    return item.upper()


@work.state
def check(io: Any, fetch: str) -> str:
    """Ask again."""
    io.step(ask, f"{io.airflow['run_id']}/{fetch}/check", key="check")
    return f"{fetch} checked"


@work.state
def store(io: Any, check: str) -> str:
    """Fail while the flag is up."""
    name = check.split(maxsplit=1)[0]
    if has_flag(f"{io.airflow['run_id']}/{name}"):
        raise RuntimeError(f"the warehouse refuses {name}")
    io.step(ask, f"{io.airflow['run_id']}/{name}/store", key="store")
    return f"{check}, stored"


@operation(version="1")
def square(io: Any, number: int) -> int:
    """Square a number, durably."""
    return int(io.step(multiply, number, number))


def multiply(one: int, other: int) -> int:
    """Multiply."""
    return one * other


@operation(version="1")
def greet(io: Any, number: int) -> str:
    """Use Airflow's channel from a child's thread."""
    return str(io.step(host_of, number))


def host_of(number: int) -> str:
    """Ask Airflow for a connection."""
    found = BaseHook.get_connection("childrun_default")
    return f"{number} {found.conn_type}"


@operation(version="1")
def large(io: Any, size: int) -> str:
    """Return a large text."""
    return "x" * size


@operation(version="1")
def parcel(number: int) -> int:
    """Do nothing, many times."""
    return number


@operation(version="1")
def patient(io: Any, item: str) -> str:
    """Ask twice; the witness answers when the test wants it."""
    name = f"{io.airflow['run_id']}/{item}"
    first = io.step(ask_with, f"{name}/first", io.idempotency_token("first"), key="first")
    second = io.step(ask_with, f"{name}/second", io.idempotency_token("second"), key="second")
    return f"{first} {second}"


def ask_with(key: str, token: str) -> str:
    """Ask the witness, and say which call it is."""
    ask(key, token)
    return key.rpartition("/")[2]


with DAG("stand_ordered", schedule=None) as ordered:

    @task
    def numbers() -> list[int]:
        """Make the list."""
        return list(range(20, 0, -1))

    @task
    def total(results: Any) -> int:
        """Add up."""
        return sum(result["output"] for result in results)

    squares = SpawnChildRunOperator(task_id="squares", operation=square, inputs=numbers())
    total(squares.output)

with DAG("stand_mapped", schedule=None):
    SpawnChildRunOperator.partial(task_id="squares", operation=square).expand(input=[3, 1, 2])

with DAG("stand_connections", schedule=None):
    SpawnChildRunOperator(task_id="greetings", operation=greet, inputs=list(range(50)), retries=0)

with DAG("stand_work", schedule=None, render_template_as_native_obj=True):
    SpawnChildRunOperator(
        task_id="work",
        operation=work,
        inputs="{{ dag_run.conf['items'] }}",
        on_clear="{{ dag_run.conf.get('policy', 'auto') }}",
        **ALWAYS,
    )

with DAG("stand_once", schedule=None, render_template_as_native_obj=True):
    once = SpawnChildRunOperator(
        task_id="work",
        operation=work,
        inputs="{{ dag_run.conf['items'] }}",
        on_clear="{{ dag_run.conf.get('policy', 'auto') }}",
        **NEVER,
    )

    @task(retries=0)
    def read(results: Any) -> int:
        """Count."""
        return len(results)

    read(once.output)

with DAG("stand_apart", schedule=None, render_template_as_native_obj=True):
    spawned = SpawnChildRunOperator(
        task_id="spawn",
        operation=work,
        inputs="{{ dag_run.conf['items'] }}",
        wait_for_completion=False,
        **NEVER,
    )
    AwaitChildRunOperator(task_id="await", child_runs=spawned.output, **NEVER)

with DAG("stand_large", schedule=None):
    SpawnChildRunOperator(task_id="large", operation=large, inputs=[700_000, 700_001], **NEVER)

with DAG("stand_daily", schedule="@daily", start_date=datetime(2026, 1, 1, tzinfo=UTC), catchup=False):
    SpawnChildRunOperator(task_id="work", operation=work, input="daily", **NEVER)

with DAG("stand_parcels", schedule=None):
    SpawnChildRunOperator(task_id="parcels", operation=parcel, inputs=list(range(260)), **ALWAYS)

with DAG("stand_patient", schedule=None):
    SpawnChildRunOperator(task_id="patient", operation=patient, inputs=["a"], **ALWAYS)

with DAG("stand_left", schedule=None, default_args=NEVER):

    @task
    def fails() -> None:
        """Keep the awaiting task from running."""
        message = "the warehouse burns"
        raise RuntimeError(message)

    left = SpawnChildRunOperator(task_id="spawn", operation=square, inputs=[1, 2], wait_for_completion=False)
    left >> fails() >> AwaitChildRunOperator(task_id="await", child_runs=left.output)

stand_maintenance = childrun_maintenance_dag("stand_maintenance", schedule=None, older_than=None)


@operation(version="1")
def nap(io: Any, seconds: int) -> int:
    """Ask, sleep, ask."""
    name = f"{io.airflow['run_id']}/{seconds}"
    io.step(ask, f"{name}/before", key="before")
    io.sleep(seconds)
    return int(io.step(ask, f"{name}/after", key="after"))


with DAG("stand_naps", schedule=None):
    SpawnChildRunOperator(task_id="naps", operation=nap, inputs=[75, 76], deferrable=True, **NEVER)

with DAG("stand_long_naps", schedule=None):
    SpawnChildRunOperator(task_id="naps", operation=nap, inputs=[3600], deferrable=True, **NEVER)

with DAG("stand_shared", schedule=None, default_args=NEVER):
    shared = SpawnChildRunOperator(task_id="spawn", operation=patient, inputs=["a"], wait_for_completion=False)

    @task
    def driven(run_id: str | None = None) -> None:
        """Wait until somebody drives the child."""
        while not has_flag(f"{run_id}/driven"):
            time.sleep(0.1)

    @task
    def count(result: Any) -> str:
        """Return an output."""
        return str(result["output"])

    AwaitChildRunOperator(task_id="drives", child_runs=shared.output)
    defers: dict[str, Any] = {"child_runs": shared.output, "deferrable": True}
    later = driven()
    later >> AwaitChildRunOperator(task_id="comes_back", **defers)
    later >> AwaitChildRunOperator(task_id="ends_there", end_from_trigger=True, **defers)
    mapped_over = AwaitChildRunOperator(task_id="mapped_over", end_from_trigger=True, **defers)
    later >> mapped_over
    count.expand(result=mapped_over.output)

with DAG("stand_parked", schedule=None, default_args=NEVER):
    # Children that nobody drives: the await behind them has no chance.
    parked = SpawnChildRunOperator(
        task_id="spawn", operation=parcel, inputs=list(range(1000)), wait_for_completion=False
    )
    parked >> fails() >> AwaitChildRunOperator(task_id="await", child_runs=parked.output)
