"""Plays a task of ours as Airflow does, try by try: on its worker, and away in the triggerer as often as it leaves.

What Airflow does around an operator is done here: a fresh operator on every worker, its timer around ``execute``, a trigger
made of what was written, its timeout, and the return. Waits are as short as they can be.
"""

from __future__ import annotations

import asyncio
import gc
import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import groupby
from typing import Any
from uuid import UUID

import pytest
from airflow.sdk import DAG
from airflow.sdk.bases.operator import TriggerFailureReason

from airflow_childrun import ChildRunHook, operation
from airflow_childrun._airflow import AirflowTaskTimeout, TaskDeferred, TaskSuccessEvent
from airflow_childrun.authoring.registry import RegistryResolver
from airflow_childrun.canonical import decode_stored
from airflow_childrun.hooks import driving
from airflow_childrun.hooks.connection import open_store, read_store_settings
from airflow_childrun.hooks.driving import Driving
from airflow_childrun.hooks.elements import SpawnOrder
from airflow_childrun.model.config import ChildRetryPolicy
from airflow_childrun.model.events import HOST_TRY, DomainEvent
from airflow_childrun.operators import deferring
from airflow_childrun.operators.childrun import AwaitChildRunOperator, SpawnChildRunOperator
from airflow_childrun.runtime.engine import ExecutionEngine
from airflow_childrun.runtime.house import House
from airflow_childrun.secret_policy import standard
from airflow_childrun.store.api import RunFilter, RunRow, Store
from airflow_childrun.store.codec import decode_events
from airflow_childrun.triggers import childrun as triggers
from airflow_childrun.triggers import wire
from tests.engine.kit import eventually
from tests.provider.kit import Ticket

BOUND_S = 60.0
"""No deferral lasts longer, whatever goes wrong."""
_world: World


@dataclass
class World:
    """What children meet outside; the test says how it is.

    :param is_away: whether the task has left its worker, or never will: children that nap go on then
    :param gate: what children that others drive wait for
    :param heals: from which of its attempts on a child that is bad succeeds
    """

    is_away: bool
    gate: threading.Event = field(default_factory=threading.Event)
    heals: int = 2
    calls: list[str] = field(default_factory=list)
    at_work: int = 0
    most_at_work: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


@operation(name="parity", version="1")
def child(io: Any, name: str) -> str:
    """Do what the name says: work, nap until the task is away, sleep for an hour, fail, wait for the gate."""
    if name.startswith("sleeps"):
        io.sleep(3600)
    if name.startswith("held"):
        io.step(_world.gate.wait, BOUND_S, key="gate")
    io.step(call, f"{name} before", key="before")
    lap = 0
    while name.startswith("naps") and not io.step(has_left, key=f"left{lap}"):
        io.sleep(0.5, key=f"nap{lap}")
        lap += 1
    if name.endswith("bad"):
        io.step(try_hard, name, key="try")
    io.step(call, f"{name} after", key="after")
    return name.upper()


def has_left() -> bool:
    """Whether the task is away."""
    return _world.is_away


def call(name: str) -> None:
    """Be called, and count how many are at the same time."""
    with _world.lock:
        _world.calls.append(name)
        _world.at_work += 1
        _world.most_at_work = max(_world.most_at_work, _world.at_work)
    threading.Event().wait(0.02)
    with _world.lock:
        _world.at_work -= 1


def try_hard(name: str) -> None:
    """Fail, until it heals."""
    call(f"{name} tries")
    if _world.calls.count(f"{name} tries") < _world.heals:
        raise RuntimeError(f"{name} is bad")


@dataclass(frozen=True)
class Played:
    """What came of a task; only ids and times may differ between worker and triggerer.

    :param ends: how each try ended: what it raised, or ``success``
    :param told: what the errors say
    :param returned: the last try's result
    :param children: by key: status of each generation
    :param asked: by key: what was asked of the child, with its grace
    :param calls: what the children asked outside, sorted
    :param tries: how the store saw each try
    """

    ends: tuple[str, ...]
    told: tuple[str, ...]
    returned: Any
    children: Mapping[str, tuple[str, ...]]
    asked: Mapping[str, tuple[tuple[str, int], ...]]
    calls: tuple[str, ...]
    tries: tuple[str, ...]


