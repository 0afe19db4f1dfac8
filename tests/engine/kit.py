"""The kit of the engine's tests: operations as plain functions, a world that counts, processes that can die."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, cast
from uuid import UUID

from airflow_childrun.canonical import decode_stored
from airflow_childrun.clock import Clock, SystemClock
from airflow_childrun.engine.ports import IoCall
from airflow_childrun.errors import ChildRunError, OperationError
from airflow_childrun.model.config import RetryPolicy, RunConfig
from airflow_childrun.model.events import DomainEvent, Event, RunCompleted, RunStarted, StateCompleted, StateEntered
from airflow_childrun.model.manifest import RunManifest, build_manifest
from airflow_childrun.model.plan import Edge, ExecutionPlan, StateMeta, StateNode
from airflow_childrun.model.requests import AWAIT, SPAWN, AwaitRequest, SpawnRequest
from airflow_childrun.runtime.engine import ExecutionEngine, RunResult
from airflow_childrun.runtime.house import Failpoints, House, Limits
from airflow_childrun.runtime.scheduler import ThreadScheduler
from airflow_childrun.secret_policy import SecretPolicy, standard
from airflow_childrun.store.api import Commit, Committed, Conflict, Owner, RunFilter, RunRow, Store
from airflow_childrun.store.codec import decode_events
from airflow_childrun.store.memory import MemoryStore
from airflow_childrun.transports.registry import FunctionTransport, LiveIoEnv, TransportRegistry

WAIT_S = 20.0
"""How long a test waits for something that happens at once unless it is broken."""


class Died(BaseException):
    """The process is dead: nothing that it still does counts."""


DEATH = (Died, ChildRunError)
"""What a caller sees of a process that died under it: its own end, or the driving thread's."""


class World:
    """The outside: answers ``{"echo": request}`` and counts every call that reaches it.

    A script for a key answers its calls one by one: a value is returned, an exception raised, a callable asked.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.calls: list[tuple[str, Any]] = []
        self.scripts: dict[str, list[Any]] = {}

    def answer(self, key: str, request: Any) -> Any:
        with self._lock:
            self.calls.append((key, request))
            script = self.scripts.get(key)
            step = script.pop(0) if script else {"echo": request}
        if isinstance(step, BaseException):
            raise step
        return step(request) if callable(step) else step

    @property
    def counts(self) -> Counter[str]:
        with self._lock:
            return Counter(key for key, _ in self.calls)


class Stage:
    """What a handler of these tests has: context, io, recorder, and the shortest words for them."""

    def __init__(self, manifest: RunManifest, state_id: str, parts: tuple[Any, Any, Any]) -> None:
        self.manifest = manifest
        self.state_id = state_id
        self.ctx, self.io, self.rec = parts
        self.input = manifest.input

    def ask(self, key: str | None, request: Any = None) -> Any:
        """Ask the world."""
        return self.io.call(IoCall("world", request, key)).response

    def spawn(self, op: str, key: str, input: Any = None, **more: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self.io.call(spawn_call(op, key, input, **more)).response
        return answer

    def join(self, child: dict[str, Any], key: str, *, compact: bool = False) -> dict[str, Any]:
        answer: dict[str, Any] = self.io.call(await_call(child, key, compact=compact)).response
        return answer

    def fan_out(self, op: str, inputs: Sequence[Any], prefix: str = "") -> list[dict[str, Any]]:
        """Spawn one child per input and await them all, both in one go."""
        calls = [spawn_call(op, f"{prefix}spawn|{index}", value) for index, value in enumerate(inputs)]
        children = [answer.response for answer in self.io.call_many(calls)]
        waits = [await_call(child, f"{prefix}await|{index}") for index, child in enumerate(children)]
        return [answer.response for answer in self.io.call_many(waits)]

    def write(self, key: str, value: Any) -> None:
        self.ctx.write(f"{self.manifest.op_id}.main.{key}", value)

    def read(self, key: str) -> Any:
        return self.ctx.read(f"{self.manifest.op_id}.main.{key}")


Handler = Callable[[Stage], Any]


def spawn_call(
    op: str,
    key: str | None,
    input: Any = None,
    *,
    config: RunConfig | None = None,
    context: Any = None,
    version: str = "1",
    op_config: Any = None,
) -> IoCall:
    request = SpawnRequest(
        op_id=op,
        op_version=version,
        op_config=op_config,
        input=input,
        run_config=config or RunConfig(),
        initial_context=context,
    )
    return IoCall(SPAWN, request.to_json(), key)


def await_call(child: dict[str, Any], key: str | None, *, compact: bool = False) -> IoCall:
    request = AwaitRequest(
        child_run_id=child["child_run_id"], child_manifest_id=child["child_manifest_id"], compact=compact
    )
    return IoCall(AWAIT, request.to_json(), key)


@dataclass
class Op:
    """An operation: its states in order, each a handler or (handler, meta)."""

    op_id: str
    states: list[tuple[str, Handler, StateMeta]]
    version: str = "1"
    edges: list[tuple[str, str]] | None = None
    on_cancel: Handler | None = None

    def plan(self, manifest: RunManifest) -> ExecutionPlan:
        nodes = tuple(
            StateNode(self.state(name), _bound(manifest, self.state(name), handler), meta)
            for name, handler, meta in self.states
        )
        names = [name for name, _, _ in self.states]
        pairs = self.edges if self.edges is not None else list(pairwise(names))
        edges = tuple(Edge(self.state(a), self.state(b)) for a, b in pairs)
        clean_up = None
        if self.on_cancel is not None:
            state_id = self.state("on_cancel")
            clean_up = StateNode(state_id, _bound(manifest, state_id, self.on_cancel), StateMeta())
        return ExecutionPlan(self.op_id, self.version, nodes, edges, on_cancel=clean_up)

    def state(self, name: str) -> str:
        return f"{self.op_id}.main.{name}"


def _bound(manifest: RunManifest, state_id: str, handler: Handler) -> Callable[[Any, Any, Any], None]:
    return lambda ctx, io, rec: handler(Stage(manifest, state_id, (ctx, io, rec)))


class Shelf:
    """The operations that a process knows."""

    def __init__(self) -> None:
        self.ops: dict[tuple[str, str], Op] = {}

    def put(self, op_id: str, /, *handlers: Handler | tuple[Handler, StateMeta], version: str = "1") -> Op:
        """Know an operation; its states are called ``s0``, ``s1`` ..."""
        states = [
            (f"s{index}", *(given if isinstance(given, tuple) else (given, StateMeta())))
            for index, given in enumerate(handlers)
        ]
        op = self.ops[op_id, version] = Op(op_id, states, version)
        return op

    def resolve(self, manifest: RunManifest) -> ExecutionPlan:
        op = self.ops.get((manifest.op_id, manifest.op_version))
        if op is None:
            raise OperationError(f"{manifest.op_id} {manifest.op_version} is not known")
        return op.plan(manifest)


class Gate:
    """One process's way to the store: counts commits, and ends the process where a test wants it.

    :param on_commit: asked with the number (1-based) of the commit about to happen and the commit
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.dead = False
        self.commits: list[Commit] = []
        self.die_before: int | None = None
        self.die_after: int | None = None
        self.on_commit: Callable[[int, Commit], None] = lambda number, commit: None
        self._lock = threading.Lock()

    def commit(self, commits: Sequence[Commit]) -> list[Committed | Conflict]:
        """Let each commit pass alone, so that a test can end the process between any two."""
        answers: list[Committed | Conflict] = []
        with self._lock:
            for commit in commits:
                self.check()
                number = len(self.commits) + 1
                if number == self.die_before:
                    self.die()
                self.on_commit(number, commit)
                answers += self.store.commit([commit])
                self.commits.append(commit)
                if number == self.die_after:
                    self.die()
        return answers

    def die(self) -> None:
        self.dead = True
        raise Died

    def check(self) -> None:
        if self.dead:
            raise Died

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.store, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.check()
            return method(*args, **kwargs)

        return call


