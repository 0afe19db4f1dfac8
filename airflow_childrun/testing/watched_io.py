"""What handlers ask of the world, written down as they ask it; and the place at which a test ends their process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeVar
from uuid import UUID

from airflow_childrun.authoring.steps import StepCall
from airflow_childrun.engine.context import Context
from airflow_childrun.engine.ports import IoCall, IoProvider, IoResult, Recorder
from airflow_childrun.errors import Abandoned
from airflow_childrun.model.manifest import RunManifest
from airflow_childrun.model.plan import ExecutionPlan, StateNode
from airflow_childrun.model.requests import AWAIT, SPAWN
from airflow_childrun.runtime.house import LoggingObserver
from airflow_childrun.store.api import RunRow
from airflow_childrun.testing.virtual_time import StuckError

T = TypeVar("T")

How = Literal["crash", "abandon", "in_flight"]
"""How a process leaves at an IO: see :class:`Point`."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One use of ``io``.

    :param kind: ``step``, ``spawn``, ``await``, ``call``, ``record_value``, ``now_millis``, ``random_bytes`` or ``sleep``
    :param asked: (key, function or namespace, request) of everything that was asked at once
    """

    kind: str
    asked: tuple[tuple[str | None, str, Any], ...]

    def __str__(self) -> str:
        if not self.asked:
            return self.kind
        key, name, _ = self.asked[0]
        more = f" and {len(self.asked) - 1} more" if len(self.asked) > 1 else ""
        return f"{self.kind} {key or name!r}{more}"


@dataclass
class Entry:
    """One time that a handler was entered.

    :param number: counts the entries of this state of this run in this process, from 0
    :param to_world: which of the asks reached the world, by index; the others were answered from the record
    :param has_ended: whether the handler returned, or raised something of its own
    """

    run_id: UUID
    state_id: str
    number: int
    asks: list[Ask] = field(default_factory=list)
    to_world: set[int] = field(default_factory=set)
    has_ended: bool = False


@dataclass(frozen=True, slots=True)
class Point:
    """Where a process leaves: at the ``index``-th use of io (from 0) of an entry.

    ``crash``: after the answer was recorded and before the handler sees it; nothing unwinds, as after a SIGKILL.
    ``abandon``: at the same place the process gives up, as when a task defers under ``dag.test``: ``Abandoned`` is raised.
    ``in_flight``: the world has answered, and the process dies before the answer is recorded.
    """

    run_id: UUID
    state_id: str
    number: int
    index: int
    how: How


class Leaver(Protocol):
    """What a watched handler needs of its process.

    :param in_flight: the entry whose next answer of the world is the last thing that the process sees
    """

    log: Log
    point: Point | None
    in_flight: Entry | None

    @property
    def was_abandoned(self) -> bool:
        """Whether the process has given up."""

    def die(self) -> None:
        """End the process; in one of its threads this never returns."""

    def abandon(self) -> None:
        """Give up everything that the process drives."""

    def ask_world(self, name: str, key: str | None, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call what stands for the outside world, and count it."""


