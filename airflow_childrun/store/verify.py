"""Proving that a history is what was written: chain, artifacts, facts, row, and the children that it names.

Reads only. Everything found is returned, not raised, so that one look shows all that is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

from airflow_childrun.canonical import decode_stored
from airflow_childrun.errors import ChildRunError, CorruptionError
from airflow_childrun.model.events import (
    ARTIFACT_WRITTEN,
    CHILD_RUN_SPAWNED,
    FACT_RECORDED,
    DomainEvent,
    Event,
    RunCompleted,
    RunStarted,
    StateCompleted,
    StateEntered,
    StateFailed,
)
from airflow_childrun.store.api import GENESIS_HASH, FactEntry, RunFilter, RunRow, Store, StoredEvent
from airflow_childrun.store.chain import follows
from airflow_childrun.store.codec import decode_event, encode_event
from airflow_childrun.store.projection import columns_of, rebuild

FindingCode = Literal[
    "run_missing",
    "row_unreadable",
    "seq_gap",
    "hash_mismatch",
    "event_malformed",
    "event_unreadable",
    "artifact_missing",
    "artifact_corrupt",
    "facts_mismatch",
    "row_mismatch",
    "child_mismatch",
    "summary_mismatch",
    "inbox_mismatch",
]

_PAGE = 500
_RESTORE = "restore the run from a backup, or start it afresh"
_REBUILD = "the events are the truth: restore the row from them, and report how it came about"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it was written.

    :param seq: the event concerned; None where it is the run as a whole
    :param message: what is wrong, where, and what to do about it
    """

    code: FindingCode
    run_id: UUID
    seq: int | None
    message: str


def verify_tree(store: Store, root_run_id: UUID) -> list[Finding]:
    """Verify every run of a tree, oldest first.

    :raises UnavailableError: if the store cannot be reached
    """
    findings: list[Finding] = []
    cursor, seen = None, 0
    while True:
        try:
            page = store.find_runs(RunFilter(root_run_id=root_run_id), cursor)
        except CorruptionError as error:
            return [*findings, _unreadable(root_run_id, error)]
        for row in page.rows:
            findings += _Check(store, row).all()
        seen += len(page.rows)
        cursor = page.cursor
        if cursor is None:
            break
    if not seen:
        findings.append(Finding("run_missing", root_run_id, None, f"no run has the root {root_run_id}; check the id"))
    return findings


def verify_run(store: Store, run_id: UUID) -> list[Finding]:
    """Verify one run, and that the children which it awaited ended as it recorded.

    :raises UnavailableError: if the store cannot be reached
    """
    try:
        row = store.find_run(run_id)
    except CorruptionError as error:
        return [_unreadable(run_id, error)]
    if row is None:
        return [Finding("run_missing", run_id, None, f"there is no run {run_id}; check the id and the connection")]
    return _Check(store, row).all()


def _unreadable(run_id: UUID, error: CorruptionError) -> Finding:
    return Finding("row_unreadable", run_id, None, f"a row of run {run_id} or of its tree cannot be read: {error}")


