"""Values of the store's API to rows of the hot statements, and back; the order of columns is that of ``texts``."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from airflow_childrun.store.api import (
    AirflowCoordinates,
    Artifact,
    FactEntry,
    Head,
    InboxEntry,
    RunRow,
    StoredEvent,
)
from airflow_childrun.store.decision import LastEventless, StoredRun, StoredSession
from airflow_childrun.store.sql.column_types import read_uuid
from airflow_childrun.store.sql.rows import event_changed, plain
from airflow_childrun.store.sql.schema import RAW
from airflow_childrun.store.sql.texts import ALL, Row

_new = tuple.__new__
SESSION = len(ALL)
NOW = SESSION + 2


def run_of(values: Row) -> StoredRun:
    """Read a run: every column of its row, in the order of ``ALL``."""
    (status, seq, tip, epoch, inbox_seq, mark, mark_hash, snapshot, final, error, wake, updated, ended, lease) = values[
        :14
    ]
    last_id, last_epoch, last_at, run_id, kind, parent, root, depth, slot, generation = values[14:24]
    op_id, op_version, manifest, initial, plan, deadline, created, dag, dag_run, task, index = values[24:SESSION]
    row = RunRow(
        run_id=read_uuid(run_id),
        kind=kind,
        parent_run_id=_uuid_or_none(parent),
        root_run_id=read_uuid(root),
        depth=depth,
        slot_id=read_uuid(slot),
        generation=generation,
        op_id=op_id,
        op_version=op_version,
        manifest_id=manifest.hex(),
        initial_snapshot_id=initial.hex(),
        plan_id=_hex_or_none(plan),
        status=status,
        head=Head(seq, tip.hex(), epoch, inbox_seq),
        checkpoint_seq=mark,
        checkpoint_hash=mark_hash.hex(),
        checkpoint_snapshot_id=snapshot.hex(),
        final_snapshot_id=_hex_or_none(final),
        error_code=error,
        deadline_at=deadline,
        wake_at=wake,
        created_at=created,
        updated_at=updated,
        ended_at=ended,
        lease_session_id=_uuid_or_none(lease),
        lease_expires_at=None,
        airflow=None if dag is None else AirflowCoordinates(dag, dag_run, task, index),
    )
    return StoredRun(row, None if last_id is None else LastEventless(read_uuid(last_id), last_epoch, last_at))


def session_of(values: Row, stored: StoredRun) -> StoredSession | None:
    """Read the holder's columns that stand behind a run's; None if there is no such session."""
    expires_at, ended = values[SESSION : SESSION + 2]
    holder = stored.row.lease_session_id
    return None if expires_at is None or holder is None else StoredSession(holder, "", 0, expires_at, ended)


def moving_values(stored: StoredRun) -> Row:
    """Return what commits move of a run, in the order of ``MOVING``."""
    row, last = stored.row, stored.last_eventless
    head = row.head
    return (
        row.status,
        head.seq,
        bytes.fromhex(head.hash),
        head.epoch,
        head.inbox_seq,
        row.checkpoint_seq,
        bytes.fromhex(row.checkpoint_hash),
        bytes.fromhex(row.checkpoint_snapshot_id),
        unhex(row.final_snapshot_id),
        row.error_code,
        row.wake_at,
        row.updated_at,
        row.ended_at,
        _bytes(row.lease_session_id),
        last.commit_id.bytes if last else None,
        last.epoch if last else None,
        last.recorded_at if last else None,
    )


def moved_values(stored: StoredRun) -> Row:
    """Return a run's id and what commits move of it."""
    return (stored.row.run_id.bytes, *moving_values(stored))


def all_values(stored: StoredRun) -> Row:
    """Return every column of a new run, in the order of ``ALL``."""
    row, airflow = stored.row, stored.row.airflow
    return (
        *moving_values(stored),
        row.run_id.bytes,
        row.kind,
        _bytes(row.parent_run_id),
        row.root_run_id.bytes,
        row.depth,
        row.slot_id.bytes,
        row.generation,
        row.op_id,
        row.op_version,
        bytes.fromhex(row.manifest_id),
        bytes.fromhex(row.initial_snapshot_id),
        unhex(row.plan_id),
        row.deadline_at,
        row.created_at,
        airflow.dag_id if airflow else None,
        airflow.dag_run_id if airflow else None,
        airflow.task_id if airflow else None,
        airflow.map_index if airflow else None,
    )


def event_of(values: Row) -> StoredEvent:
    """Read an event, in the order of ``EVENT``.

    :raises CorruptionError: codes ``codec_unknown``, ``event_body_changed``
    """
    run_id, *rest = values
    return event_in(read_uuid(run_id), rest)


def event_in(run: UUID, values: Sequence[Any]) -> StoredEvent:
    """Read an event of a known run, in the order of ``EVENT`` from its second column on.

    :raises CorruptionError: codes ``codec_unknown``, ``event_body_changed``
    """
    seq, at, body, digest, tip, commit_id, epoch, codec = values
    if codec != RAW:
        plain(body, codec, f"event {seq} of run {run}")
    actual = hashlib.sha256(body).digest()
    if actual != digest:
        raise event_changed(run, seq)
    return _new(StoredEvent, (run, seq, at, body, tip.hex(), read_uuid(commit_id), epoch, actual))


def event_values(event: StoredEvent) -> Row:
    """Return an event's columns, in the order of ``EVENT``."""
    digest, tip, commit_id = hashlib.sha256(event.body).digest(), bytes.fromhex(event.hash), event.commit_id.bytes
    return (event.run_id.bytes, event.seq, event.recorded_at, event.body, digest, tip, commit_id, event.epoch, RAW)


def fact_values(fact: FactEntry) -> Row:
    """Return a fact's columns, in the order of ``FACT``."""
    key, payload, request = bytes.fromhex(fact.key_digest), unhex(fact.payload_id), unhex(fact.request_digest)
    return (fact.run_id.bytes, key, fact.seq, payload, request, fact.failed)


def artifact_values(artifact: Artifact) -> Row:
    """Return an artifact's columns, in the order of ``ARTIFACT``."""
    return (artifact.root_run_id.bytes, bytes.fromhex(artifact.id), artifact.kind, artifact.body, RAW)


def entry_values(entry: InboxEntry) -> Row:
    """Return an inbox entry's columns, in the order of ``ENTRY``."""
    return (entry.run_id.bytes, entry.n, entry.post_id.bytes, entry.kind, entry.body, entry.recorded_at)


def _uuid_or_none(value: bytes | None) -> UUID | None:
    return None if value is None else read_uuid(value)


def _hex_or_none(value: bytes | None) -> str | None:
    return None if value is None else value.hex()


def _bytes(value: UUID | None) -> bytes | None:
    return None if value is None else value.bytes


def unhex(value: str | None) -> bytes | None:
    """Return the bytes of hex digits, or None."""
    return None if value is None else bytes.fromhex(value)
