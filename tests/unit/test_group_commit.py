"""Group commit by real threads: who rides together, who leads, and what becomes of the others where a thread is torn away."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast
from uuid import UUID

import pytest

from airflow_childrun.errors import UnavailableError
from airflow_childrun.runtime import committer
from airflow_childrun.runtime.committer import Committer
from airflow_childrun.runtime.scheduler import Monitor, ThreadMonitor, ThreadScheduler
from airflow_childrun.runtime.slots import Slots
from airflow_childrun.store.api import Commit, Committed, RunStep, Store

LONGEST_S = 20


class TornError(BaseException):
    """Raised in a thread from outside, as Airflow's timeout is."""


class Gate:
    """A store that lets one batch at a time through, when it is told to."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.dies = False
        self._entered, self._may = threading.Semaphore(0), threading.Semaphore(0)

    def commit(self, commits: Sequence[Commit]) -> list[Committed]:
        self.batches.append([commit.commit_id.int for commit in commits])
        self._entered.release()
        assert self._may.acquire(timeout=LONGEST_S)
        if self.dies:
            self.dies = False
            raise TornError
        return [Committed(commit.commit_id.int, {}) for commit in commits]

    def entered(self) -> None:
        assert self._entered.acquire(timeout=LONGEST_S)

    def let_through(self) -> None:
        self._may.release()


class TearingMonitor(ThreadMonitor):
    """Tears its thread out of its wait: at once, or when it is woken."""

    def __init__(self, *, at_once: bool) -> None:
        super().__init__()
        self._at_once = at_once

    def wait(self, timeout_s: float | None = None) -> bool:
        if not self._at_once:
            super().wait(timeout_s)
        raise TornError


class TearingScheduler(ThreadScheduler):
    """Hands the monitors out that it was given, then ordinary ones."""

    def __init__(self) -> None:
        self.next: list[Monitor] = []

    def monitor(self) -> Monitor:
        return self.next.pop() if self.next else super().monitor()


class Bench:
    """Threads that submit commits, numbered."""

    def __init__(self) -> None:
        self.gate = Gate()
        self.scheduler = TearingScheduler()
        self.committer = Committer(cast("Store", self.gate), self.scheduler)
        self.ends: dict[int, Any] = {}
        self.threads: dict[int, threading.Thread] = {}

    def submit(self, number: int, run: int | None = None) -> None:
        """Submit in a thread of its own, and return once it leads or waits."""
        commit = Commit(UUID(int=number), (RunStep(UUID(int=run or number), 0, 0),))

        def work() -> None:
            try:
                self.ends[number] = self.committer.submit(commit)
            except BaseException as raised:
                self.ends[number] = raised

        before = self.waiting
        self.threads[number] = threading.Thread(target=work, daemon=True)
        self.threads[number].start()
        if len(self.threads) == 1:
            self.gate.entered()
            return
        pause = threading.Event()
        for _ in range(LONGEST_S * 1000):
            if self.waiting > before or number in self.ends:
                return
            pause.wait(0.001)
        raise AssertionError("it neither waits nor ends")

    @property
    def waiting(self) -> int:
        return len(self.committer._queue)

    def end_of(self, number: int) -> Any:
        self.threads[number].join(LONGEST_S)
        return self.ends[number]

    @contextmanager
    def held(self) -> Iterator[None]:
        """Have the first commit in the store for as long as others come."""
        self.submit(1)
        yield
        self.gate.let_through()


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_those_who_wait_ride_together_in_order_each_run_once(bench: Bench) -> None:
    with bench.held():
        bench.submit(2)
        bench.submit(3)
        bench.submit(4, run=2)
        bench.submit(5)
    for _ in range(2):
        bench.gate.entered()
        bench.gate.let_through()
    assert [bench.end_of(number) for number in range(1, 6)] == [Committed(number, {}) for number in range(1, 6)]
    assert bench.gate.batches == [[1], [2, 3, 5], [4]]
    assert bench.committer._leader is None


@pytest.mark.parametrize("at_once", [True, False], ids=["while it waits", "when it is to lead"])
def test_a_thread_that_is_torn_out_of_its_wait_holds_up_nobody(bench: Bench, *, at_once: bool) -> None:
    """What it submitted has not happened; those behind it go on."""
    with bench.held():
        bench.scheduler.next = [TearingMonitor(at_once=at_once)]
        bench.submit(2)
        bench.submit(3)
    bench.gate.entered()
    bench.gate.let_through()
    assert isinstance(bench.end_of(2), TornError)
    assert bench.end_of(3) == Committed(3, {})
    assert bench.gate.batches == [[1], [3]]


def test_whoever_rode_with_a_thread_that_dies_in_the_store_is_told_that_nobody_knows(bench: Bench) -> None:
    with bench.held():
        bench.submit(2)
        bench.submit(3)
        bench.submit(4, run=2)
    bench.gate.entered()
    bench.gate.dies = True
    bench.gate.let_through()
    bench.gate.entered()
    bench.gate.let_through()
    assert isinstance(bench.end_of(2), TornError)
    assert isinstance(bench.end_of(3), UnavailableError)
    assert bench.end_of(4) == Committed(4, {})
    assert bench.gate.batches == [[1], [2, 3], [4]]


def test_a_thread_that_is_torn_away_while_it_tells_the_others_leaves_nobody_waiting(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has told stands; who was not told submits again."""
    told: list[int] = []
    tell = committer._Waiting.settle

    def tearing(waiting: Any, answer: Any) -> None:
        told.append(waiting.commit.commit_id.int)
        if told.count(3) == 1 and told[-1] == 3:
            raise TornError
        tell(waiting, answer)

    monkeypatch.setattr(committer._Waiting, "settle", tearing)
    with bench.held():
        for number in (2, 3, 4):
            bench.submit(number)
        bench.submit(5, run=2)
    for _ in range(2):
        bench.gate.entered()
        bench.gate.let_through()
    assert isinstance(bench.end_of(2), TornError)
    assert isinstance(bench.end_of(3), UnavailableError)
    assert isinstance(bench.end_of(4), UnavailableError)
    assert bench.end_of(5) == Committed(5, {})
    assert bench.committer._leader is None


