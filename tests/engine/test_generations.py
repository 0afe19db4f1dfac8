"""Generations: a failed run goes on in the next one, and a failed tree heals downwards (rule 7)."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from airflow_childrun.engine.fact_io import token
from airflow_childrun.engine.ports import RunIdentity
from airflow_childrun.errors import ChildRunError, CorruptionError, IoError, TransportError
from airflow_childrun.ids import child_run_id
from airflow_childrun.runtime.generations import continuation
from airflow_childrun.store.api import Commit, Committed
from tests.engine.kit import DEATH, Lab, Process, Stage


def continue_run(lab: Lab, process: Process, run_id: UUID) -> UUID:
    """Open the next generation of a terminal run, as its opener (a host, a parent) does, and leave it to be driven."""
    row = lab.row(run_id)
    opener = row.parent_run_id or row.run_id
    identity = RunIdentity(opener, opener, row.root_run_id, max(0, row.depth - 1))
    new_id, step = continuation(lab.store, row, identity)
    answer = lab.store.commit([Commit(process.house.entropy.new_id(), (step,))])[0]
    assert isinstance(answer, Committed)
    return new_id


def joined(s: Stage, end: dict[str, Any]) -> None:
    """Fail as the child did."""
    if end["status"] != "Completed":
        raise ValueError(f"a child ended {end['status']}")


def raises(s: Stage) -> None:
    raise ValueError("always")


def only_child(lab: Lab, run_id: UUID, generation: int = 1) -> UUID:
    return next(row.run_id for row in lab.children(run_id) if row.generation == generation)


def test_the_next_generation_starts_at_the_last_checkpoint(lab: Lab):
    """What is completed stays completed; the failed state runs again over its facts; ids, tokens and keys are the chain's."""
    broken = [True]
    tokens: list[str] = []

    def second(s: Stage) -> None:
        s.ask("kept")
        tokens.append(s.io.idempotency_token("k"))
        s.write("t", s.io.now_millis())
        if broken[0]:
            raise ValueError("once")

    lab.put("child", lambda s: s.write("first", s.ask("first")), second)
    lab.put("op", lambda s: s.spawn("child", "c"), lambda s: s.write("e", s.join(s.spawn("child", "c"), "e")))
    process = lab.process()
    parent = process.start("op").run_id
    first = only_child(lab, parent)
    assert lab.row(first).status == "Failed"
    broken[0] = False
    second_id = continue_run(lab, process, first)
    result = process.resume(second_id)
    assert result.phase == "Completed"
    assert second_id == child_run_id(parent, "c", 2)
    assert lab.world.counts == {"first": 1, "kept": 1}
    assert tokens == [str(token(first, "k", 0))] * 2
    started = lab.started(second_id)
    assert started.continues is not None
    assert (started.continues.run_id, started.continues.seq) == (str(first), lab.row(first).head.seq)
    assert [event.state_id for event in lab.completions(second_id)] == ["child.main.s1"]
    assert lab.final(second_id)["child.main.first"] == {"echo": None}
    assert process.engine.replay(second_id) == result.final_snapshot_id


def test_the_next_generation_forgets_what_the_failed_state_recorded_about_failures(lab: Lab):
    """The world is asked again where it had failed."""
    lab.world.scripts["k"] = [TransportError("down"), "up"]
    lab.put("child", lambda s: s.write("r", s.ask("k")))
    lab.put("op", lambda s: s.join(s.spawn("child", "c"), "e"))
    process = lab.process()
    parent = process.start("op").run_id
    new = continue_run(lab, process, only_child(lab, parent))
    assert process.resume(new).phase == "Completed"
    assert lab.final(new) == {"child.main.r": "up"}
    assert lab.world.counts == {"k": 2}


def test_a_failed_tree_of_three_levels_heals_downwards(lab: Lab):
    """Continuing the top runs again only what failed, on every level; every call happens once but those that failed."""
    broken = [True]

    def leaf(s: Stage) -> None:
        s.ask(f"leaf {s.input}")
        if broken[0] and s.input.endswith("1.1"):
            raise ValueError("broken leaf")
        s.write("done", s.input)

    def branch(s: Stage) -> None:
        s.ask(f"branch {s.input}")
        for end in s.fan_out("leaf", [f"{s.input}.{index}" for index in range(3)]):
            joined(s, end)

    def trunk(s: Stage) -> None:
        for end in s.fan_out("branch", [f"{s.input}{index}" for index in range(3)]):
            joined(s, end)
        s.write("done", True)

    lab.put("leaf", leaf)
    lab.put("branch", branch)
    lab.put("trunk", trunk)
    lab.put("host", lambda s: s.write("end", s.join(s.spawn("trunk", "t", "t"), "e")["status"]))
    process = lab.process(max_concurrency=2)
    host = process.start("host").run_id
    trunk_id = only_child(lab, host)
    assert lab.row(trunk_id).status == "Failed"
    before = lab.world.counts
    broken[0] = False
    healed = continue_run(lab, process, trunk_id)
    assert process.resume(healed).phase == "Completed"
    assert lab.world.counts == before
    generations = sorted((row.op_id, row.generation, row.status) for row in lab.all_runs() if row.generation > 1)
    assert generations == [("branch", 2, "Completed"), ("leaf", 2, "Completed"), ("trunk", 2, "Completed")]
    assert process.engine.replay(healed) == lab.row(healed).final_snapshot_id
    for row in lab.all_runs():
        if row.status == "Completed" and row.op_id != "host":
            assert process.engine.replay(row.run_id) == row.final_snapshot_id or row.generation == 1


