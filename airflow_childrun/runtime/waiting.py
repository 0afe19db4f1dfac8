"""Waiting without holding a slot, and the durable waits of a handler."""

from __future__ import annotations

from collections.abc import Callable

from airflow_childrun.clock import Entropy
from airflow_childrun.errors import Abandoned
from airflow_childrun.model.events import WAIT_OPENED, DomainEvent
from airflow_childrun.runtime.house import House
from airflow_childrun.runtime.journal import RunJournal
from airflow_childrun.runtime.mail import Mailbox

LONGEST_LOOK_S = 60.0
"""How long to wait without looking at the clock: it may be set, and threads cannot wait for ever."""


class Hold:
    """The slot that a driven run holds, or does not hold while it waits."""

    def __init__(self, house: House) -> None:
        self._slots = house.slots
        self._house = house
        self._held = True
        self.mailbox: Mailbox | None = None

    def release(self) -> None:
        """Give the slot back, once."""
        if self._held:
            self._held = False
            self._slots.release()

    def take_again(self) -> None:
        """Take a slot to go on.

        :raises Abandoned: if the process gives up
        """
        if not self._held:
            self._slots.take_again()
            self._held = True

    def wait_until(self, until_us: int) -> None:
        """Wait, holding no slot, until the store's time has come.

        :raises Abandoned: if the process gives up
        :raises CancelInterrupt: if the run is asked to end meanwhile
        """
        if self._house.now_us() >= until_us:
            return
        self.release()
        self.wait_while(lambda: until_us > self._house.now_us(), lambda: (until_us - self._house.now_us()) / 1_000_000)
        self.take_again()

    def wait_while(
        self, condition: Callable[[], bool], longest_s: Callable[[], float] = lambda: LONGEST_LOOK_S
    ) -> None:
        """Wait, holding no slot, while a condition holds; the mailbox is looked into as soon as there is cause.

        :param condition: asked with the monitor held
        :raises Abandoned: if the process gives up
        :raises CancelInterrupt: if the run is asked to end meanwhile
        """
        while self._wait_once(condition, longest_s):
            if self.mailbox is not None:
                self.mailbox.check()

    def _wait_once(self, condition: Callable[[], bool], longest_s: Callable[[], float]) -> bool:
        """Wait until the condition is over (False) or the mailbox is due (True)."""
        with self._slots.monitor:
            while condition():
                if self._slots.is_closed:
                    raise Abandoned("this process gave the run up while it waited")
                if self.mailbox is not None and self.mailbox.is_due():
                    return True
                most_s = min(longest_s(), LONGEST_LOOK_S)
                self._slots.monitor.wait(most_s if self.mailbox is None else self.mailbox.wait_s(most_s))
            return False


class RunWaits:
    """The durable waits of one attempt."""

    def __init__(self, house: House, journal: RunJournal, hold: Hold) -> None:
        self._house = house
        self._journal = journal
        self._hold = hold

    def find(self, key: str) -> tuple[int, int] | None:
        """Return number and end of the last wait opened under a key, or None."""
        wait = self._journal.history.waits.get(key)
        return None if wait is None else (wait.number, wait.until)

    def pause(self, key: str, number: int, delay_us: int) -> None:
        """Open wait ``number`` under a key, and wait."""
        until = self._house.now_us() + delay_us
        payload = {"key": key, "try": number, "until": until}
        self._journal.append([DomainEvent(name=WAIT_OPENED, payload=payload)])
        self.resume(until)

    def resume(self, until_us: int) -> None:
        """Wait what is left."""
        self._hold.wait_until(until_us)
        self._journal.before_call()

    def jitter(self, delay_us: int, percent: int) -> int:
        """Return a delay of which ``percent`` is random."""
        return with_jitter(delay_us, percent, self._house.entropy)


def with_jitter(delay_us: int, percent: int, entropy: Entropy) -> int:
    """Return a delay whose last ``percent`` are random."""
    if percent == 0 or delay_us == 0:
        return delay_us
    share = int.from_bytes(entropy.random_bytes(4)) / 2**32
    return delay_us - int(delay_us * percent / 100 * share)
