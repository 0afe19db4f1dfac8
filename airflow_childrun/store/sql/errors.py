"""The one point where errors of databases become ours."""

from __future__ import annotations

from sqlalchemy.exc import DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from airflow_childrun.errors import ChildRunError, OtherStorageError, SchemaError, UnavailableError
from airflow_childrun.store.sql.dialects.base import Fault, StoreDialect

MIGRATE = "run `childrun migrate`"


class SurpriseError(Exception):
    """The database refused a transaction that may pass if it is tried again: somebody else was there.

    Never leaves the store: what is left of it after the second try becomes :class:`UnavailableError`.
    """


class translated:  # noqa: N801 - a context manager, written out since every statement passes it
    """Turn every error of SQLAlchemy and of the driver into one of ours.

    :param place: which database, without login and password
    :raises SurpriseError: if another try may pass
    :raises StorageError: for anything else
    """

    __slots__ = ("_dialect", "_place")

    def __init__(self, dialect: StoreDialect, place: str) -> None:
        self._dialect = dialect
        self._place = place

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Raise our error from the other one."""
        if isinstance(error, Exception):
            _raise_ours(error, self._dialect, self._place)


def _raise_ours(error: Exception, dialect: StoreDialect, place: str) -> None:
    if isinstance(error, ChildRunError):
        return
    if isinstance(error, PoolTimeoutError):
        raise UnavailableError(
            f"no free connection to {place}: every connection of this process has been in use for too long"
        ) from error
    if isinstance(error, NoSuchModuleError):
        raise OtherStorageError(f"{place} is no database that the store knows: use SQLite or PostgreSQL") from error
    if isinstance(error, SQLAlchemyError):
        raise _ours(error, fault_of(error, dialect), place) from error
    # The driver's own errors reach us where statements go past SQLAlchemy.
    if type(error).__module__.partition(".")[0] in {"psycopg", "sqlite3"}:
        raise _ours(error, dialect.fault(error), place) from error


def fault_of(error: Exception, dialect: StoreDialect) -> Fault:
    """Say what an error means, whoever raised it."""
    if not isinstance(error, DBAPIError):
        return "other"
    if error.connection_invalidated:
        return "unavailable"
    return dialect.fault(error.orig) if isinstance(error.orig, Exception) else "other"


def _ours(error: Exception, fault: Fault, place: str) -> Exception:
    what = code_of(error)
    if fault == "surprise":
        return SurpriseError(f"{place}: {what}")
    if fault == "unavailable":
        return UnavailableError(f"{place} cannot be reached or did not answer ({what}); is it up, is the login right?")
    if fault == "schema":
        return SchemaError(f"{place} lacks tables or columns of the store ({what}); {MIGRATE}")
    return OtherStorageError(f"{place} refused a statement ({what}); the cause below says why")


def code_of(error: Exception) -> str:
    """Name an error by class and code: its text may quote values."""
    origin = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    code = getattr(origin, "sqlstate", None) or getattr(origin, "sqlite_errorname", None)
    return f"{type(origin).__name__} {code}" if code else type(origin).__name__
