"""What the original engine did wrong, row by row (spec 10.6, rows 1 to 18): each test pins the repair."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any
from uuid import UUID

import pytest

from airflow_childrun.engine.ports import IoCall
from airflow_childrun.errors import ChildRunError, IoError
from airflow_childrun.model.config import Duration, RunConfig
from airflow_childrun.model.events import StateFailed
from airflow_childrun.model.requests import SPAWN, SpawnRequest
from airflow_childrun.runtime.closing import cancel_run
from tests.engine.kit import DEATH, Background, Lab, Process, Stage, await_call, eventually, retrying, wait_for


def crash(lab: Lab, run_id: UUID, **limits: Any) -> Process:
    """Drive a run in a process that dies when the handler asks the world for `die`."""
    process = lab.process(**limits)
    lab.world.scripts["die"] = [lambda request: process.crash()]
    with pytest.raises(DEATH):
        process.resume(run_id)
    return process


def code_of(work: Any) -> str:
    try:
        work()
    except ChildRunError as error:
        return error.code
    return ""


def test_row01_child_is_created_with_its_context_by_the_spawn_itself(lab: Lab):
    """A parent that dies right after the spawn leaves a child with the right input; a missing child is an error."""
    lab.put("child", lambda s: s.write("y", s.read("x")))

    def parent(s: Stage) -> None:
        child = s.spawn("child", "c", context={"child.main.x": 42})
        s.ask("die")
        s.write("end", s.join(child, "e")["final_snapshot"])
        missing = {"child_run_id": str(UUID(int=9)), "child_manifest_id": child["child_manifest_id"]}
        s.write("missing", code_of(lambda: s.io.call(await_call(missing, "m"))))

    lab.put("op", parent)
    run_id = lab.process().create("op")
    crash(lab, run_id, max_concurrency=1)
    assert lab.process().resume(run_id).phase == "Completed"
    assert lab.final(run_id) == {
        "op.main.end": {"child.main.x": 42, "child.main.y": 42},
        "op.main.missing": "child_run_engine_failed",
    }


def test_row02_resume_twice_after_a_crash(lab: Lab):
    """The stream stays readable: after one crash, after two, after the end, and for the awaiting parent."""
    lab.put("child", lambda s: s.ask("die"))
    lab.put("op", lambda s: s.write("end", s.join(s.spawn("child", "c"), "e")["status"]))
    run_id = lab.process().create("op")
    crash(lab, run_id)
    crash(lab, run_id)
    for _ in range(2):
        assert lab.process().resume(run_id).phase == "Completed"
    assert lab.process().engine.replay(run_id) == lab.row(run_id).final_snapshot_id
    child = lab.children(run_id)[0].run_id
    assert lab.attempts(child) == [0, 1, 2]
    assert lab.process().resume(child).phase == "Completed"


def test_row03_a_run_that_kills_every_owner_is_ended(lab: Lab):
    """After five lapsed owners the sixth death ends it: Failed with recovery_limit_exceeded, which its parent is told."""
    lab.put("child", lambda s: s.ask("die"))
    lab.put("op", lambda s: s.write("end", s.join(s.spawn("child", "c"), "e")))
    run_id = lab.process().create("op")
    for _ in range(6):
        crash(lab, run_id)
    assert lab.process().resume(run_id).phase == "Completed"
    end = lab.final(run_id)["op.main.end"]
    assert (end["status"], end["cause"]["code"]) == ("Failed", "recovery_limit_exceeded")
    assert lab.world.counts == {"die": 6}


def test_row04_children_are_driven_on_by_whoever_drives_their_parent(lab: Lab):
    """A child that was running when the process died goes on before anybody awaits it."""
    again = threading.Event()

    def child(s: Stage) -> None:
        if lab.world.counts["die"]:
            again.set()

    def parent(s: Stage) -> None:
        s.spawn("child", "c")
        s.ask("die")
        wait_for(again)

    lab.put("child", child)
    lab.put("op", parent)
    run_id = lab.process().create("op")
    crash(lab, run_id, max_concurrency=1)
    assert lab.children(run_id)[0].status == "Pending"
    assert lab.process().resume(run_id).phase == "Completed"


def test_row05_after_a_crash_children_run_side_by_side_again(lab: Lab):
    """Two children that wait for each other's start both end after a resume."""
    both = threading.Barrier(2, timeout=20)

    def child(s: Stage) -> None:
        if lab.world.counts["die"]:
            both.wait()

    def parent(s: Stage) -> None:
        children = [s.spawn("child", f"c{index}", index) for index in range(2)]
        s.ask("die")
        for index, handle in enumerate(children):
            s.join(handle, f"e{index}")

    lab.put("child", child)
    lab.put("op", parent)
    run_id = lab.process().create("op")
    crash(lab, run_id, max_concurrency=1)
    assert lab.process(max_concurrency=1 + 2).resume(run_id).phase == "Completed"