@pytest.mark.parametrize("leads", [True, False])
def test_a_thread_that_is_torn_away_as_it_joins_holds_up_nobody(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, *, leads: bool
) -> None:
    """Right behind the moment at which it leads, or stands in the queue."""
    join = Committer._join

    def tearing(self: Committer, mine: Any) -> None:
        join(self, mine)
        if mine.commit.commit_id.int == 9:
            raise TornError

    monkeypatch.setattr(Committer, "_join", tearing)
    if leads:
        with pytest.raises(TornError):
            bench.committer.submit(Commit(UUID(int=9), ()))
        with bench.held():
            pass
    else:
        with bench.held(), pytest.raises(TornError):
            bench.committer.submit(Commit(UUID(int=9), ()))
    assert bench.end_of(1) == Committed(1, {})
    assert bench.gate.batches == [[1]]
    assert bench.committer._leader is None


def test_only_news_that_end_somebodys_wait_wake_anybody() -> None:
    """A thousand children end while their parent waits for the last one."""
    slots = Slots(ThreadScheduler(), 1)
    over, woken, listening = threading.Event(), threading.Event(), threading.Event()

    def wait() -> None:
        with slots.monitor:
            listening.set()
            slots.listen(LONGEST_S, lambda: not over.is_set())
        woken.set()

    threading.Thread(target=wait, daemon=True).start()
    assert listening.wait(LONGEST_S)
    with slots.monitor:
        slots.tell()
    assert not woken.wait(0.05)
    over.set()
    with slots.monitor:
        slots.tell()
    assert woken.wait(LONGEST_S)
