"""PostgreSQL through psycopg 3, directly or behind PgBouncer in transaction mode."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, ClassVar

from sqlalchemy import URL, BigInteger, ColumnElement, Connection, Insert, Table, cast, extract, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.pool import QueuePool

from airflow_childrun.store.sql.dialects.base import Fault, StoreDialect, Work

CONNECT_TIMEOUT_S = 10
_MIGRATION_LOCK = 0x6368696C6472756E  # "childrun"

_FAULTS: Mapping[str, Fault] = {
    "23505": "surprise",  # unique_violation
    "40001": "surprise",  # serialization_failure
    "40P01": "surprise",  # deadlock_detected
    "55P03": "surprise",  # lock_not_available
    "25006": "unavailable",  # read_only_sql_transaction: a standby answered
    "3F000": "schema",  # invalid_schema_name
    "42P01": "schema",  # undefined_table
    "42703": "schema",  # undefined_column
}
# Connection lost, not enough resources, the operator or a timeout intervened, the system failed.
_UNAVAILABLE_CLASSES = frozenset({"08", "53", "57", "58"})


class PostgresqlDialect(StoreDialect):
    """PostgreSQL; its time is the server's wall clock."""

    name: ClassVar[str] = "postgresql"
    # A read is one statement: no BEGIN and no COMMIT around it.
    read_options: ClassVar[Mapping[str, Any]] = {"isolation_level": "AUTOCOMMIT"}

    def url(self, url: URL) -> URL:
        """Return the URL with psycopg as its driver."""
        return url.set(drivername="postgresql+psycopg") if url.drivername == "postgresql" else url

    def engine_options(self) -> dict[str, Any]:
        """Return arguments of ``create_engine``."""
        return {
            "poolclass": QueuePool,
            "isolation_level": "READ COMMITTED",
            # Named prepared statements belong to a server connection, which a transaction pooler changes.
            "connect_args": {"prepare_threshold": None, "connect_timeout": CONNECT_TIMEOUT_S},
        }

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

    def write_and_commit(self, connection: Connection, work: Work) -> None:
        """Send all statements and the COMMIT in one round trip."""
        import psycopg  # only a store on PostgreSQL needs the driver

        driver: Any = connection.connection.driver_connection
        with driver.pipeline() as pipeline:
            try:
                for statement, rows in work:
                    connection.execute(statement, rows)
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

    def lock_migrations(self, connection: Connection) -> None:
        """Keep a second migration waiting until the transaction ends."""
        connection.execute(select(func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
