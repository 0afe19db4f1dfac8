"""One baton for many threads of many processes: a seed says who runs next, and time jumps when everybody waits.

The threads are greenlets: exactly one runs, and hands the baton on only where the runtime asks its Scheduler for
something, or the store. Whatever blocks in another way stops the whole simulation.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from types import TracebackType
from typing import Literal, Self

from greenlet import greenlet

State = Literal["ready", "locking", "waiting", "sleeping", "done"]
BEGIN_US = 1_700_000_000_000_000
STEP_LIMIT = 200_000
TIME_LIMIT_US = 7 * 86_400 * 1_000_000


class Died(BaseException):
    """The simulated process is dead: its threads end where they stand."""


class StuckError(AssertionError):
    """Everybody waits, and nothing will ever come."""


class Thread:
    """A simulated thread.

    :param wake_us: when it goes on by itself; None while only somebody else can wake it
    """

    def __init__(self, process: Process, name: str, work: Callable[[], None]) -> None:
        self.process = process
        self.name = name
        self.state: State = "ready"
        self.wake_us: int | None = None
        self.monitor: SimMonitor | None = None
        self.notified = False
        self.started = False
        self.light = greenlet(lambda: self._run(work), process.baton.hub)

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Died:
            pass
        except BaseException as raised:
            if not self.process.dead:
                self.process.baton.escaped.append((self, raised))
        self.state = "done"

    def can_go(self, now_us: int) -> bool:
        """Whether it would run if it were given the baton."""
        if self.process.paused_until_us > now_us:
            return False
        if self.state == "ready":
            return True
        if self.state == "sleeping":
            return self.wake_us is not None and self.wake_us <= now_us
        if self.monitor is None or self.monitor.owner is not None:
            return False
        return self.state == "locking" or self.notified or (self.wake_us is not None and self.wake_us <= now_us)

    @property
    def next_us(self) -> int | None:
        """When it may be able to go on, if nobody does anything."""
        if self.state in ("ready", "locking") or self.notified:
            return self.process.paused_until_us
        return None if self.wake_us is None else max(self.wake_us, self.process.paused_until_us)

    def __str__(self) -> str:
        return f"{self.process.name}/{self.name}"


class Process:
    """A simulated process: its threads live and die together."""

    def __init__(self, baton: Baton, name: str) -> None:
        self.baton = baton
        self.name = name
        self.dead = False
        self.paused_until_us = 0

    def check(self) -> None:
        """End the calling thread if its process is dead."""
        if self.dead:
            raise Died

    def die(self) -> None:
        """End here: nothing that this process still does counts. Raises in a thread of its own."""
        self.dead = True
        self.baton.note("dies")
        self.baton.mourning.append(self)
        if self.baton.current is not None and self.baton.current.process is self:
            raise Died


class Baton:
    """Who runs, and what time it is.

    :param preemption: how often the baton is handed on where it could be, 0 to 1
    """

    def __init__(self, random: Random, preemption: float) -> None:
        self.random = random
        self._preemption = preemption
        self.now_us = BEGIN_US
        self.steps = 0
        self.current: Thread | None = None
        self.threads: list[Thread] = []
        self.mourning: list[Process] = []
        self.escaped: list[tuple[Thread, BaseException]] = []
        self.log: list[tuple[int, str, str]] = []
        self.hub = greenlet.getcurrent()

    def note(self, what: str) -> None:
        """Write a line into the schedule's log."""
        self.log.append((self.now_us, str(self.current), what))

    def start(self, process: Process, name: str, work: Callable[[], None]) -> None:
        """Run work in a new thread of a process."""
        self.threads.append(Thread(process, name, work))

    def point(self, what: str = "") -> None:
        """Maybe hand the baton on."""
        me = self.me()
        me.process.check()
        if what:
            self.note(what)
        if self.random.random() < self._preemption:
            self.block("ready")

    def me(self) -> Thread:
        """Return the running thread."""
        if self.current is None:
            raise AssertionError("outside of every simulated thread")
        return self.current

    def block(self, state: State, monitor: SimMonitor | None = None, wake_us: int | None = None) -> None:
        """Hand the baton on until this thread can go again."""
        me = self.me()
        me.process.check()
        me.state, me.monitor, me.wake_us, me.notified = state, monitor, wake_us, False
        self.hub.switch()
        me.state, me.monitor, me.wake_us = "ready", None, None
        me.process.check()

    def sleep(self, seconds: float) -> None:
        """Wait on the virtual clock."""
        self.block("sleeping", None, self.now_us + max(0, round(seconds * 1_000_000)))

    def run(self, is_over: Callable[[], bool]) -> None:
        """Let the threads run, one at a time, until it is over.

        :raises StuckError: if everybody waits for ever, or nothing comes of all the steps
        """
        while True:
            self._bury()
            if is_over():
                return
            self.steps += 1
            ready = [thread for thread in self.threads if thread.can_go(self.now_us)]
            if not ready or self.random.random() < 0.01:
                self._jump(must=not ready)
            if ready:
                self.now_us += self.random.randrange(2_000)
                self._switch(self.random.choice(ready))
            if self.steps > STEP_LIMIT or self.now_us > BEGIN_US + TIME_LIMIT_US:
                raise StuckError(
                    f"no end after {self.steps} steps, {(self.now_us - BEGIN_US) // 1_000_000} s: {self._who()}"
                )

    def _switch(self, thread: Thread) -> None:
        self.current, thread.started = thread, True
        thread.light.switch()
        self.current = None
        if thread.state == "done":
            self.threads.remove(thread)

    def _jump(self, *, must: bool) -> None:
        """Let time pass until somebody's wait is over."""
        times = [at for thread in self.threads if (at := thread.next_us) is not None and at > self.now_us]
        if times:
            self.now_us = min(times)
        elif must:
            raise StuckError(f"everybody waits for ever: {self._who()}")

    def _bury(self) -> None:
        """Unwind the threads of dead processes: whatever they touch on their way out refuses them."""
        for process in self.mourning:
            for thread in [thread for thread in self.threads if thread.process is process]:
                self.threads.remove(thread)
                if thread.started:
                    self.current = thread
                    thread.light.throw(Died)
                    self.current = None
        self.mourning.clear()

    def _who(self) -> str:
        return ", ".join(f"{thread} {thread.state}" for thread in self.threads)


