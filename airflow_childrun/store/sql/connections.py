"""A process's connections: one of them goes from one use past SQLAlchemy to the next without a visit to the pool.

A visit costs 40 microseconds, of the 1,200 that a step takes: the pool keeps books for each way out and in.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sqlalchemy import Connection, Engine, PoolProxiedConnection

from airflow_childrun.clock import Clock

FRESH_S = 5.0
"""For how long a connection stays out of the pool, which looks how old it is, and what was closed meanwhile."""

_LEFT = "childrun_left"


class Connections:
    """The connections of one process to one database, as many as the engine's pool has places.

    One is kept out of the pool between two uses, for as long as nobody waits for the pool. There is no lock: what threads
    share are two deques. Who wants something of the pool says so before it looks for what is kept, and who keeps a
    connection looks afterwards whether somebody wants it, so that at least one of the two sees the other.
    """

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self.engine = engine
        self._clock = clock
        self._kept: deque[PoolProxiedConnection] = deque()
        self._wanting: deque[object] = deque()

    def take(self) -> PoolProxiedConnection:
        """Return a connection of the driver; whoever takes one gives it to :meth:`keep`, or closes it.

        :raises SQLAlchemyError: if there is none
        """
        if self._kept and (kept := self._usable()) is not None:
            return kept
        with self._want():
            return self._usable() or self._of_the_pool()

    def keep(self, connection: PoolProxiedConnection) -> None:
        """Take back a connection in good order."""
        _, pool = connection.info[_LEFT]
        if pool is not self.engine.pool:
            # The engine was disposed of meanwhile: this one has no place in the pool that followed.
            connection.invalidate()
            return
        try:
            self._kept.append(connection)
        finally:  # Airflow's timeout may come in between
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
        if (kept := self._taken()) is not None:
            kept.close()

    def close(self) -> None:
        """Close all that are not in use, and what :meth:`keep` takes back when it does."""
        self.drop()
        self.engine.dispose()

    @contextmanager
    def _want(self) -> Iterator[None]:
        """Have nobody keep a connection while the pool is asked for one."""
        mark = object()
        try:
            self._wanting.append(mark)
            yield
        finally:
            with suppress(ValueError):  # torn away before it stood there
                self._wanting.remove(mark)

    def _of_the_pool(self) -> PoolProxiedConnection:
        pool = self.engine.pool
        connection = self.engine.raw_connection()
        connection.info[_LEFT] = self._clock.monotonic_s(), pool
        return connection

    def _usable(self) -> PoolProxiedConnection | None:
        """Take what is kept; what has been out of the pool for long goes back to it instead."""
        if (kept := self._taken()) is None:
            return None
        left_at_s, _ = kept.info[_LEFT]
        if self._clock.monotonic_s() - left_at_s < FRESH_S:
            return kept
        kept.close()
        return None

    def _taken(self) -> PoolProxiedConnection | None:
        try:
            return self._kept.pop()
        except IndexError:
            return None
