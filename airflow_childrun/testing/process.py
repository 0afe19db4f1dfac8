"""One process of a test: drives runs over a store in memory, and dies or gives up where the test wants it."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

from airflow_childrun.engine.ports import IoCall
from airflow_childrun.engine.prepare import Lineage, Request, prepare_run
from airflow_childrun.errors import Abandoned, ChildRunError
from airflow_childrun.model.manifest import RunManifest
from airflow_childrun.model.plan import ExecutionPlan
from airflow_childrun.runtime.engine import ExecutionEngine
from airflow_childrun.runtime.house import House, Limits
from airflow_childrun.secret_policy import SecretPolicy
from airflow_childrun.store.api import Commit, Owner
from airflow_childrun.store.memory import MemoryStore
from airflow_childrun.testing.virtual_time import Baton, VirtualScheduler
from airflow_childrun.testing.watched_io import Entry, Log, Point, WatchedResolver, WatchingObserver
from airflow_childrun.testing.world import World
from airflow_childrun.transports.registry import FunctionTransport, LiveIoEnv, TransportRegistry

FOR_EVER_S = 1e10
"""How long a session lives: a test's clock jumps over years, and only a test ends a process."""


class SeededEntropy:
    """Randomness that is the same in every run of a test."""

    def __init__(self, seed: int = 0) -> None:
        self._ids = random.Random(f"ids {seed}")  # noqa: S311 - nothing secret
        self._bytes = random.Random(f"bytes {seed}")  # noqa: S311

    def random_bytes(self, size: int) -> bytes:
        """Return bytes."""
        return self._bytes.randbytes(size)

    def new_id(self) -> UUID:
        """Return an id."""
        return UUID(bytes=self._ids.randbytes(16), version=4)


class Bench:
    """What the processes of one run share: store, clock, randomness, and the world outside."""

    def __init__(self, baton: Baton, world: World, policy: SecretPolicy) -> None:
        self.baton = baton
        self.world = world
        self.policy = policy
        self.store = MemoryStore(baton.clock)
        self.entropy = SeededEntropy()
        self.processes = 0


class Process:
    """A process on a machine of its own: its temporary directory is gone when the process is."""

    def __init__(self, bench: Bench, find: Callable[[RunManifest], ExecutionPlan], point: Point | None = None) -> None:
        self.log = Log()
        self.point = point
        self.in_flight: Entry | None = None
        self.was_abandoned = False
        self.has_left = False
        self._bench = bench
        self._scheduler = VirtualScheduler(bench.baton)
        bench.processes += 1
        number = bench.processes
        self.house = House(
            bench.store,
            WatchedResolver(find, self),
            bench.policy,
            TransportRegistry([FunctionTransport(name, self._answer) for name in bench.world.namespaces]),
            limits=Limits(session_ttl_s=FOR_EVER_S, inbox_poll_s=FOR_EVER_S),
            owner=Owner(f"process {number}", "the test", number),
            scheduler=self._scheduler,
            clock=bench.baton.clock,
            entropy=bench.entropy,
            observer=WatchingObserver(self.log),
        )
        self._engine = ExecutionEngine(self.house)

    def create(self, run_id: UUID, request: Request) -> None:
        """Create a run without parent.

        :raises ChildRunError: what is wrong with operation, input or configuration
        """
        house = self.house
        prepared = prepare_run(request, Lineage(run_id, run_id), house.resolver, house.policy)
        self._bench.store.commit([Commit(house.entropy.new_id(), (prepared.step,), prepared.artifacts)])

    def drive(self, run_id: UUID) -> None:
        """Drive a run until it has ended or this process has left.

        :raises ChildRunError: why it cannot be driven
        :raises StuckError: if a handler does not come back
        """
        with _machine() as own:
            self.directory = own
            try:
                self._scheduler.run("the process", lambda: self._main(run_id))
            finally:
                self._scheduler.is_dead = True

    def _main(self, run_id: UUID) -> None:
        supervisor = self._engine.supervisor
        try:
            supervisor.wait(run_id)
        except Abandoned:
            while not supervisor.is_idle():
                supervisor.wait_until_idle(FOR_EVER_S)
        else:
            self._engine.close()

    def replay(self, run_id: UUID) -> str:
        """Run the handlers again over what is recorded; see ``ExecutionEngine.replay``."""
        found: list[str | ChildRunError] = []

        def work() -> None:
            try:
                found.append(self._engine.replay(run_id))
            except ChildRunError as error:
                found.append(error)

        self._scheduler.run("replay", work)
        self._scheduler.is_dead = True
        if isinstance(found[0], ChildRunError):
            raise found[0]
        return found[0]

    # -- asked by the handlers

    def die(self) -> None:
        """End here and now."""
        self.has_left = True
        self._scheduler.die()

    def abandon(self) -> None:
        """Give up everything: waits and the next io raise ``Abandoned``."""
        self.was_abandoned = self.has_left = True
        self._engine.close()

    def ask_world(self, name: str, key: str | None, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call what stands for the outside world."""
        entry = self.log.current()
        if entry is not None:
            entry.to_world.add(len(entry.asks) - 1)
        try:
            return self._bench.world.answer(entry, name, key, function, args, kwargs)
        finally:
            if entry is not None and entry is self.in_flight:
                self._bench.world.take_back()
                self.die()

    def _answer(self, call: IoCall, env: LiveIoEnv) -> Any:  # noqa: ARG002 - what a transport is called with
        return self.ask_world(call.namespace, call.fact_key, _nobody, call.request)


@contextmanager
def _machine() -> Iterator[Path]:
    """Give a process a temporary directory that nobody else ever sees."""
    before = tempfile.tempdir
    own = Path(tempfile.mkdtemp(prefix="childrun-machine-"))
    tempfile.tempdir = str(own)
    try:
        yield own
    finally:
        tempfile.tempdir = before
        shutil.rmtree(own, ignore_errors=True)


def _nobody(request: Any) -> Any:
    raise AssertionError(f"nothing answers {request!r}")


def request_of(manifest: RunManifest, initial_context: Any = None, airflow: Mapping[str, Any] | None = None) -> Request:
    """Return the request for a run without parent."""
    return Request(manifest, initial_context, airflow=airflow)
