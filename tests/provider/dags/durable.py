"""``@task.durable`` in a DAG; run by tests/provider/test_operators.py."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, task

MARKS = Path(os.environ.get("CHILDRUN_TEST_MARKS", "/nonexistent"))


def counted(name: str) -> int:
    """Count how often something was done, over processes; return the count."""
    with (MARKS / name).open("a") as file:
        file.write("x")
    return (MARKS / name).stat().st_size


with DAG("durable", schedule=None, default_args={"retry_delay": timedelta(0)}):

    @task.durable
    def report(io: Any, region: str, factor: int = 2) -> int:
        """Fail once after the first step."""
        first = io.step(counted, f"durable-{region}")
        if counted(f"durable-{region}-tries") < 2:
            message = "not yet"
            raise ConnectionError(message)
        return int(first) * 10 * factor

    @task.durable(version="2", retries=0)
    def alone(io: Any) -> str:
        """Take nothing."""
        return str(io.step(str, "nothing taken"))

    report("west", factor=3)
    report.override(task_id="mapped").expand(region=["north", "south"])
    alone()
