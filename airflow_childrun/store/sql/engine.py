"""Connections: made lazily, at most two per process, never shared with a forked child."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Engine, PoolProxiedConnection, create_engine, make_url
from sqlalchemy.exc import ArgumentError

from airflow_childrun.clock import Clock
from airflow_childrun.errors import InputError, UnavailableError
from airflow_childrun.store.sql.connections import Connections
from airflow_childrun.store.sql.dialects.base import StoreDialect
from airflow_childrun.store.sql.dialects.postgresql import PostgresqlDialect
from airflow_childrun.store.sql.dialects.sqlite import SqliteDialect
from airflow_childrun.store.sql.errors import SurpriseError, translated
from airflow_childrun.store.sql.schema import Tables
from airflow_childrun.store.sql.texts import Row, Texts

POOL_SIZE = 2
POOL_TIMEOUT_S = 30.0
# Below the idle timeouts that firewalls and poolers are commonly set to.
POOL_RECYCLE_S = 1800

T = TypeVar("T")


def dialect_of(url: URL, clock: Clock) -> StoreDialect:
    """Return the dialect that speaks to ``url``.

    :raises InputError: if the store has none for it
    """
    name = url.get_backend_name()
    if name == SqliteDialect.name:
        return SqliteDialect(clock)
    if name == PostgresqlDialect.name:
        return PostgresqlDialect()
    raise InputError(f"the store has no dialect for {name!r}: use postgresql+psycopg:// or sqlite:///")


def place_of(url: URL) -> str:
    """Name a database without login, password and options."""
    host = f"{url.host or ''}{f':{url.port}' if url.port else ''}"
    return f"{url.get_backend_name()}://{host}/{url.database or ''}"


class Database:
    """One database as the store uses it.

    :param url: SQLAlchemy URL
    :param clock: SQLite's time; also tells how long a connection has been out of the pool
    :raises InputError: if the URL is none, or of a database that the store has no dialect for
    """

    def __init__(self, url: str | URL, clock: Clock) -> None:
        try:
            parsed = make_url(url)
        except ArgumentError:
            # The URL itself may hold a password: it is not repeated.
            raise InputError("the store's address is no SQLAlchemy URL: give dialect+driver://host/database") from None
        self._clock = clock
        self.dialect = dialect_of(parsed, clock)
        self.url = self.dialect.url(parsed)
        self.place = place_of(self.url)
        self._connections: dict[int, Connections] = {}

    def texts(self, tables: Tables) -> Texts:
        """Return the hot statements on some tables."""
        return Texts(tables, self.url.get_dialect()(), self.dialect.mark, self.dialect.now_text)

    def engine(self) -> Engine:
        """Return this process's engine, after giving what is kept out of its pool back to it."""
        connections = self._here()
        connections.drop()
        return connections.engine

    def close(self) -> None:
        """Close this process's connections; the next use opens new ones."""
        connections = self._connections.pop(os.getpid(), None)
        if connections is not None:
            connections.close()

    def read(self, work: Callable[[Connection], T]) -> T:
        """Run single statements that only read; once more on a new connection if the first one turns out stale.

        :raises StorageError: translated from what the database said
        """
        return twice(lambda: self._run(work), self.place)

    def query(self, text: str, parameters: Row) -> list[Row]:
        """Run one of the hot queries, past SQLAlchemy; once more on a new connection if the first one turns out stale.

        :raises StorageError: translated from what the database said
        """
        return twice(lambda: self.past(lambda connection: self.dialect.fetch(connection, text, parameters)), self.place)

    def past(self, work: Callable[[PoolProxiedConnection], T]) -> T:
        """Run something once on a connection of the driver, which begins no transactions by itself.

        :raises SurpriseError: if somebody was in the way
        :raises StorageError: translated from what the database said
        """
        with translated(self.dialect, self.place):
            connections = self._here()
            connection = connections.take()
            try:
                result = work(connection)
            except BaseException as error:
                connections.drop()
                self.dialect.give_up(connections.engine, connection, error)
                connection.close()
                raise
            connections.keep(connection)
            return result

    def write(self, work: Callable[[Connection], T]) -> T:
        """Run an idempotent transaction and commit; once more if the connection was stale or somebody was in the way.

        :raises StorageError: translated from what the database said
        """
        return twice(lambda: self.transaction(work), self.place)

    def transaction(self, work: Callable[[Connection], T], *, is_bound: bool = True) -> T:
        """Run a transaction once; ``work`` may commit by itself.

        :param is_bound: how long it may last is said before ``work``, which otherwise says it with its first statement
        :raises SurpriseError: if somebody was in the way
        :raises StorageError: translated from what the database said
        """
        return self._run(lambda connection: self._committed(connection, work, is_bound=is_bound))

    def _run(self, work: Callable[[Connection], T]) -> T:
        with translated(self.dialect, self.place), self._here().connect() as connection:
            try:
                return work(connection)
            except BaseException as error:
                # SQLAlchemy knows of its own errors, and of none that came past it.
                self.dialect.give_up(connection.engine, connection, error)
                raise

    def _committed(self, connection: Connection, work: Callable[[Connection], T], *, is_bound: bool) -> T:
        connection.execution_options(**self.dialect.write_options).begin()
        if is_bound:
            self.dialect.bound(connection)
        result = work(connection)
        if connection.in_transaction():
            self.dialect.commit(connection)
        return result

    def _here(self) -> Connections:
        """Return this process's connections; a forked child never touches those of its parent."""
        pid = os.getpid()
        connections = self._connections.get(pid)
        if connections is None:
            # Two threads may both make them: setdefault lets one of them win, the other never connects.
            connections = self._connections.setdefault(pid, Connections(self._new_engine(), self._clock))
        return connections

    def _new_engine(self) -> Engine:
        options: dict[str, Any] = {"pool_size": POOL_SIZE, "max_overflow": 0, "pool_timeout": POOL_TIMEOUT_S}
        # Whoever begins a transaction ends it: nothing is left to be rolled back, which would cost a call each time.
        options |= {"pool_recycle": POOL_RECYCLE_S, "pool_reset_on_return": None}
        with translated(self.dialect, self.place):
            engine = create_engine(self.url, **options, **self.dialect.engine_options())
        self.dialect.prepare(engine)
        return engine


def twice(attempt: Callable[[], T], place: str) -> T:
    """Run something idempotent; once more if the connection was stale or somebody was in the way.

    :raises UnavailableError: if the second try fares no better
    """
    try:
        return attempt()
    except (SurpriseError, UnavailableError):
        return settled(attempt, place)


def settled(attempt: Callable[[], T], place: str) -> T:
    """Run a last try.

    :raises UnavailableError: code ``store_busy``, if somebody was in the way again
    """
    try:
        return attempt()
    except SurpriseError as error:
        raise UnavailableError(
            f"{place} is too busy: others were in the way twice ({error}); try again", code="store_busy"
        ) from error
