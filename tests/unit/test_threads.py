"""Threads that are kept, and the order in which they come: what the runtime leans on, without a run."""

from __future__ import annotations

import contextvars
import multiprocessing
import threading
import time
from collections.abc import Callable
from uuid import UUID

import pytest

from airflow_childrun.runtime import scheduler
from airflow_childrun.runtime.lanes import Lanes
from airflow_childrun.runtime.scheduler import ThreadScheduler
from airflow_childrun.runtime.slots import Slots
from airflow_childrun.store.api import Cap
from airflow_childrun.store.memory import MemoryStore
from airflow_childrun.testing.clock import ManualClock

LONGEST_S = 20
who: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="nobody")


def done(work: Callable[[], object]) -> object:
    """Run work in a thread of the scheduler, and return what it returned."""
    found: list[object] = []
    over = threading.Event()

    def noted() -> None:
        found.append(work())
        over.set()

    ThreadScheduler().start("some work", noted)
    assert over.wait(LONGEST_S)
    return found[0]


def idle() -> None:
    """Wait until a thread that has just ended its work is idle."""
    until = time.monotonic() + LONGEST_S
    while not scheduler._idle:
        assert time.monotonic() < until
        time.sleep(0.001)


def test_a_thread_takes_the_next_work_in_a_context_of_its_own() -> None:
    """The same thread, another name, and nothing left of what the work before had set."""
    first = done(lambda: (threading.get_ident(), threading.current_thread().name, who.set("the first")))
    idle()
    who.set("the caller")
    second = done(lambda: (threading.get_ident(), threading.current_thread().name, who.get()))
    assert isinstance(first, tuple)
    assert second == (first[0], "some work", "the caller")


def test_work_that_raises_takes_its_thread_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a thread of its own: it is reported where threads report, and no later work is lost."""
    raised = threading.Event()

    def fails() -> None:
        raise ValueError("bad")

    monkeypatch.setattr(threading, "excepthook", lambda report: raised.set())
    ThreadScheduler().start("bad", fails)
    assert raised.wait(LONGEST_S)
    assert done(lambda: "done") == "done"


def test_a_thread_without_work_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while, and not while somebody is about to give it work."""
    monkeypatch.setattr(scheduler, "IDLE_S", 0.01)
    for _ in range(50):
        assert done(lambda: 1) == 1
        time.sleep(0.01)
    until = time.monotonic() + LONGEST_S
    while any(thread.name == "some work" for thread in threading.enumerate()):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_forked_process_has_threads_of_its_own() -> None:
    """Those that were idle in its parent are not there: no work is given to them."""
    done(lambda: 1)
    idle()
    child = multiprocessing.get_context("fork").Process(target=lambda: done(lambda: 1))
    child.start()
    child.join(LONGEST_S)
    assert child.exitcode == 0


def test_siblings_under_a_cap_come_in_the_order_in_which_they_were_handed_over() -> None:
    """Though the thread of the second has read first that there is a cap."""
    first, second = UUID(int=1), UUID(int=2)
    threads = ThreadScheduler()
    lanes = Lanes(MemoryStore(ManualClock()), Slots(threads, 9), threads, again_s=60)
    cap = Cap(UUID(int=3), "op", 1)
    for run_id in (first, second):
        lanes.submit(run_id, None, lambda: None)
    begun: list[UUID] = []
    assert not lanes.may_begin(second, cap, lambda: begun.append(second))
    assert lanes.may_begin(first, cap, lambda: begun.append(first))
    assert not begun
    lanes.leave(first)
    assert begun == [second]


def test_a_sibling_that_ends_unread_lets_the_next_one_pass() -> None:
    """It may have no cap, or have ended: nobody waits for it for ever."""
    first, second, third = (UUID(int=number) for number in (1, 2, 3))
    threads = ThreadScheduler()
    lanes = Lanes(MemoryStore(ManualClock()), Slots(threads, 9), threads, again_s=60)
    for run_id in (first, second, third):
        lanes.submit(run_id, None, lambda: None)
    begun: list[UUID] = []
    assert not lanes.may_begin(third, Cap(UUID(int=4), "op", 1), lambda: begun.append(third))
    assert lanes.may_begin(first, None, lambda: None)
    assert not begun
    lanes.leave(second)
    assert begun == [third]


def test_who_comes_to_a_lane_that_is_still_shut_is_called_once_it_opens() -> None:
    """Though nobody waited there when it was looked at last: a place was offered to siblings that others drive."""
    threads = ThreadScheduler()
    lanes = Lanes(MemoryStore(ManualClock()), Slots(threads, 9), threads, again_s=0.5)
    cap = Cap(UUID(int=3), "op", 1)
    lanes._shut(lanes._lane(cap), 2)
    time.sleep(0.7)
    begun = threading.Event()
    lanes.submit(UUID(int=1), cap, begun.set)
    assert not begun.is_set()
    assert begun.wait(LONGEST_S)


def test_two_threads_of_a_run_may_leave_at_once() -> None:
    """One of them leaves between the other's look, which takes no lock, and what it does with the lock."""
    threads = ThreadScheduler()
    lanes = Lanes(MemoryStore(ManualClock()), Slots(threads, 9), threads, again_s=60)
    cap = Cap(UUID(int=3), "op", 1)
    first, second = UUID(int=1), UUID(int=2)
    begun: list[UUID] = []
    for run_id in (first, second):
        lanes.submit(run_id, cap, lambda run_id=run_id: begun.append(run_id))  # type: ignore[misc]

    class Late(dict[UUID, object]):
        """Says that a run is there that another thread then takes away."""

        def __contains__(self, run_id: object) -> bool:
            return True

    lanes.leave(first)
    lanes._lane_of = Late(lanes._lane_of)  # type: ignore[assignment]
    lanes.leave(first)
    assert begun == [first, second]
