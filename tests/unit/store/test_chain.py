"""The hash chain: its bytes are a wire format."""

from __future__ import annotations

import hashlib
from typing import Any
from uuid import UUID

import pytest

from airflow_childrun.store.api import GENESIS_HASH
from airflow_childrun.store.chain import body_digest, event_hash

RUN = UUID("00000000-0000-4000-8000-000000000001")
FIRST = (RUN, 1, 1_700_000_000_000_000, GENESIS_HASH, body_digest(b"{}"))


def test_the_hash_covers_these_bytes_in_this_order() -> None:
    """Spelled out once by hand: domain, run id, seq and time as 8 bytes each, previous hash, body digest."""
    spelled = b"childrun/event/v1\x00" + RUN.bytes + (1).to_bytes(8, "big") + (1_700_000_000_000_000).to_bytes(8, "big")
    spelled += bytes(32) + hashlib.sha256(b"{}").digest()
    assert event_hash(*FIRST) == hashlib.sha256(spelled).hexdigest()


def test_the_first_hash_of_a_known_stream() -> None:
    """A golden value: if it changes, every stored history is worthless."""
    assert event_hash(*FIRST) == "4863635228fb203ef1d2963e1c97bd7c3459ac97cfac6d0acc099fe9410976e9"


@pytest.mark.parametrize("position", range(5))
def test_every_input_counts(position: int) -> None:
    """No field of an event can be changed without changing its hash."""
    others = (UUID(int=2), 2, 1, "1" * 64, body_digest(b"[]"))
    changed: Any = (*FIRST[:position], others[position], *FIRST[position + 1 :])
    assert event_hash(*changed) != event_hash(*FIRST)
