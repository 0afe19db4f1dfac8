"""What the original engine did wrong, row by row (spec 10.6, rows 19 to 36): each test pins the repair."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from airflow_childrun.engine.ports import RunIdentity
from airflow_childrun.errors import Abandoned, ChildRunError, IoError, OperationError, UnavailableError
from airflow_childrun.ids import child_run_id
from airflow_childrun.model.config import Duration, FanOutJoin, Fixed, RunConfig
from airflow_childrun.model.events import StateFailed
from airflow_childrun.runtime.generations import continuation
from airflow_childrun.store.api import Commit
from airflow_childrun.testing.clock import ManualClock
from airflow_childrun.transports.registry import FunctionTransport, TransportRegistry
from tests.engine.kit import Background, Lab, Stage, await_call, eventually, new_lab, retrying, spawn_call, wait_for


def test_row19_a_store_that_is_away_for_a_moment_harms_nobody(lab: Lab):
    """Commits are submitted again; neither parent nor child hears of it."""
    lab.put("child", lambda s: s.ask("work"))
    lab.put("op", lambda s: s.write("end", s.join(s.spawn("child", "c"), "e")["status"]))
    process = lab.process()
    away: list[int] = []

    def on_commit(number: int, commit: Commit) -> None:
        if number % 3 == 0 and number not in away:
            away.append(number)
            raise UnavailableError("no route")

    process.gate.on_commit = on_commit
    result = process.start("op")
    assert lab.final(result.run_id) == {"op.main.end": "Completed"}
    assert lab.world.counts == {"work": 1}
    assert away


def test_row19_errors_of_a_child_keep_their_code(lab: Lab):
    """child_run_engine_failed names the cause."""
    seen: list[str] = []

    def parent(s: Stage) -> None:
        with pytest.raises(IoError) as caught:
            s.spawn("nowhere", "c")
        seen.append(caught.value.info.message)

    lab.put("op", parent)
    lab.process().start("op")
    assert seen[0].endswith("[operation_not_found]")


def test_row20_a_failed_child_is_tried_again_as_the_next_generation_of_its_slot(lab: Lab):
    """The same key, another id: a retry neither repeats what was done nor needs a new key."""
    broken = [True]

    def child(s: Stage) -> None:
        s.ask("done once")
        if broken[0]:
            raise ValueError("once")

    def parent(s: Stage) -> None:
        end = s.join(s.spawn("child", "c"), "e")
        if end["status"] != "Completed":
            raise ValueError("my child failed")

    lab.put("child", child)
    lab.put("parent", parent)
    lab.put("host", lambda s: s.join(s.spawn("parent", "p"), "e"))
    process = lab.process()
    host = process.start("host").run_id
    first = lab.children(host)[0]
    broken[0] = False
    run_id, step = continuation(lab.store, first, RunIdentity(host, host, host, 0))
    lab.store.commit([Commit(process.house.entropy.new_id(), (step,))])
    assert process.resume(run_id).phase == "Completed"
    slot = child_run_id(first.run_id, "c")
    assert {row.run_id for row in lab.all_runs() if row.slot_id == slot} == {slot, child_run_id(first.run_id, "c", 2)}
    assert lab.world.counts == {"done once": 1}


@pytest.mark.parametrize("what", ["mode", "plan", "operation"])
def test_row21_what_is_wrong_with_a_child_is_said_at_its_spawn(lab: Lab, what: str):
    """Nothing of the child is stored."""
    bad = lab.put("bad", lambda s: None, lambda s: None)
    config = RunConfig()
    if what == "mode":
        config = RunConfig(execution_mode=FanOutJoin(max_concurrency=2))
    elif what == "plan":
        bad.edges = [("s0", "s0")]
    call = spawn_call("absent" if what == "operation" else "bad", "c", config=config)
    codes: list[str] = []

    def parent(s: Stage) -> None:
        with pytest.raises(IoError) as caught:
            s.io.call(call)
        codes.append(caught.value.code)

    lab.put("op", parent)
    run_id = lab.process().start("op").run_id
    assert codes == ["child_run_engine_failed"]
    assert lab.children(run_id) == []


def test_row22_a_live_parent_has_no_child_in_replay_mode(lab: Lab):
    """Refused at spawn, as a request that makes no sense."""
    codes: list[str] = []

    def parent(s: Stage) -> None:
        with pytest.raises(IoError) as caught:
            s.spawn("child", "c", config=RunConfig(io_mode="Replay"))
        codes.append(caught.value.code)

    lab.put("child", lambda s: None)
    lab.put("op", parent)
    lab.process().start("op")
    assert codes == ["child_run_request_invalid"]


def test_row23_a_process_drives_no_more_runs_at_once_than_it_allows_itself(lab: Lab):
    """Fifty children queue for two slots."""
    lock, now = threading.Lock(), [0, 0]

    def child(s: Stage) -> None:
        with lock:
            now[0] += 1
            now[1] = max(now)
        s.ask(f"k{s.input}")
        with lock:
            now[0] -= 1

    lab.put("child", child)
    lab.put("op", lambda s: s.fan_out("child", range(50)) and None)
    assert lab.process(max_concurrency=2).start("op").phase == "Completed"
    assert now[1] <= 2


def test_row24_awaiting_a_finished_child_again_gives_the_same_answer(lab: Lab):
    """Nothing is consumed by the first await, and nothing stays behind in the process."""
    lab.put("child", lambda s: s.write("x", 1))

    def parent(s: Stage) -> None:
        child = s.spawn("child", "c")
        s.spawn("child", "never awaited")
        ends = [s.join(child, f"e{index}") for index in range(3)]
        s.write("same", all(end == ends[0] for end in ends))

    lab.put("op", parent)
    process = lab.process()
    run_id = process.start("op").run_id
    assert lab.final(run_id) == {"op.main.same": True}
    eventually(process.engine.supervisor.is_idle)


def test_row25_an_interrupted_child_is_never_recorded_as_failed(lab: Lab):
    """A process that leaves while its child works records nothing; the next one records how it ended."""
    at_work, gate = threading.Event(), threading.Event()

    def child(s: Stage) -> None:
        at_work.set()
        wait_for(gate)
        s.ask("work")

    lab.put("child", child)
    lab.put("op", lambda s: s.write("end", s.join(s.spawn("child", "c"), "e")["status"]))
    process = lab.process()
    run_id = process.create("op")
    run = Background(lambda: process.resume(run_id))
    wait_for(at_work)
    process.engine.close()
    gate.set()
    with pytest.raises(Abandoned):
        run.join()
    assert lab.names(run_id) == ["RunStarted", "StateEntered", "fact_recorded", "child_run_spawned"]
    assert lab.process().resume(run_id).phase == "Completed"
    assert lab.final(run_id) == {"op.main.end": "Completed"}


def test_row26_a_compact_await_records_the_output_and_not_the_snapshot(lab: Lab):
    """What io.await_child and io.map record stays small however large the child's context is."""

    def child(s: Stage) -> None:
        s.write("large", "x" * 100_000)
        s.ctx.write(s.state_id, "small")

    lab.put("child", child)
    lab.put("op", lambda s: s.write("end", s.join(s.spawn("child", "c"), "e", compact=True)["output"]))
    run_id = lab.process().start("op").run_id
    payload_id = lab.domain(run_id, "fact_recorded")[1]["payload_id"]
    assert len(lab.store.get_artifacts(run_id, [payload_id])[payload_id]) < 1000
    assert lab.final(run_id) == {"op.main.end": "small"}


