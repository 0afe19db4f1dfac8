"""How a run's row follows from its events, and from nothing else: computed at every commit, and again to verify."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from airflow_childrun.errors import CorruptionError
from airflow_childrun.ids import child_run_id, uuid_of
from airflow_childrun.model.events import (
    WAIT_OPENED,
    DomainEvent,
    Event,
    RunCompleted,
    RunStarted,
    StateCompleted,
    StateEntered,
    StateFailed,
)
from airflow_childrun.store.api import Moves, RunRow, RunStatus, StoredEvent
from airflow_childrun.store.chain import check_chain
from airflow_childrun.store.codec import decode_event


def moves_of(events: Sequence[Event]) -> Moves:
    """Return how the row moves with these events, whatever stood before them and wherever commits were cut.

    ``error_code`` is that of the last failed attempt until the state succeeds or the run ends otherwise than Failed; a
    ``RunCompleted`` whose reason has a code brings its own. ``wake_at`` is when a run that waits goes on by itself.
    """
    if len(events) == 1 and type(events[0]) is DomainEvent and events[0].name != WAIT_OPENED:  # most appends are that
        return _GOES_ON
    draft = _Draft()
    for index, event in enumerate(events):
        draft.take(index, event)
    return Moves(
        status=draft.status,
        checkpoint_at=draft.checkpoint_at,
        checkpoint_snapshot_id=draft.checkpoint_snapshot_id,
        final_snapshot_id=draft.final_snapshot_id,
        error_code=draft.error_code,
        wake_at=draft.wake_at,
    )


_GOES_ON = Moves(wake_at=0)
"""How a row moves with an event that only says that the run is at work."""


@dataclass(slots=True)
class _Draft:
    status: RunStatus | None = None
    checkpoint_at: int | None = None
    checkpoint_snapshot_id: str | None = None
    final_snapshot_id: str | None = None
    error_code: str | None = None
    wake_at: int | None = None

    def take(self, index: int, event: Event) -> None:
        # Whatever follows a wait says that it is over.
        self.wake_at = 0
        match event:
            case DomainEvent():  # most are
                if event.name == WAIT_OPENED and isinstance(event.payload, Mapping):
                    self.wake_at = event.payload.get("until", 0)
            case RunStarted():
                self.status = "Pending"
                self.checkpoint_at, self.checkpoint_snapshot_id = index, event.initial_snapshot_id
            case StateEntered():
                self.status = "Running"
            case StateCompleted():
                self.checkpoint_at, self.checkpoint_snapshot_id = index, event.context_snapshot_id
                self.error_code = ""
            case StateFailed():
                self.error_code = _code(event.error.info) or self.error_code
                self.wake_at = event.retry_at or 0
            case RunCompleted():
                self.status = event.status
                self.final_snapshot_id = event.final_snapshot_id
                self.error_code = (_code(event.reason) or self.error_code) if event.status == "Failed" else ""


def _code(info: Any) -> str | None:
    code = info.get("code") if isinstance(info, Mapping) else None
    return code if isinstance(code, str) and code else None


class RowCheck:
    """Compares a row with the run's events, read after the row: all of them, or the first and those from a summary on."""

    def __init__(self, row: RunRow) -> None:
        self._row = row
        self._rebuilt = Rebuilt()
        self._head_hash: str | None = None

    def take(self, stored: StoredEvent, event: Event) -> None:
        """Take the next event in."""
        if stored.seq == self._row.head.seq:
            self._head_hash = stored.hash
        self._rebuilt.take(stored, event)

    def finish(self) -> None:
        """Refuse a row that does not follow from the events that were taken in.

        :raises CorruptionError: code ``run_row_mismatch``, naming run, event and column
        """
        row, last = self._row, self._rebuilt.last
        if last is None or self._head_hash != row.head.hash:
            raise _row_mismatch(row, "the last event that it tells of is not there")
        if row.head.seq < last.seq:
            return  # somebody went on since the row was read
        actual = columns_of(row)
        wrong = [name for name, value in self._rebuilt.columns().items() if actual[name] != value]
        if wrong:
            raise _row_mismatch(row, f"its {', '.join(wrong)} does not follow from its events")


def _row_mismatch(row: RunRow, what: str) -> CorruptionError:
    return CorruptionError(
        f"the row of run {row.run_id} is not what was written at event {row.head.seq}: {what}; run "
        f"`childrun verify {row.run_id}` and restore the row from a backup",
        code="run_row_mismatch",
        details={"run_id": str(row.run_id), "seq": row.head.seq},
    )


