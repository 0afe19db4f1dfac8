"""``airflow dags test`` talks to Airflow through a channel that takes one caller at a time; children respect it."""

from __future__ import annotations

import json

import pytest

from tests.provider.conftest import ROOT, AirflowHome

pytestmark = [pytest.mark.provider, pytest.mark.slow]


@pytest.mark.soak  # half a minute, and what it shows changes with Airflow's releases alone
def test_fifty_children_get_their_connection_under_dags_test(airflow_home: AirflowHome) -> None:
    """Every one of 50 children calls ``BaseHook.get_connection``; the same DAG runs on a real scheduler in tests/stack."""
    done = airflow_home.childrun("init")
    assert done.status == 0, done.text
    folder = str(ROOT / "tests" / "stack" / "dags")
    done = airflow_home.airflow("dags", "test", "stand_connections", AIRFLOW__CORE__DAGS_FOLDER=folder)
    assert done.status == 0, done.text[-3000:]
    assert "child runs: 50 of 50 ended" in done.text
    assert "isn't defined" not in done.text


def children_of(home: AirflowHome) -> set[str]:
    """Return the ids of all child runs in the store."""
    listed = home.childrun("runs", "list", "--operation", "greet", "--limit", "1000", "--json")
    assert listed.status == 0, listed.text
    return {json.loads(line)["run_id"] for line in listed.text.splitlines()}


@pytest.mark.soak  # half a minute, and what it shows changes with Airflow's releases alone
def test_a_task_of_its_own_runs_under_tasks_test(airflow_home: AirflowHome) -> None:
    """Its children are there afterwards, though Airflow has deleted the temporary DAG run; as orphans they are purged."""
    assert airflow_home.childrun("init").status == 0
    before = children_of(airflow_home)
    folder = str(ROOT / "tests" / "stack" / "dags")
    done = airflow_home.airflow(
        "tasks", "test", "stand_connections", "greetings", "2026-01-01", AIRFLOW__CORE__DAGS_FOLDER=folder
    )
    assert done.status == 0, done.text[-3000:]
    assert "child runs: 50 of 50 ended" in done.text
    assert len(children_of(airflow_home) - before) == 50
    purged = airflow_home.childrun("purge", "--orphaned")
    assert purged.status == 0, purged.text
    assert children_of(airflow_home) == before
