"""Going on from a summary: what was recorded at a checkpoint, checked, and the facts behind it, looked up one by one."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from airflow_childrun.engine.facts import Fact, KnownKeys, Position, fact_of
from airflow_childrun.engine.history import RunHistory
from airflow_childrun.engine.summary import Read, read_summary
from airflow_childrun.errors import CorruptionError, NotFoundError
from airflow_childrun.ids import key_digest
from airflow_childrun.model.events import DomainEvent, Event, RunStarted, StateCompleted
from airflow_childrun.store.api import FactEntry, RunRow, StoredEvent
from airflow_childrun.store.chain import check_chain
from airflow_childrun.store.codec import decode_event, decode_events

_log = logging.getLogger("airflow_childrun")


class Reads(Protocol):
    """The part of a store that tells a run's history."""

    def read_events(
        self, run_id: UUID, from_seq: int = 1, to_seq: int | None = None, limit: int | None = None
    ) -> list[StoredEvent]:
        """Return events, ascending."""

    def get_artifacts(self, root_run_id: UUID, ids: Iterable[str]) -> dict[str, bytes]:
        """Return the bodies of those artifacts that exist."""

    def get_facts(self, run_id: UUID, key_digests: Iterable[str] | None = None) -> list[FactEntry]:
        """Return the index of facts of a run, for some keys or for all."""

    def find_run(self, run_id: UUID) -> RunRow | None:
        """Return the row of a run, or None."""


Patiently = Callable[[Callable[[], list[Fact]]], list[Fact]]
"""Runs what looks a fact up; a handler's thread wants other patience and other errors than who only reads."""


@dataclass(frozen=True, slots=True)
class Going:
    """Where to go on from: what the events before the tail mean, and those of the tail.

    :param first: the run's first event
    :param tail: the event that recorded the summary, and all after it
    """

    history: RunHistory
    first: tuple[StoredEvent, Event]
    tail: Sequence[tuple[StoredEvent, Event]]


def from_summary(
    store: Reads, row: RunRow, to_seq: int | None, load_whole: Callable[[], RunHistory], patiently: Patiently
) -> Going | None:
    """Return where to go on from at the newest summary; None if there is none that is to be trusted.

    The row only says where to look. The first event, the one before the summary and all from there on are checked to be what
    was written; the summary is bound to its event by its id, and the ends of the runs that this one continues by their hashes.

    :param load_whole: reads and checks everything, where the index of facts does not say what the summary says
    :raises CorruptionError: if an event is not what was written, or a continued run not what it was when it was continued
    """
    marks = store.read_events(row.run_id, max(1, row.checkpoint_seq), row.checkpoint_seq)
    checkpoint = decode_event(marks[0]) if marks else None
    if not isinstance(checkpoint, StateCompleted) or checkpoint.summary is None:
        return None
    summary = checkpoint.summary
    body = store.get_artifacts(row.root_run_id, [summary.id]).get(summary.id)
    tail = store.read_events(row.run_id, max(1, summary.seq - 1), to_seq)
    first = store.read_events(row.run_id, 1, 1)
    if body is None or not first or len(tail) < 2 or tail[1].seq != summary.seq:  # noqa: PLR2004 - one before it
        return None
    check_chain(row.run_id, first)
    check_chain(row.run_id, tail)
    started, typed = decode_event(first[0]), decode_events(tail[1:])
    closing = typed[0][1]
    if not isinstance(closing, StateCompleted) or closing.summary != summary:
        return None
    read = read_summary(body, lambda read: StoredFacts(store, row, read, load_whole, patiently))
    if read is None or read.history.started != started or not isinstance(started, RunStarted):
        return None
    if (read.history.run_id, read.history.head + 1) != (row.run_id, summary.seq):
        return None
    _check_ancestors(store, read.history)
    return Going(read.history, (first[0], started), typed)


