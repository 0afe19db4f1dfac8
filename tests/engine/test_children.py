"""Children: spawned in one commit, awaited by their own parent, without ever deadlocking (rules 5, 6, 9 and 12)."""

from __future__ import annotations

import threading
from typing import Any
from uuid import UUID

import pytest

from airflow_childrun.engine.ports import IoCall
from airflow_childrun.errors import IoError, OtherIoError
from airflow_childrun.ids import child_run_id
from airflow_childrun.model.config import FanOutJoin, RunConfig
from airflow_childrun.model.requests import AWAIT, SPAWN
from airflow_childrun.runtime.supervisor import Supervisor
from airflow_childrun.store.api import RunRow
from tests.engine.kit import DEATH, Background, Lab, Stage, await_call, eventually, spawn_call, wait_for


def refusal(s: Stage, call: IoCall) -> tuple[str, str]:
    """Return code and message of what a call raises."""
    with pytest.raises(IoError) as caught:
        s.io.call(call)
    return caught.value.code, caught.value.info.message


def test_child_knows_parent_root_and_depth(lab: Lab):
    """RunStarted and row carry the lineage, and ids follow from parent and key alone."""
    lab.put("grandchild", lambda s: None)
    lab.put("child", lambda s: s.join(s.spawn("grandchild", "g"), "ge"))
    lab.put("op", lambda s: s.join(s.spawn("child", "c"), "ce"))
    root = lab.process().start("op").run_id
    child = lab.children(root)[0]
    grandchild = lab.children(child.run_id)[0]
    assert child.run_id == child_run_id(root, "c")
    assert grandchild.run_id == child_run_id(child.run_id, "g")
    assert [(row.depth, row.root_run_id, row.parent_run_id) for row in (child, grandchild)] == [
        (1, root, root),
        (2, root, child.run_id),
    ]
    parent = lab.started(grandchild.run_id).parent
    assert parent is not None
    assert (parent.run_id, parent.fact_key, parent.state_id) == (str(child.run_id), "g", "child.main.s0")


def test_await_answers_the_v1_fields_and_records_the_childs_end(lab: Lab):
    """Four fields for a completed child; its terminal head stands in the fact's meta, never in the payload."""
    lab.put("child", lambda s: s.write("x", s.input))
    lab.put("op", lambda s: s.write("end", s.join(s.spawn("child", "c", 7), "e")))
    run_id = lab.process().start("op").run_id
    child = lab.children(run_id)[0]
    assert lab.final(run_id)["op.main.end"] == {
        "child_run_id": str(child.run_id),
        "status": "Completed",
        "final_snapshot_id": child.final_snapshot_id,
        "final_snapshot": {"child.main.x": 7},
    }
    meta = lab.domain(run_id, "fact_recorded")[1]["meta"]
    assert (meta["head_seq"], meta["head_hash"], meta["status"]) == (child.head.seq, child.head.hash, "Completed")


def test_compact_await_answers_status_snapshot_id_and_output(lab: Lab):
    """What io.map records: never the whole snapshot."""
    lab.put("child", lambda s: s.ctx.write(s.state_id, s.input))
    lab.put("op", lambda s: s.write("end", s.join(s.spawn("child", "c", 7), "e", compact=True)))
    run_id = lab.process().start("op").run_id
    child = lab.children(run_id)[0]
    assert lab.final(run_id)["op.main.end"] == {
        "child_run_id": str(child.run_id),
        "status": "Completed",
        "final_snapshot_id": child.final_snapshot_id,
        "output": 7,
    }


def test_a_failed_child_is_no_io_error(lab: Lab):
    """The parent gets Failed, the last good snapshot and the cause, and decides itself."""

    def fails(s: Stage) -> None:
        raise ValueError("broken leg")

    lab.put("child", lambda s: s.write("good", 1), fails)
    lab.put("op", lambda s: s.write("end", s.join(s.spawn("child", "c"), "e")))
    result = lab.process().start("op")
    assert result.phase == "Completed"
    end = lab.final(result.run_id)["op.main.end"]
    assert (end["status"], end["final_snapshot"]) == ("Failed", {"child.main.good": 1})
    assert end["cause"] == {
        "state_id": "child.main.s1",
        "code": "handler_raised",
        "category": "Unknown",
        "retryable": True,
        "message": "ValueError: broken leg",
        "attempt": 0,
    }


def test_initial_context_reaches_the_child(lab: Lab):
    """Full keys in, full keys seen."""
    lab.put("child", lambda s: s.write("y", s.read("x")))
    lab.put("op", lambda s: s.write("end", s.join(s.spawn("child", "c", context={"child.main.x": 5}), "e")))
    run_id = lab.process().start("op").run_id
    assert lab.final(run_id)["op.main.end"]["final_snapshot"] == {"child.main.x": 5, "child.main.y": 5}


