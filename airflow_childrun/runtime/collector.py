"""Python's cyclic garbage collector, kept from looking while much is built that stays.

Each time that enough new objects live it goes over all that the process has, Airflow with it: in vain, while a long history
is read, and for a third of the time that this takes.
"""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _Pauses:
    """How many threads have asked for a pause; the first one begins it, the last one ends it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._ends = False

    def begin(self) -> None:
        """Switch the collector off, unless somebody has."""
        with self._lock:
            self._count += 1
            if self._count == 1:
                self._ends = gc.isenabled()
                gc.disable()

    def end(self) -> None:
        """Switch the collector on again, if it was on and nobody else needs the pause."""
        with self._lock:
            self._count -= 1
            if self._count == 0 and self._ends:
                gc.enable()

    def forget(self) -> None:
        """Begin anew in a forked process: the threads that asked are not in it."""
        if self._count and self._ends:
            gc.enable()
        self._lock, self._count = threading.Lock(), 0


_PAUSES = _Pauses()
os.register_at_fork(after_in_child=_PAUSES.forget)


@contextmanager
def collector_paused(is_needed: bool = True) -> Iterator[None]:
    """Run a block that builds much without the garbage collector; where somebody had switched it off, it stays off.

    What is no longer referenced is freed as ever: only cycles wait, in the whole process, until the block is left. So no
    block waits for a database.
    """
    if not is_needed:
        yield
        return
    _PAUSES.begin()
    try:
        yield
    finally:
        _PAUSES.end()
