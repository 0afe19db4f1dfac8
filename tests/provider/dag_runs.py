"""A stand-in for Airflow's answers about DAG runs, for tests in one process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from airflow_childrun import _airflow
from airflow_childrun._airflow import OPEN_DAG_RUN_STATES
from airflow_childrun.errors import HostError


@dataclass
class FakeAirflow:
    """DAGs and their runs.

    :param dags: by id, whether it is paused
    :param ends: by DAG id, the states that its next runs have from the first look on
    :param xcoms: by (DAG id, task id), what a task of every run pushes
    :param lost: how many answers to a trigger get lost after it has happened
    :param deaf: nothing is answered about states
    """

    dags: dict[str, bool]
    ends: dict[str, list[str]] = field(default_factory=dict)
    xcoms: dict[tuple[str, str], Any] = field(default_factory=dict)
    lost: int = 0
    deaf: bool = False
    runs: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    triggers: list[tuple[str, str]] = field(default_factory=list)
    looks: int = 0
    counts: int = 0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> FakeAirflow:
        """Answer in place of the supervisor from now on."""
        names = ("trigger_dag_run", "dag_run_state", "dag_run_conf", "describe_dag", "task_states", "read_xcom")
        for name in (*names, "count_active_dag_runs"):
            monkeypatch.setattr(_airflow, name, getattr(self, name))
        return self

    def trigger_dag_run(self, dag_id: str, run_id: str, conf: Mapping[str, Any]) -> bool:
        self.describe_dag(dag_id)
        self.triggers.append((dag_id, run_id))
        if (dag_id, run_id) in self.runs:
            return False
        ends = self.ends.get(dag_id, [])
        self.runs[dag_id, run_id] = {"state": ends.pop(0) if ends else "success", "conf": dict(conf)}
        if self.lost:
            self.lost -= 1
            raise HostError("the answer is lost", code="airflow_unavailable", retryable=True)
        return True

    def dag_run_state(self, dag_id: str, run_id: str) -> str | None:
        self.looks += 1
        self.hear()
        found = self.runs.get((dag_id, run_id))
        return None if found is None else found["state"]

    def count_active_dag_runs(self, dag_id: str, run_ids: Sequence[str]) -> int:
        self.counts += 1
        self.hear()
        return sum(self.runs.get((dag_id, run_id), {}).get("state") in OPEN_DAG_RUN_STATES for run_id in run_ids)

    def hear(self) -> None:
        if self.deaf:
            raise HostError("Airflow is deaf", code="airflow_unavailable", retryable=True)

    def dag_run_conf(self, dag_id: str, run_id: str) -> Mapping[str, Any]:
        conf: Mapping[str, Any] = self.runs[dag_id, run_id]["conf"]
        return conf

    def describe_dag(self, dag_id: str) -> tuple[bool, frozenset[str]]:
        if dag_id not in self.dags:
            raise HostError(f"DAG {dag_id!r}: not found", code="dag_not_found")
        return self.dags[dag_id], frozenset()

    def task_states(self, dag_id: str, run_id: str) -> dict[str, str]:
        return {"extract": "success", "load": self.runs[dag_id, run_id]["state"], "mail": "upstream_failed"}

    def read_xcom(self, dag_id: str, run_id: str, task_id: str, key: str) -> Any:
        return self.xcoms.get((dag_id, task_id))
