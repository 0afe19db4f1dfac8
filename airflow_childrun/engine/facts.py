"""Facts: what a run knows of the world, and what it has reason to forget."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, NamedTuple, Protocol

from airflow_childrun.errors import ErrorInfo
from airflow_childrun.model.events import FACT_FAILED, DomainEvent

_new = tuple.__new__  # half of what a fact's own __new__ takes
Position = tuple[int, int]
"""Where an event stands in a chain of generations: number of the generation in the chain (0-based), seq."""


class Fact(NamedTuple):
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

    @property
    def is_steady(self) -> bool:
        """Whether it is an answer that nothing makes the run forget."""
        return self.error is None and not self.is_unhappy_await


def fact_of(event: DomainEvent, at: Position, state_id: str | None) -> Fact | None:
    """Read a ``fact_recorded`` or ``fact_failed`` event; None if its payload has another shape (V1 skips those)."""
    name, payload, _ = event
    if not isinstance(payload, dict) or not isinstance(key := payload.get("key"), str):
        return None
    meta = payload.get("meta")
    if not isinstance(meta, dict):
        meta = {}
    error: ErrorInfo | None = None
    payload_id: str | None = None
    if name == FACT_FAILED:
        error = ErrorInfo.from_json(payload["error"])
    elif not isinstance(payload_id := payload.get("payload_id"), str):
        return None
    fields = (at, key, payload_id, error, meta.get("request_digest"), state_id, meta.get("supersedes", 0), meta)
    return _new(Fact, fields)


_MARK = 6
"""Bytes that stand for a fact's key in a list of keys."""


def _mark(key: str) -> bytes:
    return sha256(key.encode()).digest()[:_MARK]


@dataclass(frozen=True, slots=True)
class KnownKeys:
    """Which keys have facts: lists of marks, each sorted and some times as long as the next one.

    A key whose mark is in none of them has no fact. Many lists rather than one: what is added to a long history is short.
    """

    lists: tuple[bytes, ...] = ()

    def may_have(self, key: str) -> bool:
        """Whether there may be a fact under a key; False is certain."""
        mark = _mark(key)
        return any(_holds(marks, mark) for marks in self.lists)

    def plus(self, keys: Iterable[str]) -> KnownKeys:
        """Return these keys and more; lists of like length become one."""
        lists = [*self.lists, b"".join(sorted({_mark(key) for key in keys}))]
        while len(lists) > 1 and len(lists[-2]) <= 2 * len(lists[-1]):
            last = lists.pop()
            lists[-1] = b"".join(sorted(_split(lists[-1]) | _split(last)))
        return KnownKeys(tuple(marks for marks in lists if marks))


def _split(marks: bytes) -> set[bytes]:
    return {marks[at : at + _MARK] for at in range(0, len(marks), _MARK)}


def _holds(marks: bytes, mark: bytes) -> bool:
    count = len(marks) // _MARK
    at = _MARK * bisect_left(range(count), mark, key=lambda index: marks[_MARK * index : _MARK * (index + 1)])
    return marks[at : at + _MARK] == mark


class EarlierFacts(Protocol):
    """The facts behind a recorded summary: those that nothing can forget, alone under their keys; read when asked for."""

    def known_keys(self) -> KnownKeys:
        """Return their keys, and those of facts that are in the summary."""

    def under(self, key: str) -> list[Fact]:
        """Return the facts under a key that has none in the summary."""


