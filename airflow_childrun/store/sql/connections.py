"""A process's connections: one of them goes from one use past SQLAlchemy to the next without a visit to the pool.

A visit costs 40 microseconds, of the 1,200 that a step takes: the pool keeps books for each way out and in.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, PoolProxiedConnection

from airflow_childrun.clock import Clock

FRESH_S = 5.0
"""After how long a connection goes through the pool again, which looks how old it is."""


class Connections:
    """The connections of one process to one database, of which the pool allows so many.

    One is kept out of the pool between two uses, for as long as nobody waits for the pool. There is no lock: what threads
    share are two deques. Who wants something of the pool says so before it looks for what is kept, and who keeps a
    connection looks afterwards whether somebody wants it, so that one of both sees the other.
    """

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self.engine = engine
        self._clock = clock
        self._kept: deque[tuple[float, PoolProxiedConnection]] = deque()
        self._wanting: deque[None] = deque()

    def take(self) -> PoolProxiedConnection:
        """Return a connection of the driver; whoever takes one gives it to :meth:`keep`, or closes it.

        :raises SQLAlchemyError: if there is none
        """
        if self._kept and (spare := self._fresh()) is not None:
            return spare
        with self._want():
            return self._fresh() or self.engine.raw_connection()

    def keep(self, connection: PoolProxiedConnection) -> None:
        """Take back a connection in good order."""
        self._kept.append((self._clock.monotonic_s(), connection))
        if self._wanting or len(self._kept) > 1:
            self.drop()

    def connect(self) -> Connection:
        """Return a connection of SQLAlchemy's.

        :raises SQLAlchemyError: if there is none
        """
        with self._want():
            self.drop()
            return self.engine.connect()

    def drop(self) -> None:
        """Give what is kept back to the pool."""
        if (spare := self._taken()) is not None:
            spare[1].close()

    def close(self) -> None:
        """Close all that are not in use, and the others when they come back."""
        self._wanting.append(None)
        self.drop()
        self.engine.dispose()

    @contextmanager
    def _want(self) -> Iterator[None]:
        self._wanting.append(None)
        try:
            yield
        finally:
            self._wanting.pop()

    def _fresh(self) -> PoolProxiedConnection | None:
        """Take what is kept, unless the pool has to look at it."""
        if (spare := self._taken()) is None:
            return None
        kept_at_s, connection = spare
        if self._clock.monotonic_s() - kept_at_s < FRESH_S:
            return connection
        connection.close()
        return None

    def _taken(self) -> tuple[float, PoolProxiedConnection] | None:
        try:
            return self._kept.pop()
        except IndexError:
            return None
