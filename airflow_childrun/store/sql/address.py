"""Where a SQL store lives: a URL built from fields or read from text, never printed with its password."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from airflow_childrun.errors import HostError, SchemaError

Address = URL

_DRIVERS = {"postgresql": {"psycopg": "psycopg"}, "sqlite": {"pysqlite": "sqlite3"}}
_EXTRAS = {"psycopg": "postgres"}
_SECRET_WORDS = ("password", "passwd", "secret", "token")


def build_address(
    *,
    dialect: str,
    driver: str | None = None,
    host: str | None = None,
    port: int | None = None,
    database: str | None = None,
    login: str | None = None,
    password: str | None = None,
    query: Mapping[str, str] | None = None,
) -> Address:
    """Return the URL of a store.

    :param database: its name; for SQLite the absolute path of a file
    :raises HostError: code ``dialect_unknown``, ``driver_unknown`` or ``connection_invalid``
    """
    dialect = "postgresql" if dialect == "postgres" else dialect
    if dialect not in _DRIVERS:
        raise HostError(
            f"a store of dialect {dialect!r} is not supported; known are {_listing(_DRIVERS)}", code="dialect_unknown"
        )
    drivers = _DRIVERS[dialect]
    driver = driver or next(iter(drivers))
    if driver not in drivers:
        raise HostError(
            f"the driver {driver!r} is not supported for {dialect}; known are {_listing(drivers)}",
            code="driver_unknown",
        )
    if not database:
        raise HostError(
            "the database is missing (field 'schema' of the connection: the database's name; for SQLite the file's path)",
            code="connection_invalid",
        )
    _require_absolute(dialect, database)
    _refuse_secrets(query or {})
    return URL.create(
        f"{dialect}+{driver}",
        username=login or None,
        password=password or None,
        host=host or None,
        port=port or None,
        database=database,
        query=dict(query or {}),
    )


def _require_absolute(dialect: str, database: str) -> None:
    if dialect == "sqlite" and not Path(database).is_absolute():
        raise HostError(
            f"the path of the SQLite file must be absolute, not {database!r}: every process must mean the same file",
            code="connection_invalid",
        )


def _refuse_secrets(query: Mapping[str, str]) -> None:
    for name in query:
        if any(word in name.lower() for word in _SECRET_WORDS):
            raise HostError(
                f"{name!r} does not belong into 'query', which is shown in clear: use the login and password fields",
                code="connection_invalid",
            )


def parse_address(text: str) -> Address:
    """Read the URL of a store, such as ``postgresql://user:password@host/database`` or ``sqlite:////var/lib/childrun.db``.

    :raises HostError: see :func:`build_address`; the text is never repeated
    """
    try:
        url = make_url(text.strip())
    except (ArgumentError, ValueError):
        raise HostError(
            "the store's URL cannot be read: it has the form dialect://login:password@host:port/database",
            code="connection_invalid",
        ) from None
    dialect, _, driver = url.drivername.partition("+")
    return build_address(
        dialect=dialect,
        driver=driver or None,
        host=url.host,
        port=url.port,
        database=url.database,
        login=url.username,
        password=str(url.password) if url.password else None,
        query={name: value if isinstance(value, str) else value[-1] for name, value in url.query.items()},
    )


def require_driver(address: Address) -> None:
    """Check that the driver is installed.

    :raises HostError: code ``driver_missing``, naming what to install
    """
    driver = address.get_driver_name()
    module = _DRIVERS[address.get_backend_name()][driver]
    if find_spec(module) is None:
        raise HostError(
            f"the driver {driver!r} is not installed here: pip install 'airflow-childrun[{_EXTRAS.get(driver, driver)}]'",
            code="driver_missing",
        )


def require_file(address: Address) -> None:
    """Check that a SQLite store's file is here: connecting would make an empty one.

    :raises SchemaError: naming the command
    """
    if address.get_backend_name() == "sqlite" and not Path(str(address.database)).is_file():
        raise SchemaError(
            f"there is no file {address.database!r} on this machine: `childrun migrate` makes it. A SQLite store serves"
            " one machine; for several take PostgreSQL"
        )


def describe_address(address: Address) -> str:
    """Return the address for people: without password and options."""
    if address.get_backend_name() == "sqlite":
        return f"sqlite {address.database}"
    login = f"{address.username}@" if address.username else ""
    port = f":{address.port}" if address.port else ""
    return f"{address.get_backend_name()} {login}{address.host or 'local socket'}{port}/{address.database}"


def _listing(names: Mapping[str, object]) -> str:
    return ", ".join(repr(name) for name in names)