def test_row27_a_parent_that_goes_on_finds_the_children_that_it_had(lab: Lab):
    """The next generation of a parent has another id and the same slots: completed children are not run again."""
    broken = [True]
    lab.put("child", lambda s: s.ask("work"))

    def parent(s: Stage) -> None:
        s.join(s.spawn("child", "c"), "e")
        if broken[0]:
            raise ValueError("after the child")

    lab.put("parent", parent)
    lab.put("host", lambda s: s.join(s.spawn("parent", "p"), "e"))
    process = lab.process()
    host = process.start("host").run_id
    broken[0] = False
    run_id, step = continuation(lab.store, lab.children(host)[0], RunIdentity(host, host, host, 0))
    lab.store.commit([Commit(process.house.entropy.new_id(), (step,))])
    assert process.resume(run_id).phase == "Completed"
    assert lab.world.counts == {"work": 1}
    assert [row.op_id for row in lab.all_runs()].count("child") == 1


def test_row28_input_reaches_the_handler(lab: Lab):
    """The manifest that a plan is made from carries input and config."""
    seen: list[Any] = []
    lab.put("child", lambda s: seen.append((s.manifest.input, s.manifest.op_config)))
    lab.put("op", lambda s: s.join(s.spawn("child", "c", {"n": 1}, op_config={"m": 2}), "e"))
    lab.process().start("op")
    assert seen == [({"n": 1}, {"m": 2})]


@pytest.mark.parametrize("value", [float("nan"), 2**64, "AKIAABCDEFGHIJKLMNOP", {1: 2}], ids=repr)
def test_row29_what_cannot_be_stored_fails_its_state(lab: Lab, value: Any):
    """No poison: StateFailed, run Failed, and resuming answers instead of trying for ever."""
    lab.put("op", lambda s: s.write("x", value))
    result = lab.process().start("op")
    assert result.phase == "Failed"
    assert isinstance(lab.events(result.run_id)[-2], StateFailed)
    assert lab.process().resume(result.run_id) == result


def test_row30_retry_at_is_waited_for_after_a_restart():
    """A crash in the backoff forgets nothing: the next process waits what is left, and not longer."""
    with new_lab(clock=ManualClock()) as still:
        attempts: list[int] = []

        def flaky(s: Stage) -> None:
            attempts.append(1)
            if len(attempts) == 1:
                raise ValueError("once")

        still.put("op", flaky)
        first = still.process()
        run_id = first.create("op", config=retrying(2, backoff=Fixed(delay=Duration(secs=600))))
        Background(lambda: first.resume(run_id))
        eventually(lambda: still.row(run_id).wake_at == still.clock.now_us() + 600_000_000)
        first.crash()
        second = still.process()
        run = Background(lambda: second.resume(run_id))
        eventually(lambda: still.row(run_id).head.epoch == 2)
        for step in (599_999_999, 1):
            assert attempts == [1]
            assert not run.is_done
            advance(still, second, step)
        assert run.join().phase == "Completed"
        assert still.attempts(run_id) == [0, 1]