@dataclass
class FactIndex:
    """All facts of a run and of the runs it continues, and from where on errors and awaits are forgotten.

    Hardly a key has more than one fact: the last one stands by itself, those that it replaced in a list of their own. None
    says that a key was looked up and has none.

    :param earlier: where the facts are that were not taken in; all were, if there is none
    """

    _last: dict[str, Fact | None] = field(default_factory=dict)
    _replaced: dict[str, list[Fact]] = field(default_factory=dict)
    _failures: list[tuple[Position, str]] = field(default_factory=list)
    _continued: list[Position] = field(default_factory=list)
    _until: Position | None = None
    earlier: EarlierFacts | None = None
    _sealed: KnownKeys | None = None
    _added: list[str] = field(default_factory=list)

    def add(self, fact: Fact) -> None:
        """Take a fact in."""
        if self.earlier is not None:
            self._find_last(fact.key)
        self._put(fact)
        self._added.append(fact.key)

    def note_end(self, key: str, status: str) -> None:
        """Learn how the child ended that the newest fact under a key tells of: V1 does not say so beside the payload."""
        fact = self._find_last(key)
        if fact is not None and fact.payload_id is not None and "status" not in fact.meta:
            self._last[key] = fact._replace(meta={**fact.meta, "status": status})

    def forget_errors_of(self, state_id: str, before: Position) -> None:
        """Forget what a state recorded about failures before a position."""
        self._failures.append((before, state_id))

    def forget_unhappy_awaits(self, before: Position) -> None:
        """Forget the ends of children that did not complete, before a position."""
        self._continued.append(before)

    def as_of(self, at: Position) -> FactIndex:
        """Return the facts as they stood when the event at a position was written."""
        return FactIndex(self._last, self._replaced, self._failures, self._continued, at, self.earlier)

    def find(self, key: str) -> Fact | None:
        """Return the newest fact under a key, unless it is forgotten."""
        if self.earlier is None and key not in self._last:
            return None
        fact = self._newest(key)
        return None if fact is None or self._is_forgotten(fact) else fact

    def has_forgotten(self, key: str) -> bool:
        """Whether the newest fact under a key is forgotten; what was not taken in is not."""
        fact = self._newest(key) if key in self._last else None
        return fact is not None and self._is_forgotten(fact)

    def next_supersession(self, key: str) -> int:
        """Return the number that a fact which replaces the newest under a key has."""
        fact = self._newest(key)
        return fact.supersedes + 1 if fact else 1

    def supersessions(self, key: str) -> int:
        """Return how often the fact under a key was replaced."""
        fact = self._newest(key)
        return fact.supersedes if fact else 0

    def supersession_of_next(self, key: str) -> int:
        """Return the number of the fact that comes next under a key: one more, if it replaces a fact that lives."""
        fact = self._newest(key)
        if fact is None:
            return 0
        return fact.supersedes if self._is_forgotten(fact) else fact.supersedes + 1

    def may_supersede(self, fact: Fact) -> bool:
        """Whether another request may replace a fact: it was recorded by the same state after something now forgotten."""
        return any(
            other.state_id == fact.state_id and other.at < fact.at and self._is_forgotten(other)
            for key in self._last
            for other in self._under(key)
        )

    def all_keys(self) -> Iterable[str]:
        """Return the keys of all facts that were taken in."""
        return [key for key, fact in self._last.items() if fact is not None]

    def known_keys(self) -> tuple[KnownKeys, KnownKeys]:
        """Return the keys that a summary has recorded, and all keys."""
        recorded = self._sealed or (self.earlier.known_keys() if self.earlier else KnownKeys())
        return recorded, recorded.plus(self._added) if self._added else recorded

    def seal(self, keys: KnownKeys) -> None:
        """Learn that all keys up to here are recorded."""
        self._sealed, self._added = keys, []

    def unsteady(self) -> list[Fact]:
        """Return, in order, the facts under keys where one is an error, an unhappy await, or was replaced."""
        found = {
            key for key, fact in self._last.items() if fact is not None and not fact.is_steady
        } | self._replaced.keys()
        return sorted((fact for key in found for fact in self._under(key)), key=lambda fact: fact.at)

    def forgotten_from(self) -> tuple[Sequence[tuple[Position, str]], Sequence[Position]]:
        """Return from where on errors of which state, and unhappy awaits, are forgotten."""
        return self._failures, self._continued

    def take_in(self, facts: Iterable[Fact]) -> None:
        """Take in facts whose keys a summary has recorded."""
        for fact in facts:
            self._put(fact)

    def until(self, key: str, at: Position) -> list[Fact]:
        """Return the facts under a key up to a position, forgotten or not."""
        return [fact for fact in self._under(key) if fact.at <= at]

    def _put(self, fact: Fact) -> None:
        before = self._last.get(fact.key)
        if before is not None:
            self._replaced.setdefault(fact.key, []).append(before)
        self._last[fact.key] = fact

    def _under(self, key: str) -> list[Fact]:
        """Return all facts under a key, first to last."""
        last = self._find_last(key)
        return [] if last is None else [*self._replaced.get(key, ()), last]

    def _newest(self, key: str) -> Fact | None:
        if self._until is None:
            return self._find_last(key)
        return next((fact for fact in reversed(self._under(key)) if fact.at <= self._until), None)

    def _find_last(self, key: str) -> Fact | None:
        fact = self._last.get(key)
        if fact is None and self.earlier is not None and key not in self._last:
            facts = self.earlier.under(key)
            self._last[key] = fact = facts[-1] if facts else None
            if len(facts) > 1:
                self._replaced[key] = facts[:-1]
        return fact

    def _is_forgotten(self, fact: Fact) -> bool:
        if fact.error is not None:
            return any(fact.at < at and fact.state_id == state for at, state in self._failures if self._counts(at))
        return fact.is_unhappy_await and any(fact.at < at for at in self._continued if self._counts(at))

    def _counts(self, at: Position) -> bool:
        return self._until is None or at <= self._until
