"""Time that runs out, on a clock that is turned by hand: of a state, of an await, of a run; across deaths of processes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, cast
from uuid import UUID

import pytest

from airflow_childrun.authoring.operation import Operation, operation
from airflow_childrun.authoring.registry import REGISTRY, RegistryResolver
from airflow_childrun.errors import Abandoned, AwaitTimeoutError, InputError
from airflow_childrun.model.config import Duration, Fixed, RetryPolicy
from airflow_childrun.model.events import StateEntered, StateFailed
from airflow_childrun.store.verify import verify_tree
from airflow_childrun.testing.clock import ManualClock
from tests.engine.kit import Background, Lab, Process, eventually, new_lab, wait_for

SECOND = 1_000_000
gates: dict[str, threading.Event] = {}
calls: list[str] = []


def gate(name: str) -> threading.Event:
    return gates.setdefault(name, threading.Event())


def call(name: str) -> str:
    """Be the outside world."""
    calls.append(name)
    return name


@operation(version="1", timeout=60)
def naps(io: Any) -> None:
    io.step(call, "before the nap")
    io.sleep(3600)


@operation(version="1", timeout=timedelta(minutes=1), retry=1)
def hangs_once(io: Any) -> str:
    calls.append("enters")
    if calls.count("enters") == 1:
        gate("at work").set()
        wait_for(gate("let go"))
        try:
            io.step(call, "after its time")
        except Abandoned:
            gate("refused").set()
            raise
    return str(io.step(call, "in time"))


@operation(version="1", timeout=60)
def hangs(io: Any) -> None:
    gate("at work").set()
    wait_for(gate("let go"))
    io.step(call, "after its time")


@operation(version="1")
def hangs_without_end(io: Any) -> None:
    gate("at work").set()
    wait_for(gate("let go"))
    io.step(call, "after its time")


@operation(version="1")
def quick(io: Any) -> str:
    return "quick"


@operation(version="1")
def child_that_naps(io: Any) -> str:
    io.sleep(100)
    return str(io.step(call, "child"))


@operation(version="1")
def impatient(io: Any) -> list[Any]:
    child = io.spawn(child_that_naps)
    try:
        io.await_child(child, timeout=60)
    except AwaitTimeoutError as error:
        io.step(call, error.code)
    return [io.await_child(child, timeout=timedelta(minutes=10)).output, io.step(call, "parent")]


@operation(version="1", retry=RetryPolicy(max_attempts=2, backoff=Fixed(delay=Duration(secs=5))))
def gives_up(io: Any) -> str:
    return str(io.await_child(io.spawn(child_that_naps), timeout=60).output)


@operation(version="1")
def hurries_a_family(io: Any) -> list[Any]:
    (result,) = io.map(middle, [None], timeout=60)
    return [result.status, result.error and result.error.code]


@operation(version="1")
def middle(io: Any) -> None:
    io.map(hangs_without_end, [None], timeout=3600)


@pytest.fixture
def lab() -> Iterator[Lab]:
    gates.clear()
    calls.clear()
    with new_lab(clock=ManualClock()) as made:
        yield made
        for event in gates.values():
            event.set()


def process(lab: Lab, **limits: Any) -> Process:
    return lab.process(shelf=cast("Any", RegistryResolver()), **limits)


def create(driver: Process, op: Operation) -> UUID:
    return driver.create(op.name, config=op.run_config)


def resumed(driver: Process, run_id: UUID) -> Background:
    return Background(lambda: driver.resume(run_id))


def advance(lab: Lab, us: int) -> None:
    """Turn the clock, and wake those who wait for it."""
    assert isinstance(lab.clock, ManualClock)
    lab.clock.advance(us)
    for each in lab.processes:
        with each.house.slots.monitor:
            each.house.slots.monitor.notify_all()


def die(driver: Process) -> None:
    """End a process, and its threads with it: a clock that is turned wakes nobody in there."""
    driver.crash()
    driver.house.slots.close()


def stays(check: Callable[[], bool]) -> None:
    """Give the threads some time to do what they must not."""
    threading.Event().wait(0.05)
    assert check()


def failures(lab: Lab, run_id: UUID) -> list[str]:
    events = [event for event in lab.events(run_id) if isinstance(event, StateFailed) and event.is_real]
    return [event.error.error.code for event in events]


def deadlines(lab: Lab, run_id: UUID) -> list[int | None]:
    return [event.deadline_at for event in lab.events(run_id) if isinstance(event, StateEntered)]


# -- of a state


def test_a_state_that_sleeps_past_its_time_has_failed(lab: Lab) -> None:
    driver = process(lab)
    run_id = create(driver, naps)
    run = resumed(driver, run_id)
    eventually(lambda: lab.row(run_id).wake_at is not None)
    advance(lab, 60 * SECOND - 1)
    stays(lambda: not run.is_done)
    advance(lab, 1)
    assert run.join().phase == "Failed"
    assert failures(lab, run_id) == ["state_timed_out"]
    assert lab.row(run_id).error_code == "state_timed_out"


def test_a_death_does_not_set_the_time_of_a_state_back(lab: Lab) -> None:
    """The next owner enters the state with the end that its first entry recorded."""
    first = process(lab)
    run_id = create(first, naps)
    resumed(first, run_id)
    eventually(lambda: lab.row(run_id).wake_at is not None)
    advance(lab, 40 * SECOND)
    die(first)
    second = process(lab)
    run = resumed(second, run_id)
    eventually(lambda: len(lab.attempts(run_id)) == 2)
    advance(lab, 20 * SECOND - 1)
    stays(lambda: not run.is_done)
    advance(lab, 1)
    assert run.join().phase == "Failed"
    assert len(set(deadlines(lab, run_id))) == 1
    assert calls == ["before the nap"]


def test_a_state_whose_time_passed_while_nobody_drove_it_fails_without_its_handler(lab: Lab) -> None:
    first = process(lab)
    run_id = create(first, naps)
    resumed(first, run_id)
    eventually(lambda: lab.row(run_id).wake_at is not None)
    die(first)
    advance(lab, 3600 * SECOND)
    assert resumed(process(lab), run_id).join().phase == "Failed"
    assert failures(lab, run_id) == ["state_timed_out"]


def test_a_hanging_handler_is_abandoned_and_holds_up_nobody(lab: Lab) -> None:
    """Its run ends though its thread does not; its slot is free; what it still records is refused."""
    driver = process(lab, max_concurrency=1)
    run_id = create(driver, hangs)
    run = resumed(driver, run_id)
    wait_for(gate("at work"))
    advance(lab, 60 * SECOND)
    assert run.join().phase == "Failed"
    assert resumed(driver, create(driver, quick)).join().phase == "Completed"
    head = lab.row(run_id).head
    gate("let go").set()
    stays(lambda: lab.row(run_id).head == head)
    assert calls == []
    assert verify_tree(lab.store, run_id) == []


def test_the_next_attempt_waits_until_the_abandoned_handler_has_ended(lab: Lab) -> None:
    """Two handlers of one run are never at work in one process; the failure is in the log at once."""
    driver = process(lab)
    run_id = create(driver, hangs_once)
    run = resumed(driver, run_id)
    wait_for(gate("at work"))
    advance(lab, 60 * SECOND)
    driver.house.slots.dispatch()
    stays(lambda: calls == ["enters"])
    gate("let go").set()
    assert run.join().phase == "Completed"
    assert gate("refused").is_set()
    assert calls == ["enters", "enters", "in time"]
    assert failures(lab, run_id) == ["state_timed_out"]


def test_the_lease_outlasts_an_abandoned_handler(lab: Lab) -> None:
    """A process that lives on gives the run back only when nothing of its is at work in it."""
    driver = process(lab)
    run_id = create(driver, hangs_once)
    driver.engine.supervisor.hand_over(run_id)
    wait_for(gate("at work"))
    advance(lab, 60 * SECOND)
    eventually(lambda: len(lab.attempts(run_id)) == 1)
    driver.engine.close()
    stays(lambda: lab.row(run_id).lease_session_id is not None)
    gate("let go").set()
    eventually(lambda: lab.row(run_id).lease_session_id is None)
    assert resumed(process(lab, owner="another"), run_id).join().phase == "Completed"
    assert calls.count("after its time") == 0


# -- of a run


def test_a_hanging_child_ends_at_its_deadline_and_its_parent_is_told(lab: Lab) -> None:
    """A deadline is inherited: no child is given longer than its parent has."""
    driver = process(lab)
    run_id = create(driver, hurries_a_family)
    run = resumed(driver, run_id)
    wait_for(gate("at work"))
    advance(lab, 60 * SECOND)
    assert run.join().phase == "Completed"
    assert lab.final(run_id)["hurries_a_family.main.main"] == ["Failed", "run_timed_out"]
    below = [row for row in lab.all_runs() if row.parent_run_id is not None]
    assert len(below) == 2
    assert len({row.deadline_at for row in below}) == 1
    eventually(lambda: all(row.is_terminal for row in lab.all_runs()))
    assert calls == []


# -- of an await


def test_an_await_that_takes_too_long_raises_and_leaves_the_child_alone(lab: Lab) -> None:
    """The child's end is told to the next await; a replay raises and answers in the same places."""
    driver = process(lab)
    run_id = create(driver, impatient)
    run = resumed(driver, run_id)
    eventually(lambda: len(lab.children(run_id)) == 1)
    child = lab.children(run_id)[0].run_id
    eventually(lambda: lab.row(run_id).wake_at is not None and lab.row(child).wake_at is not None)
    advance(lab, 60 * SECOND)
    eventually(lambda: calls == ["await_timed_out"])
    assert not lab.row(child).is_terminal
    eventually(lambda: len(lab.domain(run_id, "wait_opened")) == 2)
    advance(lab, 40 * SECOND)
    final = run.join().final_snapshot_id
    assert lab.final(run_id)["impatient.main.main"] == ["child", "parent"]
    assert calls == ["await_timed_out", "child", "parent"]
    assert driver.engine.replay(run_id) == final
    recorded = [fact["key"] for fact in lab.domain(run_id, "fact_failed")]
    assert recorded == ["main/child_that_naps#0/timer#0"]


