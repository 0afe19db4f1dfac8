"""The maintenance DAG on a real scheduler: what nobody goes on with is ended, what Airflow forgot is deleted."""

from __future__ import annotations

import pytest

from tests.stack.records import Records
from tests.stack.stand import Stand

pytestmark = [pytest.mark.stack, pytest.mark.provider, pytest.mark.long]


def test_children_of_a_dag_run_that_is_over_are_ended_and_deleted_with_it(stand: Stand, records: Records):
    """Two children that nobody drove end as Cancelled; their tree goes once their DAG run is deleted; the log says so."""
    stand.browser.trigger("stand_left", "left")
    assert stand.browser.wait_for_run("stand_left", "left") == "failed"
    assert records.statuses("stand_left", "left") == [(1, "Pending")] * 2
    stand.browser.trigger("stand_maintenance", "tidy")
    assert stand.browser.wait_for_run("stand_maintenance", "tidy") == "success"
    assert stand.browser.xcom("stand_maintenance", "tidy", "recover")["ended"] >= 2
    assert records.statuses("stand_left", "left") == [(1, "Cancelled")] * 2
    assert records.findings("stand_left", "left") == []
    log = stand.browser.log("stand_maintenance", "tidy", "recover", 1)
    print(log)
    assert "child runs that nobody owned: " in log
    stand.browser.delete_run("stand_left", "left")
    print(stand.childrun("purge", "--orphaned"))
    assert records.hosts("stand_left", "left") == []
