"""Waiting without holding a slot, and the durable waits of a handler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from airflow_childrun.clock import Entropy
from airflow_childrun.engine.ports import Watch
from airflow_childrun.errors import Abandoned
from airflow_childrun.model.events import WAIT_OPENED, DomainEvent
from airflow_childrun.runtime.house import House
from airflow_childrun.runtime.journal import Pen
from airflow_childrun.runtime.mail import Mailbox

NEVER = 2**63 - 1
"""The end of a wait that others end."""
AT_ONCE = 0
"""The end of a wait that is over in a moment, or in which the thread looks itself."""
LONGEST_LOOK_S = 60.0
"""How long to wait without looking at the clock: it may be set, and threads cannot wait for ever."""


@dataclass(frozen=True, slots=True)
class Stay:
    """What a thread waits for.

    :param until_us: when the wait ends by itself; NEVER if others end it
    :param watch: what others may look at to see that it is over
    """

    until_us: int
    watch: Watch | None = None


FOR_OTHERS = Stay(NEVER)
"""A wait that others end."""


class Hold:
    """The slot that a driven run holds, or does not hold while it waits."""

    def __init__(self, house: House, *, held: bool = True) -> None:
        self._slots = house.slots
        self._house = house
        self._held = held
        self._is_dead = False
        self.mailbox: Mailbox | None = None
        self._resting: tuple[Callable[[], bool], Stay] | None = None
        self._lent: tuple[Hold, int] | None = None
        self.has_left: Callable[[], bool] = lambda: False
        """Whether handlers that were abandoned are still at work."""

    def stay(self) -> Stay | None:
        """Return what the run's thread waits for; None if it is at work.

        To be asked with the slots' monitor held: the thread does nothing before that is let go.
        """
        if self.has_left():
            return None
        if self._lent is not None:
            lent, until_us = self._lent
            stay = lent.stay()
            return None if stay is None else Stay(min(stay.until_us, until_us), stay.watch)
        if self._resting is None:
            return None
        condition, stay = self._resting
        # What it waited for may have come a moment ago: then it is about to go on.
        return stay if condition() else None

    def lend(self, until_us: int) -> Hold:
        """Return a hold on the same slot for a handler that is abandoned at a time of the store's; see :meth:`regain`."""
        lent = Hold(self._house, held=self._held)
        lent.mailbox = self.mailbox
        self._lent = lent, until_us
        return lent

    def regain(self, lent: Hold) -> None:
        """Take the slot back as it is, held or not; who waits with the lent hold, or tries to, is told that it is over."""
        with self._slots.monitor:
            lent._is_dead = True
            self._lent = None
            self._held = lent._held
            self._slots.monitor.notify_all()

    def release(self) -> None:
        """Give the slot back, once."""
        if not self._held:
            return
        with self._slots.monitor:
            if self._is_dead or not self._held:
                return
            self._held = False
            begin = self._slots.give_back()
        begin()

    def take_again(self) -> None:
        """Take a slot to go on.

        :raises Abandoned: if the process gives up, or the attempt that waited was abandoned
        """
        if self._held:
            return
        self._slots.take_again()
        with self._slots.monitor:
            if not self._is_dead:
                self._held = True
                return
        self._slots.release()
        raise _abandoned()

    def wait_until(self, until_us: int, watch: Watch | None = None) -> None:
        """Wait, holding no slot, until the store's time has come.

        :param watch: what others may look at in this thread's place: then it is not waited for
        :raises Abandoned: if the process gives up
        :raises CancelInterrupt: if the run is asked to end meanwhile
        """
        if self._house.now_us() >= until_us:
            return
        self.release()
        stay = Stay(until_us) if watch is None else Stay(NEVER, watch)
        self.wait_while(
            lambda: until_us > self._house.now_us(), lambda: (until_us - self._house.now_us()) / 1_000_000, stay
        )
        self.take_again()

    def wait_while(
        self,
        condition: Callable[[], bool],
        longest_s: Callable[[], float] = lambda: LONGEST_LOOK_S,
        stay: Stay = FOR_OTHERS,
    ) -> None:
        """Wait, holding no slot, while a condition holds; the mailbox is looked into as soon as there is cause.

        :param condition: asked with the monitor held
        :param stay: what the wait is for
        :raises Abandoned: if the process gives up
        :raises CancelInterrupt: if the run is asked to end meanwhile
        """
        while self._wait_once(condition, longest_s, stay):
            if self.mailbox is not None:
                self.mailbox.check()

    def _wait_once(self, condition: Callable[[], bool], longest_s: Callable[[], float], stay: Stay) -> bool:
        """Wait until the condition is over (False) or the mailbox is due (True)."""
        with self._slots.monitor:
            while condition():
                if self._slots.is_closed:
                    raise Abandoned("this process gave the run up while it waited")
                if self._is_dead:
                    raise _abandoned()
                if self.mailbox is not None and self.mailbox.is_due():
                    return True
                most_s = min(longest_s(), LONGEST_LOOK_S)
                self._resting = condition, stay
                self._slots.pause(most_s if self.mailbox is None else self.mailbox.wait_s(most_s), condition)
                self._resting = None
            return False


class RunWaits:
    """The durable waits of one attempt."""

    def __init__(self, house: House, journal: Pen, hold: Hold) -> None:
        self._house = house
        self._journal = journal
        self._hold = hold

    def open(self, key: str, delay_us: int) -> int:
        """Open a wait under a key, unless there is one, and return its end without waiting."""
        opened = self.find(key)
        return self._open(key, 1, delay_us) if opened is None else opened[1]

    def find(self, key: str) -> tuple[int, int] | None:
        """Return number and end of the last wait opened under a key, or None."""
        wait = self._journal.history.waits.get(key)
        return None if wait is None else (wait.number, wait.until)

    def pause(self, key: str, number: int, delay_us: int, watch: Watch | None = None) -> None:
        """Open wait ``number`` under a key, and wait."""
        self.resume(self._open(key, number, delay_us), watch)

    def _open(self, key: str, number: int, delay_us: int) -> int:
        until = self._house.now_us() + delay_us
        self._journal.append([wait_event(key, number, until)])
        return until

    def resume(self, until_us: int, watch: Watch | None = None) -> None:
        """Wait what is left."""
        self._hold.wait_until(until_us, watch)
        self._journal.before_call()

    def jitter(self, delay_us: int, percent: int) -> int:
        """Return a delay of which ``percent`` is random."""
        return with_jitter(delay_us, percent, self._house.entropy)


def wait_event(key: str, number: int, until_us: int) -> DomainEvent:
    """Return the event that opens a wait."""
    return DomainEvent(name=WAIT_OPENED, payload={"key": key, "try": number, "until": until_us})


def _abandoned() -> Abandoned:
    return Abandoned("this attempt ran out of time")


def with_jitter(delay_us: int, percent: int, entropy: Entropy) -> int:
    """Return a delay whose last ``percent`` are random."""
    if percent == 0 or delay_us == 0:
        return delay_us
    share = int.from_bytes(entropy.random_bytes(4)) / 2**32
    return delay_us - int(delay_us * percent / 100 * share)