def _check_ancestors(store: Reads, history: RunHistory) -> None:
    for ancestor in history.ancestors:
        ends = store.read_events(UUID(ancestor.run_id), ancestor.seq, ancestor.seq)
        if not ends or ends[0].hash != ancestor.hash:
            raise continued_run_changed(UUID(ancestor.run_id), history.run_id)


def continued_run_changed(run_id: UUID, by: UUID) -> CorruptionError:
    """Return the error for a run that does not end any more where another one continued it."""
    return CorruptionError(
        f"run {run_id} is not what it was when {by} continued it; run `childrun verify {run_id}`",
        code="continued_run_changed",
    )


class StoredFacts:
    """The facts behind a summary; see :class:`~airflow_childrun.engine.facts.EarlierFacts`.

    That there is none under a key, the summary's own lists say. Where there is one, the index of facts says; what it is,
    its event says, which is checked against the ones before and after it.
    """

    def __init__(
        self, store: Reads, row: RunRow, read: Read, load_whole: Callable[[], RunHistory], patiently: Patiently
    ) -> None:
        self._store = store
        self._root = row.root_run_id
        self._lists = read.key_lists
        self._places = [(UUID(one.run_id), one.seq) for one in read.history.ancestors]
        self._places.append((row.run_id, read.history.head))
        self._turns = list(read.history.turns)
        self._load_whole = load_whole
        self._patiently = patiently
        self._keys: KnownKeys | None = None
        self._whole: RunHistory | None = None

    def known_keys(self) -> KnownKeys:
        """Return the keys of all facts behind the summary.

        :raises NotFoundError: code ``artifact_not_found``
        """
        if self._keys is None:
            self._patiently(self._read_keys)
        return self._keys or KnownKeys()

    def under(self, key: str) -> list[Fact]:
        """Return the facts under a key that has none in the summary."""
        if not self.known_keys().may_have(key):
            return []
        return self._patiently(lambda: self._looked_up(key))

    def _read_keys(self) -> list[Fact]:
        bodies = self._store.get_artifacts(self._root, self._lists)
        missing = [id_ for id_ in self._lists if id_ not in bodies]
        if missing:
            run_id = self._places[-1][0]
            raise NotFoundError(
                f"artifact {missing[0]} of run {run_id} is missing; run `childrun verify {run_id}`",
                code="artifact_not_found",
            )
        self._keys = KnownKeys(tuple(bodies[id_] for id_ in self._lists))
        return []

    def _looked_up(self, key: str) -> list[Fact]:
        found = list(self._indexed(key))
        if len(found) == 1 and found[0] is not None and found[0].is_steady:
            return [found[0]]
        # The index of facts is only a projection: the events say whether it lost or made up something.
        if self._whole is None:
            _log.warning("run %s: the index of facts is incomplete; all events are read instead", self._places[-1][0])
            self._whole = self._load_whole()
        return self._whole.facts.until(key, (len(self._places) - 1, self._places[-1][1]))

    def _indexed(self, key: str) -> Iterator[Fact | None]:
        """Yield what the index leads to; None for an entry that no fact under this key stands behind."""
        for segment, (run_id, upto) in enumerate(self._places):
            for entry in self._store.get_facts(run_id, [key_digest(key)]):
                if entry.seq <= upto:
                    around = self._store.read_events(run_id, max(1, entry.seq - 1), entry.seq + 1)
                    check_chain(run_id, around)
                    yield self._fact(key, entry, segment, around)

    def _fact(self, key: str, entry: FactEntry, segment: int, around: Sequence[StoredEvent]) -> Fact | None:
        stored = next((event for event in around if event.seq == entry.seq), None)
        event = decode_event(stored) if stored else None
        at = (segment, entry.seq)
        fact = fact_of(event, at, self._state_at(at)) if isinstance(event, DomainEvent) else None
        return fact if fact is not None and (fact.key, fact.payload_id) == (key, entry.payload_id) else None

    def _state_at(self, at: Position) -> str | None:
        index = bisect_right(self._turns, at, key=lambda turn: turn[0])
        return self._turns[index - 1][1] if index else None
