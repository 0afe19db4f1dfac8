"""A DAG for people: its form is made of an operation's type hints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from airflow.sdk import DAG, Param

from airflow_childrun import AwaitChildRunOperator, SpawnChildRunOperator, operation


@dataclass
class Source:
    """What is to be loaded."""

    name: str
    pages: int

    def __post_init__(self) -> None:
        """Refuse what a schema cannot."""
        if self.pages < 0:
            raise ValueError("pages is negative")


@operation(version="1")
def load_source(io: Any, source: Source) -> int:
    """Count the pages."""
    return source.pages


with DAG(
    "stand_form",
    schedule=None,
    params={"sources": Param([], type="array", items=load_source.input_schema())},
) as dag:
    SpawnChildRunOperator(task_id="load", operation=load_source, inputs=dag.param("sources"), child_key="name")

# Of another file than those that spawn: it knows none of their operations.
with DAG("stand_elsewhere", schedule=None, render_template_as_native_obj=True):
    AwaitChildRunOperator(task_id="await", child_runs="{{ dag_run.conf['handles'] }}", retries=0)
