"""One thread at a time, and a clock that jumps: the runtime's Scheduler port for tests that wait for nothing.

Every thread of the runtime is a real one, but only the one that holds the baton runs. It hands the baton back where the
runtime asks its Scheduler to wait or to sleep; when everybody waits, the clock jumps to the next wake. So tests are
repeatable, an ``io.sleep`` of a day takes no time, and a process that dies is simply never given the baton again: nothing
of it unwinds, no ``finally`` runs, as after a SIGKILL.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Literal, Self

from airflow_childrun.testing.clock import ManualClock

State = Literal["ready", "locking", "waiting", "sleeping", "done"]


class StuckError(AssertionError):
    """A handler does not come back, or everybody waits for ever."""


class Baton:
    """Who runs, and what time it is: shared by all processes of a test.

    :param patience_s: real seconds after which a handler that does not come back fails the test
    """

    def __init__(self, clock: ManualClock, patience_s: float = 60.0) -> None:
        self.clock = clock
        self.patience_s = patience_s
        self.threads: list[VirtualThread] = []
        self.back = threading.Semaphore(0)
        self._local = threading.local()

    def start(self, process: VirtualScheduler, name: str, work: Callable[[], None]) -> VirtualThread:
        """Make a thread that runs ``work`` once it is given the baton."""
        thread = VirtualThread(self, process, name)
        self.threads.append(thread)
        context = contextvars.copy_context()
        threading.Thread(target=lambda: context.run(self._run, thread, work), name=name, daemon=True).start()
        return thread

    def _run(self, thread: VirtualThread, work: Callable[[], None]) -> None:
        self._local.thread = thread
        thread.go.acquire()
        try:
            work()
        except BaseException as raised:  # noqa: BLE001 - told to whoever runs the baton
            thread.raised = raised
        thread.state = "done"
        self.back.release()

    def me(self) -> VirtualThread:
        """Return the calling thread.

        :raises StuckError: if it is none of the runtime's
        """
        thread: VirtualThread | None = getattr(self._local, "thread", None)
        if thread is None:
            raise StuckError("the runtime was used in a thread that is none of its own")
        return thread

    def run(self, is_over: Callable[[], bool]) -> None:
        """Let the threads of living processes run, one at a time and in turn, until it is over.

        :raises StuckError: if that never comes
        """
        ends_at = time.monotonic() + self.patience_s
        while not is_over():
            if time.monotonic() > ends_at:
                raise StuckError(f"no end after {self.patience_s:g} s; somebody waits for what never comes")
            now_us = self.clock.now_us()
            thread = next((each for each in self.threads if each.can_go(now_us)), None)
            if thread is None:
                self._jump(now_us)
                continue
            # Whoever ran goes to the end of the line.
            self.threads.remove(thread)
            self.threads.append(thread)
            thread.go.release()
            if not self.back.acquire(timeout=self.patience_s):
                raise StuckError(
                    f"{thread.name} has not come back for {self.patience_s:g} s: it waits for something that does not "
                    "happen, such as a lock that was held when its process died; or give the fixture more patience_s"
                )
            if thread.state == "done":
                self.threads.remove(thread)

    def _jump(self, now_us: int) -> None:
        times = [each.wake_us for each in self.threads if each.wake_us is not None and not each.process.is_dead]
        if not times:
            raise StuckError("everybody waits for ever")
        self.clock.advance(max(0, min(times) - now_us))


class VirtualThread:
    """A thread that runs while it holds the baton.

    :param wake_us: when it goes on by itself; None while only somebody else can wake it
    """

    def __init__(self, baton: Baton, process: VirtualScheduler, name: str) -> None:
        self._baton = baton
        self.process = process
        self.name = name
        self.state: State = "ready"
        self.wake_us: int | None = None
        self.monitor: VirtualMonitor | None = None
        self.notified = False
        self.raised: BaseException | None = None
        self.go = threading.Semaphore(0)

    def can_go(self, now_us: int) -> bool:
        """Whether it would run if it were given the baton."""
        if self.process.is_dead:
            return False
        if self.state == "ready":
            return True
        is_due = self.wake_us is not None and self.wake_us <= now_us
        if self.state == "sleeping":
            return is_due
        if self.monitor is None or self.monitor.owner is not None:
            return False
        return self.state == "locking" or self.notified or is_due

    def block(self, state: State, monitor: VirtualMonitor | None = None, wait_s: float | None = None) -> None:
        """Hand the baton back until this thread can go again: never, if its process has died."""
        now_us = self._baton.clock.now_us()
        self.wake_us = None if wait_s is None else now_us + max(0, round(wait_s * 1_000_000))
        self.state, self.monitor, self.notified = state, monitor, False
        self._baton.back.release()
        self.go.acquire()
        self.state, self.monitor, self.wake_us = "ready", None, None


class VirtualMonitor:
    """A monitor whose waiters are woken by the baton."""

    def __init__(self, baton: Baton) -> None:
        self._baton = baton
        self._depth = 0
        self.owner: VirtualThread | None = None

    def __enter__(self) -> Self:
        """Take the lock."""
        me = self._baton.me()
        if self.owner is not me:
            self._take(me)
        self._depth += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the lock back."""
        self._depth -= 1
        if self._depth == 0:
            self.owner = None

    def wait(self, timeout_s: float | None = None) -> bool:
        """Give the lock up until someone notifies (True) or the time is over (False)."""
        me, depth = self._baton.me(), self._depth
        self.owner, self._depth = None, 0
        me.block("waiting", self, timeout_s)
        was_notified = me.notified
        self._take(me)
        self._depth = depth
        return was_notified

    def _take(self, me: VirtualThread) -> None:
        while self.owner is not None:
            me.block("locking", self)
        self.owner = me

    def notify_all(self) -> None:
        """Wake everybody who waits."""
        for thread in self._baton.threads:
            if thread.monitor is self and thread.state == "waiting":
                thread.notified = True


class VirtualScheduler:
    """The Scheduler port of one process of a test."""

    def __init__(self, baton: Baton) -> None:
        self._baton = baton
        self.is_dead = False

    def start(self, name: str, work: Callable[[], None]) -> None:
        """Run ``work`` beside the caller."""
        self._baton.start(self, name, work)

    def monitor(self) -> VirtualMonitor:
        """Make a monitor."""
        return VirtualMonitor(self._baton)

    def sleep(self, seconds: float) -> None:
        """Wait on the virtual clock."""
        self._baton.me().block("sleeping", None, seconds)

    def now_s(self) -> float:
        """Return seconds of a clock that never goes back."""
        return self._baton.clock.monotonic_s()

    def die(self) -> None:
        """End the process here and now: called in one of its threads, it never returns."""
        self.is_dead = True
        self._baton.me().block("ready")

    def run(self, name: str, work: Callable[[], None]) -> None:
        """Run ``work`` as the main thread of this process, until it has ended or the process has died.

        :raises StuckError: if neither ever happens
        """
        thread = self._baton.start(self, name, work)
        self._baton.run(lambda: self.is_dead or thread.state == "done")
        if thread.raised is not None:
            raise thread.raised