class MortalScheduler(ThreadScheduler):
    """Threads that end quietly with their process."""

    def start(self, name: str, work: Callable[[], None]) -> None:
        def mortal() -> None:
            try:
                work()
            except Died:
                return

        super().start(name, mortal)


@dataclass
class Process:
    """One process: an engine on its own way to the store."""

    gate: Gate
    world: World
    house: House = field(init=False)
    engine: ExecutionEngine = field(init=False)

    def answer(self, call: IoCall, env: LiveIoEnv) -> Any:
        self.gate.check()
        answer = self.world.answer(call.fact_key or "-", call.request)
        self.gate.check()
        return answer

    def start(self, op: str, input: Any = None, *, config: RunConfig | None = None, **more: Any) -> RunResult:
        return self.engine.start(manifest(op, input, config=config), **more)

    def create(self, op: str, input: Any = None, *, config: RunConfig | None = None, **more: Any) -> UUID:
        return self.engine.create(manifest(op, input, config=config), **more)

    def resume(self, run_id: UUID) -> RunResult:
        return self.engine.resume(run_id)

    def stop_after_handler(self, run_id: UUID) -> None:
        self.house.failpoints.stop_after_handler = run_id

    def crash(self) -> None:
        """Die: whatever its threads still do ends at the next touch of store or world."""
        self.gate.dead = True


def manifest(op: str, input: Any = None, *, config: RunConfig | None = None, version: str = "1") -> RunManifest:
    return build_manifest(op, version, input=input, run_config=config or RunConfig())


def retrying(attempts: int, **policy: Any) -> RunConfig:
    return RunConfig(retry_policy=RetryPolicy(max_attempts=attempts, **policy))


