"""The batching poller: one question per interval, whoever waits; outages are sat out, and told after a while."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest

from airflow_childrun.errors import HostError, UnavailableError
from airflow_childrun.testing.clock import ManualClock
from airflow_childrun.triggers.poller import JITTER, Poller, Pollers

INTERVAL_S = 0.02


@dataclass
class World:
    """A place that can be asked; what is true of a key is in ``truth``."""

    truth: dict[int, str] = field(default_factory=dict)
    questions: list[frozenset[int]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    fails: Exception | None = None
    closed: int = 0

    async def ask(self, keys: frozenset[int]) -> dict[int, str]:
        self.questions.append(keys)
        self.times.append(asyncio.get_running_loop().time())
        await asyncio.sleep(0)
        if self.fails is not None:
            raise self.fails
        return {key: self.truth[key] for key in keys if key in self.truth}

    async def close(self) -> None:
        self.closed += 1


@dataclass
class Wants:
    """Waits until a key is there."""

    key: int

    def asked(self) -> list[int]:
        return [self.key]

    def look(self, seen: dict[int, str]) -> str | None:
        return seen.get(self.key)


def run(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    async def bounded() -> Any:
        return await asyncio.wait_for(work(), 60)

    return asyncio.run(bounded())


async def until(holds: Callable[[], object]) -> None:
    while not holds():  # noqa: ASYNC110 - what a world of its own has seen sets no event
        await asyncio.sleep(0.001)


def test_many_that_wait_are_one_question_per_interval() -> None:
    """500 waiters; whoever has got its answer is not asked for again; nobody left, nobody asked."""
    world = World()
    poller = Poller(world.ask, INTERVAL_S, close=world.close)

    async def work() -> None:
        waits = [asyncio.ensure_future(poller.watch(Wants(key))) for key in range(500)]
        await until(lambda: len(world.questions) >= 3)
        assert set(map(len, world.questions)) == {500}
        world.truth[7] = "here"
        assert await waits[7] == "here"
        before = len(world.questions)
        await until(lambda: len(world.questions) > before)
        assert len(world.questions[-1]) == 499
        world.truth.update(dict.fromkeys(range(500), "all"))
        assert await asyncio.gather(*waits) == ["here" if key == 7 else "all" for key in range(500)]
        await until(lambda: world.closed)
        asked = len(world.questions)
        await asyncio.sleep(3 * INTERVAL_S)
        assert (len(world.questions), world.closed) == (asked, 1)

    run(work)
    pauses = [after - before for before, after in zip(world.times, world.times[1:], strict=False)]
    assert min(pauses) >= INTERVAL_S


def test_whoever_comes_after_everybody_left_is_served() -> None:
    world = World({1: "one", 2: "two"})
    poller = Poller(world.ask, INTERVAL_S, close=world.close)

    async def work() -> None:
        assert await poller.watch(Wants(1)) == "one"
        await until(lambda: world.closed)
        assert await poller.watch(Wants(2)) == "two"

    run(work)


def test_a_cancelled_waiter_is_not_asked_for_any_more() -> None:
    world = World()
    poller = Poller(world.ask, INTERVAL_S)

    async def work() -> None:
        one, other = (asyncio.ensure_future(poller.watch(Wants(key))) for key in (1, 2))
        await until(lambda: world.questions)
        one.cancel()
        before = len(world.questions)
        await until(lambda: len(world.questions) > before + 1)
        assert world.questions[-1] == {2}
        other.cancel()

    run(work)


def test_pauses_have_a_random_part() -> None:
    poller = Poller(World().ask, 10.0)
    pauses = {poller._pause(10.0) for _ in range(50)}
    assert len(pauses) > 40
    assert min(pauses) >= 10.0
    assert max(pauses) <= 10.0 * (1 + JITTER)


def test_an_outage_is_sat_out_with_longer_and_longer_pauses() -> None:
    world = World({1: "one"}, fails=UnavailableError("no route"))
    poller = Poller(world.ask, INTERVAL_S, outage_s=60)

    async def work() -> None:
        waiting = asyncio.ensure_future(poller.watch(Wants(1)))
        await until(lambda: len(world.questions) >= 5)
        assert not waiting.done()
        pauses = [after - before for before, after in zip(world.times, world.times[1:], strict=False)]
        assert pauses[-1] > pauses[0]
        world.fails = None
        assert await waiting == "one"

    run(work)


def test_an_outage_that_lasts_is_told() -> None:
    """To those who have waited for so long; who came later waits on."""
    world, clock = World(fails=UnavailableError("no route")), ManualClock()
    poller = Poller(world.ask, INTERVAL_S, outage_s=60, clock=clock)

    async def work() -> None:
        early, late = (asyncio.ensure_future(poller.watch(Wants(key))) for key in (1, 2))
        await until(lambda: len(world.questions) >= 3)
        (wait,) = (wait for wait in poller._waits if wait.watcher.asked() == [2])
        wait.since_s = 50
        clock.advance(100_000_000)
        with pytest.raises(UnavailableError, match="no route"):
            await early
        assert not late.done()
        late.cancel()

    run(work)


@pytest.mark.parametrize("error", [HostError("there is no connection", code="connection_missing"), ValueError("a bug")])
def test_what_time_cannot_mend_is_told_at_once(error: Exception) -> None:
    world = World(fails=error)
    poller = Poller(world.ask, INTERVAL_S)
    with pytest.raises(type(error), match=str(error.args[0])[:10] if error.args else ""):
        run(lambda: poller.watch(Wants(1)))


def test_a_waiter_with_a_bug_harms_no_other() -> None:
    class Broken(Wants):
        def look(self, seen: dict[int, str]) -> str | None:
            raise KeyError("broken")

    poller = Poller(World({1: "one"}).ask, INTERVAL_S)

    async def work() -> None:
        broken, sound = poller.watch(Broken(2)), poller.watch(Wants(1))
        found = await asyncio.gather(broken, sound, return_exceptions=True)
        assert isinstance(found[0], KeyError)
        assert found[1] == "one"

    run(work)


def test_one_poller_per_name_and_event_loop() -> None:
    """dag.test runs each trigger in a loop of its own, one after the other."""
    pollers: Pollers[int, dict[int, str]] = Pollers()

    def make() -> Poller[int, dict[int, str]]:
        return Poller(World({1: "one"}).ask, INTERVAL_S)

    async def work() -> Poller[int, dict[int, str]]:
        first = pollers.get(("c", 1.0), make)
        assert pollers.get(("c", 1.0), make) is first
        assert pollers.get(("c", 2.0), make) is not first
        assert await first.watch(Wants(1)) == "one"
        return first

    assert run(work) is not run(work)
