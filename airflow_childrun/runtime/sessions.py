"""The session of a process: one row and one renewal, however many runs it drives."""

from __future__ import annotations

from uuid import UUID

from airflow_childrun.clock import Entropy
from airflow_childrun.errors import LeaseLost, StorageError
from airflow_childrun.runtime.scheduler import Scheduler
from airflow_childrun.store.api import Owner, Store


class SessionKeeper:
    """Opens the session when it is first needed and renews it from a thread of its own.

    :param ttl_s: how long the session lives after a renewal
    """

    def __init__(self, store: Store, scheduler: Scheduler, entropy: Entropy, owner: Owner, ttl_s: float) -> None:
        self._store = store
        self._scheduler = scheduler
        self._entropy = entropy
        self.owner = owner
        self._ttl_s = ttl_s
        self._monitor = scheduler.monitor()
        self._session_id: UUID | None = None
        self._safe_until_s = 0.0
        self._closed = False
        self._offset_us = 0

    def session_id(self) -> UUID:
        """Return the session, opened if need be.

        :raises StorageError: if it cannot be opened
        """
        with self._monitor:
            if self._session_id is None:
                self._open()
            return self._session_id or self._entropy.new_id()

    def require_safe(self) -> None:
        """Raise LeaseLost once this process cannot be sure any more that its leases hold."""
        if self._session_id is not None and self._scheduler.now_s() >= self._safe_until_s:
            raise LeaseLost("this process could not renew its session in time; another one may drive the run now")

    def store_now_us(self, local_us: int) -> int:
        """Return the store's time for a local wall-clock time."""
        return local_us + self._offset_us

    def close(self) -> None:
        """End the session: its leases are free."""
        with self._monitor:
            session_id, self._session_id, self._closed = self._session_id, None, True
            self._monitor.notify_all()
        if session_id is not None:
            self._store.close_session(session_id)

    def _open(self) -> None:
        before = self._scheduler.now_s()
        session_id = self._entropy.new_id()
        self._store.open_session(session_id, self.owner, self._ttl_us)
        self._session_id = session_id
        self._safe_until_s = before + self._ttl_s * SAFE_PART
        self._closed = False
        self._scheduler.start("childrun-session", self._keep)

    def _keep(self) -> None:
        """Renew three times in a lifetime, until the session is closed or over."""
        while True:
            with self._monitor:
                self._monitor.wait(self._ttl_s / 3)
                session_id = self._session_id
                if self._closed or session_id is None:
                    return
            before = self._scheduler.now_s()
            try:
                renewed = self._store.renew_session(session_id, self._ttl_us)
            except StorageError:
                continue
            if renewed is None:
                self._safe_until_s = 0.0
                return
            self._safe_until_s = before + self._ttl_s * SAFE_PART

    @property
    def _ttl_us(self) -> int:
        return int(self._ttl_s * 1_000_000)


SAFE_PART = 0.8
"""Which part of a session's life counts as safe: the rest is for calls that take long and clocks that drift."""