class SimMonitor:
    """A monitor whose waiters are woken by the baton."""

    def __init__(self, baton: Baton) -> None:
        self._baton = baton
        self.owner: Thread | None = None
        self._depth = 0

    def __enter__(self) -> Self:
        """Take the lock."""
        me = self._baton.me()
        if self.owner is not me:
            self._baton.point()
            if self.owner is not None:
                self._baton.block("locking", self)
            self.owner = me
        self._depth += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the lock back."""
        if self.owner is not self._baton.me():
            return
        self._depth -= 1
        if self._depth == 0:
            self.owner = None

    def wait(self, timeout_s: float | None = None) -> bool:
        """Give the lock up until someone notifies (True) or the time is over (False)."""
        baton, me, depth = self._baton, self._baton.me(), self._depth
        if self.owner is not me:
            raise AssertionError(f"{me} waits at a monitor that it does not hold")
        self.owner, self._depth = None, 0
        wake_us = None if timeout_s is None else baton.now_us + max(0, round(timeout_s * 1_000_000))
        baton.block("waiting", self, wake_us)
        self.owner, self._depth = me, depth
        return me.notified

    def notify_all(self) -> None:
        """Wake everybody who waits."""
        if self.owner is not self._baton.me() and not self._baton.me().process.dead:
            raise AssertionError(f"{self._baton.me()} notifies at a monitor that it does not hold")
        for thread in self._baton.threads:
            if thread.monitor is self and thread.state == "waiting":
                thread.notified = True


class SimScheduler:
    """The Scheduler port of one simulated process."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._baton = process.baton

    def start(self, name: str, work: Callable[[], None]) -> None:
        """Run ``work`` beside the caller."""
        self._process.check()
        self._baton.start(self._process, name, work)
        self._baton.point()

    def monitor(self) -> SimMonitor:
        """Make a monitor."""
        return SimMonitor(self._baton)

    def sleep(self, seconds: float) -> None:
        """Wait on the virtual clock."""
        self._baton.sleep(seconds)

    def now_s(self) -> float:
        """Return seconds of a clock that never goes back."""
        return (self._baton.now_us - BEGIN_US) / 1_000_000