def test_two_states_await_the_same_child(lab: Lab):
    """Both get the same end, under two keys, and the child ran once."""
    lab.put("child", lambda s: s.ask("work"))
    lab.put(
        "op",
        lambda s: s.write("a", s.join(s.spawn("child", "c"), "e1")),
        lambda s: s.write("b", s.join(s.spawn("child", "c"), "e2")),
    )
    run_id = lab.process().start("op").run_id
    final = lab.final(run_id)
    assert final["op.main.a"] == final["op.main.b"]
    assert lab.world.counts == {"work": 1}
    assert len(lab.children(run_id)) == 1


@pytest.mark.parametrize("slots", [1, 3])
def test_a_tree_of_three_levels_cannot_deadlock(lab: Lab, slots: int):
    """5 x 5 x 5 runs with one slot: who awaits gives its slot to the child, so everything ends."""
    lab.put("leaf", lambda s: s.ask(f"leaf {s.input}"))
    lab.put("branch", lambda s: s.fan_out("leaf", [f"{s.input}.{index}" for index in range(5)]) and None)
    lab.put("trunk", lambda s: s.fan_out("branch", [f"{s.input}.{index}" for index in range(5)]) and None)
    lab.put("root", lambda s: s.write("r", [end["status"] for end in s.fan_out("trunk", range(5))]))
    process = lab.process(max_concurrency=slots)
    run = Background(lambda: process.start("root"))
    result = run.join()
    assert lab.final(result.run_id) == {"root.main.r": ["Completed"] * 5}
    assert len(lab.world.calls) == 125
    assert set(lab.world.counts.values()) == {1}
    assert process.house.slots._free == slots


def test_no_more_runs_work_at_once_than_there_are_slots(lab: Lab):
    """Twenty children over three slots: never four at work, and also not when awaits end in errors."""
    lock = threading.Lock()
    now: list[int] = [0, 0]

    def child(s: Stage) -> None:
        with lock:
            now[0] += 1
            now[1] = max(now)
        s.ask(f"k{s.input}")
        with lock:
            now[0] -= 1

    lab.put("child", child)
    lab.put("op", lambda s: s.fan_out("child", range(20)) and None)
    process = lab.process(max_concurrency=3)
    process.start("op")
    assert 1 <= now[1] <= 3
    assert process.house.slots._free == 3


def test_a_refused_await_takes_its_slot_again(lab: Lab):
    """A child that this process cannot drive is an answer like any other: the parent goes on with a slot."""
    lab.put("known", lambda s: None)
    full = lab.shelf
    full.put("secret_op", lambda s: None)
    free: list[int] = []

    def parent(s: Stage) -> None:
        child = s.spawn("secret_op", "c")
        del full.ops["secret_op", "1"]
        process.house.cradle.take(UUID(child["child_run_id"]))  # nor has it found the plan when it made the child
        code, _ = refusal(s, await_call(child, "e"))
        free.append(process.house.slots._free)
        s.write("code", code)

    lab.put("op", parent)
    process = lab.process(max_concurrency=1)
    result = process.start("op")
    assert lab.final(result.run_id) == {"op.main.code": "child_run_task_failed"}
    assert free == [0]
    assert process.house.slots._free == 1


def test_await_of_a_foreign_run_is_refused(lab: Lab):
    """Neither a stranger nor a grandchild: a run awaits only its own children."""
    lab.put("other", lambda s: None)
    stranger = lab.process().start("other").run_id
    manifest_id = lab.row(stranger).manifest_id
    lab.put("leaf", lambda s: None)
    lab.put("child", lambda s: s.write("leaf", s.spawn("leaf", "l")))

    def parent(s: Stage) -> None:
        foreign = {"child_run_id": str(stranger), "child_manifest_id": manifest_id}
        end = s.join(s.spawn("child", "c"), "e")
        grandchild = end["final_snapshot"]["child.main.leaf"]
        missing = {"child_run_id": str(UUID(int=5)), "child_manifest_id": manifest_id}
        wrong = {**s.spawn("child", "c"), "child_manifest_id": manifest_id}
        asked = [foreign, grandchild, missing, wrong]
        s.write("codes", [refusal(s, await_call(named, f"x{index}"))[0] for index, named in enumerate(asked)])

    lab.put("op", parent)
    run_id = lab.process().start("op").run_id
    assert lab.final(run_id)["op.main.codes"] == [
        "child_run_foreign",
        "child_run_foreign",
        "child_run_engine_failed",
        "child_run_conflict",
    ]


