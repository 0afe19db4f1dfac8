"""Where a scenario is performed: a fresh store, and one engine after another over it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

from airflow_childrun.clock import SystemClock
from airflow_childrun.errors import ChildRunError, ContextError, NondeterminismError
from airflow_childrun.model.events import event_to_json
from airflow_childrun.runtime.engine import ExecutionEngine, RunResult
from airflow_childrun.runtime.house import House, LoggingObserver, Sources
from airflow_childrun.secret_policy import strict
from airflow_childrun.store.api import Owner, RunFilter, RunRow, Store
from airflow_childrun.store.codec import decode_events
from airflow_childrun.store.memory import MemoryStore
from airflow_childrun.store.sql.migrate import upgrade
from airflow_childrun.store.sql.store import SqlStore
from airflow_childrun.transports.registry import TransportRegistry
from tests.golden.script import ScriptResolver
from tests.golden.world import World


class Backend(Protocol):
    """A kind of store."""

    name: str

    def new_store(self) -> Store:
        """Make an empty one."""


class MemoryBackend:
    """Stores in memory."""

    name = "memory"

    def new_store(self) -> Store:
        """Make an empty one."""
        return MemoryStore(SystemClock())


class SqliteBackend:
    """Stores in SQLite files, each a copy of one that was migrated.

    :param folder: an empty folder that lives as long as the stores do
    """

    name = "SQLite"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made = 0
        self._template = folder / "template.db"
        upgrade(f"sqlite:///{self._template}")

    def new_store(self) -> Store:
        """Make an empty one."""
        self._made += 1
        path = self._folder / f"{self._made}.db"
        shutil.copy(self._template, path)
        return SqlStore(f"sqlite:///{path}")


@dataclass(frozen=True)
class RecordedSources(Sources):
    """Time and randomness as the recording had them, then the machine's."""

    times_ms: list[int]
    randoms: list[bytes]

    def now_us(self) -> int:
        """Return the next recorded time."""
        return self.times_ms.pop(0) * 1000 if self.times_ms else Sources.now_us(self)

    def random_bytes(self, size: int) -> bytes:
        """Return the next recorded bytes."""
        return self.randoms.pop(0) if self.randoms else Sources.random_bytes(self, size)


@dataclass
class GoldenHouse(House):
    """A house with the recording's time and randomness for handlers."""

    times_ms: list[int] = field(default_factory=list)
    randoms: list[bytes] = field(default_factory=list)

    @property
    def sources(self) -> Sources:
        """Where recorded time and randomness come from."""
        return RecordedSources(self.clock, self.entropy, self.times_ms, self.randoms)


class SilentObserver(LoggingObserver):
    """Says nothing: scripts fail by intention."""

    def state_failed(self, *args: Any, **kwargs: Any) -> None:
        """Say nothing."""


class Stage:
    """A store, the world beside it, and the processes that come and go.

    :param times_ms: what ``now`` gives first
    :param randoms: what ``random`` gives first
    """

    def __init__(self, store: Store, world: World, times_ms: list[int], randoms: list[bytes]) -> None:
        self.store = store
        self.world = world
        self._times_ms = times_ms
        self._randoms = randoms
        self._engines: list[ExecutionEngine] = []

    def new_engine(self) -> ExecutionEngine:
        """Start a process; what the one before it still drove is taken over, as after a crash."""
        house = GoldenHouse(
            self.store,
            ScriptResolver(self.world),
            strict(),
            TransportRegistry([self.world.transport()]),
            owner=Owner("golden", key="golden", incarnation=len(self._engines)),
            observer=SilentObserver(),
            times_ms=self._times_ms,
            randoms=self._randoms,
        )
        # A process that opens its session before it looks takes over at once.
        house.keeper.session_id()
        self._engines.append(ExecutionEngine(house))
        return self._engines[-1]

    def perform(self, act: Callable[[ExecutionEngine], RunResult], stop_after_handler: UUID | None = None) -> Any:
        """Let a fresh engine act, wait until its children are at rest, and return the outcome as the recordings write it."""
        engine = self.new_engine()
        engine.house.failpoints.stop_after_handler = stop_after_handler
        try:
            result = act(engine)
        except ChildRunError as error:
            return {"error": error_json(error)}
        finally:
            wait_until_idle(engine)
        return {
            "ok": {
                "final_snapshot_id": result.final_snapshot_id,
                "phase": result.phase,
                "run_id": str(result.run_id),
            }
        }

    def rows(self) -> list[RunRow]:
        """Return every run, in order of creation."""
        return list(self.store.find_runs(RunFilter(), limit=1000).rows)

    def streams(self) -> dict[str, list[Any]]:
        """Return the events of every run, as JSON."""
        return {
            str(row.run_id): [event_to_json(event) for _, event in decode_events(self.store.read_events(row.run_id))]
            for row in self.rows()
        }

    def artifacts(self) -> dict[str, tuple[str, bytes]]:
        """Return kind and bytes of every artifact."""
        found: dict[str, tuple[str, bytes]] = {}
        for root in {row.root_run_id for row in self.rows()}:
            kinds = self.store.find_artifact_kinds(root)
            bodies = self.store.get_artifacts(root, kinds)
            found |= {key: (kind, bodies[key]) for key, kind in kinds.items()}
        return found

    def replays(self) -> dict[str, Any]:
        """Replay every run; return by run id the snapshot it ends with, or the error and its state."""
        engine = self.new_engine()
        found: dict[str, Any] = {}
        for row in self.rows():
            try:
                found[str(row.run_id)] = {"final_snapshot_id": engine.replay(row.run_id)}
            except NondeterminismError as error:
                found[str(row.run_id)] = {"error": error.code, "state_id": error.info.details["state_id"]}
        return found

    def close(self) -> None:
        """End every process."""
        for engine in self._engines:
            engine.close()
        self.store.close()


def wait_until_idle(engine: ExecutionEngine) -> None:
    """Wait until nothing is driven."""
    monitor = engine.house.slots.monitor
    with monitor:
        while not engine.supervisor.is_idle():
            monitor.wait(1.0)


def error_json(error: ChildRunError) -> Any:
    """Write an error as the recordings do: by variant."""
    info = error.info.to_json()
    return {"Context": {error.kind: info}} if isinstance(error, ContextError) else {error.kind: info}
