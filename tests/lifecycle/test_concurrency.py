"""``max_concurrency``: how many children of a parent work at a time, in one process and in several."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, cast
from uuid import UUID

import pytest

from airflow_childrun.authoring.operation import operation
from airflow_childrun.authoring.registry import RegistryResolver
from airflow_childrun.clock import SystemClock
from airflow_childrun.runtime.closing import cancel_run
from airflow_childrun.store.verify import verify_tree
from tests.engine.kit import Background, Lab, Process, eventually, new_lab


class Witness:
    """Counts who works at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.at_work = 0
        self.most = 0
        self.began: list[int] = []
        self.gate = threading.Event()

    def work(self, number: int) -> int:
        with self._lock:
            self.at_work += 1
            self.most = max(self.most, self.at_work)
            self.began.append(number)
        self.gate.wait(0.02)
        with self._lock:
            self.at_work -= 1
        return number


seen: list[Witness] = []


def work(number: int) -> int:
    """Be the outside world."""
    return seen[-1].work(number)


@operation(version="1")
def capped_child(io: Any, number: int) -> int:
    return int(io.step(work, number))


@operation(version="1")
def capped(io: Any, most: int, count: int) -> list[int]:
    return [result.output for result in io.map(capped_child, range(count), max_concurrency=most)]


@operation(version="1")
def capped_tree(io: Any, count: int) -> list[Any]:
    return [result.output for result in io.map(capped_branch, range(count), max_concurrency=1)]


@operation(version="1")
def capped_branch(io: Any, number: int) -> list[Any]:
    return [result.output for result in io.map(capped_child, [number, number], max_concurrency=1)]


@pytest.fixture
def lab() -> Iterator[Lab]:
    seen.append(Witness())
    with new_lab(clock=SystemClock()) as made:
        yield made
        seen[-1].gate.set()


def process(lab: Lab, owner: str = "task", **limits: Any) -> Process:
    return lab.process(shelf=cast("Any", RegistryResolver()), owner=owner, **limits)


def capped_run(lab: Lab, driver: Process, most: int, count: int) -> UUID:
    return driver.create("capped", {"most": most, "count": count})


def test_children_begin_in_the_order_of_their_spawn_never_more_than_the_cap(lab: Lab) -> None:
    driver = process(lab)
    run_id = capped_run(lab, driver, 1, 12)
    assert Background(lambda: driver.resume(run_id)).join().phase == "Completed"
    assert seen[-1].began == list(range(12))
    assert seen[-1].most == 1
    assert lab.final(run_id)["capped.main.main"] == list(range(12))


def test_places_are_used(lab: Lab) -> None:
    driver = process(lab)
    run_id = capped_run(lab, driver, 3, 30)
    assert Background(lambda: driver.resume(run_id)).join().phase == "Completed"
    assert seen[-1].most == 3


def test_no_cap_deadlocks_parents_against_their_children(lab: Lab) -> None:
    """A cap of one on every level, and a single slot."""
    driver = process(lab, max_concurrency=1)
    run_id = driver.create("capped_tree", 3)
    assert Background(lambda: driver.resume(run_id)).join().phase == "Completed"
    assert seen[-1].most == 1
    assert verify_tree(lab.store, run_id) == []


def test_several_processes_share_the_places_of_one_parent(lab: Lab) -> None:
    """Each of them drives some of the children; a process that dies gives its places back with its session."""
    first = process(lab, "first", session_ttl_s=1.0)
    run_id = capped_run(lab, first, 2, 24)
    Background(lambda: first.resume(run_id))
    eventually(lambda: len(lab.children(run_id)) == 24)
    others = [process(lab, name) for name in ("second", "third")]
    for other in others:
        for row in lab.children(run_id):
            other.engine.supervisor.hand_over(row.run_id)
    first.crash()
    first.house.slots.close()
    assert Background(lambda: process(lab, "heir").resume(run_id)).join().phase == "Completed"
    for other in others:
        eventually(other.engine.supervisor.is_idle)
    assert seen[-1].most <= 2 + 2  # a call of the dead process may be under way while its place is given to another


def test_a_child_that_waits_for_its_turn_can_be_cancelled(lab: Lab) -> None:
    driver = process(lab)
    run_id = capped_run(lab, driver, 1, 40)
    run = Background(lambda: driver.resume(run_id))
    eventually(lambda: len(seen[-1].began) > 1)
    cancel_run(driver.house, run_id, "enough")
    assert run.join().phase == "Cancelled"
    assert all(row.is_terminal for row in lab.children(run_id))
    assert len(seen[-1].began) < 40


@pytest.mark.parametrize("most", [0, -1])
def test_what_is_no_number_of_children_is_refused(lab: Lab, most: int) -> None:
    driver = process(lab)
    run_id = capped_run(lab, driver, most, 1)
    assert Background(lambda: driver.resume(run_id)).join().phase == "Failed"
    assert lab.row(run_id).error_code == "argument_invalid"