def test_row06_two_processes_never_work_on_the_same_run(lab: Lab):
    """One owner at a time; the other waits and gets the result, and no side effect happens twice."""
    lab.put("op", lambda s: s.write("r", [s.ask(f"effect {index}") for index in range(10)]))
    processes = [lab.process(owner=name) for name in "abc"]
    run_id = processes[0].create("op")
    runs = [Background(process.resume, run_id) for process in processes]
    assert {run.join().phase for run in runs} == {"Completed"}
    assert set(lab.world.counts.values()) == {1}


def test_row07_an_await_that_is_tried_again_joins_the_running_child(lab: Lab):
    """A parent whose attempt failed while its child works awaits the same execution in the next attempt."""
    gate = threading.Event()

    def parent(s: Stage) -> None:
        child = s.spawn("child", "c")
        if s.io.find_fact("first") is None:
            s.io.record_value("first", True)
            raise ValueError("once")
        gate.set()
        s.write("end", s.join(child, "e")["status"])

    def child(s: Stage) -> None:
        wait_for(gate)
        s.ask("work")

    lab.put("child", child)
    lab.put("op", parent)
    result = lab.process().start("op", config=retrying(2))
    assert lab.final(result.run_id) == {"op.main.end": "Completed"}
    assert lab.world.counts == {"work": 1}
    assert lab.attempts(lab.children(result.run_id)[0].run_id) == [0]


def test_row08_two_awaits_of_one_child_give_one_answer(lab: Lab):
    """Under two keys and from two states."""
    lab.put("child", lambda s: s.write("x", s.ask("work")))

    def first(s: Stage) -> None:
        s.write("handle", s.spawn("child", "c"))
        s.write("a", s.join(s.read("handle"), "e1"))

    lab.put("op", first, lambda s: s.write("b", s.join(s.read("handle"), "e2")))
    run_id = lab.process().start("op").run_id
    final = lab.final(run_id)
    assert final["op.main.a"] == final["op.main.b"]
    assert lab.world.counts == {"work": 1}


def test_row09_children_nest(lab: Lab):
    """A grandchild is spawned and awaited like a child; depth is limited."""
    lab.put("leaf", lambda s: s.write("x", 1))
    lab.put("child", lambda s: s.write("leaf", s.join(s.spawn("leaf", "l"), "le")["status"]))
    lab.put("op", lambda s: s.write("end", s.join(s.spawn("child", "c"), "e")["final_snapshot"]))
    run_id = lab.process().start("op").run_id
    assert lab.final(run_id) == {"op.main.end": {"child.main.leaf": "Completed"}}


def spawn_with(op: str, key: str, **more: Any) -> IoCall:
    request = SpawnRequest(op_id=op, op_version="1", run_config=RunConfig(), **more)
    return IoCall(SPAWN, request.to_json(), key)


@pytest.mark.parametrize("policy", ["cancel", "abandon"])
def test_row10_a_failed_parent_applies_the_policy_recorded_at_spawn(lab: Lab, policy: Any):
    """`cancel` asks the child to end in the parent's last commit; `abandon` leaves it alone."""
    at_work, gate = threading.Event(), threading.Event()

    def child(s: Stage) -> None:
        at_work.set()
        wait_for(gate)
        s.ask("late")

    def parent(s: Stage) -> None:
        s.io.call(spawn_with("child", "c", parent_close_policy=policy))
        wait_for(at_work)
        raise ValueError("failed")

    lab.put("child", child)
    lab.put("op", parent)
    process = lab.process()
    result = process.start("op")
    assert result.phase == "Failed"
    child_id = lab.children(result.run_id)[0].run_id
    assert [entry.kind for entry in lab.store.read_inbox(child_id)] == (["close"] if policy == "cancel" else [])
    assert lab.row(child_id).status == "Running"
    gate.set()
    expected = "Cancelled" if policy == "cancel" else "Completed"
    eventually(lambda: lab.row(child_id).status == expected)
    assert lab.world.counts == ({} if policy == "cancel" else {"late": 1})


def test_row10_a_cancelled_tree_ends_leaves_first(lab: Lab):
    """What nobody owns ends at once as Cancelled."""
    lab.put("child", lambda s: None)

    def parent(s: Stage) -> None:
        s.spawn("child", "c")
        s.ask("die")

    lab.put("op", parent)
    run_id = lab.process().create("op")
    dead = crash(lab, run_id, max_concurrency=1)
    session = lab.row(run_id).lease_session_id
    assert session is not None
    lab.store.close_session(session)
    process = lab.process()
    assert dead.gate.dead
    outcome = cancel_run(process.house, run_id, "not needed")
    assert set(outcome.values()) == {"cancelled"}
    assert {row.status for row in lab.all_runs()} == {"Cancelled"}
    assert process.resume(run_id).phase == "Cancelled"


def test_row11_a_child_that_hangs_ends_at_its_deadline(lab: Lab):
    """A timeout recorded at spawn: Failed with run_timed_out, and the parent is told."""
    lab.put("child", lambda s: s.io.sleep("nap", 10**12))

    def parent(s: Stage) -> None:
        call = spawn_with("child", "c", timeout=Duration(nanos=50_000_000))
        s.write("end", s.join(s.io.call(call).response, "e"))

    lab.put("op", parent)
    run = Background(lambda: lab.process().start("op"))
    end = lab.final(run.join().run_id)["op.main.end"]
    assert end["status"] == "Failed"
    assert end["cause"]["code"] == "run_timed_out"