class _Check:
    """The verification of one run."""

    def __init__(self, store: Store, row: RunRow) -> None:
        self._store = store
        self._row = row
        self._findings: list[Finding] = []

    def all(self) -> list[Finding]:
        """Return everything found."""
        events = self._readable()
        self._chain(events)
        typed = self._typed(events)
        self._artifacts(typed)
        if len(typed) == len(events) and not any(found.code == "event_unreadable" for found in self._findings):
            self._facts(typed)
            self._projection(events)
        self._inbox()
        self._parent()
        self._spawned(typed)
        for stored, event in typed:
            self._child(stored, event)
        return self._findings

    def _found(self, code: FindingCode, seq: int | None, message: str) -> None:
        self._findings.append(Finding(code, self._row.run_id, seq, message))

    def _readable(self) -> list[StoredEvent]:
        """Return those events that can be read; the others are reported."""
        try:
            return list(_stream(self._store, self._row.run_id))
        except CorruptionError:
            return [event for seq in range(1, self._row.head.seq + 1) for event in self._single(seq)]

    def _single(self, seq: int) -> list[StoredEvent]:
        try:
            return self._store.read_events(self._row.run_id, seq, seq)
        except CorruptionError as error:
            self._found("event_unreadable", seq, str(error))
            return []

    def _chain(self, events: Sequence[StoredEvent]) -> None:
        previous, expected = GENESIS_HASH, 1
        for event in events:
            where = f"event {event.seq} of run {event.run_id}"
            if event.seq != expected:
                self._found("seq_gap", expected, f"{where} follows event {expected - 1}: events are gone; {_RESTORE}")
            if not follows(event, previous):
                self._found("hash_mismatch", event.seq, f"{where} or the event before it was changed; {_RESTORE}")
            previous, expected = event.hash, event.seq + 1

    def _typed(self, events: Sequence[StoredEvent]) -> list[tuple[StoredEvent, Event]]:
        typed = []
        for stored in events:
            try:
                typed.append((stored, decode_event(stored)))
            except ChildRunError as error:
                self._found(
                    "event_malformed",
                    stored.seq,
                    f"event {stored.seq} of run {stored.run_id} cannot be read ({error.code}); {_RESTORE}",
                )
        return typed

    def _artifacts(self, typed: Sequence[tuple[StoredEvent, Event]]) -> None:
        """Look whether everything that the events refer to is there and has the bytes that its id says."""
        wanted: dict[str, int] = {}
        for stored, event in typed:
            for artifact_id in _references(event):
                wanted.setdefault(artifact_id, stored.seq)
        ids = list(wanted)
        for start in range(0, len(ids), _PAGE):
            chunk = ids[start : start + _PAGE]
            missing = set(chunk) - self._present(chunk, wanted)
            for artifact_id in sorted(missing, key=lambda one: wanted[one]):
                seq = wanted[artifact_id]
                self._found("artifact_missing", seq, f"event {seq} names artifact {artifact_id}: gone; {_RESTORE}")

    def _present(self, ids: Sequence[str], wanted: Mapping[str, int]) -> set[str]:
        """Return those that are there; what is there with other bytes is reported, and counts."""
        try:
            return set(self._store.get_artifacts(self._row.root_run_id, ids))
        except CorruptionError:
            if len(ids) > 1:
                middle = len(ids) // 2
                return self._present(ids[:middle], wanted) | self._present(ids[middle:], wanted)
        seq = wanted[ids[0]]
        self._found("artifact_corrupt", seq, f"event {seq} names artifact {ids[0]}: bytes changed; {_RESTORE}")
        return set(ids)

    def _facts(self, typed: Sequence[tuple[StoredEvent, Event]]) -> None:
        """Look whether the index of facts is what the events say."""
        expected = []
        for stored, event in typed:
            fact = encode_event(event).fact
            if fact is not None:
                expected.append(
                    FactEntry(
                        stored.run_id,
                        stored.seq,
                        fact.key_digest,
                        fact.payload_id,
                        fact.request_digest,
                        fact.failed,
                    )
                )
        try:
            indexed = self._store.get_facts(self._row.run_id)
        except CorruptionError as error:
            self._findings.append(_unreadable(self._row.run_id, error))
            return
        differing = set(indexed) ^ set(expected)
        if differing:
            seq = min(fact.seq for fact in differing)
            self._found("facts_mismatch", seq, f"the index of facts differs from event {seq} on; {_REBUILD}")

    def _projection(self, events: Sequence[StoredEvent]) -> None:
        try:
            expected = rebuild(events)
        except CorruptionError as error:
            self._found("event_malformed", 1, f"{error}; {_RESTORE}")
            return
        actual = columns_of(self._row)
        for name, value in expected.items():
            if actual[name] != value:
                self._found("row_mismatch", None, f"column {name} is {actual[name]}, not {value}; {_REBUILD}")

    def _inbox(self) -> None:
        """Look whether every request that was posted is there and can be read; nothing certifies what it says."""
        again = "ask again, with `childrun cancel`, if the run was to end"
        try:
            entries = self._store.read_inbox(self._row.run_id)
        except CorruptionError as error:
            self._found("inbox_mismatch", None, f"its inbox cannot be read: {error}; {again}")
            return
        numbers, last = [entry.n for entry in entries], self._row.head.inbox_seq
        if numbers != list(range(1, last + 1)):
            self._found("inbox_mismatch", None, f"its inbox has the entries {numbers}, and not 1 to {last}; {again}")
        for entry in entries:
            try:
                decode_stored(entry.body)
            except ChildRunError as error:
                self._found("inbox_mismatch", None, f"entry {entry.n} of its inbox cannot be read: {error}; {again}")

    def _parent(self) -> None:
        """Look whether the parent has its row, in this tree."""
        parent_id, root = self._row.parent_run_id, self._row.root_run_id
        if parent_id is None:
            return
        try:
            parent = self._store.get_runs([parent_id]).get(parent_id)
        except CorruptionError as error:
            self._findings.append(_unreadable(parent_id, error))
            return
        if parent is None or parent.root_run_id != root:
            what = (
                f"run {parent_id}, the parent of run {self._row.run_id}, has no row in the tree of {root}; {_RESTORE}"
            )
            self._findings.append(Finding("run_missing", parent_id, None, what))

    def _spawned(self, typed: Sequence[tuple[StoredEvent, Event]]) -> None:
        """Look whether every child that was spawned has its row, in this tree.

        A V1 crash may leave the linkage of a child that never came to be.
        """
        first = typed[0][1] if typed else None
        if not isinstance(first, RunStarted) or first.engine is None:
            return
        spawned = {child: stored.seq for stored, event in typed if (child := _spawned_child(event)) is not None}
        try:
            rows = self._store.get_runs(spawned)
        except CorruptionError as error:
            self._findings.append(_unreadable(self._row.run_id, error))
            return
        for child, seq in spawned.items():
            row = rows.get(child)
            if row is None or row.root_run_id != self._row.root_run_id:
                self._found(
                    "child_mismatch", seq, f"event {seq} spawned {child}, which is not in this tree; {_RESTORE}"
                )

    def _child(self, stored: StoredEvent, event: Event) -> None:
        """Compare the end of an awaited child with what the await recorded of it."""
        meta = _await_meta(event)
        if meta is None:
            return
        child = self._child_id(event, meta)
        if child is None:
            return
        seq, expected = meta["head_seq"], meta["head_hash"]
        try:
            last = self._store.read_events(child, seq, seq + 1)
        except CorruptionError:
            last = []
        if len(last) != 1 or last[0].hash != expected:
            self._found(
                "child_mismatch",
                stored.seq,
                f"event {stored.seq} awaited child {child} up to event {seq}, which is not its end now; {_RESTORE}",
            )

    def _child_id(self, event: Event, meta: Mapping[str, Any]) -> UUID | None:
        """Return the awaited child: the event says it, or the recorded answer does."""
        known = meta.get("child_run_id")
        payload_id = event.payload.get("payload_id") if isinstance(event, DomainEvent) else None
        if known is None and isinstance(payload_id, str):
            try:
                body = self._store.get_artifacts(self._row.root_run_id, [payload_id]).get(payload_id)
            except CorruptionError:
                return None  # reported where the artifacts are looked at
            answer = decode_stored(body) if body is not None else None
            known = answer.get("child_run_id") if isinstance(answer, Mapping) else None
        try:
            return UUID(str(known)) if known is not None else None
        except ValueError:
            return None


