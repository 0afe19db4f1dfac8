"""The only way in which the runtime blocks: real threads here, one baton passed by a seed in a simulation."""

from __future__ import annotations

import contextvars
import os
import threading
import time
from collections import deque
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


IDLE_S = 5.0
"""After how long a thread ends for which there is nothing to do."""

Job = tuple[str, contextvars.Context, Callable[[], None]]
"""A name for the log, what holds around the work, and the work."""


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


_idle: deque[_Worker] = deque()
# A forked child has none of its parent's threads.
os.register_at_fork(after_in_child=_idle.clear)


class _Worker:
    """A thread that does one job after the other: to start one costs a tenth of what a small child does."""

    def __init__(self, job: Job) -> None:
        self._job: Job | None = job
        self._called = threading.Lock()
        threading.Thread(target=self._work, daemon=True).start()

    def take(self, job: Job) -> None:
        """Give the thread, which is idle and known to nobody else, a job."""
        self._job = job
        self._called.release()

    def _work(self) -> None:
        self._called.acquire()
        while self._job is not None:
            self._do(*self._job)
            self._job = None
            _idle.append(self)
            if not self._called.acquire(timeout=IDLE_S):
                try:
                    _idle.remove(self)
                except ValueError:  # somebody has it by now
                    self._called.acquire()

    def _do(self, name: str, context: contextvars.Context, work: Callable[[], None]) -> None:
        threading.current_thread().name = name
        context.run(work)


class ThreadScheduler:
    """Real threads, all daemons: a process that leaves abandons them."""

    def start(self, name: str, work: Callable[[], None]) -> None:
        """Run ``work`` in a daemon thread: an idle one of this process, or a new one."""
        # What log lines and traces say of the task holds for what its threads do.
        job = name, contextvars.copy_context(), work
        try:
            worker = _idle.pop()
        except IndexError:
            _Worker(job)
        else:
            worker.take(job)

    def monitor(self) -> Monitor:
        """Make a monitor."""
        return ThreadMonitor()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)

    def now_s(self) -> float:
        """Return seconds of a clock that never goes back."""
        return time.monotonic()
