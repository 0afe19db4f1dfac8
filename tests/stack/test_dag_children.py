"""DAG runs as children, on a real scheduler; the expected outcome stands first in each test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.stack.records import Records
from tests.stack.stand import Stand

pytestmark = [pytest.mark.stack, pytest.mark.provider]
Flag = Callable[[str], Path]


def dag_runs(stand: Stand, source: str) -> list[dict[str, Any]]:
    """Return the runs of the child DAG for a source, the oldest first."""
    found = stand.browser.get("/dags/stand_load/dagRuns", limit=100, order_by="id")["dag_runs"]
    return [run for run in found if run["conf"]["source"] == source]


def test_a_retry_makes_a_new_dag_run_of_the_child_that_failed(stand: Stand, records: Records, flag: Flag):
    """Three DAG runs, one fails: the retry makes a fourth; the results are XComs of the children, in order."""
    up = flag("load/bb")
    stand.browser.trigger("stand_load_all", "all", {"sources": [{"source": name} for name in ("a", "bb", "ccc")]})
    stand.browser.wait_for_task("stand_load_all", "all", "load", "up_for_retry")
    up.unlink()
    assert stand.browser.wait_for_run("stand_load_all", "all") == "success"
    assert [result["output"] for result in stand.browser.xcom("stand_load_all", "all", "load")] == [1, 2, 3]
    assert [[run["state"] for run in dag_runs(stand, name)] for name in ("a", "bb", "ccc")] == [
        ["success"],
        ["failed", "success"],
        ["success"],
    ]
    assert dag_runs(stand, "a")[0]["conf"]["childrun_parent"]["run_id"] == "all"
    assert records.statuses("stand_load_all", "all") == [
        (1, "Completed"),
        (1, "Completed"),
        (1, "Failed"),
        (2, "Completed"),
    ]
    assert records.findings("stand_load_all", "all") == []
    log = stand.browser.log("stand_load_all", "all", "load", 1)
    print(log)
    assert "of DAG 'stand_load' failed in load" in log


@pytest.mark.long
def test_with_credentials_a_retry_clears_what_failed(stand: Stand, records: Records, flag: Flag):
    """One DAG run: its failed task runs again, the other does not; the child's second generation completes."""
    body = {
        "connection_id": "stand_api",
        "conn_type": "http",
        "host": stand.browser.base_url,
        "password": stand.browser.token(),
    }
    stand.browser.post("/connections", body)
    up = flag("load/over api")
    stand.browser.trigger("stand_load_over_api", "api")
    stand.browser.wait_for_task("stand_load_over_api", "api", "load", "up_for_retry")
    up.unlink()
    assert stand.browser.wait_for_run("stand_load_over_api", "api") == "success"
    (run,) = dag_runs(stand, "over api")
    assert stand.browser.tasks("stand_load", run["dag_run_id"]) == {
        "extract[-1]": "success try 1",
        "load[-1]": "success try 2",
    }
    assert stand.browser.xcom("stand_load_over_api", "api", "load")["output"] == len("over api")
    assert records.statuses("stand_load_over_api", "api") == [(1, "Failed"), (2, "Completed")]


@pytest.mark.long
def test_a_dag_run_is_begun_by_one_task_and_awaited_by_another(stand: Stand):
    """One DAG run; the first task ends before it does."""
    stand.browser.trigger("stand_load_apart", "apart")
    assert stand.browser.wait_for_run("stand_load_apart", "apart") == "success"
    (run,) = dag_runs(stand, "apart")
    assert stand.browser.task("stand_load_apart", "apart", "begin")["end_date"] < run["end_date"]


@pytest.mark.long
@pytest.mark.parametrize(
    ("task_id", "told"),
    [
        ("paused", "[dag_paused] DAG 'stand_load_paused' is paused"),
        ("missing", "[dag_not_found] DAG 'stand_no_such_dag'"),
    ],
)
def test_a_dag_that_cannot_run_is_named_in_the_log(stand: Stand, task_id: str, told: str):
    """The task fails; its log names the DAG and what is wrong with it."""
    if task_id == "paused":
        stand.browser.trigger("stand_load_named", "named")
    assert stand.browser.wait_for_run("stand_load_named", "named") == "failed"
    assert told in stand.browser.log("stand_load_named", "named", task_id, 1)
