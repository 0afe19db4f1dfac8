"""Clocks that tests turn by hand."""

from __future__ import annotations


class ManualClock:
    """A clock that stands still until it is told to move.

    :param now_us: where it starts, in microseconds since 1970-01-01 UTC
    """

    def __init__(self, now_us: int = 1_700_000_000_000_000) -> None:
        self._now_us = now_us
        self._monotonic_us = 0

    def now_us(self) -> int:
        """Return where the clock stands."""
        return self._now_us

    def monotonic_s(self) -> float:
        """Return seconds since the clock was made, as it was told."""
        return self._monotonic_us / 1_000_000

    def advance(self, us: int) -> None:
        """Move both clocks forward by ``us`` microseconds."""
        self._now_us += us
        self._monotonic_us += us
