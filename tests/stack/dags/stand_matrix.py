"""DAGs of the matrix: each cell is a DAG run of one of them; its children ask the witness twice and are two, ``b`` and ``a``."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from airflow.sdk import DAG, task

from airflow_childrun import AwaitChildRunOperator, Operation, SpawnChildRunOperator

LIST = "{{ items_of(run_id) }}"
POLICY = "{{ dag_run.conf.get('policy', 'auto') }}"
TRIES: dict[str, Any] = {"retries": 4, "retry_delay": timedelta(seconds=1)}
STATES = ("running", "succeeded", "failed", "cancelled", "never started")


def home() -> Path:
    """Return the stand's home."""
    return Path(os.environ["CHILDRUN_STAND"])


def items_of(run_id: str) -> list[str]:
    """Return the list of a DAG run: what the cell wrote, or the usual two."""
    path = home() / "lists" / run_id
    return list(json.loads(path.read_text())) if path.exists() else ["b", "a"]


def ask(key: str, token: str) -> str:
    """Ask the witness, who counts, and answers when the cell lets it."""
    with urlopen(f"{os.environ['CHILDRUN_WITNESS']}/call/{key}?pid={os.getpid()}&token={token}") as answer:  # noqa: S310 - the witness
        return str(json.load(answer)["key"])


cell = Operation("cell", version="1")


@cell.state
def one(io: Any, item: str) -> str:
    """Ask for the first time."""
    io.step(ask, f"cell/{io.airflow['run_id']}/{item}/first", io.idempotency_token("first"), key="first")
    return item


@cell.state
def two(io: Any, one: str) -> str:
    """Ask for the second time; many cells hold this answer back."""
    io.step(ask, f"cell/{io.airflow['run_id']}/{one}/second", io.idempotency_token("second"), key="second")
    return one


@cell.state
def three(io: Any, two: str) -> str:
    """Fail while the flag is up."""
    if (home() / "flags" / f"{io.airflow['run_id']}_{two}").exists():
        raise RuntimeError(f"{two} is refused")
    return two


daily = Operation("daily_cell", version="1")


@daily.state
def morning(io: Any, day: str) -> str:
    """Ask for the first time."""
    io.step(ask, f"cell/{io.airflow['dag_id']}/{day}/first", io.idempotency_token("first"), key="first")
    return day


@daily.state
def evening(io: Any, morning: str) -> str:
    """Fail while the flag is up, else ask again."""
    if (home() / "flags" / f"{io.airflow['dag_id']}_{morning}").exists():
        raise RuntimeError(f"{morning} is refused")
    io.step(ask, f"cell/{io.airflow['dag_id']}/{morning}/second", io.idempotency_token("second"), key="second")
    return morning


patient = Operation("patient_cell", version="1")


@patient.state
def begin(io: Any, item: str) -> str:
    """Ask, and sleep for longer than a task keeps its worker."""
    io.step(ask, f"cell/{io.airflow['run_id']}/{item}/first", io.idempotency_token("first"), key="first")
    return item


@patient.state
def rest(io: Any, begin: str) -> str:
    """Sleep, and ask again."""
    io.sleep(80, key="rest")
    io.step(ask, f"cell/{io.airflow['run_id']}/{begin}/second", io.idempotency_token("second"), key="second")
    return begin


@task(retries=0)
def after() -> int:
    """Come after."""
    return 1


def build(form: str, *, narrow: bool = False, tail: bool = False, **options: Any) -> None:
    """Fill a DAG: one task that spawns and waits, or one that spawns and one that waits.

    :param tail: whether something comes after them
    :param narrow: one child at a time, so that the second has not started while the first is held
    :param options: of the task that waits
    """
    waits = {**TRIES, "max_concurrency": 1 if narrow else 4, **options}
    spawns: dict[str, Any] = {"operation": cell, "inputs": LIST, "child_key": str, "on_clear": POLICY}
    if form == "spawn":
        last: Any = SpawnChildRunOperator(task_id="spawn", **spawns, **waits)
    else:
        spawned = SpawnChildRunOperator(task_id="spawn", **spawns, **TRIES, wait_for_completion=False)
        last = AwaitChildRunOperator(task_id="await", child_runs=spawned.output, **waits)
    if tail:
        last >> after()


COMMON: dict[str, Any] = {
    "render_template_as_native_obj": True,
    "user_defined_macros": {"items_of": items_of},
}
TIMES: dict[str, dict[str, Any]] = {
    "": {},
    "_once": {"retries": 0},
    "_tail": {},
    "_hasty": {"await_timeout": 25},
    "_brief": {"execution_timeout": timedelta(seconds=30)},
}

for form in ("spawn", "await"):
    for times, options in TIMES.items():
        for width in ("", "_narrow"):
            with DAG(f"matrix_{form}{times}{width}", schedule=None, **COMMON):
                build(form, narrow=bool(width), tail=times == "_tail", **options)

# All children sleep: the task leaves its worker.
for times, options in {
    **TIMES,
    "_hasty": {"await_timeout": 45},
    "_brief": {"execution_timeout": timedelta(seconds=50)},
}.items():
    with DAG(f"matrix_deferred{times}", schedule=None, **COMMON):
        (
            SpawnChildRunOperator(
                task_id="spawn", operation=patient, inputs=LIST, child_key=str, deferrable=True, **{**TRIES, **options}
            )
            >> after()
        )

# A drained task's retry is kept back by pausing its DAG: each has its own.
for state in STATES:
    with DAG(f"matrix_drained_{state.replace(' ', '_')}", schedule=None, **COMMON):
        build("spawn", narrow=state == "never started")

with DAG("matrix_mapped", schedule=None, **COMMON):
    SpawnChildRunOperator.partial(task_id="spawn", operation=cell, **TRIES).expand(input=[f"m{n}" for n in range(20)])

SCHEDULED: dict[str, Any] = {
    **COMMON,
    "start_date": datetime(2026, 1, 1, tzinfo=UTC),
    "catchup": False,
    "is_paused_upon_creation": True,
}

MONTH: dict[str, Any] = {
    **COMMON,
    "start_date": datetime(2026, 3, 1, tzinfo=UTC),
    "end_date": datetime(2026, 3, 30, tzinfo=UTC),
    "is_paused_upon_creation": True,
}

for form, catchup in {"": False, "_again": False, "_scheduled": True}.items():
    with DAG(f"matrix_month{form}", schedule="@daily", catchup=catchup, **MONTH):
        SpawnChildRunOperator(task_id="spawn", operation=daily, input="{{ ds }}", retries=0)

with DAG("matrix_daily", schedule="@daily", **SCHEDULED):
    build("spawn")

with DAG("matrix_backfill", schedule="@monthly", **SCHEDULED):
    build("spawn")
