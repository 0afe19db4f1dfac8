"""The only way in which the runtime blocks: real threads here, one baton passed by a seed in a simulation."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self


class Monitor(Protocol):
    """A lock with a condition: held by ``with``, given up while waiting."""

    def __enter__(self) -> Self:
        """Take the lock."""

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the lock back."""

    def wait(self, timeout_s: float | None = None) -> bool:
        """Give the lock up until someone notifies (True) or the time is over (False)."""

    def notify_all(self) -> None:
        """Wake everybody who waits."""


class Scheduler(Protocol):
    """Starts what runs side by side, and tells the time by which it waits."""

    def start(self, name: str, work: Callable[[], None]) -> None:
        """Run ``work`` beside the caller; it never keeps the process alive."""

    def monitor(self) -> Monitor:
        """Make a monitor."""

    def sleep(self, seconds: float) -> None:
        """Wait."""

    def now_s(self) -> float:
        """Return seconds of a clock that never goes back."""


class ThreadMonitor:
    """A monitor of real threads."""

    def __init__(self) -> None:
        self._condition = threading.Condition(threading.RLock())

    def __enter__(self) -> Self:
        """Take the lock."""
        self._condition.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the lock back."""
        self._condition.release()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Give the lock up until someone notifies (True) or the time is over (False)."""
        return self._condition.wait(timeout_s)

    def notify_all(self) -> None:
        """Wake everybody who waits."""
        self._condition.notify_all()


class ThreadScheduler:
    """Real threads, all daemons: a process that leaves abandons them."""

    def start(self, name: str, work: Callable[[], None]) -> None:
        """Run ``work`` in a new daemon thread."""
        # What log lines and traces say of the task holds for what its threads do.
        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(work,), name=name, daemon=True).start()

    def monitor(self) -> Monitor:
        """Make a monitor."""
        return ThreadMonitor()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)

    def now_s(self) -> float:
        """Return seconds of a clock that never goes back."""
        return time.monotonic()
