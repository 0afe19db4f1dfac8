"""Children that are tried again as wholes: each attempt is the next generation of its slot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import Event
from typing import Any, cast
from uuid import UUID

import pytest

from airflow_childrun.authoring.operation import Operation, operation
from airflow_childrun.authoring.registry import RegistryResolver
from airflow_childrun.errors import AwaitTimeoutError, InputError, StateError
from airflow_childrun.model.config import ChildRetryPolicy, Duration, Fixed
from airflow_childrun.runtime.driver import Ending, RunDriver
from airflow_childrun.runtime.supervisor import Supervisor
from airflow_childrun.store.api import RunRow
from airflow_childrun.store.verify import verify_tree
from airflow_childrun.testing.clock import ManualClock
from tests.engine.kit import Background, Lab, Process, eventually, new_lab
from tests.lifecycle.test_time import SECOND, advance, die, resumed, stays

calls: list[str] = []
failing: dict[str, int] = {}
held: dict[str, Callable[[], bool]] = {}


def call(name: str) -> str:
    if name in held:
        eventually(held[name])
    calls.append(name)
    return name


def attempts(count: int, **more: Any) -> ChildRetryPolicy:
    return ChildRetryPolicy(max_attempts=count, backoff=Fixed(delay=Duration(secs=10)), **more)


POLICIES: dict[str, ChildRetryPolicy] = {
    "continue": attempts(3),
    "afresh": attempts(3, mode="afresh"),
    "choosy": attempts(3, non_retryable=("hopeless",)),
}


@operation(version="1")
def frail(io: Any, name: str) -> str:
    """Fail as often as is left for it."""
    io.step(call, f"{name} begins")
    if failing.get(name, 0) > 0:
        failing[name] -= 1
        raise StateError(name, code="hopeless" if name.startswith("hopeless") else "frail", retryable=True)
    return str(io.step(call, f"{name} ends"))


@operation(version="1")
def parent(io: Any, names: list[str], policy: str) -> list[Any]:
    results = io.map(frail, names, key=str, child_retry_policy=POLICIES[policy])
    return [result.output if result.completed else result.error.code for result in results]


@operation(version="1")
def awaiting_parent(io: Any, name: str) -> Any:
    child = io.spawn(frail, name, child_retry_policy=attempts(3))
    try:
        return io.await_child(child, timeout=5).output
    except AwaitTimeoutError as error:
        return [error.code, io.await_child(child).output]


@operation(version="1")
def grandparent(io: Any, name: str) -> Any:
    (result,) = io.map(nested, [name], child_retry_policy=attempts(2))
    return result.output


@operation(version="1")
def nested(io: Any, name: str) -> Any:
    (result,) = io.map(frail, [name], child_retry_policy=attempts(2))
    if not result.completed:
        raise StateError(result.error.code, retryable=True)
    return result.output


@operation(version="1")
def dawdles(io: Any) -> None:
    io.sleep(3600)


@operation(version="1")
def hurrying_parent(io: Any) -> str:
    (result,) = io.map(dawdles, [None], timeout=60, child_retry_policy=attempts(2))
    return str(result.error.code)


@pytest.fixture
def lab() -> Iterator[Lab]:
    calls.clear()
    failing.clear()
    held.clear()
    with new_lab(clock=ManualClock()) as made:
        yield made


def process(lab: Lab) -> Process:
    return lab.process(shelf=cast("Any", RegistryResolver()))


def begin(lab: Lab, op: Operation, value: Any = None) -> tuple[Process, UUID, Background]:
    driver = process(lab)
    run_id = driver.create(op.name, value)
    return driver, run_id, resumed(driver, run_id)


def generations(lab: Lab, op_id: str = "frail") -> list[RunRow]:
    return sorted((row for row in lab.all_runs() if row.op_id == op_id), key=lambda row: (row.slot_id, row.generation))


def retries_opened(lab: Lab, run_id: UUID) -> int:
    return sum(wait["key"].startswith("retry/") for wait in lab.domain(run_id, "wait_opened"))


@pytest.mark.parametrize("policy", ["continue", "afresh"])
def test_a_failed_child_is_tried_again_and_its_parent_sees_the_last_attempt(lab: Lab, policy: str) -> None:
    """Continuing, it repeats no recorded call; afresh, it knows nothing of the attempts before."""
    failing["ann"] = 2
    _, run_id, run = begin(lab, parent, {"names": ["ann"], "policy": policy})
    for number in (1, 2):
        eventually(lambda: retries_opened(lab, run_id) == number)  # noqa: B023
        advance(lab, 10 * SECOND - 1)
        stays(lambda: len(generations(lab)) == number)  # noqa: B023
        advance(lab, 1)
    assert run.join().phase == "Completed"
    assert lab.final(run_id)["parent.main.main"] == ["ann ends"]
    assert [row.status for row in generations(lab)] == ["Failed", "Failed", "Completed"]
    assert calls.count("ann begins") == (1 if policy == "continue" else 3)
    assert len(lab.domain(run_id, "child_run_completed")) == 1
    assert verify_tree(lab.store, run_id) == []


def test_no_more_attempts_than_the_policy_allows(lab: Lab) -> None:
    failing["ann"] = 9
    _, run_id, run = begin(lab, parent, {"names": ["ann"], "policy": "continue"})
    for number in (1, 2):
        eventually(lambda: retries_opened(lab, run_id) == number)  # noqa: B023
        advance(lab, 10 * SECOND)
    assert run.join().phase == "Completed"
    assert lab.final(run_id)["parent.main.main"] == ["frail"]
    assert [row.generation for row in generations(lab)] == [1, 2, 3]


def test_what_the_policy_calls_hopeless_is_not_tried_again(lab: Lab) -> None:
    failing["hopeless case"] = 1
    _, run_id, run = begin(lab, parent, {"names": ["hopeless case"], "policy": "choosy"})
    assert run.join().phase == "Completed"
    assert lab.final(run_id)["parent.main.main"] == ["hopeless"]
    assert len(generations(lab)) == 1


def test_many_children_are_tried_again_side_by_side(lab: Lab) -> None:
    """One wait serves those that failed together; who has completed is left alone."""
    failing.update(ann=1, ben=2)
    _, run_id, run = begin(lab, parent, {"names": ["ann", "ben", "cleo"], "policy": "continue"})
    eventually(lambda: retries_opened(lab, run_id) == 2)
    advance(lab, 10 * SECOND)
    eventually(lambda: retries_opened(lab, run_id) == 3)
    advance(lab, 10 * SECOND)
    assert run.join().phase == "Completed"
    assert lab.final(run_id)["parent.main.main"] == ["ann ends", "ben ends", "cleo ends"]
    assert len(generations(lab)) == 2 + 3 + 1


def test_one_that_fails_while_its_parent_looks_at_another_is_not_overlooked(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its retry is announced at once, not when the wait of the other one is over."""
    failing.update(ann=1, ben=1)
    leave, unwell, parents = Supervisor._leave, list[UUID](), list[UUID]()

    def late(supervisor: Supervisor, run_id: UUID, *, is_unwell: bool) -> None:
        if is_unwell and run_id not in unwell:
            unwell.append(run_id)
        if unwell[1:] == [run_id]:
            eventually(lambda: bool(parents) and retries_opened(lab, parents[0]) == 1)
        leave(supervisor, run_id, is_unwell=is_unwell)

    monkeypatch.setattr(Supervisor, "_leave", late)
    _, run_id, run = begin(lab, parent, {"names": ["ann", "ben"], "policy": "continue"})
    parents.append(run_id)
    eventually(lambda: retries_opened(lab, run_id) == 2)
    advance(lab, 10 * SECOND)
    assert run.join().phase == "Completed"


