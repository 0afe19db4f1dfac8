"""PostgreSQL through psycopg 3, directly or behind PgBouncer in transaction mode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
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
    cast,
    event,
    extract,
    func,
    select,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.pool import QueuePool

from airflow_childrun.store.api import Commit
from airflow_childrun.store.sql.dialects.arrays import packed, register
from airflow_childrun.store.sql.dialects.base import Fault, StoreDialect, Work
from airflow_childrun.store.sql.lone_commit import statement_of
from airflow_childrun.store.sql.texts import Row, Texts, Writing

CONNECT_TIMEOUT_S = 10
LONGEST_TRANSACTION_S = 30
"""After which the server breaks a transaction off: a process that is paused in one holds the rows of its runs."""
_WITH_TRANSACTION_TIMEOUT = 170000
_MIGRATION_LOCK = 0x6368696C6472756E  # "childrun"

_TREE_LOCKS = 0x63687472  # "chtr": the first half of the keys of locks on trees

_FAULTS: Mapping[str, Fault] = {
    "23505": "surprise",  # unique_violation
    "40001": "surprise",  # serialization_failure
    "40P01": "surprise",  # deadlock_detected
    "55P03": "surprise",  # lock_not_available
    "25P03": "unavailable",  # idle_in_transaction_session_timeout: this process was paused
    "25P04": "unavailable",  # transaction_timeout: the same
    "0A000": "unavailable",  # feature_not_supported: a prepared statement whose tables have changed since
    "26000": "unavailable",  # invalid_sql_statement_name: what was prepared is gone
    "25006": "unavailable",  # read_only_sql_transaction: a standby answered
    "3F000": "schema",  # invalid_schema_name
    "42P01": "schema",  # undefined_table
    "42703": "schema",  # undefined_column
}
_CURSOR = "childrun_cursor"
PREPARE_AFTER = 5
"""After how many executions a statement is prepared: to parse and plan a lone commit takes as long as to execute it."""
_ROWS = 1000
"""How many rows one statement writes: what is sent stands in memory several times."""
# Connection lost, not enough resources, the operator or a timeout intervened, the system failed.
_UNAVAILABLE_CLASSES = frozenset({"08", "53", "57", "58"})


class PostgresqlDialect(StoreDialect):
    """PostgreSQL; its time is the server's wall clock."""

    name: ClassVar[str] = "postgresql"
    mark: ClassVar[str] = "%s"
    now_text: ClassVar[str] = "CAST(EXTRACT(epoch FROM clock_timestamp()) * 1000000 AS BIGINT)"
    lock_text: ClassVar[str] = " FOR UPDATE OF r"
    # Bytes come as bytes, and not in hex.
    cursor_options: ClassVar[Mapping[str, Any]] = {"binary": True}
    # They are one parameter, however many: all that a triggerer waits for is one query.
    ids_at_once: ClassVar[int] = 10_000
    write_options: ClassVar[Mapping[str, Any]] = {"isolation_level": "READ COMMITTED"}

    def url(self, url: URL) -> URL:
        """Return the URL with psycopg as its driver."""
        return url.set(drivername="postgresql+psycopg") if url.drivername == "postgresql" else url

    def engine_options(self) -> dict[str, Any]:
        """Return arguments of ``create_engine``."""
        return {
            "poolclass": QueuePool,
            # A read is one statement, and so is a lone commit: no BEGIN and no COMMIT around it.
            "isolation_level": "AUTOCOMMIT",
            "connect_args": {"prepare_threshold": None, "connect_timeout": CONNECT_TIMEOUT_S},
        }

    def prepare(self, engine: Engine) -> None:
        """Teach every new connection what the arrays of a batch are, and whether it may prepare statements."""
        event.listen(engine, "connect", _on_connect)

    def bound(self, connection: Connection) -> None:
        """Begin a transaction that the server breaks off, in the round trip that the BEGIN costs anyway.

        It is said to each transaction and not to the session: behind a transaction pooler a setting of the session would
        stay with a server connection that others are given next, and be missing on the one that is given to us.
        """
        driver: Any = connection.connection.driver_connection
        with driver.pipeline():
            driver.execute(_limits(driver))

    def lock(self, connection: Connection, text: str, parameters: Row, *, binds: bool) -> list[Row]:
        """Lock rows; BEGIN, what binds the transaction, and the query are one round trip."""
        driver: Any = connection.connection.driver_connection
        with driver.pipeline():
            if binds:
                driver.execute(_limits(driver))
            cursor = driver.cursor(**self.cursor_options)
            cursor.execute(text, parameters)
        found: list[Row] = cursor.fetchall()
        return found

    def take_time(self, connection: Connection) -> None:
        """Let a transaction last as long as it has to."""
        connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
        driver: Any = connection.connection.driver_connection
        if driver.info.server_version >= _WITH_TRANSACTION_TIMEOUT:
            connection.exec_driver_sql("SET LOCAL transaction_timeout = 0")

    def now(self) -> ColumnElement[int]:
        """Return the expression of the database's time in microseconds."""
        return cast(extract("epoch", func.clock_timestamp()) * 1_000_000, BigInteger)

    def insert_new(self, table: Table) -> Insert:
        """Return an insert that leaves rows alone whose primary key exists."""
        return insert(table).on_conflict_do_nothing(index_elements=list(table.primary_key))

    def fault(self, error: Exception) -> Fault:
        """Say what an error means: by SQLSTATE; an operational error without one is a lost connection."""
        state = getattr(error, "sqlstate", None)
        if state is None:
            import psycopg  # only a store on PostgreSQL needs the driver

            return "unavailable" if isinstance(error, psycopg.OperationalError) else "other"
        known = _FAULTS.get(state)
        return known or ("unavailable" if state[:2] in _UNAVAILABLE_CLASSES else "other")

    def one_of(self, ids: Sequence[bytes]) -> tuple[str, Row]:
        """Return the condition "is one of these ids", the same text for any number of them."""
        return "= ANY(%s)", (packed("BYTEA", ids),)

    def make_alone(self, connection: PoolProxiedConnection, texts: Texts, commit: Commit) -> Row | None:
        """Make a lone commit happen as one statement."""
        text, parameters = statement_of(commit, texts)
        # One cursor for as long as the connection lives: a new one costs a tenth of what the driver does.
        cursor: Any = connection.info.get(_CURSOR)
        if cursor is None:
            cursor = connection.info[_CURSOR] = connection.cursor(**self.cursor_options)
        cursor.execute(text, parameters)
        row: Row | None = cursor.fetchone()
        return row

    def write_rows(self, connection: Connection, writing: Writing, rows: list[Row]) -> None:
        """Write many rows with one statement, a parameter for each column."""
        driver: Any = connection.connection.driver_connection
        if len(rows) == 1:
            driver.execute(_text(writing, is_single=True), rows[0])
            return
        for start in range(0, len(rows), _ROWS):
            columns = tuple(map(packed, writing.types, zip(*rows[start : start + _ROWS], strict=True)))
            driver.execute(_text(writing, is_single=False), columns)

    def write_and_commit(self, connection: Connection, work: Work) -> None:
        """Send everything and the COMMIT in one round trip."""
        import psycopg  # only a store on PostgreSQL needs the driver

        driver: Any = connection.connection.driver_connection
        with driver.pipeline() as pipeline:
            try:
                for writing, rows in work:
                    self.write_rows(connection, writing, rows)
                # The driver's own: SQLAlchemy's would take the transaction for ended if a queued statement failed.
                driver.commit()
            except BaseException as error:
                # An interrupt (Airflow's timeout) leaves a conversation of which nobody knows where it stands.
                if driver.closed or not isinstance(error, Exception):
                    connection.invalidate()
                else:
                    # What follows a failed statement is answered as aborted, and would hide the reason.
                    with suppress(psycopg.errors.PipelineAborted):
                        pipeline.sync()
                raise
        self.commit(connection)  # costs no round trip: the driver knows that there is nothing left to commit

    def join_trees(self, connection: Connection, roots: Sequence[bytes]) -> None:
        """Hold trees together with everybody else who joins them."""
        for root in roots:
            connection.execute(select(func.pg_advisory_xact_lock_shared(_TREE_LOCKS, _key(root))))

    def close_tree(self, connection: Connection, root: bytes) -> None:
        """Hold a tree alone."""
        connection.execute(select(func.pg_advisory_xact_lock(_TREE_LOCKS, _key(root))))

    def lock_migrations(self, connection: Connection) -> None:
        """Keep a second migration waiting until the transaction ends."""
        self.take_time(connection)
        connection.execute(select(func.pg_advisory_xact_lock(_MIGRATION_LOCK)))


