"""What a database must do for the store beside plain SQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from sqlalchemy import URL, ColumnElement, Connection, Engine, Insert, PoolProxiedConnection, Table
from sqlalchemy.exc import DBAPIError

from airflow_childrun.store.api import Commit
from airflow_childrun.store.sql.texts import Row, Texts, Writing

Fault = Literal["surprise", "unavailable", "schema", "other"]
"""What a database's error means: try the members one by one; not reachable; tables missing; anything else."""

Work = Sequence[tuple[Writing, list[Row]]]
"""What is written, each with its rows."""


class StoreDialect:
    """Base of the dialects; the statements that all share stand in ``statements.py``."""

    name: ClassVar[str]
    mark: ClassVar[str]
    """The driver's placeholder."""
    now_text: ClassVar[str]
    """The database's time in microseconds, as text."""
    lock_text: ClassVar[str] = ""
    """What makes a query of runs ``r`` lock them."""
    cursor_options: ClassVar[Mapping[str, Any]] = {}
    """Arguments of the driver's cursors for the hot statements."""
    ids_at_once: ClassVar[int] = 500
    """How many ids a query of :meth:`one_of` may name."""
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

    def one_of(self, ids: Sequence[bytes]) -> tuple[str, Row]:
        """Return the condition "is one of these ids", and its parameters."""
        return f"IN ({', '.join(self.mark for _ in ids)})", tuple(ids)

    def fetch(self, connection: PoolProxiedConnection, text: str, parameters: Row | dict[str, Any]) -> list[Row]:
        """Run a query past SQLAlchemy, whose result objects would cost several times what the query does."""
        cursor: Any = connection.cursor(**self.cursor_options)
        try:
            cursor.execute(text, parameters)
            rows: list[Row] = cursor.fetchall()
        finally:
            cursor.close()
        return rows

    def lock(self, connection: Connection, text: str, parameters: Row, *, binds: bool) -> list[Row]:  # noqa: ARG002
        """Run a query that locks what it returns; ``binds``: it is the first of its transaction, see :meth:`bound`."""
        return self.fetch(connection.connection, text, parameters)

    def make_alone(self, connection: PoolProxiedConnection, texts: Texts, commit: Commit) -> Row | None:
        """Make a commit happen that ``lone_commit`` takes; return time, hash of the last event and inbox number.

        None where the run does not stand where the commit expects it: nothing has happened then.
        """
        raise NotImplementedError

    def give_up(self, engine: Engine, connection: Connection | PoolProxiedConnection, error: BaseException) -> None:
        """Let a connection go that the driver itself reported as lost, or that nobody knows the state of."""
        if not isinstance(error, Exception):
            connection.invalidate()
        elif self.fault(error) == "unavailable":
            # SQLAlchemy would do so: what else the pool holds is as old.
            connection.invalidate()
            engine.dispose()

    def write_rows(self, connection: Connection, writing: Writing, rows: list[Row]) -> None:
        """Execute a statement for some rows."""
        raise NotImplementedError

    def write_and_commit(self, connection: Connection, work: Work) -> None:
        """Write everything in order and commit."""
        for writing, rows in work:
            self.write_rows(connection, writing, rows)
        self.commit(connection)

    def commit(self, connection: Connection) -> None:
        """Commit; a connection on which that fails is given up."""
        try:
            connection.commit()
        except BaseException:
            # SQLAlchemy takes the transaction for ended and would pool the connection with the transaction still open.
            connection.invalidate()
            raise

    def bound(self, connection: Connection) -> None:
        """Bound what a process that is paused in the transaction which begins now can keep from whoever takes over."""

    def take_time(self, connection: Connection) -> None:
        """Let the transaction that has begun last as long as it has to: a large deletion, a migration."""

    def join_trees(self, connection: Connection, roots: Sequence[bytes]) -> None:
        """Keep trees from being deleted until the transaction ends: what it adds to them locks no row of theirs.

        :param roots: ascending
        """

    def close_tree(self, connection: Connection, root: bytes) -> None:
        """Wait for everybody who joins a tree, and keep others out of it until the transaction ends."""

    def lock_migrations(self, connection: Connection) -> None:
        """Keep a second migration waiting until the transaction ends."""