@dataclass
class Theatre:
    """One task in one way of waiting.

    :param deferrable: whether it may leave its worker
    """

    deferrable: bool
    store: Store
    world: World
    parameters: dict[str, Any]
    handles: Any = None
    deferrals: int = 0
    ended_in_triggerer: int = 0

    def make(self) -> Any:
        """Make the operator, as every worker does that parses the file."""
        more: dict[str, Any] = {"poll_interval": 0.05, **self.parameters, "deferrable": self.deferrable}
        with DAG("d", schedule=None):
            if self.handles is None:
                return SpawnChildRunOperator(task_id="t", operation=child, **more)
            return AwaitChildRunOperator(task_id="t", child_runs=self.handles, **more)

    def play(self, ticket: Ticket) -> tuple[str, str, Any]:
        """Play one try: how it ended, what the error says, what it returned."""
        context = ticket.context()
        context["ti"].start_date = datetime.now(UTC)
        self.world.is_away = not self.deferrable
        try:
            return "success", "", self._try(context)
        except (Exception, AirflowTaskTimeout) as error:
            # Airflow's timer says nothing but that it is over.
            told = "" if isinstance(error, AirflowTaskTimeout) else _nameless(str(error))
            return type(error).__name__, told, None

    def _try(self, context: Any) -> Any:
        resume: tuple[str, dict[str, Any]] | None = None
        while True:
            task = self.make()
            context["task"] = task
            task.pre_execute(context)
            limit = task.execution_timeout
            try:
                with nullcontext() if limit is None else timer(limit.total_seconds()):
                    return task.execute(context) if resume is None else task.resume_execution(*resume, context)
            except AirflowTaskTimeout:
                task.on_kill()
                raise
            except TaskDeferred as deferred:
                self.deferrals += 1
                resume = self._be_away(deferred)
                if resume[0] == "":
                    self.ended_in_triggerer += 1
                    return resume[1]["xcoms"]["return_value"]

    def _be_away(self, deferred: TaskDeferred) -> tuple[str, dict[str, Any]]:
        """Wait in the triggerer; return how to go on."""
        self.world.is_away = True
        self.world.gate.set()
        classpath, kwargs = deferred.trigger.serialize()
        assert classpath == wire.CLASSPATH
        limit = BOUND_S if deferred.timeout is None else deferred.timeout.total_seconds()
        try:
            event = asyncio.run(asyncio.wait_for(_first(triggers.ChildRunTrigger(**kwargs)), limit))
        except TimeoutError:
            assert deferred.timeout is not None, "the trigger never fired"
            return "__fail__", {"error": TriggerFailureReason.TRIGGER_TIMEOUT}
        if isinstance(event, TaskSuccessEvent):
            return "", {"xcoms": event.xcoms}
        return deferred.method_name, {"event": event.payload}


@contextmanager
def timer(seconds: float) -> Iterator[None]:
    """Do what Airflow's timer does on a worker; no garbage is collected meanwhile, which would swallow what a signal raises."""

    def ring(_number: int, _frame: Any) -> None:
        raise AirflowTaskTimeout("Timeout")

    before = signal.signal(signal.SIGALRM, ring)
    gc.disable()
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        gc.enable()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


async def _first(trigger: triggers.ChildRunTrigger) -> Any:
    async for event in trigger.run():
        return event
    return None


def _nameless(text: str) -> str:
    """Leave out what differs from run to run."""
    return re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}|[0-9a-f]{12,64}", "*", text)


def _stripped(returned: Any) -> Any:
    """Leave the ids out of a result, and how often a state was entered: a return enters it once more."""
    if isinstance(returned, list):
        return [_stripped(each) for each in returned]
    if isinstance(returned, Mapping):
        kept = {name for name in returned if not name.endswith("_id") or name == "childrun_conn_id"} - {"attempt"}
        return {name: _stripped(returned[name]) for name in returned if name in kept}
    return returned


@dataclass(frozen=True)
class Scene:
    """What is played in both ways.

    :param inputs: names of children, see :func:`child`
    :param parameters: of the operator
    :param ends: how each try must end
    :param operators: which of the two have these parameters
    :param tries: what happens after the first try: ``retry``, ``clear``
    :param order: what concerns the spawn alone, for an await
    :param others: whether others drive the children, so that an await may end in the triggerer
    :param heals: see :class:`World`
    :param max_tries: after how many tries the next is the last one
    :param ends_in_triggerer: whether the triggerer is to end the task
    """

    inputs: Sequence[str]
    parameters: Mapping[str, Any]
    ends: tuple[str, ...]
    operators: tuple[str, ...] = ("spawn", "await")
    tries: tuple[str, ...] = ()
    order: Mapping[str, Any] = field(default_factory=dict)
    others: bool = False
    heals: int = 2
    max_tries: int = 2
    ends_in_triggerer: bool = False


