"""``airflow dags test`` talks to Airflow through a channel that takes one caller at a time; children respect it."""

from __future__ import annotations

import pytest

from tests.provider.conftest import ROOT, AirflowHome

pytestmark = [pytest.mark.provider, pytest.mark.slow]


def test_fifty_children_get_their_connection_under_dags_test(airflow_home: AirflowHome) -> None:
    """Every one of 50 children calls ``BaseHook.get_connection``; the same DAG runs on a real scheduler in tests/stack."""
    done = airflow_home.childrun("init")
    assert done.status == 0, done.text
    folder = str(ROOT / "tests" / "stack" / "dags")
    done = airflow_home.airflow("dags", "test", "stand_connections", AIRFLOW__CORE__DAGS_FOLDER=folder)
    assert done.status == 0, done.text[-3000:]
    assert "child runs: 50 of 50 ended" in done.text
    assert "isn't defined" not in done.text
