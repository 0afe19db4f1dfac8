"""A store in, or beside, Airflow's metadata database: where exactly it lies there."""

from __future__ import annotations

from pathlib import Path

from airflow_childrun.errors import HostError
from airflow_childrun.store.sql import migrate
from airflow_childrun.store.sql.address import Address, build_address, parse_address, require_driver
from airflow_childrun.store.sql.provision import ensure_schema

SCHEMA = "childrun"
_LIBPQ_OPTIONS = (
    "host",
    "port",
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "connect_timeout",
    "target_session_attrs",
)
"""Options of Airflow's URL that another driver on the same libpq understands, and that name no login."""


def shared_address(url: str) -> tuple[Address, str | None]:
    """Return Airflow's own database with Airflow's own login, and the schema of our tables there.

    :param url: of the metadata database, password included
    :raises HostError: code ``init_needs_url`` for a database that cannot hold a store
    """
    dialect, _, rest = url.partition("://")
    name = dialect.partition("+")[0]
    if name == "sqlite":
        return parse_address(f"sqlite://{rest}"), None
    if name not in {"postgresql", "postgres"}:
        raise HostError(
            f"Airflow's metadata database is {name}, which cannot hold a store: give one with `childrun init --url URL`",
            code="init_needs_url",
        )
    # The driver is ours to choose; Airflow's is psycopg2 more often than not, whose own options must stay behind.
    bare, _, query = f"postgresql://{rest}".partition("?")
    kept = "&".join(part for part in query.split("&") if part.partition("=")[0] in _LIBPQ_OPTIONS)
    return parse_address(f"{bare}?{kept}" if kept else bare), SCHEMA


def beside(address: Address) -> Address:
    """Return the SQLite file beside that of Airflow."""
    return build_address(dialect="sqlite", database=str(Path(str(address.database)).with_name("childrun.db")))


def migrate_tables(url: str) -> None:
    """Make or migrate our tables in the metadata database, with Airflow's own login.

    :raises StorageError: if that failed
    :raises HostError: if that database cannot hold them
    """
    address, schema = shared_address(url)
    require_driver(address)
    if schema:
        ensure_schema(address, schema)
    migrate.upgrade(address, schema=schema)


def check_tables(url: str) -> None:
    """Check our tables in the metadata database.

    :raises SchemaError: if tables are missing or too old
    """
    address, schema = shared_address(url)
    require_driver(address)
    migrate.check(address, schema=schema)