def test_nesting_is_limited(lab: Lab):
    """One level below the limit is refused, the run that asked lives on."""

    def nest(s: Stage) -> None:
        if s.input == 3:
            s.write("code", refusal(s, spawn_call("nest", "n", s.input + 1))[0])
        else:
            s.join(s.spawn("nest", "n", s.input + 1), "e")

    lab.put("nest", nest)
    assert lab.process(max_depth=3).start("nest", 0).phase == "Completed"
    assert max(row.depth for row in lab.all_runs()) == 3
    deepest = max(lab.all_runs(), key=lambda row: row.depth)
    assert lab.final(deepest.run_id) == {"nest.main.code": "child_run_depth_exceeded"}


@pytest.mark.parametrize(
    ("call", "code", "cause"),
    [
        (spawn_call("nowhere", "k"), "child_run_engine_failed", "operation_not_found"),
        (spawn_call("Bad-Name", "k"), "child_run_request_invalid", None),
        (
            spawn_call("child", "k", config=RunConfig(execution_mode=FanOutJoin(max_concurrency=2))),
            "child_run_engine_failed",
            "unsupported_execution_mode",
        ),
        (spawn_call("child", "k", config=RunConfig(io_mode="Replay")), "child_run_request_invalid", None),
        (spawn_call("child", "k", context=[1]), "child_run_request_invalid", None),
        (spawn_call("child", "k", {"password": "hunter2hunter2"}), "child_run_engine_failed", "secrets_detected"),
        (spawn_call("child", None), "missing_fact_key", None),
        (IoCall(SPAWN, {"kind": "child_run_spawn_v2"}, "k"), "child_run_request_invalid", None),
        (IoCall(SPAWN, None, "k"), "child_run_request_invalid", None),
        (IoCall(AWAIT, {"kind": "child_run_await_v1", "child_run_id": "x", "child_manifest_id": ""}, "k"),
         "child_run_request_invalid", None),
        (IoCall("machine.child_run.kill", None, "k"), "io_unknown_namespace", None),
    ],
    ids=["unknown", "name", "mode", "replay", "context", "secret", "key", "kind", "shape", "await", "verb"],
)  # fmt: skip
def test_what_can_be_refused_is_refused_at_spawn(lab: Lab, call: IoCall, code: str, cause: str | None):
    """Nothing of the child is stored, and the cause's own code is named."""
    lab.put("child", lambda s: None)
    seen: list[tuple[str, str]] = []

    def parent(s: Stage) -> None:
        seen.append(refusal(s, call))

    lab.put("op", parent)
    result = lab.process().start("op")
    assert result.phase == "Completed"
    assert seen[0][0] == code
    assert cause is None or f"[{cause}]" in seen[0][1]
    assert lab.children(result.run_id) == []
    assert "hunter2" not in lab.stored_text()


def test_an_invalid_plan_is_refused_at_spawn_and_at_start(lab: Lab):
    """A cycle is found before anything is stored."""
    bad = lab.put("bad", lambda s: None, lambda s: None)
    bad.edges = [("s0", "s1"), ("s1", "s0")]
    seen: list[tuple[str, str]] = []
    lab.put("op", lambda s: seen.append(refusal(s, spawn_call("bad", "k"))))
    run_id = lab.process().start("op").run_id
    assert seen[0][0] == "child_run_engine_failed"
    assert "wait for each other" in seen[0][1]
    with pytest.raises(Exception, match="wait for each other"):
        lab.process().start("bad")
    assert [row.run_id for row in lab.all_runs()] == [run_id]


def test_a_recorded_spawn_is_driven_again_after_a_crash_without_an_await(lab: Lab):
    """Fire and forget: the child is handed over when its parent is driven again, before any await."""
    started, gate = threading.Event(), threading.Event()

    def child(s: Stage) -> None:
        if s.io.find_fact("done") is None:
            started.set()
            wait_for(gate)
        s.ask("done")

    lab.put("child", child)

    def parent(s: Stage) -> None:
        s.spawn("child", "c")
        s.ask("die")

    lab.put("op", parent)
    run_id = lab.process().create("op")
    first = lab.process()

    def die(request: Any) -> None:
        wait_for(started)
        first.crash()

    lab.world.scripts["die"] = [die]
    with pytest.raises(DEATH):
        first.resume(run_id)
    gate.set()
    assert lab.process().resume(run_id).phase == "Completed"
    eventually(lambda: lab.children(run_id)[0].status == "Completed")
    assert lab.world.counts["done"] == 1


