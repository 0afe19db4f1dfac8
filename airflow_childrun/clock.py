"""Time and randomness: the only place that asks the machine for either."""

from __future__ import annotations

import os
import time
import uuid
from typing import Protocol


class Clock(Protocol):
    """Where time comes from."""

    def now_us(self) -> int:
        """Return the wall clock as integer microseconds since 1970-01-01 UTC."""

    def monotonic_s(self) -> float:
        """Return seconds of a clock that never goes back."""


class Entropy(Protocol):
    """Where randomness comes from."""

    def random_bytes(self, size: int) -> bytes:
        """Return ``size`` random bytes."""

    def new_id(self) -> uuid.UUID:
        """Return a new random id (UUIDv4)."""


class SystemClock:
    """The machine's clock."""

    def now_us(self) -> int:
        """Return the wall clock as integer microseconds since 1970-01-01 UTC."""
        return time.time_ns() // 1000

    def monotonic_s(self) -> float:
        """Return seconds of a clock that never goes back."""
        return time.monotonic()


class SystemEntropy:
    """The machine's randomness."""

    def random_bytes(self, size: int) -> bytes:
        """Return ``size`` random bytes."""
        return os.urandom(size)

    def new_id(self) -> uuid.UUID:
        """Return a new random id (UUIDv4)."""
        return uuid.uuid4()
