"""Facts: what a run knows of the world, and what it has reason to forget."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from airflow_childrun.errors import ErrorInfo
from airflow_childrun.model.events import FACT_FAILED, DomainEvent

Position = tuple[int, int]
"""Where an event stands in a chain of generations: number of the generation in the chain (0-based), seq."""


@dataclass(frozen=True, slots=True)
class Fact:
    """A recorded answer (``payload_id``) or a recorded error.

    :param request_digest: None in V1: the fact fits any request
    :param state_id: the state whose attempt recorded it; None outside of states
    :param supersedes: how many facts under its key it and its predecessors replaced
    """

    at: Position
    key: str
    payload_id: str | None
    error: ErrorInfo | None
    request_digest: str | None
    state_id: str | None
    supersedes: int
    meta: dict[str, Any]

    @property
    def is_unhappy_await(self) -> bool:
        """Whether it is the recorded end of a child that did not complete."""
        return self.meta.get("status") in {"Failed", "Cancelled"}


def fact_of(event: DomainEvent, at: Position, state_id: str | None) -> Fact | None:
    """Read a ``fact_recorded`` or ``fact_failed`` event; None if its payload has another shape (V1 skips those)."""
    payload = event.payload
    if not isinstance(payload, dict) or not isinstance(payload.get("key"), str):
        return None
    meta = payload.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    error: ErrorInfo | None = None
    payload_id: str | None = None
    if event.name == FACT_FAILED:
        error = ErrorInfo.from_json(payload["error"])
    elif isinstance(payload.get("payload_id"), str):
        payload_id = payload["payload_id"]
    else:
        return None
    supersedes = meta.get("supersedes", 0)
    return Fact(at, payload["key"], payload_id, error, meta.get("request_digest"), state_id, supersedes, meta)


@dataclass
class FactIndex:
    """All facts of a run and of the runs it continues, and from where on errors and awaits are forgotten."""

    _by_key: dict[str, list[Fact]] = field(default_factory=dict)
    _failures: list[tuple[Position, str]] = field(default_factory=list)
    _continued: list[Position] = field(default_factory=list)
    _until: Position | None = None

    def add(self, fact: Fact) -> None:
        """Take a fact in."""
        self._by_key.setdefault(fact.key, []).append(fact)

    def forget_errors_of(self, state_id: str, before: Position) -> None:
        """Forget what a state recorded about failures before a position."""
        self._failures.append((before, state_id))

    def forget_unhappy_awaits(self, before: Position) -> None:
        """Forget the ends of children that did not complete, before a position."""
        self._continued.append(before)

    def as_of(self, at: Position) -> FactIndex:
        """Return the facts as they stood when the event at a position was written."""
        return FactIndex(self._by_key, self._failures, self._continued, at)

    def find(self, key: str) -> Fact | None:
        """Return the newest fact under a key, unless it is forgotten."""
        fact = self._newest(key)
        return None if fact is None or self._is_forgotten(fact) else fact

    def has_forgotten(self, key: str) -> bool:
        """Whether the newest fact under a key is forgotten."""
        fact = self._newest(key)
        return fact is not None and self._is_forgotten(fact)

    def next_supersession(self, key: str) -> int:
        """Return the number that a fact which replaces the newest under a key has."""
        fact = self._newest(key)
        return fact.supersedes + 1 if fact else 1

    def supersessions(self, key: str) -> int:
        """Return how often the fact under a key was replaced."""
        fact = self._newest(key)
        return fact.supersedes if fact else 0

    def may_supersede(self, fact: Fact) -> bool:
        """Whether another request may replace a fact: it was recorded by the same state after something now forgotten."""
        return any(
            other.state_id == fact.state_id and other.at < fact.at and self._is_forgotten(other)
            for facts in self._by_key.values()
            for other in facts
        )

    def all(self) -> Iterable[Fact]:
        """Return every fact, forgotten or not, grouped by key."""
        for facts in self._by_key.values():
            yield from facts

    def is_forgotten(self, fact: Fact) -> bool:
        """Whether a fact no longer counts."""
        return self._is_forgotten(fact)

    def _newest(self, key: str) -> Fact | None:
        facts = self._by_key.get(key, ())
        return next((fact for fact in reversed(facts) if self._until is None or fact.at <= self._until), None)

    def _is_forgotten(self, fact: Fact) -> bool:
        if fact.error is not None:
            return any(fact.at < at and fact.state_id == state for at, state in self._failures if self._counts(at))
        return fact.is_unhappy_await and any(fact.at < at for at in self._continued if self._counts(at))

    def _counts(self, at: Position) -> bool:
        return self._until is None or at <= self._until
