"""The fold: from the events of a run to what they mean. Refuses a stream that no engine can have written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

from airflow_childrun.engine.facts import Fact, FactIndex, Position, fact_of
from airflow_childrun.errors import InvalidHistoryError
from airflow_childrun.ids import uuid_of
from airflow_childrun.model.events import (
    CHILD_RUN_COMPLETED,
    CHILD_RUN_SPAWNED,
    CHILD_RUNS_DISPATCHED,
    FACT_FAILED,
    FACT_RECORDED,
    HOST_RETURNED,
    HOST_TRY,
    INBOX_CONSUMED,
    WAIT_OPENED,
    Continues,
    DomainEvent,
    Event,
    RunCompleted,
    RunStarted,
    StateCompleted,
    StateEntered,
    StateFailed,
    Summary,
)

_FACTS = frozenset({FACT_RECORDED, FACT_FAILED})


@dataclass(frozen=True, slots=True)
class Attempt:
    """A try of a state; ``number`` is 0-based."""

    state_id: str
    number: int
    base_snapshot_id: str
    entered: Position


@dataclass(frozen=True, slots=True)
class Completion:
    """A state that completed."""

    state_id: str
    at: Position
    base_snapshot_id: str
    snapshot_id: str
    skipped: bool


@dataclass(frozen=True, slots=True)
class FailedAttempt:
    """A real failure of a handler."""

    attempt: Attempt
    event: StateFailed


@dataclass(frozen=True, slots=True)
class Wait:
    """An opened wait: ``until`` in microseconds UTC; ``number`` counts the waits under its key."""

    key: str
    number: int
    until: int
    at: Position
    state_id: str | None


@dataclass(frozen=True, slots=True)
class ChildLink:
    """A child that the stream says was spawned."""

    child_run_id: UUID
    fact_key: str | None
    generation: int
    at: Position
    manifest_id: str | None = None


@dataclass
class RunHistory:
    """What the events of one run mean, together with those of the runs that it continues.

    :param checkpoint_id: the last good snapshot
    :param last_failure: by state, its last real failure in this run
    :param failures: by state, how many real failures in this run
    :param deadlines: by state, when its attempt is out of time, whoever goes on with it
    :param recoveries: processes that died over this run since it last moved
    :param linked: keys of the facts whose linkage event is there: a V1 crash could lose it
    :param has_cleaned_up: whether its ``on_cancel`` was entered: what it undid, no other run may go on from
    :param turns: where an attempt began (with its state) or ended (None)
    :param ancestors: the runs that it continues, first to last
    :param has_v1: whether the original engine wrote some of it
    :param summary: the newest that this run's stream recorded
    """

    run_id: UUID
    chain_id: UUID
    segment: int = 0
    head: int = 0
    started: RunStarted | None = None
    finished: RunCompleted | None = None
    checkpoint_id: str = ""
    completed: dict[str, Completion] = field(default_factory=dict)
    open_attempt: Attempt | None = None
    last_attempt: dict[str, int] = field(default_factory=dict)
    last_failure: dict[str, FailedAttempt] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    last_entered: str | None = None
    deadlines: dict[str, int] = field(default_factory=dict)
    recoveries: int = 0
    is_waiting: bool = False
    facts: FactIndex = field(default_factory=FactIndex)
    waits: dict[str, Wait] = field(default_factory=dict)
    children: list[ChildLink] = field(default_factory=list)
    linked: set[str] = field(default_factory=set)
    inbox_consumed: int = 0
    end_request: dict[str, Any] | None = None
    has_cleaned_up: bool = False
    host_tries: list[dict[str, Any]] = field(default_factory=list)
    dispatched: list[dict[str, Any]] = field(default_factory=list)
    last_fact_key: str | None = None
    turns: list[tuple[Position, str | None]] = field(default_factory=list)
    ancestors: list[Continues] = field(default_factory=list)
    has_v1: bool = False
    summary: Summary | None = None

    @property
    def start(self) -> RunStarted:
        """The first event."""
        if self.started is None:
            raise self._refuse("missing_run_started", "the stream does not begin with RunStarted")
        return self.started

    @property
    def is_v1(self) -> bool:
        """Whether the original engine wrote the first event."""
        return self.start.engine is None

    def apply(self, seq: int, event: Event) -> None:
        """Take the next event in.

        :raises InvalidHistoryError: if it cannot follow
        """
        if seq != self.head + 1:
            raise self._refuse("invalid_attempt_envelopes", f"event {seq} follows event {self.head}", seq)
        if self.finished is not None:
            raise self._refuse("invalid_attempt_envelopes", "an event follows the end of the run", seq)
        if (type(event) is RunStarted) != (seq == 1):  # pydantic's isinstance is slow to say no
            code = "missing_run_started" if seq == 1 else "invalid_attempt_envelopes"
            raise self._refuse(code, "RunStarted must be the first event, and only that", seq)
        self.head = seq
        match event:
            case DomainEvent():  # most are
                self._on_domain(event)
            case RunStarted():
                self._on_started(event)
            case StateEntered():
                self._on_entered(event)
            case StateCompleted():
                self._on_completed(event)
            case StateFailed():
                self._on_failed(event)
            case RunCompleted():
                self._on_finished(event)

    def _on_started(self, event: RunStarted) -> None:
        self.started = event
        self.has_v1 |= event.engine is None
        if event.continues is not None:
            self.ancestors.append(event.continues)
        self.checkpoint_id = event.initial_snapshot_id

    def _on_entered(self, event: StateEntered) -> None:
        if self.open_attempt is not None:
            if not self.is_v1:
                raise self._refuse("invalid_attempt_envelopes", "a state was entered while another attempt was open")
            self.recoveries += 1
        if event.state_id in self.completed:
            raise self._refuse("invalid_attempt_envelopes", f"{event.state_id} was entered again after it completed")
        if event.attempt <= self.last_attempt.get(event.state_id, -1):
            raise self._refuse("invalid_attempt_envelopes", f"attempt {event.attempt} of {event.state_id} came twice")
        if event.base_snapshot_id != self.checkpoint_id:
            raise self._refuse("invalid_attempt_envelopes", f"{event.state_id} did not begin at the last checkpoint")
        # The owner consumes a request to end by ending the run: nothing but the clean-up is entered behind it.
        self.has_cleaned_up = self.has_cleaned_up or self.end_request is not None
        self.open_attempt = Attempt(event.state_id, event.attempt, event.base_snapshot_id, self._here)
        self.turns.append((self._here, event.state_id))
        self.last_attempt[event.state_id] = event.attempt
        self.last_entered = event.state_id
        self.is_waiting = False
        if event.deadline_at is not None:
            self.deadlines[event.state_id] = event.deadline_at

    def _on_completed(self, event: StateCompleted) -> None:
        attempt = self._close(event.state_id)
        self.completed[event.state_id] = Completion(
            event.state_id, self._here, attempt.base_snapshot_id, event.context_snapshot_id, event.skipped
        )
        self.checkpoint_id = event.context_snapshot_id
        self.recoveries = 0
        self.summary = event.summary or self.summary

    def _on_failed(self, event: StateFailed) -> None:
        attempt = self._close(event.state_id)
        if not event.is_real:
            self.recoveries += event.recovered != "released"
            return
        self.deadlines.pop(event.state_id, None)
        self.last_failure[event.state_id] = FailedAttempt(attempt, event)
        self.failures[event.state_id] = self.failures.get(event.state_id, 0) + 1
        self.facts.forget_errors_of(event.state_id, self._here)
        self._forget_waits()

    def _on_finished(self, event: RunCompleted) -> None:
        if self.open_attempt is not None:
            raise self._refuse("invalid_attempt_envelopes", "the run ended while an attempt was open")
        self.finished = event

    def _on_domain(self, event: DomainEvent) -> None:
        try:
            if event.name in _FACTS:
                self._on_fact(event)
            else:
                self._on_other(event)
        except (LookupError, TypeError, ValueError, AttributeError):
            raise self._refuse(f"{event.name}_malformed", f"{event.name} has another shape than the engine's") from None

    def _on_other(self, event: DomainEvent) -> None:
        name, payload = event.name, event.payload
        self.is_waiting = name == WAIT_OPENED
        if name == WAIT_OPENED:
            state_id = self.open_attempt.state_id if self.open_attempt else None
            self.waits[payload["key"]] = Wait(payload["key"], payload["try"], payload["until"], self._here, state_id)
        elif name == CHILD_RUN_SPAWNED:
            self._on_spawned(payload)
        elif name == CHILD_RUN_COMPLETED:
            key = self._on_linked(payload)
            if key is not None and self.is_v1:
                self.facts.note_end(key, payload["status"])
        elif name == INBOX_CONSUMED:
            self.inbox_consumed = payload["n"]
            self.end_request = payload
        elif name == HOST_TRY:
            self.host_tries.append(payload)
        elif name == HOST_RETURNED:
            self.host_tries[-1] = {**self.host_tries[-1], "returned": True}
        elif name == CHILD_RUNS_DISPATCHED:
            self.dispatched += payload["batches"]

    def _on_fact(self, event: DomainEvent) -> None:
        self.is_waiting = False
        attempt = self.open_attempt
        fact = fact_of(event, (self.segment, self.head), attempt.state_id if attempt else None)
        if fact is None:
            if self.is_v1:
                return
            raise ValueError(event.name)
        before = self.facts.find(fact.key)
        if before is not None:
            if self.is_v1:
                return  # the original engine lets the first binding win
            self._check_second(before, fact)
        self.facts.add(fact)
        if self.waits:
            self.waits.pop(fact.meta.get("timer", ""), None)
        self.last_fact_key = fact.key
        self.recoveries = 0

    def _check_second(self, before: Fact, fact: Fact) -> None:
        """Refuse a fact under a key that has one, unless it replaces that."""
        if before.request_digest is None and before.at[0] < self.segment and "status" in fact.meta:
            # V1 lost the linkage that says so, but an await that is looked at anew did not end well.
            self.facts.note_end(fact.key, "Failed")
        elif fact.supersedes <= before.supersedes and fact.payload_id != before.payload_id:
            refusal = self._refuse("fact_recorded_conflict", f"the key {fact.key!r} was bound a second time")
            refusal.info = replace(refusal.info, details={**refusal.info.details, "key": fact.key})
            raise refusal

    def _on_linked(self, payload: dict[str, Any]) -> str | None:
        """Return the key of the fact that a linkage event belongs to: the one before it, if it names none."""
        key: str | None = payload.get("fact_key", self.last_fact_key)
        if key is not None:
            self.linked.add(key)
        return key

    def _on_spawned(self, payload: dict[str, Any]) -> None:
        key = self._on_linked(payload)
        self.children.append(
            ChildLink(
                uuid_of(payload["child_run_id"]),
                key,
                payload.get("generation", 1),
                self._here,
                payload.get("child_manifest_id"),
            )
        )

    def _close(self, state_id: str) -> Attempt:
        attempt = self.open_attempt
        if attempt is None:
            raise self._refuse("terminal_without_entered", f"{state_id} ended without having been entered")
        if attempt.state_id != state_id:
            raise self._refuse("invalid_attempt_envelopes", f"{state_id} ended while {attempt.state_id} was open")
        self.open_attempt = None
        self.turns.append((self._here, None))
        self.is_waiting = False
        return attempt

    def _forget_waits(self) -> None:
        """Forget the waits under the keys of forgotten errors."""
        self.waits = {key: wait for key, wait in self.waits.items() if not self.facts.has_forgotten(key)}

    @property
    def _here(self) -> Position:
        return (self.segment, self.head)

    def _refuse(self, code: str, what: str, seq: int | None = None) -> InvalidHistoryError:
        at = self.head if seq is None else seq
        return InvalidHistoryError(
            f"the history of run {self.run_id} is broken at event {at}: {what}; run `childrun verify {self.run_id}`",
            code=code,
            details={"run_id": str(self.run_id), "seq": at},
        )


Stream = tuple[UUID, Sequence[tuple[int, Event]]]
"""A run's id and its numbered events."""


