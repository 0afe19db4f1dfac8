"""The hash chain of an event stream: what makes a changed, missing or inserted event visible."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from uuid import UUID

from airflow_childrun.errors import CorruptionError
from airflow_childrun.store.api import GENESIS_HASH, StoredEvent

DOMAIN = b"childrun/event/v1\0"
_NUMBERS = struct.Struct(">QQ")
_GENESIS = bytes.fromhex(GENESIS_HASH)


def body_digest(body: bytes) -> str:
    """Return the SHA-256 of an event's stored bytes as 64 hex digits."""
    return hashlib.sha256(body).hexdigest()


def event_hash(run_id: UUID, seq: int, recorded_at: int, previous_hash: str, body_digest: str) -> str:
    """Return the chain hash of an event as 64 hex digits.

    :param recorded_at: microseconds UTC
    :param previous_hash: chain hash of the event before it; ``GENESIS_HASH`` for the first
    :param body_digest: SHA-256 of the event's bytes (64 hex digits)
    """
    return raw_event_hash(
        run_id.bytes, seq, recorded_at, bytes.fromhex(previous_hash), bytes.fromhex(body_digest)
    ).hex()


def raw_event_hash(run_id: bytes, seq: int, recorded_at: int, previous_hash: bytes, body_digest: bytes) -> bytes:
    """Return what :func:`event_hash` returns, bytes to bytes."""
    return hashlib.sha256(DOMAIN + run_id + _NUMBERS.pack(seq, recorded_at) + previous_hash + body_digest).digest()


def follows(event: StoredEvent, previous_hash: str) -> bool:
    """Whether an event is what was written after the event with this chain hash."""
    try:
        expected = event_hash(event.run_id, event.seq, event.recorded_at, previous_hash, body_digest(event.body))
    except (struct.error, ValueError):
        return False  # a number or a hash that nobody can have written
    return event.hash == expected


def check_chain(run_id: UUID, events: Sequence[StoredEvent]) -> None:
    """Refuse a stretch of a stream in which an event is missing or is not what was written.

    A stretch that does not begin with event 1 vouches for its first event by nothing but the second one.

    :raises CorruptionError: code ``event_chain_broken``, naming run and event
    """
    # As ``follows`` for one event; what all have in common is made once.
    start, sha256, pack, unhex = DOMAIN + run_id.bytes, hashlib.sha256, _NUMBERS.pack, bytes.fromhex
    previous, expected = (_GENESIS, 1) if events and events[0].seq == 1 else (None, None)
    seen = run_id
    for of, seq, at, body, tip_text, _, _, known in events:
        try:
            tip = unhex(tip_text)
            # To compare ids is a call of Python's; those that were read together are one object.
            if (of is not seen and of != run_id) or (expected is not None and expected != seq):
                raise _broken(run_id, seq)
            seen = of
            if previous is not None:
                digest = known or sha256(body).digest()
                if sha256(b"".join((start, pack(seq, at), previous, digest))).digest() != tip:
                    raise _broken(run_id, seq)
        except (struct.error, ValueError):  # a number or a hash that nobody can have written
            raise _broken(run_id, seq) from None
        previous, expected = tip, seq + 1


def _broken(run_id: UUID, seq: int) -> CorruptionError:
    return CorruptionError(
        f"event {seq} of run {run_id}, or the one before it, is gone or not what was written; "
        f"run `childrun verify {run_id}` and restore the run from a backup, or start it afresh",
        code="event_chain_broken",
        details={"run_id": str(run_id), "seq": seq},
    )


def artifact_changed(root_run_id: UUID, artifact_id: str) -> CorruptionError:
    """Return the error for an artifact whose bytes do not hash to its id."""
    return CorruptionError(
        f"artifact {artifact_id} in the tree of run {root_run_id} has other bytes than its id says; run "
        f"`childrun verify {root_run_id}`, which names the events that need it, and restore it from a backup",
        details={"artifact_id": artifact_id, "run_id": str(root_run_id)},
    )
