"""The places of a parent's children under ``max_concurrency``, between processes of which each drives children of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from random import Random
from typing import Any
from uuid import UUID

import pytest

from airflow_childrun.authoring.operation import operation
from airflow_childrun.model.config import RunConfig
from airflow_childrun.model.manifest import build_manifest, manifest_id
from airflow_childrun.runtime.host import HostRun
from airflow_childrun.runtime.host_tree import WantedChild
from airflow_childrun.runtime.host_try import HostCoordinates, TryFacts
from airflow_childrun.runtime.house import Limits
from airflow_childrun.runtime.lanes import LONGEST_REST, OFFER_ROUNDS, REST_ROUNDS
from airflow_childrun.runtime.supervisor import Supervisor
from airflow_childrun.store.api import RunFilter
from airflow_childrun.store.memory import MemoryStore
from tests.simulation.baton import BEGIN_US, Baton, Process
from tests.simulation.machines import Faults, Machine, Setting, StoreClock

EMPTY_SNAPSHOT = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
POLL_S = 0.5
MOST_IN_A_ROW = 32
"""What a rest of five seconds, now and then doubled, leaves time for; without offers it would be all 60."""


class Steady(Random):
    """Chance by which the virtual clock never jumps while somebody can go on."""

    def random(self) -> float:
        return max(0.01, super().random())


@dataclass
class World:
    """Virtual time passes in it while a child works.

    :param began: which process began a child, and when
    """

    baton: Baton
    works_s: float
    began: list[tuple[str, float]] = field(default_factory=list)
    at_work: int = 0
    most: int = 0

    def work(self) -> None:
        self.at_work += 1
        self.most = max(self.most, self.at_work)
        self.began.append((self.baton.me().process.name, self.now_s))
        self.baton.sleep(self.works_s)
        self.at_work -= 1

    @property
    def now_s(self) -> float:
        return (self.baton.now_us - BEGIN_US) / 1_000_000

    @property
    def times(self) -> list[float]:
        return [at for _, at in self.began]


worlds: list[World] = []


def work(number: int) -> int:
    """Be the outside world."""
    worlds[-1].work()
    return number


@operation(version="1")
def fair_child(io: Any, number: int) -> int:
    return int(io.step(work, number))


@dataclass
class Play:
    """Children of one task, of which each process is handed some.

    :param most: how many of them may work at a time
    """

    seed: int
    most: int
    works_s: float

    def __post_init__(self) -> None:
        self.baton = baton = Baton(Steady(self.seed), 0.2)
        limits = Limits(poll_s=POLL_S, inbox_poll_s=30.0, session_ttl_s=600.0)
        self.setting = Setting(baton, MemoryStore(StoreClock(baton)), Faults(), limits, [])
        self.world = World(baton, self.works_s)
        worlds.append(self.world)

    def spawn(self, count: int) -> list[UUID]:
        """Spawn children as a task does; return them in order."""
        maker = Machine(self.setting, "maker", "maker", 1)
        found: list[UUID] = []

        def spawn() -> None:
            facts = TryFacts(UUID(int=1), 1, 2, 0, 3_600_000_000)
            host = HostRun(maker.house, HostCoordinates("sim", "dag", "run", "task", -1), facts, {})
            wanted = [self._wanted(number) for number in range(count)]
            found.extend(slot.run_id for slot in host.spawn(wanted, "auto", "fail").slots)

        self.baton.start(Process(self.baton, "maker"), "spawn", spawn)
        self.baton.run(lambda: not self.baton.threads)
        return found

    def _wanted(self, number: int) -> WantedChild:
        made = build_manifest("fair_child", "1", input=number, run_config=RunConfig())
        return WantedChild(f"{number}", made, manifest_id(made), {}, EMPTY_SNAPSHOT, max_concurrency=self.most)

    def drive(self, name: str, run_ids: list[UUID]) -> None:
        """Let a process drive these children, and no others."""
        machine = Machine(self.setting, name, name, 1)

        def main() -> None:
            supervisor = Supervisor(machine.house)
            for run_id in run_ids:
                supervisor.hand_over(run_id)
            while not supervisor.is_idle():
                supervisor.wait_until_idle(30.0)
            supervisor.close()

        self.baton.start(machine.process, "main", main)

    def run(self) -> None:
        self.baton.run(lambda: not self.baton.threads)
        assert not self.baton.escaped, self.baton.escaped[0][1]
        assert self.world.most <= self.most

    def statuses(self) -> set[str]:
        rows = self.setting.store.find_runs(RunFilter(op_id="fair_child"), limit=10_000).rows
        return {row.status for row in rows}


@pytest.fixture(autouse=True)
def _worlds() -> Iterator[None]:
    yield
    worlds.clear()


@pytest.mark.parametrize("most", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_no_process_keeps_the_places_for_itself(seed: int, most: int) -> None:
    """As long as two processes want places, none of them has very many in a row."""
    play = Play(seed, most, works_s=1.0)
    children = play.spawn(120)
    play.drive("first", children[:60])
    play.drive("second", children[60:])
    play.run()
    assert play.statuses() == {"Completed"}
    names = [name for name, _ in play.world.began]
    both_want = min(len(names) - names[::-1].index(name) for name in ("first", "second"))
    assert max(len(list(streak)) for _, streak in groupby(names[:both_want])) <= MOST_IN_A_ROW


@pytest.mark.parametrize("seed", range(2))
def test_siblings_that_nobody_drives_block_nobody(seed: int) -> None:
    """The places that are left free for them are few, and fewer the longer nobody takes them."""
    play = Play(seed, 1, works_s=0.25)
    children = play.spawn(500)
    play.drive("only", children[:400])
    play.run()
    assert play.statuses() == {"Completed", "Pending"}
    rest_s, offers, until_s = POLL_S * REST_ROUNDS, 0, 0.0
    while until_s < 400 * play.works_s:
        until_s += rest_s * min(2**offers, LONGEST_REST)
        offers += 1
    times = play.world.times
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert 2 <= sum(pause > play.works_s + POLL_S * (OFFER_ROUNDS - 0.5) for pause in pauses) <= offers


def test_who_drives_all_siblings_offers_nothing() -> None:
    """A lane in one process has no pause."""
    play = Play(7, 1, works_s=0.25)
    play.drive("only", play.spawn(200))
    play.run()
    times = play.world.times
    assert len(times) == 200
    assert max(later - earlier for earlier, later in pairwise(times)) < play.works_s + POLL_S