def test_row12_waiting_holds_no_slot(lab: Lab):
    """With a single slot a parent, its child and the child's child all end."""
    lab.put("leaf", lambda s: None)
    lab.put("child", lambda s: s.join(s.spawn("leaf", "l"), "e"))
    lab.put("op", lambda s: s.join(s.spawn("child", "c"), "e"))
    process = lab.process(max_concurrency=1)
    run = Background(lambda: process.start("op"))
    assert run.join().phase == "Completed"


def test_row13_a_fact_key_is_bound_to_its_request(lab: Lab):
    """The same key with another request is an error, for the world and for children."""
    codes: list[str] = []

    def handler(s: Stage) -> None:
        s.ask("k", 1)
        s.spawn("child", "c", 1)
        codes.append(code_of(lambda: s.ask("k", 2)))
        codes.append(code_of(lambda: s.spawn("child", "c", 2)))

    lab.put("child", lambda s: None)
    lab.put("op", handler)
    lab.process().start("op")
    assert codes == ["fact_request_mismatch", "child_run_conflict"]


def test_row14_initial_context_is_part_of_what_is_compared(lab: Lab):
    """Another context under the same key is a conflict that says so."""
    details: list[Any] = []

    def handler(s: Stage) -> None:
        s.spawn("child", "c", context={"child.main.x": 1})
        with pytest.raises(IoError) as caught:
            s.spawn("child", "c", context={"child.main.x": 2})
        details.append((caught.value.code, caught.value.info.details))

    lab.put("child", lambda s: None)
    lab.put("op", handler)
    lab.process().start("op")
    assert details == [("child_run_conflict", {"differs": "initial context"})]


def test_row15_a_child_knows_its_parent(lab: Lab):
    """Parent, state, fact key, root and depth stand in the child's first event, and children can be listed."""
    lab.put("child", lambda s: None)
    lab.put("op", lambda s: s.join(s.spawn("child", "c"), "e"))
    run_id = lab.process().start("op").run_id
    (child,) = lab.children(run_id)
    started = lab.started(child.run_id)
    assert started.parent is not None
    assert (started.parent.run_id, started.parent.state_id, started.parent.fact_key) == (str(run_id), "op.main.s0", "c")
    assert (started.root_run_id, started.depth) == (str(run_id), 1)


def test_row16_linkage_comes_in_the_commit_of_its_fact(lab: Lab):
    """Whatever the profile and wherever the process dies, fact and linkage event stand together."""
    lab.put("child", lambda s: None)
    lab.put("op", lambda s: s.join(s.spawn("child", "c"), "e"))
    for number in range(1, 9):
        process = lab.process()
        run_id = process.create("op", config=RunConfig(event_profile="Minimal"))
        process.gate.die_after = len(process.gate.commits) + number
        try:
            process.resume(run_id)
        except BaseException:
            assert process.gate.dead
        names = lab.names(run_id)
        assert names.count("fact_recorded") == names.count("child_run_spawned") + names.count("child_run_completed")
        assert lab.process().resume(run_id).phase == "Completed"


def test_row17_only_ones_own_child_with_the_right_manifest_is_awaited(lab: Lab):
    """A foreign run and a wrong manifest are refused, and neither is started."""
    lab.put("other", lambda s: s.ask("never"))
    stranger = lab.process().create("other")
    codes: list[str] = []

    def handler(s: Stage) -> None:
        own = s.spawn("child", "c")
        manifest = lab.row(stranger).manifest_id
        named = ({"child_run_id": str(stranger), "child_manifest_id": manifest}, {**own, "child_manifest_id": manifest})
        calls = [await_call(child, f"e{n}") for n, child in enumerate(named)]
        codes.extend(code_of(partial(s.io.call, call)) for call in calls)

    lab.put("child", lambda s: None)
    lab.put("op", handler)
    lab.process().start("op")
    assert codes == ["child_run_foreign", "child_run_conflict"]
    assert lab.row(stranger).status == "Pending"


def test_row18_the_cause_of_a_childs_failure_reaches_its_parent(lab: Lab):
    """State, code, category, retryability, message and attempt; compact answers carry it too."""

    def fails(s: Stage) -> None:
        raise ValueError("no more paper")

    lab.put("child", fails)

    def parent(s: Stage) -> None:
        child = s.spawn("child", "c")
        s.write("causes", [s.join(child, "e1")["cause"], s.join(child, "e2", compact=True)["cause"]])

    lab.put("op", parent)
    run_id = lab.process().start("op").run_id
    full, compact = lab.final(run_id)["op.main.causes"]
    assert full == compact
    assert (full["state_id"], full["code"], full["message"], full["attempt"]) == (
        "child.main.s0",
        "handler_raised",
        "ValueError: no more paper",
        0,
    )
    failed = [event for event in lab.events(lab.children(run_id)[0].run_id) if isinstance(event, StateFailed)]
    assert len(failed) == 1
