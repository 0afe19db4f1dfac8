"""Events to stored bytes and back: the one place that knows both."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from airflow_childrun.canonical import canonical_json_bytes, decode_stored
from airflow_childrun.ids import key_digest
from airflow_childrun.model.events import (
    FACT_FAILED,
    FACT_RECORDED,
    DomainEvent,
    Event,
    event_from_json,
    event_to_json,
)
from airflow_childrun.store.api import FactRow, NewEvent, StoredEvent

_FACTS = frozenset({FACT_RECORDED, FACT_FAILED})


def encode_event(event: Event) -> NewEvent:
    """Return the bytes of an event and, if it is a fact, its row in the index of facts."""
    return NewEvent(body=canonical_json_bytes(event_to_json(event)), fact=_fact_row(event))


def decode_event(stored: StoredEvent) -> Event:
    """Read an event back.

    :raises CorruptionError: code ``event_malformed``
    """
    return event_from_json(decode_stored(stored.body))


def decode_events(stored: Iterable[StoredEvent]) -> list[tuple[StoredEvent, Event]]:
    """Read many events back, each beside its envelope."""
    return [(row, decode_event(row)) for row in stored]


def request_digest(namespace: str, request: Any) -> str:
    """Return the digest that binds a fact to its request: SHA-256 hex of canonical ``[namespace, request]``.

    :raises CanonicalError: if the request is not canonical JSON
    """
    return hashlib.sha256(canonical_json_bytes([namespace, request])).hexdigest()


def _fact_row(event: Event) -> FactRow | None:
    if type(event) is not DomainEvent or event.name not in _FACTS:
        return None
    payload = event.payload
    if not isinstance(payload, dict) or not isinstance(key := payload.get("key"), str):
        return None
    failed = event.name == FACT_FAILED
    bound = payload if failed else payload.get("meta")
    digest = bound.get("request_digest") if isinstance(bound, dict) else None
    return FactRow(key_digest(key), payload.get("payload_id"), digest, failed)