def test_a_child_that_fails_again_is_not_opened_for_ever(lab: Lab):
    """One generation of a child per generation of its parent: its second failure is recorded as the answer."""

    def leaf(s: Stage) -> None:
        s.ask("leaf")
        raise ValueError("for ever")

    lab.put("leaf", leaf)
    lab.put("branch", lambda s: joined(s, s.join(s.spawn("leaf", "l"), "e")))
    lab.put("host", lambda s: s.join(s.spawn("branch", "b"), "e"))
    process = lab.process()
    host = process.start("host").run_id
    branch = only_child(lab, host)
    for generation in (2, 3):
        branch = continue_run(lab, process, branch)
        assert process.resume(branch).phase == "Failed"
        assert sorted(row.generation for row in lab.all_runs() if row.op_id == "leaf") == list(range(1, generation + 1))
    assert lab.world.counts == {"leaf": 1}


def test_healing_survives_a_crash_at_every_commit(lab: Lab):
    """However the process dies while the tree heals, there is one new generation of the child and one result."""
    for dies_at in range(1, 12):
        one = Lab()
        broken = [True]

        def leaf(s: Stage, broken: list[bool] = broken) -> None:
            s.ask("leaf")
            if broken[0]:
                raise ValueError("once")

        one.put("leaf", leaf)
        one.put("branch", lambda s: joined(s, s.join(s.spawn("leaf", "l"), "e")))
        one.put("host", lambda s: s.join(s.spawn("branch", "b"), "e"))
        first = one.process()
        branch = only_child(one, first.start("host").run_id)
        broken[0] = False
        new = continue_run(one, first, branch)
        second = one.process()
        second.gate.die_after = dies_at
        died = True
        try:
            second.resume(new)
            died = False
        except BaseException:
            assert second.gate.dead
        assert one.process().resume(new).phase == "Completed"
        assert sorted(row.generation for row in one.all_runs() if row.op_id == "leaf") == [1, 2]
        assert one.world.counts == {"leaf": 1}
        one.close()
        if not died:
            break
    else:
        raise AssertionError("never got through")


def test_a_continued_run_that_changed_is_refused(lab: Lab):
    """The next generation names the hash of what it continues."""
    lab.put("child", raises)
    lab.put("op", lambda s: s.join(s.spawn("child", "c"), "e"))
    process = lab.process()
    first = only_child(lab, process.start("op").run_id)
    new = continue_run(lab, process, first)
    events = lab.store._events[first]
    events[-1] = events[-1]._replace(hash="0" * 64)
    with pytest.raises(CorruptionError) as caught:
        process.resume(new)
    assert caught.value.code == "continued_run_changed"


def test_a_newest_generation_that_vanished_is_no_answer(lab: Lab):
    """Its parent's stream tells of it: neither the end of the one before is handed out, nor is it made a second time."""
    broken = [True]

    def leaf(s: Stage) -> None:
        if broken[0]:
            raise ValueError("once")

    def look_again(s: Stage) -> None:
        healed = child_run_id(branch, "l", 2)
        slot = lab.store._runs.pop(healed).row.slot_id
        lab.store._by_slot[slot].remove(healed)
        del lab.store._slots[slot, 2], lab.store._events[healed]
        s.join(s.read("leaf"), "e2")

    def first_look(s: Stage) -> None:
        s.write("leaf", s.spawn("leaf", "l"))
        joined(s, s.join(s.read("leaf"), "e"))

    lab.put("leaf", leaf)
    lab.put("branch", first_look, look_again)
    lab.put("host", lambda s: s.join(s.spawn("branch", "b"), "e"))
    process = lab.process()
    branch = only_child(lab, process.start("host").run_id)
    broken[0] = False
    new = continue_run(lab, process, branch)
    with pytest.raises(CorruptionError) as caught:
        process.resume(new)
    assert caught.value.code == "run_row_mismatch"
    assert child_run_id(branch, "l", 2) not in lab.store._runs


