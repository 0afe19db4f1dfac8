"""Rows of the tables to values of the store's API, and back."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import Row

from airflow_childrun.errors import CorruptionError
from airflow_childrun.store.api import (
    AirflowCoordinates,
    FactEntry,
    Head,
    InboxEntry,
    RunRow,
    StoredEvent,
)
from airflow_childrun.store.chain import body_digest
from airflow_childrun.store.decision import LastEventless, StoredRun, StoredSession
from airflow_childrun.store.sql.schema import RAW


def run_of(row: Row[Any]) -> StoredRun:
    """Read a row of ``childrun_run``."""
    last = None
    if row.last_commit_id is not None:
        last = LastEventless(row.last_commit_id, row.last_commit_epoch, row.last_commit_at)
    airflow = None
    if row.dag_id is not None:
        airflow = AirflowCoordinates(row.dag_id, row.dag_run_id, row.task_id, row.map_index)
    return StoredRun(
        RunRow(
            run_id=row.run_id,
            kind=row.kind,
            parent_run_id=row.parent_run_id,
            root_run_id=row.root_run_id,
            depth=row.depth,
            slot_id=row.slot_id,
            generation=row.generation,
            op_id=row.op_id,
            op_version=row.op_version,
            manifest_id=row.manifest_id,
            initial_snapshot_id=row.initial_snapshot_id,
            plan_id=row.plan_id,
            status=row.status,
            head=Head(row.head_seq, row.head_hash, row.epoch, row.inbox_seq),
            checkpoint_seq=row.checkpoint_seq,
            checkpoint_hash=row.checkpoint_hash,
            checkpoint_snapshot_id=row.checkpoint_snapshot_id,
            final_snapshot_id=row.final_snapshot_id,
            error_code=row.error_code,
            deadline_at=row.deadline_at,
            wake_at=row.wake_at,
            created_at=row.created_at,
            updated_at=row.updated_at,
            ended_at=row.ended_at,
            lease_session_id=row.lease_session_id,
            lease_expires_at=None,
            airflow=airflow,
        ),
        last,
    )


def session_of(row: Row[Any]) -> StoredSession | None:
    """Read the holder's columns that stand beside a run's; None if there is no such session."""
    if row.session_expires_at is None:
        return None
    return StoredSession(row.lease_session_id, "", 0, row.session_expires_at, row.session_ended)


def event_of(row: Row[Any]) -> StoredEvent:
    """Read a row of ``childrun_event``.

    :raises CorruptionError: codes ``codec_unknown``, ``event_body_changed``
    """
    where = f"event {row.seq} of run {row.run_id}"
    body = plain(row.body, row.codec, where)
    if body_digest(body) != row.body_digest:
        raise event_changed(row.run_id, row.seq)
    return StoredEvent(row.run_id, row.seq, row.recorded_at, body, row.hash, row.commit_id, row.epoch)


def event_changed(run_id: UUID, seq: int) -> CorruptionError:
    """Return the error for an event whose bytes are not those of its digest."""
    return CorruptionError(
        f"event {seq} of run {run_id} has other bytes than were written; run `childrun verify {run_id}` and restore the "
        "run from a backup, or start it afresh",
        code="event_body_changed",
        details={"run_id": str(run_id), "seq": seq},
    )


def fact_of(row: Row[Any]) -> FactEntry:
    """Read a row of ``childrun_fact``."""
    return FactEntry(row.run_id, row.seq, row.key_digest, row.payload_id, row.request_digest, bool(row.failed))


def entry_of(row: Row[Any]) -> InboxEntry:
    """Read a row of ``childrun_inbox``."""
    return InboxEntry(row.run_id, row.n, row.post_id, row.kind, bytes(row.body), row.recorded_at)


def plain(body: bytes, codec: str, where: str) -> bytes:
    """Return the plain bytes of a stored body.

    :raises CorruptionError: code ``codec_unknown``, naming the codec
    """
    if codec != RAW:
        raise CorruptionError(
            f"{where} is stored with the codec {codec!r}, which this release cannot read; upgrade airflow-childrun",
            code="codec_unknown",
            details={"codec": codec},
        )
    return bytes(body)