def fold(run_id: UUID, events: Iterable[tuple[int, Event]]) -> RunHistory:
    """Fold the events of a run that continues no other.

    :raises InvalidHistoryError: if no engine can have written them
    """
    return fold_chain([(run_id, list(events))])


def fold_chain(streams: Sequence[Stream]) -> RunHistory:
    """Fold a chain of generations, first to last, each cut where the next one continues it.

    :raises InvalidHistoryError: if no engine can have written them
    """
    history: RunHistory | None = None
    for run_id, events in streams:
        history = begin(run_id, history)
        for seq, event in events:
            history.apply(seq, event)
    if history is None or history.started is None:
        run_id = streams[-1][0]
        raise InvalidHistoryError(
            f"the history of run {run_id} has no RunStarted; run `childrun verify {run_id}`", code="missing_run_started"
        )
    return history


def begin(run_id: UUID, before: RunHistory | None) -> RunHistory:
    """Return the history of a run before its first event.

    :param before: that of the run which it continues
    """
    return RunHistory(run_id, run_id) if before is None else _continued(before, run_id)


def _continued(before: RunHistory, run_id: UUID) -> RunHistory:
    """Return the history of the next generation before its first event: what is done stays done, failures are forgotten."""
    segment = before.segment + 1
    failed = before.open_attempt.state_id if before.open_attempt else before.last_entered
    facts = replace(before.facts)
    if failed is not None and failed not in before.completed:
        facts.forget_errors_of(failed, (segment, 0))
    facts.forget_unhappy_awaits((segment, 0))
    return RunHistory(
        run_id,
        before.chain_id,
        segment=segment,
        checkpoint_id=before.checkpoint_id,
        completed=dict(before.completed),
        facts=facts,
        waits={key: wait for key, wait in before.waits.items() if not facts.has_forgotten(key)},
        children=list(before.children),
        linked=set(before.linked),
        last_entered=before.last_entered,
        turns=list(before.turns),
        ancestors=list(before.ancestors),
        has_v1=before.has_v1,
    )