@contextmanager
def staged(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Shorten every wait of ours; needs the default connection."""
    monkeypatch.setattr(driving, "INLINE_S", 0.0)
    monkeypatch.setattr(driving, "LONG_WAIT_S", 0.0)
    monkeypatch.setattr(Driving, "_next_s", lambda _: 0.02)
    monkeypatch.setattr(triggers, "LEAST_AWAY_S", 0.01)
    monkeypatch.setattr(deferring, "SHORTEST_TIMEOUT_S", 0.1)

    async def settings(conn_id: str) -> Any:
        return read_store_settings(conn_id)

    monkeypatch.setattr("airflow_childrun.triggers.reader.read_store_settings_async", settings)
    yield


def perform(scene: Scene, operator: str, *, deferrable: bool) -> Played:
    """Play a scene on an empty store; see that the task was away, if it might."""
    global _world
    store = open_store(read_store_settings())
    _world = World(is_away=not deferrable, heals=scene.heals)
    theatre = Theatre(deferrable, store, _world, dict(scene.parameters))
    stop: Callable[[], None] = lambda: None
    if operator == "await":
        order = SpawnOrder(child, list(scene.inputs), **scene.order)
        theatre.handles = ChildRunHook().spawn(Ticket("s", max_tries=scene.max_tries).context(), order)
        if scene.others:
            stop = _drive_elsewhere(store, [UUID(handle["child_run_id"]) for handle in theatre.handles])
            if not deferrable:
                _world.gate.set()
    else:
        theatre.parameters = {"inputs": list(scene.inputs), **theatre.parameters}
    ticket = Ticket("t", max_tries=scene.max_tries)
    found = [theatre.play(ticket)]
    for what in scene.tries:
        ticket = ticket.clear() if what == "clear" else ticket.retry()
        found.append(theatre.play(ticket))
    stop()
    assert bool(theatre.deferrals) is deferrable
    assert bool(theatre.ended_in_triggerer) is (deferrable and scene.ends_in_triggerer)
    assert scene.parameters.get("max_concurrency") != 1 or _world.most_at_work == 1
    ends, told, returned = zip(*found, strict=True)
    return Played(ends, told, _stripped(returned[-1]), *_stored(store), tuple(sorted(_world.calls)), _tries(store))


def _drive_elsewhere(store: Store, run_ids: Sequence[UUID]) -> Callable[[], None]:
    """Have another process drive runs, from now on; return what waits until it has."""

    def drive(run_id: UUID) -> None:
        ExecutionEngine(House(store, RegistryResolver(), standard())).resume(run_id)

    threads = [threading.Thread(target=drive, args=(run_id,), daemon=True) for run_id in run_ids]
    for thread in threads:
        thread.start()
    eventually(lambda: all(row.status != "Pending" for row in store.get_runs(run_ids).values()))

    def stop() -> None:
        for thread in threads:
            thread.join(BOUND_S)

    return stop


def _stored(store: Store) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[tuple[str, int], ...]]]:
    rows: Sequence[RunRow] = store.find_runs(RunFilter(op_id="parity"), None, 100).rows
    statuses: dict[str, tuple[str, ...]] = {}
    asked: dict[str, tuple[tuple[str, int], ...]] = {}
    for row in sorted(rows, key=lambda row: row.generation):
        (body,) = store.get_artifacts(row.root_run_id, [row.manifest_id]).values()
        name = str(decode_stored(body)["input_params"]["input"])
        statuses[name] = (*statuses.get(name, ()), row.status)
        entries = [(entry.kind, decode_stored(entry.body).get("grace_us", 0)) for entry in store.read_inbox(row.run_id)]
        # Asked twice for the same is asked once: whoever comes back takes a request back again.
        asked[name] = (*asked.get(name, ()), *(entry for entry, _ in groupby(entries)))
    return statuses, asked


def _tries(store: Store) -> tuple[str, ...]:
    """Return the kinds of the task's tries, without its returns from the triggerer."""
    (host,) = store.find_runs(RunFilter(dag_id="d", task_id="t"), None, 10).rows
    events = [event for _, event in decode_events(store.read_events(host.run_id))]
    kinds = [event.payload["kind"] for event in events if isinstance(event, DomainEvent) and event.name == HOST_TRY]
    return tuple(kind for kind in kinds if kind != "same")


POLICY = ChildRetryPolicy.of(1, "child_retry_policy")
