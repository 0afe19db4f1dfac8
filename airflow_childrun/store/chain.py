"""The hash chain of an event stream: what makes a changed, missing or inserted event visible."""

from __future__ import annotations

import hashlib
from uuid import UUID

_DOMAIN = b"childrun/event/v1\0"


def body_digest(body: bytes) -> str:
    """Return the SHA-256 of an event's stored bytes as 64 hex digits."""
    return hashlib.sha256(body).hexdigest()


def event_hash(run_id: UUID, seq: int, recorded_at: int, previous_hash: str, body_digest: str) -> str:
    """Return the chain hash of an event as 64 hex digits.

    :param recorded_at: microseconds UTC
    :param previous_hash: chain hash of the event before it; ``GENESIS_HASH`` for the first
    :param body_digest: SHA-256 of the event's bytes (64 hex digits)
    """
    return hashlib.sha256(
        b"".join(
            (
                _DOMAIN,
                run_id.bytes,
                seq.to_bytes(8, "big"),
                recorded_at.to_bytes(8, "big"),
                bytes.fromhex(previous_hash),
                bytes.fromhex(body_digest),
            )
        )
    ).hexdigest()
