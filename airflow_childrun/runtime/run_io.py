"""The IO of one attempt: what a handler's calls go through, put together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from airflow_childrun.engine.fact_io import FactIo, ReplayIo, Scene
from airflow_childrun.engine.live_io import LiveIo
from airflow_childrun.model.config import RunConfig
from airflow_childrun.runtime.house import House
from airflow_childrun.runtime.journal import Pen
from airflow_childrun.runtime.nursery import HandOver, RunNursery
from airflow_childrun.runtime.waiting import Hold, RunWaits
from airflow_childrun.store.api import Cap, RunRow
from airflow_childrun.transports.child_requests import ChildRunBinding
from airflow_childrun.transports.child_runs import ChildRunTransport
from airflow_childrun.transports.registry import LiveIoEnv, Router, TransportRegistry


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a driven run asks of its supervisor.

    :param may_begin: whether it is the turn of a run under a cap; else it waits elsewhere for it
    :param ring: has runs of this process look into their inboxes at once
    """

    hand_over: HandOver
    may_begin: Callable[[UUID, Cap | None], bool]
    wait: Callable[[UUID, Hold, int | None], RunRow]
    wait_all: Callable[[Sequence[UUID], Hold], None]
    wait_some: Callable[[Sequence[UUID], Hold, int | None], set[UUID]]
    ring: Callable[[Iterable[UUID]], None]
    hold: Hold


def make_io(house: House, journal: Pen, env: LiveIoEnv, config: RunConfig, around: Surroundings) -> FactIo:
    """Return the IO of an attempt: live, or over recorded facts alone."""
    replay = config.io_mode == "Replay"
    router = _router(house, journal, env, around, replay=replay)
    scene = Scene(env.identity, env.state_id, journal.history.facts, journal, house.policy)
    if replay:
        return ReplayIo(scene, router, retryable=config.replay_missing_fact_retryable)
    return LiveIo(scene, router, house.sources, RunWaits(house, journal, around.hold))


def _router(house: House, journal: Pen, env: LiveIoEnv, around: Surroundings, *, replay: bool) -> Router:
    nursery = RunNursery(
        house,
        journal.history,
        around.hand_over,
        lambda run_id, until_us: around.wait(run_id, around.hold, until_us),
        lambda run_ids, until_us: around.wait_some(run_ids, around.hold, until_us),
    )
    registry = TransportRegistry(house.transports.all().values())
    registry.register(_ChildRuns(house, journal, nursery))
    return Router(registry, env, replay=replay)


class _ChildRuns:
    """The factory of the child-run transport, an ordinary member of the registry."""

    def __init__(self, house: House, journal: Pen, nursery: RunNursery) -> None:
        self._house = house
        self._journal = journal
        self._nursery = nursery

    def namespace_group(self) -> str:
        """Return ``machine.child_run``."""
        return "machine.child_run"

    def binding(self, env: LiveIoEnv) -> ChildRunBinding:
        """Return how replay binds requests to recorded answers."""
        return ChildRunBinding(env.identity, self._house.policy)

    def make(self, env: LiveIoEnv) -> Any:
        """Make the transport of one attempt."""
        return ChildRunTransport(
            env,
            journal=self._journal,
            nursery=self._nursery,
            resolver=self._house.cradle,
            policy=self._house.policy,
            max_depth=self._house.limits.max_depth,
        )