@pytest.mark.parametrize("after_s", [30, 60, 80])
def test_a_death_neither_forgets_nor_repeats_the_time_of_an_await(lab: Lab, after_s: int) -> None:
    """Whoever goes on waits what is left of it, or is told again that it was over."""
    first = process(lab)
    run_id = create(first, impatient)
    resumed(first, run_id)
    eventually(lambda: len(lab.children(run_id)) == 1)
    child = lab.children(run_id)[0].run_id
    eventually(lambda: lab.row(run_id).wake_at is not None and lab.row(child).wake_at is not None)
    advance(lab, after_s * SECOND)
    if after_s >= 60:
        eventually(lambda: calls == ["await_timed_out"])
        eventually(lambda: len(lab.domain(run_id, "wait_opened")) == 2)
    die(first)
    second = process(lab)
    run = resumed(second, run_id)
    eventually(lambda: lab.row(run_id).head.epoch == 2 and lab.row(child).head.epoch == 2)
    if after_s < 60:
        advance(lab, 30 * SECOND - 1)
        stays(lambda: calls == [])
        advance(lab, 1)
        eventually(lambda: calls == ["await_timed_out"])
    advance(lab, 100 * SECOND)
    assert run.join().phase == "Completed"
    assert calls == ["await_timed_out", "child", "parent"]