def check_end(row: RunRow, ends: Sequence[StoredEvent]) -> None:
    """Refuse the row of an ended run that its first and its last two events contradict.

    :raises CorruptionError: codes ``run_row_mismatch``, ``event_chain_broken``, naming the run
    """
    last = ends[-1] if ends else None
    if last is None or (last.seq, last.hash) != (row.head.seq, row.head.hash) or ends[0].seq != 1:
        raise _row_mismatch(row, "the events that it tells of are not there")
    check_chain(row.run_id, ends[:1])
    check_chain(row.run_id, ends[-2:])
    first, end = decode_event(ends[0]), decode_event(last)
    if not isinstance(first, RunStarted) or not isinstance(end, RunCompleted):
        raise _row_mismatch(row, "it has ended by its row, and not by its events")
    actual = columns_of(row)
    expected = {"status": end.status, "final_snapshot_id": end.final_snapshot_id, **_origin(row.run_id, first)}
    wrong = [name for name, value in expected.items() if actual[name] != value]
    if wrong:
        raise _row_mismatch(row, f"its {', '.join(wrong)} does not follow from its events")


def rebuild(events: Sequence[StoredEvent]) -> dict[str, Any]:
    """Return what the columns of the row must be, by name, for the whole stream of a run.

    :raises CorruptionError: code ``stream_broken``, if there are no events or the first is no ``RunStarted``
    """
    rebuilt = Rebuilt()
    for stored in events:
        rebuilt.take(stored, decode_event(stored))
    return rebuilt.columns()


class Rebuilt:
    """A row as the events tell it, one after the other: all, or the first one and those from a ``StateCompleted`` on.

    The lease, the inbox, ``op_version`` of a V1 stream and where in Airflow a run stands are not in it: no event, or
    not every event, tells them. ``checkpoint_at`` and the like come as the columns that they move.
    """

    def __init__(self) -> None:
        self.last: StoredEvent | None = None
        self._first: tuple[StoredEvent, Event] | None = None
        self._mark: StoredEvent | None = None
        self._moves = _Draft()
        self._ended_at: int | None = None

    def take(self, stored: StoredEvent, event: Event) -> None:
        """Take the next event in."""
        if self._first is None:
            self._first = stored, event
        elif self.last is not None and stored.seq > self.last.seq + 1:
            self._moves.status = "Running"  # where events are left out, a state completes next: it was entered
        self.last = stored
        self._moves.take(stored.seq, event)
        if self._moves.checkpoint_at == stored.seq:
            self._mark = stored
        if isinstance(event, RunCompleted):
            self._ended_at = stored.recorded_at

    def columns(self) -> dict[str, Any]:
        """Return what the columns must be, by name.

        :raises CorruptionError: code ``stream_broken``, if there are no events or the first is no ``RunStarted``
        """
        if self._first is None or self.last is None or not isinstance(self._first[1], RunStarted):
            raise CorruptionError("a run's stream does not begin with RunStarted", code="stream_broken")
        moves, first = self._moves, self._first[0]
        mark = self._mark or first
        return {
            **_origin(first.run_id, self._first[1]),
            "status": moves.status or "Pending",
            "head_seq": self.last.seq,
            "head_hash": self.last.hash,
            "checkpoint_seq": mark.seq,
            "checkpoint_hash": mark.hash,
            "checkpoint_snapshot_id": moves.checkpoint_snapshot_id,
            "final_snapshot_id": moves.final_snapshot_id,
            "error_code": moves.error_code or None,
            "wake_at": moves.wake_at or None,
            "created_at": first.recorded_at,
            "ended_at": self._ended_at,
        }


def _origin(run_id: UUID, first: RunStarted) -> dict[str, Any]:
    columns: dict[str, Any] = {
        "op_id": first.op_id,
        "manifest_id": first.manifest_id,
        "initial_snapshot_id": first.initial_snapshot_id,
        "plan_id": first.plan_id,
    }
    if first.engine is None:
        # V1 says nothing of its lineage: who imported the stream knew it.
        return columns
    parent = first.parent
    return columns | {
        "kind": first.kind,
        "op_version": first.op_version or "",
        "parent_run_id": uuid_of(parent.run_id) if parent else None,
        "root_run_id": uuid_of(first.root_run_id) if first.root_run_id else run_id,
        "depth": first.depth,
        "slot_id": _slot_id(run_id, first),
        "generation": first.generation,
        "deadline_at": first.deadline_at,
    }


def _slot_id(run_id: UUID, first: RunStarted) -> UUID:
    if first.parent is not None:
        return child_run_id(uuid_of(first.parent.slot_owner_id), first.parent.fact_key)
    return run_id if first.slot_id is None else uuid_of(first.slot_id)


def columns_of(row: RunRow) -> dict[str, Any]:
    """Return a row's columns under the names that :func:`rebuild` uses."""
    columns = row._asdict()
    head = columns.pop("head")
    return columns | {"head_seq": head.seq, "head_hash": head.hash}
