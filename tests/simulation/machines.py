"""Simulated processes: a house and a supervisor each, over one store that a seed makes slow, deaf and deadly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, cast
from uuid import UUID

from airflow_childrun.authoring.registry import RegistryResolver
from airflow_childrun.errors import Abandoned, ChildRunError, Interrupt, UnavailableError
from airflow_childrun.runtime.engine import ExecutionEngine
from airflow_childrun.runtime.house import House, Limits
from airflow_childrun.secret_policy import standard
from airflow_childrun.store.api import TERMINAL, Commit, Owner, RunFilter, Store
from airflow_childrun.store.memory import MemoryStore
from tests.simulation.baton import BEGIN_US, Baton, Process, SimScheduler

HOUR_US = 3_600_000_000
OPEN = frozenset({"Pending", "Running", "Waiting"}) - TERMINAL
POLICY = standard()


class StoreClock:
    """The store's own time."""

    def __init__(self, baton: Baton) -> None:
        self._baton = baton

    def now_us(self) -> int:
        return self._baton.now_us

    def monotonic_s(self) -> float:
        return (self._baton.now_us - BEGIN_US) / 1_000_000


class SkewedClock(StoreClock):
    """The time of a process, wrong by up to an hour."""

    def __init__(self, baton: Baton, skew_us: int) -> None:
        super().__init__(baton)
        self._skew_us = skew_us

    def now_us(self) -> int:
        return super().now_us() + self._skew_us


class SeededEntropy:
    """Randomness that a seed repeats."""

    def __init__(self, random: Random) -> None:
        self._random = random

    def random_bytes(self, size: int) -> bytes:
        return self._random.randbytes(size)

    def new_id(self) -> UUID:
        return UUID(bytes=self._random.randbytes(16), version=4)


@dataclass
class Faults:
    """What may go wrong, and how often; ``left`` bounds all of it, so that there is an end.

    :param refused: a call never reaches the store
    :param unheard: a call is carried out, its answer lost
    :param late: a commit whose caller was told of a lost connection happens later all the same
    :param slow: a call takes up to a minute
    :param death: the process dies before or after a call, or inside a call of the world
    :param pause: the process stands still for up to two minutes
    """

    refused: float = 0.0
    unheard: float = 0.0
    late: float = 0.0
    slow: float = 0.0
    death: float = 0.0
    pause: float = 0.0
    left: int = 0
    happened: list[str] = field(default_factory=list)

    def strikes(self, name: str, random: Random) -> bool:
        """Whether this goes wrong now."""
        if self.left <= 0 or random.random() >= getattr(self, name):
            return False
        self.left -= 1
        self.happened.append(name)
        return True


class FaultyStore:
    """One process's way to the store."""

    def __init__(self, store: MemoryStore, process: Process, faults: Faults) -> None:
        self._store = store
        self._process = process
        self._faults = faults
        self._baton = process.baton

    def commit(self, commits: list[Commit]) -> Any:
        """Carry a batch out, now or late."""
        if self._strikes("late"):
            delay_s = self._baton.random.uniform(0, 20)
            database = Process(self._baton, "database")
            self._baton.start(database, "late commit", lambda: self._late(commits, delay_s))
            raise UnavailableError("the connection is lost")
        return self._call("commit", commits)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *args, **kwargs: self._call(name, *args, **kwargs)

    def _late(self, commits: list[Commit], delay_s: float) -> None:
        self._baton.sleep(delay_s)
        self._baton.note("late commit happens")
        self._store.commit(commits)

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        baton, process = self._baton, self._process
        baton.point(name)
        if self._strikes("slow"):
            baton.sleep(baton.random.uniform(0, 60))
        if self._strikes("pause"):
            process.paused_until_us = baton.now_us + baton.random.randrange(120_000_000)
            baton.block("ready")
        if self._strikes("refused"):
            raise UnavailableError("the database does not answer")
        if self._strikes("death"):
            process.die()
        answer = getattr(self._store, name)(*args, **kwargs)
        baton.note(f"{name} done")
        if self._strikes("death"):
            process.die()
        if self._strikes("unheard"):
            raise UnavailableError("the answer is lost")
        baton.point()
        return answer

    def _strikes(self, name: str) -> bool:
        if not self._faults.strikes(name, self._baton.random):
            return False
        self._baton.note(f"fault: {name}")
        return True


@dataclass
class Setting:
    """What all machines of a simulation share."""

    baton: Baton
    store: Any
    faults: Faults
    limits: Limits
    roots: list[UUID]
    machines: list[Machine] = field(default_factory=list)
    skewed: bool = False

    def boot(self, key: str) -> Machine:
        """Begin a process; it supersedes the sessions of earlier ones with the same key."""
        machine = Machine(self, f"p{len(self.machines)}", key, len(self.machines) + 1)
        self.machines.append(machine)
        self.baton.start(machine.process, "main", machine.main)
        return machine

    def open_runs(self) -> list[UUID]:
        """Return the runs that have not ended, as the store knows them."""
        rows = self.store.find_runs(RunFilter(), limit=10_000).rows
        return [row.run_id for row in rows if not row.is_terminal]


class Machine:
    """A process that drives the roots until everything below them has ended."""

    def __init__(self, setting: Setting, name: str, key: str, incarnation: int) -> None:
        baton = setting.baton
        self._setting = setting
        self.key = key
        self.process = Process(baton, name)
        self.store = FaultyStore(setting.store, self.process, setting.faults)
        skew = baton.random.randrange(-HOUR_US, HOUR_US) if setting.skewed else 0
        self.house = House(
            cast("Store", self.store),
            RegistryResolver(),
            POLICY,
            limits=setting.limits,
            owner=Owner(name, key, incarnation),
            scheduler=SimScheduler(self.process),
            clock=SkewedClock(baton, skew),
            entropy=SeededEntropy(baton.random),
        )
        self.is_done = False

    def main(self) -> None:
        """Drive what is open, whatever comes in between; leave when nothing is."""
        engine = ExecutionEngine(self.house)
        while True:
            waiting = self._setting.open_runs()
            if not waiting:
                break
            try:
                for run_id in waiting:
                    engine.supervisor.hand_over(run_id)
                for run_id in waiting:
                    engine.supervisor.wait(run_id)
            except (ChildRunError, Interrupt) as error:
                if isinstance(error, Abandoned):
                    raise
                self.process.baton.note(f"main: {error}")
                self.house.scheduler.sleep(5)
        engine.close()
        self.is_done = True