class Lab:
    """A store, a world, a shelf of operations, and processes that follow one another (or work side by side)."""

    def __init__(self, clock: Clock | None = None, policy: SecretPolicy | None = None) -> None:
        self.clock: Clock = clock or SystemClock()
        self.store = MemoryStore(self.clock)
        self.world = World()
        self.shelf = Shelf()
        self.policy = policy or standard()
        self.processes: list[Process] = []

    def put(self, op_id: str, /, *handlers: Handler | tuple[Handler, StateMeta], version: str = "1") -> Op:
        return self.shelf.put(op_id, *handlers, version=version)

    def process(
        self,
        *,
        owner: str = "task",
        clock: Clock | None = None,
        shelf: Shelf | None = None,
        transports: TransportRegistry | None = None,
        policy: SecretPolicy | None = None,
        **limits: Any,
    ) -> Process:
        """Begin a process; it supersedes the sessions of earlier ones with the same owner."""
        process = Process(Gate(self.store), self.world)
        registry = transports or TransportRegistry([FunctionTransport("world", process.answer)])
        process.house = House(
            cast("Store", process.gate),
            shelf or self.shelf,
            policy or self.policy,
            registry,
            limits=Limits(**{"poll_s": 0.01, "summary_after": 1, **limits}),
            owner=Owner(owner, owner, len(self.processes) + 1),
            scheduler=MortalScheduler(),
            clock=clock or self.clock,
            failpoints=Failpoints(),
        )
        process.engine = ExecutionEngine(process.house)
        self.processes.append(process)
        return process

    def close(self) -> None:
        for process in self.processes:
            if not process.gate.dead:
                process.engine.close()

    # -- looking at what is stored

    def events(self, run_id: UUID) -> list[Event]:
        return [event for _, event in decode_events(self.store.read_events(run_id))]

    def names(self, run_id: UUID) -> list[str]:
        """Return the stream as short words: kernel tags and domain names."""
        return [event.name if isinstance(event, DomainEvent) else event.tag for event in self.events(run_id)]

    def domain(self, run_id: UUID, name: str) -> list[Any]:
        found = [event for event in self.events(run_id) if isinstance(event, DomainEvent)]
        return [event.payload for event in found if event.name == name]

    def attempts(self, run_id: UUID, state_id: str | None = None) -> list[int]:
        entered = [event for event in self.events(run_id) if isinstance(event, StateEntered)]
        return [event.attempt for event in entered if state_id in (None, event.state_id)]

    def completions(self, run_id: UUID) -> list[StateCompleted]:
        return [event for event in self.events(run_id) if isinstance(event, StateCompleted)]

    def started(self, run_id: UUID) -> RunStarted:
        first = self.events(run_id)[0]
        assert isinstance(first, RunStarted)
        return first

    def finished(self, run_id: UUID) -> RunCompleted:
        last = self.events(run_id)[-1]
        assert isinstance(last, RunCompleted)
        return last

    def row(self, run_id: UUID) -> RunRow:
        row = self.store.find_run(run_id)
        assert row is not None
        return row

    def children(self, run_id: UUID) -> list[RunRow]:
        return self.store.children_of(run_id)

    def all_runs(self) -> list[RunRow]:
        return list(self.store.find_runs(RunFilter(), limit=10_000).rows)

    def artifact(self, run_id: UUID, artifact_id: str | None) -> Any:
        root = self.row(run_id).root_run_id
        return decode_stored(self.store.get_artifacts(root, [artifact_id or ""])[artifact_id or ""])

    def final(self, run_id: UUID) -> dict[str, Any]:
        """Return the final snapshot."""
        snapshot: dict[str, Any] = self.artifact(run_id, self.row(run_id).final_snapshot_id)
        return snapshot

    def stored_text(self) -> str:
        """Return every stored byte, to look for what must not be there."""
        parts = [event.body for events in self.store._events.values() for event in events]
        parts += [artifact.body for tree in self.store._artifacts.values() for artifact in tree.values()]
        return b"\n".join(parts).decode("utf-8", "replace")


class Background:
    """A call in a thread of its own, to be joined with its result."""

    def __init__(self, work: Callable[..., Any], *args: Any) -> None:
        self._work, self._args = work, args
        self.result: Any = None
        self.raised: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.result = self._work(*self._args)
        except BaseException as raised:
            self.raised = raised

    @property
    def is_done(self) -> bool:
        return not self._thread.is_alive()

    def join(self) -> Any:
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive(), "still at work"
        if self.raised is not None:
            raise self.raised
        return self.result


def eventually(holds: Callable[..., bool], *args: Any) -> None:
    """Wait until something holds."""
    pause = threading.Event()
    for _ in range(int(WAIT_S * 200)):
        if holds(*args):
            return
        pause.wait(0.005)
    raise AssertionError("never held")


def wait_for(event: threading.Event) -> None:
    assert event.wait(WAIT_S), "never happened"


@contextmanager
def new_lab(**given: Any) -> Iterator[Lab]:
    lab = Lab(**given)
    try:
        yield lab
    finally:
        lab.close()
