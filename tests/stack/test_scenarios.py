"""What a person or fate does to a task, on a real scheduler; the expected outcome stands first in each test."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from airflow_childrun.cli.tree import tree_of
from tests.stack.records import Records
from tests.stack.stand import Stand, processes_of_sessions

pytestmark = [pytest.mark.stack, pytest.mark.provider]
Flag = Callable[[str], Path]


def outputs(stand: Stand, dag_id: str, run_id: str, task_id: str = "work") -> list[object]:
    """Return the outputs that a task returned, in order."""
    return [result["output"] for result in stand.browser.xcom(dag_id, run_id, task_id)]


def test_twenty_children_come_back_in_order_and_their_tree_is_sound(stand: Stand, records: Records):
    """20 children of one task, outputs in the order of inputs, one generation each, nothing for verify to find."""
    stand.browser.trigger("stand_ordered", "ordered")
    assert stand.browser.wait_for_run("stand_ordered", "ordered") == "success"
    assert outputs(stand, "stand_ordered", "ordered", "squares") == [n * n for n in range(20, 0, -1)]
    assert stand.browser.xcom("stand_ordered", "ordered", "total") == sum(n * n for n in range(21))
    assert records.statuses("stand_ordered", "ordered") == [(1, "Completed")] * 20
    assert records.findings("stand_ordered", "ordered") == []
    (host,) = records.hosts("stand_ordered", "ordered")
    assert len(tree_of(records.store, host, width=0).children) == 20


def test_fifty_children_use_airflows_channel(stand: Stand, records: Records):
    """Every one of 50 children gets its connection."""
    stand.browser.trigger("stand_connections", "connections")
    assert stand.browser.wait_for_run("stand_connections", "connections") == "success"
    assert outputs(stand, "stand_connections", "connections", "greetings") == [f"{n} childrun" for n in range(50)]
    assert records.statuses("stand_connections", "connections") == [(1, "Completed")] * 50


def test_a_mapped_spawn_has_airflows_identity(stand: Stand, records: Records):
    """Three mapped task instances, three host runs with one child each, under one root."""
    stand.browser.trigger("stand_mapped", "mapped")
    assert stand.browser.wait_for_run("stand_mapped", "mapped") == "success"
    found = [stand.browser.xcom("stand_mapped", "mapped", "squares", index)["output"] for index in range(3)]
    assert found == [9, 1, 4]
    hosts = records.hosts("stand_mapped", "mapped")
    assert sorted(host.airflow.map_index for host in hosts if host.airflow) == [0, 1, 2]
    assert len({host.root_run_id for host in hosts}) == 1


def test_a_retry_goes_on_from_the_last_checkpoint(stand: Stand, records: Records, flag: Flag):
    """One of three fails in its third state: the retry runs that state of that child alone, and no other call again."""
    up = flag("retried/B")
    stand.browser.trigger("stand_work", "retried", {"items": ["a", "b", "c"]})
    stand.browser.wait_for_task("stand_work", "retried", "work", "up_for_retry")
    up.unlink()
    assert stand.browser.wait_for_run("stand_work", "retried") == "success"
    assert outputs(stand, "stand_work", "retried") == [f"{name} checked, stored" for name in "ABC"]
    assert set(stand.witness.counts("retried/").values()) == {1}
    assert records.statuses("stand_work", "retried")[:3] == [(1, "Completed"), (1, "Completed"), (1, "Failed")]
    assert records.newest("stand_work", "retried")
    assert all(row.status == "Completed" for row in records.newest("stand_work", "retried").values())
    assert records.findings("stand_work", "retried") == []


def test_a_failed_child_is_told_in_the_tasks_log(stand: Stand, flag: Flag):
    """The log names child, state, code, message and traceback, what completed, and what to do next."""
    flag("told/B")
    stand.browser.trigger("stand_once", "told", {"items": ["a", "b"]})
    assert stand.browser.wait_for_run("stand_once", "told") == "failed"
    log = stand.browser.log("stand_once", "told", "work", 1)
    print(log)
    for wanted in (
        "the warehouse refuses B",
        "RuntimeError",
        "stand_dags.py",
        "state store failed in attempt 1",
        "1 of 2 child runs did not complete",
        "A retry or a clear of this task goes on from their last checkpoints",
    ):
        assert wanted in log, f"{wanted!r} is missing in\n{log}"


def test_a_cleared_failure_runs_only_what_is_missing(stand: Stand, records: Records, flag: Flag):
    """A clear of a red task with its downstream: one child goes on, the other is reused, downstream runs."""
    up = flag("cleared/B")
    stand.browser.trigger("stand_once", "cleared", {"items": ["a", "b"]})
    assert stand.browser.wait_for_run("stand_once", "cleared") == "failed"
    up.unlink()
    stand.browser.clear("stand_once", "cleared", "work", include_downstream=True)
    stand.browser.wait_for_task("stand_once", "cleared", "work", "success")
    assert stand.browser.wait_for_run("stand_once", "cleared") == "success"
    assert set(stand.witness.counts("cleared/").values()) == {1}
    assert records.statuses("stand_once", "cleared") == [(1, "Completed"), (1, "Failed"), (2, "Completed")]
    assert stand.browser.xcom("stand_once", "cleared", "read") == 2


@pytest.mark.parametrize(
    ("policy", "calls", "statuses"),
    [
        ("auto", 2, [(1, "Completed")] * 2 + [(2, "Completed")] * 2),
        ("resume_failed", 1, [(1, "Completed")] * 2),
        ("reuse", 1, [(1, "Completed")] * 2),
        ("respawn", 2, [(1, "Completed")] * 2 + [(2, "Completed")] * 2),
    ],
)
@pytest.mark.long
def test_a_cleared_success_follows_on_clear(
    stand: Stand, records: Records, policy: str, calls: int, statuses: list[tuple[int, str]]
):
    """By ``auto`` and ``respawn`` everything runs again; by the others nothing does, and a warning says so."""
    run_id = f"green_{policy}"
    stand.browser.trigger("stand_once", run_id, {"items": ["a", "b"], "policy": policy})
    assert stand.browser.wait_for_run("stand_once", run_id) == "success"
    stand.browser.clear("stand_once", run_id, "work")
    stand.browser.wait_for_task("stand_once", run_id, "work", "success", least_try=2)
    assert stand.browser.wait_for_run("stand_once", run_id) == "success"
    assert set(stand.witness.counts(f"{run_id}/").values()) == {calls}
    assert records.statuses("stand_once", run_id) == statuses
    warned = "this clear ran nothing" in stand.browser.log("stand_once", run_id, "work", 2)
    assert warned == (calls == 1)


def test_the_conf_of_a_run_asks_for_another_on_clear(stand: Stand, records: Records):
    """``dag_run.conf["childrun"]["on_clear"]`` wins over the operator: nothing runs again."""
    conf = {"items": ["a"], "policy": "respawn", "childrun": {"on_clear": "reuse"}}
    stand.browser.trigger("stand_once", "conf_wins", conf)
    assert stand.browser.wait_for_run("stand_once", "conf_wins") == "success"
    stand.browser.clear("stand_once", "conf_wins", "work")
    stand.browser.wait_for_task("stand_once", "conf_wins", "work", "success", least_try=2)
    assert records.statuses("stand_once", "conf_wins") == [(1, "Completed")]


def test_a_red_await_cleared_alone_goes_on(stand: Stand, records: Records, flag: Flag):
    """Only the await is cleared: it continues what it saw fail, though it spawned nothing itself."""
    up = flag("apart/B")
    stand.browser.trigger("stand_apart", "apart", {"items": ["a", "b"]})
    assert stand.browser.wait_for_run("stand_apart", "apart") == "failed"
    assert stand.browser.task("stand_apart", "apart", "spawn")["state"] == "success"
    up.unlink()
    stand.browser.clear("stand_apart", "apart", "await")
    stand.browser.wait_for_task("stand_apart", "apart", "await", "success")
    assert outputs(stand, "stand_apart", "apart", "await") == ["A checked, stored", "B checked, stored"]
    assert set(stand.witness.counts("apart/").values()) == {1}
    assert len(records.children("stand_apart", "apart", "spawn")) == 2
    assert records.findings("stand_apart", "apart") == []


@pytest.mark.long
def test_spawn_cleared_with_its_await_runs_again(stand: Stand, records: Records):
    """A green spawn cleared with downstream: second generations of both children, awaited by the new try."""
    stand.browser.trigger("stand_apart", "both", {"items": ["a", "b"]})
    assert stand.browser.wait_for_run("stand_apart", "both") == "success"
    stand.browser.clear("stand_apart", "both", "spawn", include_downstream=True)
    stand.browser.wait_for_task("stand_apart", "both", "await", "success", least_try=2)
    assert stand.browser.wait_for_run("stand_apart", "both") == "success"
    assert set(stand.witness.counts("both/").values()) == {2}
    assert records.statuses("stand_apart", "both") == [(1, "Completed")] * 2 + [(2, "Completed")] * 2


def test_a_deleted_backfill_run_made_again_is_another_one(stand: Stand, records: Records):
    """Same run id, next generation of the host run, a new child; the calls are made again."""
    body = {"dag_id": "stand_daily", "from_date": "2026-02-01T00:00:00Z", "to_date": "2026-02-01T00:00:00Z"}
    backfill = stand.browser.post("/backfills", body)
    run_id = "backfill__2026-02-01T00:00:00+00:00"
    assert stand.browser.wait_for_run("stand_daily", run_id) == "success"
    # Airflow tells tasks apart by name and try alone: the end of the first process, if the scheduler hears of it only when
    # the task of the second run is queued, would be taken for that one's.
    stand.wait_for_log("scheduler", f"Received executor event .*{re.escape(run_id)}")
    stand.browser.delete_run("stand_daily", run_id)
    try:
        stand.browser.put(f"/backfills/{backfill['id']}/cancel")
    except AssertionError as refused:
        # The scheduler, which looks every half minute, has found that nothing of it is left.
        if "already completed" not in str(refused):
            raise
    stand.browser.post("/backfills", body)
    assert stand.browser.wait_for_run("stand_daily", run_id) == "success"
    assert [host.generation for host in records.hosts("stand_daily", run_id)] == [1, 2]
    assert records.statuses("stand_daily", run_id) == [(1, "Completed")] * 2
    assert len({row.run_id for row in records.children("stand_daily", run_id)}) == 2


def test_results_too_large_for_xcom_name_the_switch(stand: Stand, records: Records):
    """The task fails naming ``results="references"``; the children have completed and stay."""
    stand.browser.trigger("stand_large", "large")
    assert stand.browser.wait_for_run("stand_large", "large") == "failed"
    log = stand.browser.log("stand_large", "large", "large", 1)
    assert 'results="references"' in log, log
    assert "xxxx" not in log
    assert records.statuses("stand_large", "large") == [(1, "Completed")] * 2


def test_no_process_is_left_by_those_that_ended(stand: Stand):
    """Every process that knows this stand belongs to a session of one of its four components."""
    wanted = str(stand.home).encode()
    ours = set()
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and b"CHILDRUN_STAND=" + wanted in (entry / "environ").read_bytes():
                ours.add(int(entry.name))
        except OSError:
            continue
    assert ours
    assert ours <= set(processes_of_sessions(stand.sessions))
