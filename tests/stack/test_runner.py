"""Children that DAG runs drive, on a real scheduler: what a person or fate does to those DAG runs costs nothing twice."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest

from tests.stack.records import Records
from tests.stack.stand import Stand
from tests.stack.witness import Call

pytestmark = [pytest.mark.stack, pytest.mark.provider]
OUTPUT = "first second"


def runner_runs(stand: Stand, records: Records, run_id: str) -> list[str]:
    """Return the DAG runs of the runner that drove, or were to drive, the children of a DAG run."""
    children = {str(row.run_id) for row in records.children("stand_dispatched", run_id)}
    runs = stand.browser.get("/dags/stand_runner/dagRuns", limit=200)["dag_runs"]
    return [run["dag_run_id"] for run in runs if run["dag_run_id"].split("__")[1] in children]


def wait_until(what: Callable[[], bool], timeout_s: float = 60) -> None:
    """Wait for something."""
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_twenty_children_are_driven_by_four_dag_runs(stand: Stand, records: Records):
    """20 children, 5 to a DAG run: outputs in order, each call once, and the log names the DAG runs."""
    items = [f"item{number}" for number in range(20)]
    stand.browser.trigger("stand_dispatched", "twenty", {"items": items})
    ended = stand.browser.wait_for_run("stand_dispatched", "twenty")
    log = stand.browser.log("stand_dispatched", "twenty", "work", 1)
    print(log)
    assert ended == "success"
    found = stand.browser.xcom("stand_dispatched", "twenty", "work")
    assert [result["output"] for result in found] == [OUTPUT] * 20
    assert records.statuses("stand_dispatched", "twenty") == [(1, "Completed")] * 20
    runs = runner_runs(stand, records, "twenty")
    assert len(runs) == 4
    assert "4 of 4 DAG runs triggered" in log
    assert all(f"DAG run {run_id} of DAG stand_runner drives" in log for run_id in runs)
    assert set(stand.witness.counts("twenty/").values()) == {1}
    print(stand.browser.log("stand_runner", runs[0], "drive", 1))
    assert records.findings("stand_dispatched", "twenty") == []


@pytest.mark.long
def test_a_dag_run_that_is_deleted_or_marked_failed_is_followed_by_another(stand: Stand, records: Records):
    """One DAG run deleted and one marked failed in the middle of a call: both batches are dispatched anew, nothing is lost.

    A call that was in flight is made again with its token; a recorded one is not.
    """
    items = [f"item{number}" for number in range(10)]
    held: list[Call] = []
    go_on: list[bool] = []

    def hold(call: Call) -> None:
        wanted = call.key.startswith("gone/") and call.key.endswith(("item0/second", "item5/second"))
        if wanted and call.key not in {other.key for other in held}:
            held.append(call)
            wait_until(lambda: bool(go_on), 90)

    stand.witness.on_call = hold
    stand.browser.trigger("stand_dispatched", "gone", {"items": items})
    wait_until(lambda: len(held) == 2)
    one, other = runner_runs(stand, records, "gone")
    stand.browser.mark("stand_runner", one, "drive", "failed")
    # Airflow deletes no DAG run that is still active.
    stand.browser.mark_run("stand_runner", other, "failed")
    stand.browser.delete_run("stand_runner", other)
    again = {f"{one}__2", f"{other}__2"}
    wait_until(lambda: again <= set(runner_runs(stand, records, "gone")))
    go_on.append(True)
    assert stand.browser.wait_for_run("stand_dispatched", "gone") == "success"
    stand.witness.on_call = lambda _: None
    assert records.statuses("stand_dispatched", "gone") == [(1, "Completed")] * 10
    print(stand.browser.log("stand_dispatched", "gone", "work", 1))
    counts = stand.witness.counts("gone/")
    assert {key for key, count in counts.items() if count > 1} == {call.key for call in held}
    for call in held:
        assert counts[call.key] == 2
        assert len({seen.token for seen in stand.witness.seen(call.key)}) == 1


@pytest.mark.long
def test_a_killed_worker_costs_a_retry_of_the_runners_task(stand: Stand, records: Records):
    """The process that drives a batch is killed in a call: the next try of its task drives on; spawned and awaited apart."""
    killed: list[int] = []

    def kill(call: Call) -> None:
        if call.key.startswith("killed/") and call.key.endswith("b/second") and not killed:
            killed.append(call.pid)
            os.kill(call.pid, signal.SIGKILL)

    stand.witness.on_call = kill
    stand.browser.trigger("stand_dispatched_apart", "killed", {"items": ["a", "b"]})
    assert stand.browser.wait_for_run("stand_dispatched_apart", "killed") == "success"
    stand.witness.on_call = lambda _: None
    found = stand.browser.xcom("stand_dispatched_apart", "killed", "await")
    assert [result["output"] for result in found] == [OUTPUT] * 2
    counts = stand.witness.counts("killed/")
    assert {key: count for key, count in counts.items() if count != 1} == {"killed/b/second": 2}
    assert len(killed) == 1
