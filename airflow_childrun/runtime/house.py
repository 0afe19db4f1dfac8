"""Everything that driving runs takes, put together once per process."""

from __future__ import annotations

import contextlib
import logging
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol
from uuid import UUID

from airflow_childrun.clock import Clock, Entropy, SystemClock, SystemEntropy
from airflow_childrun.engine.prepare import PlanResolver
from airflow_childrun.errors import ErrorInfo
from airflow_childrun.model.plan import StateNode
from airflow_childrun.model.requests import GROUP
from airflow_childrun.model.wire import build_deferred
from airflow_childrun.runtime.committer import Committer
from airflow_childrun.runtime.cradle import Cradle
from airflow_childrun.runtime.patience import Patience
from airflow_childrun.runtime.scheduler import Scheduler, ThreadScheduler
from airflow_childrun.runtime.sessions import SessionKeeper
from airflow_childrun.runtime.slots import Slots
from airflow_childrun.secret_policy import SecretPolicy
from airflow_childrun.store.api import Owner, RunRow, Store
from airflow_childrun.transports.registry import LiveIoEnv, LiveIoTransport, TransportRegistry

build_deferred()  # runs have threads
_log = logging.getLogger("airflow_childrun")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a process allows itself.

    :param max_concurrency: runs that work at the same time; those that wait do not count
    :param max_depth: how deep runs may nest
    :param recovery_limit: how many processes in a row may die over a run that does not move
    :param session_ttl_s: after how long without a sign of life others may take over
    :param poll_s: how often a run that another process drives is looked at
    :param inbox_poll_s: how often the inboxes of driven runs are looked at; every commit of a run tells, too
    :param summary_after: after how many events a checkpoint records what all before it mean, so that whoever goes on from
        there need not read them
    """

    max_concurrency: int = 16
    max_depth: int = 50
    recovery_limit: int = 5
    session_ttl_s: float = 30.0
    poll_s: float = 0.5
    inbox_poll_s: float = 2.0
    summary_after: int = 256


class Observer(Protocol):
    """Tells people what happens; never changes it."""

    def handler(self, row: RunRow, node: StateNode, attempt: int) -> AbstractContextManager[None]:
        """Return a context for a handler's thread: its log lines say which child they are of."""

    def state_failed(
        self, row: RunRow, node: StateNode, attempt: int, info: ErrorInfo, raised: BaseException, *, will_retry: bool
    ) -> None:
        """Report a failed attempt, at once and with its traceback."""


class LoggingObserver:
    """Writes to the log of this package."""

    def handler(self, row: RunRow, node: StateNode, attempt: int) -> AbstractContextManager[None]:  # noqa: ARG002
        """Bind nothing."""
        return contextlib.nullcontext()

    def state_failed(
        self, row: RunRow, node: StateNode, attempt: int, info: ErrorInfo, raised: BaseException, *, will_retry: bool
    ) -> None:
        """Log code and message, and the traceback."""
        _log.warning(
            "child run %s: %s failed in attempt %d [%s] %s%s",
            row.run_id,
            node.id,
            attempt + 1,
            info.code,
            info.message,
            "; it will be tried again" if will_retry else "",
            exc_info=raised,
        )


@dataclass
class Failpoints:
    """Where a test stops a run as a crash would. ``stop_after_handler`` names the run; it works once."""

    stop_after_handler: UUID | None = None

    def stops_after_handler(self, run_id: UUID) -> bool:
        """Whether to stop here; asks only once."""
        if self.stop_after_handler != run_id:
            return False
        self.stop_after_handler = None
        return True


@dataclass(frozen=True, slots=True)
class Sources:
    """Time and randomness for handlers, before they are recorded."""

    clock: Clock
    entropy: Entropy

    def now_us(self) -> int:
        """Return the wall clock."""
        return self.clock.now_us()

    def random_bytes(self, size: int) -> bytes:
        """Return random bytes."""
        return self.entropy.random_bytes(size)


class _ChildRunGroup:
    """Stands for the group that each driven run adds; refused where somebody has taken it."""

    def namespace_group(self) -> str:
        """Return ``machine.child_run``."""
        return GROUP

    def make(self, env: LiveIoEnv) -> LiveIoTransport:
        """Make nothing."""
        raise NotImplementedError(env)


@dataclass
class House:
    """The services of one process."""

    store: Store
    resolver: PlanResolver
    policy: SecretPolicy
    transports: TransportRegistry = field(default_factory=TransportRegistry)
    limits: Limits = field(default_factory=Limits)
    owner: Owner = field(default_factory=lambda: Owner("a process"))
    scheduler: Scheduler = field(default_factory=ThreadScheduler)
    clock: Clock = field(default_factory=SystemClock)
    entropy: Entropy = field(default_factory=SystemEntropy)
    observer: Observer = field(default_factory=LoggingObserver)
    failpoints: Failpoints = field(default_factory=Failpoints)
    committer: Committer = field(init=False)
    slots: Slots = field(init=False)
    keeper: SessionKeeper = field(init=False)
    patience: Patience = field(init=False)
    cradle: Cradle = field(init=False)

    def __post_init__(self) -> None:
        """Make the services that belong to this process alone.

        :raises OperationError: code ``transport_group_duplicate``, if a transport claims the group of child runs
        """
        TransportRegistry(self.transports.all().values()).register(_ChildRunGroup())
        self.cradle = Cradle(self.store, self.scheduler, self.resolver)
        self.committer = Committer(self.store, self.scheduler)
        self.slots = Slots(self.scheduler, self.limits.max_concurrency)
        self.keeper = SessionKeeper(
            self.store, self.scheduler, self.entropy, self.owner, self.limits.session_ttl_s, self.clock
        )
        self.patience = Patience(self.scheduler)

    @property
    def sources(self) -> Sources:
        """Where recorded time and randomness come from."""
        return Sources(self.clock, self.entropy)

    def now_us(self) -> int:
        """Return the store's time as this process knows it."""
        return self.keeper.store_now_us()

    def find_run(self, run_id: UUID) -> RunRow | None:
        """Return a run's row, patiently."""
        return self.patience.attempt(lambda: self.store.find_run(run_id))