def test_spawned_children_begin_at_once(lab: Lab):
    """A child works while its parent has not yet awaited it."""
    started = threading.Event()
    lab.put("child", lambda s: started.set())

    def parent(s: Stage) -> None:
        s.spawn("child", "c")
        wait_for(started)

    lab.put("op", parent)
    assert lab.process().start("op").phase == "Completed"


def test_an_await_of_a_child_that_another_process_drives_waits_for_it(lab: Lab):
    """The waiter never executes the child itself while somebody owns it."""
    at_work, gate = threading.Event(), threading.Event()

    def child(s: Stage) -> None:
        at_work.set()
        wait_for(gate)
        s.ask("work")

    lab.put("child", child)
    lab.put("spawner", lambda s: s.spawn("child", "c"), lambda s: s.write("e", s.join(s.spawn("child", "c"), "e")))
    first = lab.process(owner="one")
    run_id = first.create("spawner")
    first.stop_after_handler(run_id)
    first.resume(run_id)
    wait_for(at_work)
    other = lab.process(owner="two")
    row: RunRow = lab.children(run_id)[0]
    waiting = Background(lambda: Supervisor(other.house).wait(row.run_id))
    assert not waiting.is_done
    gate.set()
    assert waiting.join().status == "Completed"
    assert lab.world.counts == {"work": 1}
    assert first.resume(run_id).phase == "Completed"


def test_changing_the_answer_of_a_spawn_changes_no_record(lab: Lab):
    """The handle that a handler holds is a copy."""
    lab.put("child", lambda s: None)

    def parent(s: Stage) -> None:
        child = s.spawn("child", "c")
        child["child_run_id"] = "x"
        s.join(s.spawn("child", "c"), "e")

    lab.put("op", parent)
    process = lab.process()
    result = process.start("op")
    assert result.phase == "Completed"
    assert process.engine.replay(result.run_id) == result.final_snapshot_id


def test_linkage_is_kept_under_the_minimal_profile(lab: Lab):
    """Spawned and completed events stand in the stream; what a handler emits does not."""
    lab.put("child", lambda s: s.rec.emit("mine", 1))
    lab.put("op", lambda s: s.join(s.spawn("child", "c", config=RunConfig(event_profile="Minimal")), "e"))
    run_id = lab.process().start("op", config=RunConfig(event_profile="Minimal")).run_id
    assert lab.names(run_id) == [
        "RunStarted",
        "StateEntered",
        "fact_recorded",
        "child_run_spawned",
        "fact_recorded",
        "child_run_completed",
        "StateCompleted",
        "RunCompleted",
    ]
    assert "mine" not in lab.names(lab.children(run_id)[0].run_id)


def test_child_errors_of_the_store_are_no_facts(lab: Lab):
    """A child that cannot be read leaves its parent open, so that a repaired store lets both go on."""
    lab.put("child", lambda s: wait_for(gate))
    gate = threading.Event()
    lab.put("op", lambda s: s.join(s.spawn("child", "c"), "e"))
    process = lab.process()
    run_id = process.create("op")
    process.stop_after_handler(run_id)
    run = Background(lambda: process.resume(run_id))
    eventually(lambda: len(lab.children(run_id)) == 1)
    child = lab.children(run_id)[0]
    kept = lab.store._artifacts[run_id].pop(child.manifest_id)
    process.crash()
    gate.set()
    second = lab.process()
    with pytest.raises(Exception, match="manifest"):
        second.resume(run_id)
    assert "fact_failed" not in lab.names(run_id)
    lab.store._artifacts[run_id][child.manifest_id] = kept
    assert lab.process().resume(run_id).phase == "Completed"
    assert isinstance(run, Background)


def test_unreadable_awaited_snapshot_is_an_interrupt_not_a_fact(lab: Lab):
    """OtherIoError is for what the world says; missing bytes leave the attempt open."""
    lab.put("child", lambda s: s.write("x", 1))

    def parent(s: Stage) -> None:
        child = s.spawn("child", "c")
        eventually(lambda: lab.children(run_id)[0].status == "Completed")
        if not broken:
            body = lab.store._artifacts[run_id].pop(lab.children(run_id)[0].final_snapshot_id or "")
            broken.append(body)
        s.join(child, "e")

    broken: list[Any] = []
    lab.put("op", parent)
    process = lab.process()
    run_id = process.create("op")
    result = Background(lambda: process.resume(run_id))
    with pytest.raises(Exception, match="missing"):
        result.join()
    lab.store._artifacts[run_id][broken[0].id] = broken[0]
    assert lab.process().resume(run_id).phase == "Completed"
    assert not isinstance(result.raised, OtherIoError)
