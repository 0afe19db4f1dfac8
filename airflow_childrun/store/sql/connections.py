"""A process's connections: one of them goes from one use past SQLAlchemy to the next without a visit to the pool.

A visit costs 40 microseconds, of the 1,200 that a step takes: the pool keeps books for each way out and in.
"""

from __future__ import annotations

from threading import Lock

from sqlalchemy import Connection, Engine, PoolProxiedConnection

from airflow_childrun.clock import Clock

FRESH_S = 5.0
"""After how long a connection goes through the pool again, which looks how old it is."""


class Connections:
    """The connections of one process to one database, of which the pool allows so many.

    One is kept out of the pool between two uses, for as long as nobody waits for the pool.
    """

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self.engine = engine
        self._clock = clock
        self._lock = Lock()
        self._wanted = 0
        self._spare: PoolProxiedConnection | None = None
        self._kept_at_s = 0.0

    def take(self) -> PoolProxiedConnection:
        """Return a connection of the driver; whoever takes one gives it to :meth:`keep`, or closes it.

        :raises SQLAlchemyError: if there is none
        """
        spare = self._taken()
        if spare is not None:
            if self._clock.monotonic_s() - self._kept_at_s < FRESH_S:
                return spare
            spare.close()
        with self._lock:
            self._wanted += 1
        try:
            return self.engine.raw_connection()
        finally:
            with self._lock:
                self._wanted -= 1

    def keep(self, connection: PoolProxiedConnection) -> None:
        """Take back a connection in good order."""
        with self._lock:
            # Who waits for the pool would wait for one that is kept out of it.
            if not self._wanted and self._spare is None:
                self._spare, self._kept_at_s = connection, self._clock.monotonic_s()
                return
        connection.close()

    def connect(self) -> Connection:
        """Return a connection of SQLAlchemy's.

        :raises SQLAlchemyError: if there is none
        """
        with self._lock:
            self._wanted += 1
        try:
            self.drop()
            return self.engine.connect()
        finally:
            with self._lock:
                self._wanted -= 1

    def drop(self) -> None:
        """Give the one that is kept back to the pool."""
        spare = self._taken()
        if spare is not None:
            spare.close()

    def close(self) -> None:
        """Close all that are not in use, and the others when they come back."""
        with self._lock:
            self._wanted += 1
        self.drop()
        self.engine.dispose()

    def _taken(self) -> PoolProxiedConnection | None:
        with self._lock:
            spare, self._spare = self._spare, None
            return spare
