"""The ports of an attempt: what a handler may ask of the world, and what the engine asks of its surroundings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable
from uuid import UUID

from airflow_childrun.errors import IoError

if TYPE_CHECKING:  # a DAG file imports what authors need, not the store
    from airflow_childrun.model.events import DomainEvent, Event
    from airflow_childrun.store.api import Artifact, InboxPost, RunStep


Watch = Mapping[str, str]
"""What somebody else may look at to see that a wait is over, while the process that waits is gone."""


class Waits(Protocol):
    """Durable waiting: a wait opens with an event, and whoever re-enters waits the rest. Holds no slot."""

    def open(self, key: str, delay_us: int) -> int:
        """Open a wait under a key, unless there is one, and return its end without waiting."""

    def find(self, key: str) -> tuple[int, int] | None:
        """Return number and end (microseconds UTC) of the last wait opened under a key, or None."""

    def pause(self, key: str, number: int, delay_us: int, watch: Watch | None = None) -> None:
        """Open wait ``number`` under a key, and wait."""

    def resume(self, until_us: int, watch: Watch | None = None) -> None:
        """Wait what is left of a wait that was opened before."""

    def jitter(self, delay_us: int, percent: int) -> int:
        """Return a delay of which ``percent`` is random."""


@dataclass(frozen=True, slots=True)
class Within:
    """How long an await may take.

    :param key: of the timer: under it stands that the time was over first
    :param until_us: when it is over, in microseconds UTC, once the timer runs
    """

    key: str
    delay_us: int
    until_us: int | None = None


class IoCall(NamedTuple):
    """A request to the outside world: ``namespace`` chooses the transport, ``fact_key`` makes the answer a fact.

    :param request: JSON
    :param allow_keys: names of keys in the answer that the secret policy lets through
    :param local: what answers instead of a transport: a Python step
    :param within: of an await, how long it may take
    :param model: what ``request`` is the JSON of, if its maker had it: whoever serves the call need not read it again
    """

    namespace: str
    request: Any
    fact_key: str | None = None
    allow_keys: frozenset[str] = frozenset()
    local: Callable[[Waits], Any] | None = None
    within: Within | None = None
    model: Any = None

    @property
    def asked(self) -> Any:
        """The request in the form that is read at once: as the model, where there is one."""
        return self.request if self.model is None else self.model


class IoResult(NamedTuple):
    """An answer, and under which artifact id it is recorded (None without a key)."""

    response: Any
    recorded_payload_id: str | None


NO_META: Mapping[str, Any] = MappingProxyType({})


class Reply(NamedTuple):
    """A transport's answer, and what has to become durable in the same commit as its fact.

    :param response: JSON
    :param meta: goes into the fact event beside the payload, never into the payload
    :param linkage: events that follow the fact in the caller's stream
    :param steps: what the commit does to other runs
    :param after: called once the commit is durable
    """

    response: Any
    meta: Mapping[str, Any] = NO_META
    linkage: tuple[DomainEvent, ...] = ()
    steps: tuple[RunStep, ...] = ()
    artifacts: tuple[Artifact, ...] = ()
    posts: tuple[InboxPost, ...] = ()
    after: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True)
class Superseded:
    """The fact that a call replaces: ``number`` counts the replacements under its key, from 1."""

    number: int
    payload: Any


class Binding(Protocol):
    """The pure half of a transport: what binds an answer to its request. Replay needs nothing more."""

    def request_digest(self, call: IoCall) -> str:
        """Return the digest of what could change the answer; the fact keeps it.

        :raises IoError: if the request alone tells that it cannot be served
        """

    def mismatch(self, call: IoCall, recorded: Any) -> IoError:
        """Return the error for a request that differs from the one whose answer is ``recorded`` under its key."""


@runtime_checkable
class Transport(Binding, Protocol):
    """What stands behind namespaces. One instance serves one attempt."""

    def prepare(self, calls: Sequence[IoCall]) -> None:
        """Get ready for calls that are performed right after, one by one; their answers become durable together."""

    def perform(self, call: IoCall, superseded: Superseded | None = None) -> Reply:
        """Ask the world.

        :raises IoError: what the world, or the way to it, has against the request
        """


@runtime_checkable
class Completing(Protocol):
    """A transport that knows what the original engine could leave undone after it had recorded an answer."""

    def complete(self, call: IoCall, recorded: Any) -> Reply | None:
        """Return what is missing beside an answer that a V1 history recorded (its response is not used), or None.

        :raises IoError: if it cannot be made up for
        """


class Extras(NamedTuple):
    """What an append carries beside its events."""

    artifacts: tuple[Artifact, ...] = ()
    steps: tuple[RunStep, ...] = ()
    posts: tuple[InboxPost, ...] = ()


NO_EXTRAS = Extras()


class Journal(Protocol):
    """The pen of a run's owner: appends to its stream, and reads what the stream refers to.

    Failures to write are :class:`~airflow_childrun.errors.Interrupt`, not errors: they leave the attempt open.
    """

    def append(self, events: Sequence[Event], extras: Extras = NO_EXTRAS) -> None:
        """Make the events durable, all or none."""

    def read_artifact(self, artifact_id: str) -> bytes:
        """Return an artifact of the run's tree."""

    def artifact(self, kind: str, body: bytes) -> Artifact:
        """Make an artifact of the run's tree; stored by the append that carries it."""

    def before_call(self) -> None:
        """Raise an Interrupt if the run may not act on the world any more."""


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """Who a run is.

    :param chain_id: the run at the start of its chain of generations: owner of its slots, tokens and derived keys
    :param deadline_at: when the run has to have ended, in microseconds UTC; its children, too
    :param airflow: what Airflow said of the topmost run when this one was spawned, or None
    """

    run_id: UUID
    chain_id: UUID
    root_run_id: UUID
    depth: int
    airflow: Mapping[str, Any] | None = None
    deadline_at: int | None = None


class IoProvider(Protocol):
    """What a handler sees of the world."""

    @property
    def airflow(self) -> Mapping[str, Any] | None:
        """What Airflow said of the topmost run, or None outside of Airflow."""

    def call(self, call: IoCall) -> IoResult:
        """Ask the world once; with a fact key, a recorded answer is returned without asking again."""

    def call_many(self, calls: Sequence[IoCall]) -> list[IoResult]:
        """Like :meth:`call` for several keyed calls whose answers become durable together."""

    def record_value(self, key: str, value: Any) -> str:
        """Record a value under a key and return its artifact id."""

    def find_fact(self, key: str) -> str | None:
        """Return the artifact id of the answer recorded under a key, or None."""

    def now_millis(self) -> int:
        """Return the time, recorded, in milliseconds since 1970-01-01 UTC."""

    def random_bytes(self, size: int) -> bytes:
        """Return random bytes, recorded."""

    def sleep(self, key: str, delay_us: int) -> None:
        """Wait durably."""

    def idempotency_token(self, key: str) -> str:
        """Return a token for the outside call under ``key``: the same after a crash, another where a fact is replaced."""


class Recorder(Protocol):
    """What a handler may write into the stream beside facts."""

    def emit(self, name: str, payload: Any) -> None:
        """Record a domain event."""