def advance(lab: Lab, process: Any, us: int) -> None:
    """Move the clock and wake those who wait for it."""
    assert isinstance(lab.clock, ManualClock)
    lab.clock.advance(us)
    with process.house.slots.monitor:
        process.house.slots.monitor.notify_all()
    threading.Event().wait(0.05)


def test_row31_an_invalid_plan_leaves_no_run_behind(lab: Lab):
    """Start validates first; a state that the plan lacks on resume is drift and never a false success."""
    bad = lab.put("bad", lambda s: None, lambda s: None)
    bad.edges = [("s0", "s1"), ("s1", "s0")]
    with pytest.raises(ChildRunError):
        lab.process().start("bad")
    with pytest.raises(OperationError):
        lab.process().start("unknown")
    assert lab.all_runs() == []
    lab.put("op", lambda s: s.write("a", 1), lambda s: s.write("b", 2))
    process = lab.process()
    run_id = process.create("op")
    process.stop_after_handler(run_id)
    process.resume(run_id)
    lab.put("op", lambda s: None)
    lab.shelf.ops["op", "1"].states[0] = ("other", *lab.shelf.ops["op", "1"].states[0][1:])
    with pytest.raises(ChildRunError) as caught:
        lab.process().resume(run_id)
    assert caught.value.code == "plan_drift"
    assert lab.row(run_id).status == "Running"


def test_row32_time_and_chance_are_found_again_after_retries(lab: Lab):
    """A run that needed three attempts replays to the same snapshot."""

    def handler(s: Stage) -> None:
        s.write("t", [s.io.now_millis(), s.io.random_bytes(4).hex()])
        if s.io.find_fact("tries") is None:
            s.io.record_value("tries", 1)
            raise ValueError("once")

    lab.put("op", handler)
    process = lab.process()
    result = process.start("op", config=retrying(3))
    assert result.phase == "Completed"
    assert process.engine.replay(result.run_id) == result.final_snapshot_id


def test_row33_runs_can_be_asked_how_they_stand(lab: Lab):
    """Events have times; a row tells status, parent, root, times and what failed."""

    def fails(s: Stage) -> None:
        raise ValueError("x")

    lab.put("child", fails)
    lab.put("op", lambda s: s.join(s.spawn("child", "c"), "e"))
    run_id = lab.process().start("op").run_id
    events = lab.store.read_events(run_id)
    times = [event.recorded_at for event in events]
    assert times == sorted(times)
    assert times[0] > 0
    row, (child,) = lab.row(run_id), lab.children(run_id)
    assert (row.status, row.error_code, child.status, child.error_code) == (
        "Completed",
        None,
        "Failed",
        "handler_raised",
    )
    assert row.created_at == times[0]
    assert row.ended_at == times[-1]


def test_row34_spawn_and_its_fact_are_one_commit(lab: Lab):
    """There is no moment at which one of the two streams knows and the other does not."""
    lab.put("child", lambda s: None)
    lab.put("op", lambda s: s.spawn("child", "c"))
    process = lab.process()
    seen: list[tuple[bool, bool]] = []
    run_id = process.create("op")

    def look(number: int, commit: Commit) -> None:
        seen.append(("fact_recorded" in lab.names(run_id), len(lab.children(run_id)) == 1))

    process.gate.on_commit = look
    process.resume(run_id)
    assert set(seen) == {(False, False), (True, True)}


def test_row35_a_tree_holds_its_own_artifacts(lab: Lab):
    """Nothing is shared between trees, so that one can be purged whole; inside a tree nothing is stored twice."""
    lab.put("child", lambda s: s.write("same", 1))
    lab.put("op", lambda s: s.fan_out("child", [1, 1, 1]) and None)
    process = lab.process()
    one, two = process.start("op").run_id, process.start("op").run_id
    kinds = list(lab.store.find_artifact_kinds(one).values())
    assert kinds.count("Manifest") == 2
    assert set(lab.store.find_artifact_kinds(one)) & set(lab.store.find_artifact_kinds(two))
    lab.store._artifacts.pop(one)
    assert process.engine.replay(two) == lab.row(two).final_snapshot_id


def test_row36_child_runs_are_an_ordinary_namespace_group(lab: Lab):
    """Nobody can register the group a second time unseen, and unknown verbs of it are refused."""
    taken = FunctionTransport("machine.child_run", lambda call, env: None)
    with pytest.raises(ChildRunError) as caught:
        lab.process(transports=TransportRegistry([taken]))
    assert caught.value.code == "transport_group_duplicate"
    with pytest.raises(OperationError, match="duplicate"):
        TransportRegistry([taken, taken])
    assert await_call({"child_run_id": "a", "child_manifest_id": "b"}, "k").namespace == "machine.child_run.await"
