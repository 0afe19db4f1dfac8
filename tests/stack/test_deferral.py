"""Tasks that wait without a worker, on a real triggerer; expected outcomes stand first."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

from tests.stack.records import Records
from tests.stack.stand import Stand
from tests.stack.test_fate import Gate, gate, wait_until

pytestmark = [pytest.mark.stack, pytest.mark.provider, pytest.mark.long]
__all__ = ["gate"]
BACK = "back from the triggerer"
Flag = Callable[[str], Path]


def kill_triggerer(stand: Stand) -> None:
    """Kill the triggerer and start another one."""
    triggerer = stand._components["triggerer"]
    os.killpg(triggerer.pid, signal.SIGKILL)
    triggerer.wait()
    stand.start("triggerer")


def load_slowly(stand: Stand, run_id: str, sources: list[str]) -> dict[str, str]:
    """Have a task wait for a DAG run for each source; return their ids once it has left its worker."""
    stand.browser.trigger("stand_load_deferred", run_id, {"sources": [{"source": source} for source in sources]})
    stand.browser.wait_for_task("stand_load_deferred", run_id, "load", "deferred")
    found: list[dict[str, Any]] = stand.browser.get("/dags/stand_slow_load/dagRuns", limit=100)["dag_runs"]
    return {run["conf"]["source"]: run["dag_run_id"] for run in found if run["conf"]["source"] in sources}


def test_a_task_whose_children_sleep_leaves_its_worker_and_survives_a_killed_triggerer(stand: Stand, records: Records):
    """Deferred, no process of it left; the triggerer is killed and started again; every call is made once."""
    stand.browser.trigger("stand_naps", "naps")
    stand.browser.wait_for_task("stand_naps", "naps", "naps", "deferred")
    wait_until(lambda: not stand.tasks(), "no task's process is left", 20)
    kill_triggerer(stand)
    assert stand.browser.wait_for_run("stand_naps", "naps", 240) == "success"
    print(stand.browser.log("stand_naps", "naps", "naps", 1))
    assert set(stand.witness.counts("naps/").values()) == {1}
    (host,) = records.hosts("stand_naps", "naps")
    assert set(records.tries(host)) == {"first", "same"}
    assert records.findings("stand_naps", "naps") == []


def test_a_deferred_task_marked_failed_asks_its_children_to_end(stand: Stand, records: Records):
    """Within the grace the request can be taken back by a clear."""
    stand.browser.trigger("stand_long_naps", "marked")
    stand.browser.wait_for_task("stand_long_naps", "marked", "naps", "deferred")
    (row,) = records.children("stand_long_naps", "marked")
    time.sleep(5)
    stand.browser.mark("stand_long_naps", "marked", "naps", "failed")
    wait_until(lambda: [entry.kind for entry in records.store.read_inbox(row.run_id)] == ["close"], "asked to end", 30)
    stand.browser.clear("stand_long_naps", "marked", "naps")
    wait_until(
        lambda: [entry.kind for entry in records.store.read_inbox(row.run_id)] == ["close", "withdraw"],
        "taken back",
        60,
    )
    assert not records.store.get_runs([row.run_id])[row.run_id].is_terminal


def test_the_triggerer_ends_what_it_can_without_a_worker(stand: Stand, records: Records, gate: Callable[[str], Gate]):
    """Three tasks await what a fourth one drives; all return the same, whoever ends them.

    One comes back by default, one because a mapped task stands behind it; one never starts on a worker again.
    """
    held = gate("shared/a/second")
    stand.browser.trigger("stand_shared", "shared")
    held.wait_for_call()
    (stand.home / "flags" / "shared_driven").touch()
    deferred = ("comes_back", "ends_there", "mapped_over")
    for task_id in deferred:
        stand.browser.wait_for_task("stand_shared", "shared", task_id, "deferred")
    held.open()
    assert stand.browser.wait_for_run("stand_shared", "shared", 240) == "success"
    logs = {task_id: stand.browser.log("stand_shared", "shared", task_id, 1) for task_id in deferred}
    print("\n".join(f"-- {task_id}\n{log}" for task_id, log in logs.items()))
    assert {task_id for task_id, log in logs.items() if BACK in log} == {"comes_back", "mapped_over"}
    found = {task_id: stand.browser.xcom("stand_shared", "shared", task_id) for task_id in ("drives", *deferred)}
    assert [result["output"] for result in found["drives"]] == ["first second"]
    assert [results == found["drives"] for results in found.values()] == [True] * 4
    assert stand.browser.xcom("stand_shared", "shared", "count", 0) == "first second"
    hosts = {task_id: records.hosts("stand_shared", "shared", task_id) for task_id in deferred}
    assert {task_id: records.tries(host) for task_id, (host,) in hosts.items()} == {
        "comes_back": ["first", "same"],
        "ends_there": ["first"],
        "mapped_over": ["first", "same"],
    }
    assert set(stand.witness.counts("shared/").values()) == {1}
    assert records.findings("stand_shared", "shared") == []


def test_a_child_that_vanished_fails_the_task_clearly_and_a_clear_spawns_it_again(stand: Stand, records: Records):
    """Its rows are deleted while its task is in the triggerer: no endless wait, an error that says what to do, which helps."""
    stand.browser.trigger("stand_long_naps", "gone")
    stand.browser.wait_for_task("stand_long_naps", "gone", "naps", "deferred")
    (row,) = records.children("stand_long_naps", "gone")
    with records.store.database.engine().begin() as connection:
        for table in ("run", "event", "fact", "inbox"):
            statement = sqlalchemy.text(f"DELETE FROM childrun.childrun_{table} WHERE run_id = :run_id")
            connection.execute(statement, {"run_id": row.run_id.bytes})
    assert stand.browser.wait_for_run("stand_long_naps", "gone", 240) == "failed"
    log = stand.browser.log("stand_long_naps", "gone", "naps", 1)
    print(log)
    assert f"{BACK}: child run {row.run_id} is not in the store any more" in log
    assert "is not in the store any more; clear the task to spawn it again" in log
    stand.browser.clear("stand_long_naps", "gone", "naps")
    stand.browser.wait_for_task("stand_long_naps", "gone", "naps", "deferred", least_try=2, timeout_s=240)
    (again,) = records.children("stand_long_naps", "gone")
    assert not again.is_terminal
    stand.browser.mark("stand_long_naps", "gone", "naps", "failed")


def test_a_task_whose_children_are_dag_runs_comes_back_once_with_their_xcoms(
    stand: Stand, records: Records, flag: Flag
):
    """Deferred, no process of it left, through the end of one DAG run and the death of the triggerer; back for the last one."""
    first, last = flag("slow/one"), flag("slow/three")
    runs = load_slowly(stand, "xcoms", ["one", "three"])
    wait_until(lambda: not stand.tasks(), "no task's process is left", 20)
    first.unlink()
    assert stand.browser.wait_for_run("stand_slow_load", runs["one"]) == "success"
    kill_triggerer(stand)
    last.unlink()
    state = stand.browser.wait_for_run("stand_load_deferred", "xcoms", 240)
    print(stand.browser.log("stand_load_deferred", "xcoms", "load", 1))
    assert state == "success"
    assert [result["output"] for result in stand.browser.xcom("stand_load_deferred", "xcoms", "load")] == [3, 5]
    (host,) = records.hosts("stand_load_deferred", "xcoms")
    assert records.tries(host) == ["first", "same"]
    assert records.findings("stand_load_deferred", "xcoms") == []


def test_dag_runs_that_fail_or_vanish_while_their_task_is_deferred_are_told(stand: Stand, records: Records, flag: Flag):
    """The task comes back once and fails, naming both: the one that was deleted, and where the other failed."""
    flag("slow/gone")
    waits = flag("slow/bad")
    flag("load/bad")
    runs = load_slowly(stand, "bad", ["gone", "bad"])
    stand.browser.mark_run("stand_slow_load", runs["gone"], "failed")
    stand.browser.delete_run("stand_slow_load", runs["gone"])
    waits.unlink()
    assert stand.browser.wait_for_run("stand_load_deferred", "bad", 240) == "failed"
    log = stand.browser.log("stand_load_deferred", "bad", "load", 1)
    print(log)
    assert f"DAG run {runs['gone']} of DAG 'stand_slow_load' was deleted" in log
    assert f"DAG run {runs['bad']} of DAG 'stand_slow_load' failed in load" in log
    (host,) = records.hosts("stand_load_deferred", "bad")
    assert records.tries(host) == ["first", "same"]
