"""Slots: how many runs of a process work at once. Who waits holds none, so no cap can deadlock."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from uuid import UUID

from airflow_childrun.errors import Abandoned
from airflow_childrun.runtime.scheduler import Scheduler

Condition = Callable[[], bool] | None
"""Whether a wait goes on; asked with the monitor held."""


class Slots:
    """Hands slots out: to threads that come back from a wait first, then to runs in the order in which they came."""

    def __init__(self, scheduler: Scheduler, limit: int) -> None:
        self.monitor = scheduler.monitor()
        self._limit = limit
        self._free = limit
        self._queue: OrderedDict[UUID, Callable[[], None]] = OrderedDict()
        self._listeners: list[Condition] = []
        self._returning = 0
        self._closed = False
        self._frozen = False

    def submit(self, run_id: UUID, begin: Callable[[], None]) -> None:
        """Queue a run; ``begin`` is called with a slot taken for it."""
        with self.monitor:
            self._queue[run_id] = begin
            may_begin = self._may_begin_one()
        if may_begin:
            self.dispatch()

    def promote(self, run_id: UUID) -> None:
        """Put a queued run in front: somebody waits for it."""
        with self.monitor:
            if run_id in self._queue:
                self._queue.move_to_end(run_id, last=False)

    def release(self) -> None:
        """Give a slot back."""
        with self.monitor:
            begin = self.give_back()
        begin()

    def give_back(self) -> Callable[[], None]:
        """Give a slot back with the monitor held; what is returned begins whoever is next, and is called without it."""
        self._free += 1
        if self._returning:
            self.monitor.notify_all()
        else:
            self.tell()
        if not self._may_begin_one():
            return _nobody
        if self._free - self._returning > 1:
            return self.dispatch
        self._free -= 1
        return self._queue.popitem(last=False)[1]

    def take_again(self) -> None:
        """Take a slot to go on after a wait.

        :raises Abandoned: if the process gives up
        """
        with self.monitor:
            self._returning += 1
            try:
                while self._free <= 0:
                    self._check_open()
                    self.monitor.wait()
                self._check_open()
                self._free -= 1
            finally:
                self._returning -= 1

    def close(self) -> None:
        """Start nothing any more, and let nobody wait."""
        with self.monitor:
            self._closed = True
            self._queue.clear()
            self.monitor.notify_all()

    def tell(self) -> None:
        """Wake those who wait, with the monitor held, unless each of them would only go on to wait.

        To wake a thread for nothing costs more than to ask for it, and a thousand children end while their parent waits.
        """
        if any(goes_on is None or not goes_on() for goes_on in self._listeners):
            self.monitor.notify_all()

    def listen(self, timeout_s: float | None, goes_on: Condition = None) -> None:
        """Wait for news with the monitor held, or until the time is over.

        :param goes_on: whether the caller would wait on, whatever :meth:`tell` tells of; None: it wants all news
        """
        self._listeners.append(goes_on)
        try:
            self.monitor.wait(timeout_s)
        finally:
            self._listeners.remove(goes_on)

    def pause(self, timeout_s: float, goes_on: Condition = None) -> None:
        """As :meth:`listen`, for a thread of a run that holds no slot; for ever once everything is frozen."""
        self.listen(timeout_s, goes_on)
        while self._frozen:
            self.monitor.wait()

    def freeze(self) -> None:
        """Let nobody who waits go on, ever: the process is about to leave."""
        with self.monitor:
            self._frozen = True

    @property
    def is_idle(self) -> bool:
        """Whether nobody holds a slot, is about to take one, or stands in the queue."""
        return self._free == self._limit and not self._returning and not self._queue

    @property
    def is_closed(self) -> bool:
        """Whether the process gave up."""
        return self._closed

    def dispatch(self) -> None:
        """Begin queued runs while slots are free that nobody waits for."""
        more = True
        while more:
            with self.monitor:
                if not self._may_begin_one():
                    return
                self._free -= 1
                _, begin = self._queue.popitem(last=False)
                more = self._may_begin_one()
            begin()

    def _may_begin_one(self) -> bool:
        return bool(self._queue) and not self._closed and self._free > self._returning

    def _check_open(self) -> None:
        if self._closed:
            raise Abandoned("this process gave the run up")


def _nobody() -> None:
    """Begin nothing."""