class Log:
    """What the handlers of one process asked, entry by entry."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.unwinding: list[tuple[Entry, Ask]] = []
        self._local = threading.local()

    def enter(self, run_id: UUID, state_id: str) -> Entry:
        """Begin an entry."""
        entry = Entry(run_id, state_id, len(self.of(run_id, state_id)))
        self.entries.append(entry)
        self._local.entry = entry
        return entry

    def leave(self) -> None:
        """End what :meth:`enter` began, in the same thread."""
        self._local.entry = None

    def current(self) -> Entry | None:
        """Return the entry of the calling thread; None in a replay, which is not watched."""
        entry: Entry | None = getattr(self._local, "entry", None)
        return entry

    def of(self, run_id: UUID, state_id: str) -> list[Entry]:
        """Return the entries of a state of a run, in order."""
        return [entry for entry in self.entries if (entry.run_id, entry.state_id) == (run_id, state_id)]


class WatchedResolver:
    """Finds the plans of a process; their handlers are watched.

    :param find: returns the plan of a manifest
    """

    def __init__(self, find: Callable[[RunManifest], ExecutionPlan], leaver: Leaver) -> None:
        self._find = find
        self._leaver = leaver

    def resolve(self, manifest: RunManifest) -> ExecutionPlan:
        """Return the plan that a manifest asks for; see :class:`~airflow_childrun.engine.prepare.PlanResolver`."""
        plan = self._find(manifest)
        clean_up = None if plan.on_cancel is None else self._watch(plan.on_cancel)
        return plan.with_handlers([self._watch(node) for node in plan.states], clean_up)

    def _watch(self, node: StateNode) -> StateNode:
        def handle(context: Context, provider: IoProvider, recorder: Recorder) -> None:
            entry = self._leaver.log.current()
            node.handler(context, provider if entry is None else WatchedIo(provider, entry, self._leaver), recorder)

        return replace(node, handler=handle)


class WatchingObserver(LoggingObserver):
    """Tells the log when a handler is entered and when it has ended."""

    def __init__(self, log: Log) -> None:
        self._log = log

    @contextmanager
    def handler(self, row: RunRow, node: StateNode, attempt: int) -> Iterator[None]:  # noqa: ARG002 - entries are counted
        """Write an entry of the handler."""
        entry = self._log.enter(row.run_id, node.id)
        try:
            yield
            entry.has_ended = True
        finally:
            self._log.leave()


class WatchedIo:
    """The provider of one entry: writes down what is asked, and ends the process at the test's point."""

    def __init__(self, inner: IoProvider, entry: Entry, leaver: Leaver) -> None:
        self._inner = inner
        self._entry = entry
        self._leaver = leaver

    @property
    def airflow(self) -> Mapping[str, Any] | None:
        """What Airflow said of the topmost run."""
        return self._inner.airflow

    def call(self, call: IoCall) -> IoResult:
        """Ask the world once."""
        return self._noting(_kind_of(call), [call], lambda: self._inner.call(self._through_the_world(call)))

    def call_many(self, calls: Sequence[IoCall]) -> list[IoResult]:
        """Ask the world several times at once."""
        kind = _kind_of(calls[0]) if calls else "call"
        return self._noting(kind, calls, lambda: self._inner.call_many([self._through_the_world(c) for c in calls]))

    def record_value(self, key: str, value: Any) -> str:
        """Record a value."""
        call = IoCall("record_value", value, key)
        return self._noting("record_value", [call], lambda: self._inner.record_value(key, value))

    def find_fact(self, key: str) -> str | None:
        """Look a fact up."""
        return self._inner.find_fact(key)

    def now_millis(self) -> int:
        """Return the recorded time."""
        return self._noting("now_millis", [], self._inner.now_millis)

    def random_bytes(self, size: int) -> bytes:
        """Return recorded random bytes."""
        return self._noting("random_bytes", [], lambda: self._inner.random_bytes(size))

    def sleep(self, key: str, delay_us: int) -> None:
        """Wait durably."""
        call = IoCall("sleep", delay_us, key)
        self._noting("sleep", [call], lambda: self._inner.sleep(key, delay_us))

    def idempotency_token(self, key: str) -> str:
        """Return the token of a call."""
        return self._inner.idempotency_token(key)

    def _noting(self, kind: str, calls: Sequence[IoCall], perform: Callable[[], T]) -> T:
        ask = Ask(kind, tuple((call.fact_key, call.namespace, call.request) for call in calls))
        if self._leaver.log.current() is not self._entry:
            raise StuckError("io was used in a thread that the handler started; it belongs to the handler's own thread")
        if self._leaver.was_abandoned:
            self._leaver.log.unwinding.append((self._entry, ask))
            raise Abandoned("this process gave the run up")
        self._entry.asks.append(ask)
        is_here = self._is_here()
        if is_here and self._leaver.point is not None and self._leaver.point.how == "in_flight":
            self._leaver.in_flight = self._entry
        try:
            return perform()
        finally:
            self._leaver.in_flight = None
            # After an error as after an answer: both are recorded by now.
            if is_here:
                self._leave()

    def _is_here(self) -> bool:
        point, entry = self._leaver.point, self._entry
        here = (entry.run_id, entry.state_id, entry.number, len(entry.asks) - 1)
        return point is not None and (point.run_id, point.state_id, point.number, point.index) == here

    def _leave(self) -> None:
        if self._leaver.point is not None and self._leaver.point.how == "abandon":
            self._leaver.abandon()
            raise Abandoned("this process gave the run up")
        self._leaver.die()

    def _through_the_world(self, call: IoCall) -> IoCall:
        """Have a step's function called by the test's world."""
        if not isinstance(call.local, StepCall):
            return call
        step, world = call.local, self._leaver.ask_world

        def function(*args: Any, **kwargs: Any) -> Any:
            return world(step.name, step.key, step.function, *args, **kwargs)

        return call._replace(local=replace(step, function=function))


def _kind_of(call: IoCall) -> str:
    kinds = {SPAWN: "spawn", AWAIT: "await"}
    return "step" if call.local is not None else kinds.get(call.namespace, "call")
