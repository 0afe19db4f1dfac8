"""SQLite: one file, one writer at a time, durable at every commit."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any, ClassVar

from sqlalchemy import (
    URL,
    BigInteger,
    ColumnElement,
    Connection,
    Engine,
    Insert,
    PoolProxiedConnection,
    Table,
    event,
    func,
)
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.pool import QueuePool

from airflow_childrun.clock import Clock
from airflow_childrun.errors import InputError
from airflow_childrun.store.api import Commit
from airflow_childrun.store.sql.dialects.base import Fault, StoreDialect
from airflow_childrun.store.sql.lone_sqlite import make_on_sqlite, text_of
from airflow_childrun.store.sql.texts import Row, Texts, Writing

BUSY_TIMEOUT_S = 10.0
_WRITES = "childrun_writes"
_NOW = "childrun_now_us"

_FAULTS: Mapping[int, Fault] = {
    sqlite3.SQLITE_BUSY: "surprise",
    sqlite3.SQLITE_LOCKED: "surprise",
    sqlite3.SQLITE_CONSTRAINT: "surprise",
    sqlite3.SQLITE_CANTOPEN: "unavailable",
    sqlite3.SQLITE_IOERR: "unavailable",
    sqlite3.SQLITE_FULL: "unavailable",
    sqlite3.SQLITE_READONLY: "unavailable",
    sqlite3.SQLITE_PERM: "unavailable",
    sqlite3.SQLITE_PROTOCOL: "unavailable",
}


class SqliteDialect(StoreDialect):
    """SQLite through the standard library.

    Its time is the machine's clock: whoever shares the file shares the machine. SQLite's own functions stop at
    milliseconds.
    """

    name: ClassVar[str] = "sqlite"
    mark: ClassVar[str] = "?"
    now_text: ClassVar[str] = f"{_NOW}()"
    write_options: ClassVar[Mapping[str, Any]] = {_WRITES: True}

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.busy_timeout_s = BUSY_TIMEOUT_S

    def url(self, url: URL) -> URL:
        """Refuse a database that would vanish with its connection."""
        if not url.database or url.database == ":memory:" or url.query.get("mode") == "memory":
            raise InputError("a SQLite store needs a file: give sqlite:////absolute/path.db (tests: MemoryStore)")
        return url.set(drivername="sqlite+pysqlite")

    def engine_options(self) -> dict[str, Any]:
        """Return arguments of ``create_engine``."""
        return {
            "poolclass": QueuePool,
            "connect_args": {"check_same_thread": False, "timeout": self.busy_timeout_s},
        }

    def prepare(self, engine: Engine) -> None:
        """Set journal and durability on connect, and take the write lock where a transaction begins."""
        event.listen(engine, "connect", self._on_connect)
        event.listen(engine, "begin", _on_begin)

    def now(self) -> ColumnElement[int]:
        """Return the expression of the database's time in microseconds."""
        return func.childrun_now_us(type_=BigInteger)

    def insert_new(self, table: Table) -> Insert:
        """Return an insert that leaves rows alone whose primary key exists."""
        return insert(table).on_conflict_do_nothing(index_elements=list(table.primary_key))

    def make_alone(self, connection: PoolProxiedConnection, texts: Texts, commit: Commit) -> Row | None:
        """Make a lone commit happen, statement by statement."""
        driver: Any = connection.driver_connection
        return make_on_sqlite(driver, texts, commit)

    def write_rows(self, connection: Connection, writing: Writing, rows: list[Row]) -> None:
        """Execute a statement for each row: the driver prepares it once."""
        connection.exec_driver_sql(text_of(writing), rows if len(rows) > 1 else rows[0])

    def fault(self, error: Exception) -> Fault:
        """Say what an error means: SQLite's extended codes hold the primary one in their lowest byte."""
        code = getattr(error, "sqlite_errorcode", None)
        # A missing table is a plain SQLITE_ERROR; the caller looks whether the tables are there.
        return "other" if code is None else _FAULTS.get(code & 0xFF, "other")

    def lock_migrations(self, connection: Connection) -> None:
        """Do nothing: the transaction holds the file's write lock already."""

    def _on_connect(self, connection: sqlite3.Connection, record: object) -> None:  # noqa: ARG002
        # The driver shall begin no transactions by itself: it would begin them without the write lock.
        connection.isolation_level = None
        connection.create_function(_NOW, 0, self._clock.now_us)
        connection.execute("PRAGMA synchronous=FULL").close()
        try:
            connection.execute("PRAGMA journal_mode=WAL").close()
        except sqlite3.OperationalError as error:
            # The mode stays in the file. While somebody else writes for the first time, SQLite refuses without waiting;
            # this connection then works in whatever mode the file has.
            if self.fault(error) != "surprise":
                raise


def _on_begin(connection: Connection) -> None:
    if connection.get_execution_options().get(_WRITES):
        connection.exec_driver_sql("BEGIN IMMEDIATE")