def _stream(store: Store, run_id: UUID) -> Iterator[StoredEvent]:
    seq = 1
    while page := store.read_events(run_id, seq, limit=_PAGE):
        yield from page
        seq = page[-1].seq + 1


_REFERENCES: Mapping[type[Event], tuple[str, ...]] = {
    RunStarted: ("manifest_id", "initial_snapshot_id", "plan_id"),
    StateEntered: ("base_snapshot_id",),
    StateCompleted: ("context_snapshot_id",),
    StateFailed: ("failure_snapshot_id",),
    RunCompleted: ("final_snapshot_id",),
    DomainEvent: ("payload_ref",),
}
_PAYLOAD_REFERENCES: Mapping[str, str] = {FACT_RECORDED: "payload_id", ARTIFACT_WRITTEN: "artifact_id"}


def _references(event: Event) -> Iterator[str]:
    """Yield the ids of the artifacts that an event names."""
    found: list[Any] = [getattr(event, name) for name in _REFERENCES[type(event)]]
    if isinstance(event, DomainEvent) and isinstance(event.payload, Mapping):
        found.append(event.payload.get(_PAYLOAD_REFERENCES.get(event.name, "")))
    if isinstance(event, StateCompleted) and event.summary is not None:
        found.append(event.summary.id)
    for artifact_id in found:
        if isinstance(artifact_id, str):
            yield artifact_id


def _spawned_child(event: Event) -> UUID | None:
    if not isinstance(event, DomainEvent) or event.name != CHILD_RUN_SPAWNED or not isinstance(event.payload, Mapping):
        return None
    try:
        return UUID(str(event.payload.get("child_run_id")))
    except ValueError:
        return None


def _await_meta(event: Event) -> Mapping[str, Any] | None:
    if not isinstance(event, DomainEvent) or event.name != FACT_RECORDED or not isinstance(event.payload, Mapping):
        return None
    meta = event.payload.get("meta")
    if not isinstance(meta, Mapping) or not isinstance(meta.get("head_seq"), int):
        return None
    return meta if isinstance(meta.get("head_hash"), str) else None
