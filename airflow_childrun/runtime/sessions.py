"""The session of a process: one row and one renewal, however many runs it drives."""

from __future__ import annotations

from uuid import UUID

from airflow_childrun.clock import Clock, Entropy
from airflow_childrun.errors import LeaseLost, StorageError
from airflow_childrun.runtime.scheduler import Scheduler
from airflow_childrun.store.api import Owner, Session, Store


class SessionKeeper:
    """Opens the session when it is first needed and renews it from a thread of its own.

    A session that could not be renewed in time is over; the next run that is taken over opens another.

    :param ttl_s: how long the session lives after a renewal
    """

    def __init__(
        self, store: Store, scheduler: Scheduler, entropy: Entropy, owner: Owner, ttl_s: float, clock: Clock
    ) -> None:
        self._store = store
        self._scheduler = scheduler
        self._entropy = entropy
        self.owner = owner
        self._ttl_s = ttl_s
        self._clock = clock
        self._monitor = scheduler.monitor()
        self._session_id: UUID | None = None
        self._safe_until_s = 0.0
        self._known: tuple[int, float] | None = None

    def session_id(self) -> UUID:
        """Return the session, opened if need be.

        :raises StorageError: if it cannot be opened
        """
        with self._monitor:
            return self._open() if self._session_id is None else self._session_id

    def owns(self, session_id: UUID | None) -> bool:
        """Whether a session is the one of this process."""
        return session_id is not None and session_id == self._session_id

    @property
    def is_safe(self) -> bool:
        """Whether the session surely lives, or a new one would be opened."""
        return self._session_id is None or self._scheduler.now_s() < self._safe_until_s

    def require_safe(self, session_id: UUID) -> None:
        """Raise LeaseLost once this process cannot be sure any more that the leases of a session hold.

        The session is renewed no more: the run that is left now would else be owned by somebody who does not drive it.
        """
        if not self.owns(session_id) or not self.is_safe:
            self.abandon(session_id)
            raise LeaseLost("this process could not renew its session in time; another one may drive the run now")

    def store_now_us(self) -> int:
        """Return the store's time as this process knows it; the local time while it has not asked yet.

        Counted on from the last answer by a clock that never jumps: a wall clock that is set must neither end a sleep
        nor a run that has a deadline.
        """
        if self._known is None:
            return self._clock.now_us()
        store_us, at_s = self._known
        return store_us + round((self._clock.monotonic_s() - at_s) * 1_000_000)

    def close(self) -> None:
        """End the session: its leases are free."""
        with self._monitor:
            session_id, self._session_id = self._session_id, None
            self._monitor.notify_all()
        if session_id is not None:
            self._store.close_session(session_id)

    def abandon(self, session_id: UUID | None) -> None:
        """Let a session run out; the next run that is taken over opens another."""
        with self._monitor:
            if self._session_id == session_id:
                self._session_id = None
                self._monitor.notify_all()

    def _open(self) -> UUID:
        before = self._scheduler.now_s()
        session_id = self._entropy.new_id()
        self._learn(self._store.open_session(session_id, self.owner, self._ttl_us), before)
        self._session_id = session_id
        self._scheduler.start("childrun-session", lambda: self._keep(session_id))
        return session_id

    def _keep(self, session_id: UUID) -> None:
        """Renew three times in a lifetime, sooner after a failure, until the session is closed or over."""
        pause_s = self._ttl_s / 3
        while True:
            with self._monitor:
                self._monitor.wait(pause_s)
                if self._session_id != session_id:
                    return
            before = self._scheduler.now_s()
            try:
                renewed = self._store.renew_session(session_id, self._ttl_us)
            except StorageError:
                # Two failures in a row at the normal pace would cost every lease of this process.
                pause_s = self._ttl_s / 15
                continue
            pause_s = self._ttl_s / 3
            with self._monitor:
                if self._session_id != session_id:
                    return
                if renewed is None:
                    self._session_id = None
                    return
                self._learn(renewed, before)

    def _learn(self, session: Session, before_s: float) -> None:
        """Remember until when the session is safe, and what the store's clock shows."""
        self._safe_until_s = before_s + self._ttl_s * SAFE_PART
        self._known = (session.now, self._clock.monotonic_s())

    @property
    def _ttl_us(self) -> int:
        return int(self._ttl_s * 1_000_000)


class SessionGuard:
    """Says whether a process may still act for a run that it took in a session."""

    def __init__(self, keeper: SessionKeeper, session_id: UUID) -> None:
        self._keeper = keeper
        self._session_id = session_id

    def require_safe(self) -> None:
        """Raise LeaseLost if it may not."""
        self._keeper.require_safe(self._session_id)


SAFE_PART = 0.8
"""Which part of a session's life counts as safe: the rest is for calls that take long and clocks that drift."""