def test_an_await_that_timed_out_is_waited_for_anew_by_the_next_attempt_of_its_state(lab: Lab) -> None:
    """The error fails the state, which may be tried again; the same child is awaited, with the whole time."""
    driver = process(lab)
    run_id = create(driver, gives_up)
    run = resumed(driver, run_id)
    eventually(lambda: len(lab.children(run_id)) == 1)
    child = lab.children(run_id)[0].run_id
    eventually(lambda: lab.row(run_id).wake_at is not None and lab.row(child).wake_at is not None)
    advance(lab, 60 * SECOND)
    eventually(lambda: failures(lab, run_id) == ["await_timed_out"])
    advance(lab, 5 * SECOND)
    eventually(lambda: len(lab.attempts(run_id)) == 2)
    eventually(lambda: len(lab.domain(run_id, "wait_opened")) == 2)
    advance(lab, 35 * SECOND)
    assert run.join().phase == "Completed"
    assert calls == ["child"]
    assert len(lab.children(run_id)) == 1


# -- as they are written


@pytest.mark.parametrize("span", [0, -1, float("nan"), float("inf"), True, timedelta(0), "60"])
def test_what_is_no_span_of_time_is_refused_where_it_is_written(span: Any) -> None:
    def work(io: Any) -> None:
        """Never runs."""

    with pytest.raises(InputError, match="timeout") as refused:
        Operation(f"never_run_{len(REGISTRY.known())}", version="1").state(timeout=span)(work)
    assert refused.value.code == "span_invalid"