def _limits(driver: Any) -> str:
    limits = [f"set_config('idle_in_transaction_session_timeout', '{LONGEST_TRANSACTION_S}s', true)"]
    if driver.info.server_version >= _WITH_TRANSACTION_TIMEOUT:
        # The other one does not count while the server waits in the middle of a pipeline.
        limits.append(f"set_config('transaction_timeout', '{LONGEST_TRANSACTION_S}s', true)")
    return f"SELECT {', '.join(limits)}"


@lru_cache(maxsize=64)
def _text(writing: Writing, *, is_single: bool) -> str:
    """Return a text whose length does not depend on the number of rows: the driver keeps what it has made of it."""
    columns = ", ".join(writing.columns)
    key, *moved = writing.columns
    if is_single:
        marks = ", ".join(f"CAST(%s AS {kind})" for kind in writing.types)
        rows = f"(VALUES ({marks}))"
    else:
        marks = ", ".join(f"CAST(%s AS {kind}[])" for kind in writing.types)
        rows = f"unnest({marks})"
    if writing.verb == "update":
        changes = ", ".join(f"{name} = v.{name}" for name in moved)
        return f"UPDATE {writing.table} r SET {changes} FROM {rows} v ({columns}) WHERE r.{key} = v.{key}"
    new = " ON CONFLICT DO NOTHING" if writing.verb == "insert_new" else ""
    return f"INSERT INTO {writing.table} ({columns}) SELECT * FROM {rows} v ({columns}){new}"


def _key(root: bytes) -> int:
    """Return the second half of a tree's key; two trees that share it wait for each other, and lose nothing."""
    return int.from_bytes(root[:4], signed=True)


def _on_connect(connection: Any, record: object) -> None:  # noqa: ARG001
    register(connection)
    # Named prepared statements belong to a server connection, which a transaction pooler changes: whoever gets the next
    # one would run what another client has prepared under the same name. A pooler shows by the server's process, which
    # is not the one that the connection was told.
    (pid,) = connection.execute("SELECT pg_backend_pid()").fetchone()
    if pid == connection.info.backend_pid:
        connection.prepare_threshold = PREPARE_AFTER