def test_an_await_by_the_old_handle_answers_for_the_newest_generation(lab: Lab):
    """A handle names the slot, not the run."""
    lab.put("child", lambda s: s.write("x", s.io.find_fact("go")) if fixed else fail())
    fixed: list[int] = []

    def fail() -> None:
        raise ValueError("once")

    def parent(s: Stage) -> None:
        child = s.spawn("child", "c")
        first = s.join(child, "e1")
        if not fixed:
            fixed.append(1)
            process.resume(continue_run(lab, process, UUID(first["child_run_id"])))
        second = s.join(child, "e2")
        s.write("both", [first["status"], second["status"]])

    lab.put("op", parent)
    process = lab.process()
    run_id = process.start("op").run_id
    assert lab.final(run_id) == {"op.main.both": ["Failed", "Completed"]}
    meta = lab.domain(run_id, "fact_recorded")[-1]["meta"]
    assert meta["child_run_id"] == str(child_run_id(run_id, "c", 2))


def test_a_generation_separator_in_a_key_is_refused(lab: Lab):
    """No author can name another generation's id."""
    seen: list[str] = []

    def parent(s: Stage) -> None:
        with pytest.raises(IoError) as caught:
            s.spawn("op", "c\x1f2")
        seen.append(caught.value.code)

    lab.put("op", parent)
    lab.process().start("op")
    assert seen == ["fact_key_invalid"]


# -- plan drift


def drifted(lab: Lab, run_id: UUID) -> ChildRunError:
    with pytest.raises(ChildRunError) as caught:
        lab.process().resume(run_id)
    return caught.value


def halfway(lab: Lab) -> UUID:
    """Return a run of `op` whose second of three states was entered."""
    lab.put("op", lambda s: s.write("a", 1), lambda s: s.ask("k"), lambda s: s.write("c", 1))
    process = lab.process()
    run_id = process.create("op")
    lab.world.scripts["k"] = [lambda request: process.crash()]
    with pytest.raises(DEATH):
        process.resume(run_id)
    return run_id


def test_plan_drift_is_refused_with_the_differences_listed(lab: Lab):
    """A state that was entered has another name now; nothing was written; the old plan lets the run go on."""
    run_id = halfway(lab)
    before = lab.names(run_id)
    op = lab.shelf.ops["op", "1"]
    kept = list(op.states)
    op.states[1] = ("other", *op.states[1][1:])
    error = drifted(lab, run_id)
    assert error.code == "plan_drift"
    assert error.info.details == {"differences": ["state 2 was 'op.main.s1', is 'op.main.other'"]}
    assert lab.names(run_id) == before
    op.states[:] = kept
    assert lab.process().resume(run_id).phase == "Completed"


def test_a_plan_that_changed_behind_the_last_entered_state_goes_on(lab: Lab):
    """What was not reached may be another."""
    run_id = halfway(lab)
    op = lab.shelf.ops["op", "1"]
    op.states[2] = ("new", lambda s: s.write("new", True), op.states[2][2])
    assert lab.process().resume(run_id).phase == "Completed"
    assert "op.main.new" in lab.final(run_id)


def test_changed_code_behind_the_same_plan_goes_on_with_the_new_code(lab: Lab):
    """Source is not compared."""
    run_id = halfway(lab)
    op = lab.shelf.ops["op", "1"]
    op.states[2] = ("s2", lambda s: s.write("c", "new code"), op.states[2][2])
    assert lab.process().resume(run_id).phase == "Completed"
    assert lab.final(run_id)["op.main.c"] == "new code"


def test_a_plan_without_a_completed_state_is_refused(lab: Lab):
    """A shortened plan is drift, not success."""
    run_id = halfway(lab)
    del lab.shelf.ops["op", "1"].states[0]
    assert drifted(lab, run_id).code == "plan_drift"


def test_replay_names_the_state_where_code_and_history_part(lab: Lab):
    """Changed code that writes another context, or asks what was never recorded, is told apart."""
    lab.put("op", lambda s: s.write("a", 1), lambda s: s.write("b", 2))
    process = lab.process()
    run_id = process.start("op").run_id
    op = lab.shelf.ops["op", "1"]
    kept = op.states[1]
    for handler, what in (
        (lambda s: s.write("b", 3), "wrote another context"),
        (lambda s: s.ask("new"), "missing_fact"),
        (lambda s: s.ask(None), "missing_fact_key"),
    ):
        op.states[1] = (kept[0], handler, kept[2])
        with pytest.raises(ChildRunError) as caught:
            process.engine.replay(run_id)
        assert caught.value.code == "nondeterminism"
        assert what in str(caught.value)
        assert caught.value.info.details["state_id"] == "op.main.s1"
    assert lab.world.calls == []