def test_one_that_fails_before_its_parent_hands_it_over_is_not_overlooked(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The await hands it over once more, and takes it for driven: it has to be told again that it failed."""
    failing["ann"] = 1
    leave, drive, wait_some = Supervisor._leave, RunDriver.drive, Supervisor.wait_some
    left, looked, awaited = list[UUID](), list[set[UUID]](), Event()

    def leave_and_tell(supervisor: Supervisor, run_id: UUID, *, is_unwell: bool) -> None:
        leave(supervisor, run_id, is_unwell=is_unwell)
        left.append(run_id)

    def drive_late(driver: RunDriver) -> Ending:
        if driver._row.is_terminal:
            eventually(lambda: bool(looked))
        return drive(driver)

    def wait_late(supervisor: Supervisor, *args: Any) -> set[UUID]:
        awaited.set()
        if not looked:
            eventually(lambda: bool(left))
        looked.append(wait_some(supervisor, *args))
        return looked[-1]

    monkeypatch.setattr(Supervisor, "_leave", leave_and_tell)
    monkeypatch.setattr(RunDriver, "drive", drive_late)
    monkeypatch.setattr(Supervisor, "wait_some", wait_late)
    parents = list[UUID]()
    held["ann begins"] = awaited.is_set
    held["ben begins"] = lambda: bool(parents) and retries_opened(lab, parents[0]) == 1
    _, run_id, run = begin(lab, parent, {"names": ["ann", "ben"], "policy": "continue"})
    parents.append(run_id)
    eventually(lambda: retries_opened(lab, run_id) == 1)
    advance(lab, 10 * SECOND)
    assert run.join().phase == "Completed"
    assert lab.final(run_id)["parent.main.main"] == ["ann ends", "ben ends"]
    assert left[0] in looked[0], "the await took the one that had failed for driven"


def test_one_that_fails_after_its_row_was_read_is_told_of(lab: Lab) -> None:
    """Whoever was about to drive it finds its end in its events alone."""
    failing["ann"] = 1
    driver = process(lab)
    run_id = driver.create("frail", "ann")
    row = lab.row(run_id)
    assert driver.resume(run_id).phase == "Failed"
    late = RunDriver(driver.house, row, cast("Any", None))
    assert late.drive() == "ended"
    assert late.may_be_tried_again


@pytest.mark.parametrize("after_s", [0, 4, 10])
def test_a_death_between_two_attempts_neither_loses_nor_doubles_one(lab: Lab, after_s: int) -> None:
    """The heir waits what is left of the backoff; the attempts are counted on."""
    failing["ann"] = 2
    driver, run_id, _ = begin(lab, parent, {"names": ["ann"], "policy": "continue"})
    eventually(lambda: retries_opened(lab, run_id) == 1)
    if after_s < 10:
        advance(lab, after_s * SECOND)
        die(driver)
    else:
        die(driver)
        advance(lab, after_s * SECOND)
    run = resumed(process(lab), run_id)
    if after_s < 10:
        eventually(lambda: lab.row(run_id).head.epoch == 2)
        advance(lab, (10 - after_s) * SECOND - 1)
        stays(lambda: len(generations(lab)) == 1)
        advance(lab, 1)
    eventually(lambda: retries_opened(lab, run_id) == 2)
    advance(lab, 10 * SECOND)
    assert run.join().phase == "Completed"
    assert [row.status for row in generations(lab)] == ["Failed", "Failed", "Completed"]


def test_a_retry_takes_the_time_of_an_await_and_outlives_it(lab: Lab) -> None:
    failing["ann"] = 1
    _, run_id, run = begin(lab, awaiting_parent, "ann")
    eventually(lambda: retries_opened(lab, run_id) == 1)
    advance(lab, 5 * SECOND)
    eventually(lambda: len(lab.domain(run_id, "fact_failed")) == 1)
    advance(lab, 5 * SECOND)
    assert run.join().phase == "Completed"
    assert lab.final(run_id)["awaiting_parent.main.main"] == ["await_timed_out", "ann ends"]
    assert len(generations(lab)) == 2


def test_retries_nest(lab: Lab) -> None:
    """The parent's next attempt heals the child that had no attempt left: that one has all of them again."""
    failing["ann"] = 3
    _, run_id, run = begin(lab, grandparent, "ann")
    for _ in range(6):
        stays(lambda: True)
        advance(lab, 10 * SECOND)
    assert run.join().phase == "Completed"
    assert lab.final(run_id)["grandparent.main.main"] == "ann ends"
    assert [row.status for row in generations(lab, "nested")] == ["Failed", "Completed"]
    assert [row.generation for row in generations(lab)] == [1, 2, 3, 4]
    assert calls.count("ann begins") == 1
    assert verify_tree(lab.store, run_id) == []


def test_a_child_that_ran_out_of_time_is_tried_again_with_as_much_of_it(lab: Lab) -> None:
    _, run_id, run = begin(lab, hurrying_parent)
    eventually(lambda: len(generations(lab, "dawdles")) == 1 and generations(lab, "dawdles")[0].wake_at is not None)
    advance(lab, 60 * SECOND)
    eventually(lambda: retries_opened(lab, run_id) == 1)
    advance(lab, 10 * SECOND)
    eventually(lambda: [row.status for row in generations(lab, "dawdles")] == ["Failed", "Running"])
    stays(lambda: not run.is_done)
    advance(lab, 60 * SECOND)
    assert run.join().phase == "Completed"
    assert lab.final(run_id)["hurrying_parent.main.main"] == "run_timed_out"


def test_a_number_is_a_policy_with_growing_waits() -> None:
    policy = ChildRetryPolicy.of(2, "child_retry_policy")
    assert policy is not None
    assert (policy.attempts, [policy.delay_us(n) // SECOND for n in range(2)]) == (3, [1, 2])
    for wrong in (-1, "3", {"mode": "again"}):
        with pytest.raises(InputError, match="child_retry_policy"):
            ChildRetryPolicy.of(cast("Any", wrong), "child_retry_policy")
