"""What a database must do for the store beside plain SQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from sqlalchemy import URL, ColumnElement, Connection, Engine, Executable, Insert, Table
from sqlalchemy.exc import DBAPIError

Fault = Literal["surprise", "unavailable", "schema", "other"]
"""What a database's error means: try the members one by one; not reachable; tables missing; anything else."""

Work = Sequence[tuple[Executable, list[dict[str, Any]]]]
"""Statements, each with the parameters of the rows that it is executed for."""


class StoreDialect:
    """Base of the dialects; the statements that all share stand in ``statements.py``."""

    name: ClassVar[str]
    read_options: ClassVar[Mapping[str, Any]] = {}
    """Execution options of a connection that reads with single statements."""
    write_options: ClassVar[Mapping[str, Any]] = {}
    """Execution options of a connection that runs a transaction."""

    def url(self, url: URL) -> URL:
        """Return the URL with the driver that the store is tested with, if it names none."""
        return url

    def engine_options(self) -> dict[str, Any]:
        """Return arguments of ``create_engine``."""
        raise NotImplementedError

    def prepare(self, engine: Engine) -> None:
        """Register what every new connection needs."""

    def now(self) -> ColumnElement[int]:
        """Return the expression of the database's time in microseconds."""
        raise NotImplementedError

    def insert_new(self, table: Table) -> Insert:
        """Return an insert that leaves rows alone whose primary key exists."""
        raise NotImplementedError

    def fault(self, error: DBAPIError | Exception) -> Fault:
        """Say what an error means; by its codes, never by its text."""
        raise NotImplementedError

    def write_and_commit(self, connection: Connection, work: Work) -> None:
        """Execute the statements in order and commit."""
        for statement, rows in work:
            connection.execute(statement, rows)
        self.commit(connection)

    def commit(self, connection: Connection) -> None:
        """Commit; a connection on which that fails is given up."""
        try:
            connection.commit()
        except BaseException:
            # SQLAlchemy takes the transaction for ended and would pool the connection with the transaction still open.
            connection.invalidate()
            raise

    def lock_migrations(self, connection: Connection) -> None:
        """Keep a second migration waiting until the transaction ends."""
