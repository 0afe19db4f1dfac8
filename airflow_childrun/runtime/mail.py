"""The mailbox of a driven run: notices requests to end, and its deadline, wherever the run comes up for air."""

from __future__ import annotations

from airflow_childrun.engine.inbox import EndRequest, standing_request
from airflow_childrun.errors import CancelInterrupt, DeadlineInterrupt
from airflow_childrun.model.events import DEADLINE_OVER
from airflow_childrun.runtime.house import House
from airflow_childrun.runtime.sessions import SessionGuard
from airflow_childrun.store.api import RunRow


class CancelRequested(CancelInterrupt):
    """Carries the request that ends a run."""

    def __init__(self, request: EndRequest) -> None:
        super().__init__(f"the run was asked to end: {request.reason}")
        self.request = request


class Mailbox:
    """What has come for one run, as its owner knows it.

    :param consumed: number of the last entry that an event of the run has dealt with
    """

    def __init__(self, house: House, row: RunRow) -> None:
        self._house = house
        self._run_id = row.run_id
        self._deadline_at = row.deadline_at
        self._known = row.head.inbox_seq
        self._is_unread = row.head.inbox_seq > 0
        self._request: EndRequest | None = None
        self._closed = False
        self._read_at_us = 0

    def note(self, inbox_seq: int) -> bool:
        """Learn how many entries there are; say whether that is news."""
        if inbox_seq <= self._known:
            return False
        self._known = inbox_seq
        self._is_unread = True
        return True

    def ring(self) -> None:
        """Look into the store at the next occasion."""
        self._is_unread = True

    def ignore(self) -> None:
        """Let nothing interrupt the run any more: it is ending."""
        self._closed = True

    @property
    def deadline_at(self) -> int | None:
        """When the run is out of time; None while it is ending, or has all the time in the world."""
        return None if self._closed else self._deadline_at

    @property
    def request(self) -> EndRequest | None:
        """The request that stood when the mailbox was last checked."""
        return self._request

    def is_due(self) -> bool:
        """Whether :meth:`check` would look into the store or raise; cheap, for threads that hold a lock."""
        if self._closed:
            return False
        has_time = self._request is not None or self._deadline_at is not None
        return self._is_unread or (has_time and self._is_over(self._now_us()))

    @property
    def known(self) -> int:
        """Number of the last entry that the owner knows of."""
        return self._known

    def due_at(self) -> int | None:
        """Return when the mailbox is due by itself: a deadline, the end of a grace; None = never."""
        times = [at for at in (self._deadline_at, self._request.effective_at if self._request else None) if at]
        return min(times) if times and not self._closed else None

    def wait_s(self, most_s: float) -> float:
        """Return how long a wait may last before the mailbox is due by itself."""
        due_at = self.due_at()
        return most_s if due_at is None else max(0.0, min(most_s, (due_at - self._house.now_us()) / 1_000_000))

    def check(self) -> None:
        """Raise if the run is to end now.

        :raises CancelRequested: if a request stands and its time has come
        :raises DeadlineInterrupt: if the run's deadline is over
        """
        if self._closed:
            return
        if self._is_unread:
            self._is_unread = False
            entries = self._house.patience.attempt(lambda: self._house.store.read_inbox(self._run_id))
            self._known = entries[-1].n if entries else self._known
            self._read_at_us = entries[-1].recorded_at if entries else 0
            self._request = standing_request(entries)
        if self._request is None and self._deadline_at is None:
            return
        now = self._now_us()
        if self._request is not None and self._request.effective_at <= now:
            raise CancelRequested(self._request)
        if self._is_over(now):
            raise DeadlineInterrupt(DEADLINE_OVER)

    def _now_us(self) -> int:
        """Return the store's time: no earlier than what was read was written, however late this process hears the time."""
        return max(self._house.now_us(), self._read_at_us)

    def _is_over(self, now: int) -> bool:
        if self._request is not None and self._request.effective_at <= now:
            return True
        return self._deadline_at is not None and self._deadline_at <= now


class RunGuard:
    """Says whether an owner may still act: its session lives, and nobody asked the run to end."""

    def __init__(self, session: SessionGuard, mailbox: Mailbox) -> None:
        self._session = session
        self._mailbox = mailbox

    def require_safe(self) -> None:
        """Raise LeaseLost, CancelRequested or DeadlineInterrupt if not."""
        self._session.require_safe()
        self._mailbox.check()
