"""What an administrator does on PostgreSQL before the first run: a schema, and a login with rights on it alone.

Idempotent: what exists stays. The password never travels: the server is given its SCRAM verifier, so that neither its
log nor an error text can hold it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from airflow_childrun.clock import SystemEntropy
from airflow_childrun.errors import HostError, UnavailableError

_MAX_IDENTIFIER_BYTES = 63
_INSUFFICIENT_PRIVILEGE = "42501"
_SCRAM_ITERATIONS = 4096


@dataclass(frozen=True, slots=True)
class Grant:
    """Who gets what: ``role`` may log in to ``database`` and has rights on ``schema`` there, and on nothing else."""

    database: str
    schema: str
    role: str


@dataclass(frozen=True, slots=True)
class Provisioned:
    """What :func:`provision` changed."""

    role_created: bool
    schema_created: bool
    password_set: bool


class NotAllowedError(HostError):
    """The administrator's login may not do this; ``statements`` is the SQL for somebody who may."""

    default_code = "init_not_allowed"

    def __init__(self, message: str = "", *, statements: tuple[str, ...] = (), **more: Any) -> None:
        super().__init__(message, **more)
        self.statements = statements


def default_role(schema: str, database: str) -> str:
    """Return the login's name: roles are shared by all databases of a server, so it names the database too."""
    name = f"{schema}_{database}"
    if len(name.encode()) <= _MAX_IDENTIFIER_BYTES:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:12]
    return f"{name.encode()[: _MAX_IDENTIFIER_BYTES - 13].decode(errors='ignore')}_{digest}"


def new_password() -> str:
    """Return 256 random bits as text that needs no quoting anywhere."""
    return base64.urlsafe_b64encode(SystemEntropy().random_bytes(32)).decode().rstrip("=")


def statements(grant: Grant) -> tuple[str, ...]:
    """Return the SQL for an administrator to run by hand; the password is left for him to choose."""
    return (
        f"CREATE ROLE {_quoted(grant.role)} LOGIN PASSWORD '<choose a password>'",
        f"CREATE SCHEMA IF NOT EXISTS {_quoted(grant.schema)}",
        *_grants(grant),
    )


@contextmanager
def airflow_database() -> Iterator[None]:
    """Turn what goes wrong in Airflow's own database into one clear error.

    :raises HostError: code ``metadata_unusable``
    """
    try:
        yield
    except SQLAlchemyError as error:
        raise HostError(
            f"Airflow's metadata database cannot be used ({type(error).__name__}): is it there, and migrated (`airflow db"
            " migrate`)? `childrun init --url URL --print-connection` does without it",
            code="metadata_unusable",
        ) from None


def admin_engine(address: URL) -> Engine:
    """Return an engine that keeps no connection and does not wait long for one."""
    timeout = {"connect_timeout": 10} if address.get_backend_name() == "postgresql" else {}
    return create_engine(address, poolclass=NullPool, connect_args=timeout)


def provision(engine: Engine, grant: Grant, password: str | None) -> Provisioned:
    """Create what is missing.

    :param engine: of an administrator's login, on the database itself
    :param password: what the login gets: required to create it; for an existing one None leaves its password alone
    :raises NotAllowedError: if the administrator's login may not create roles or schemas
    """
    try:
        with engine.begin() as connection:
            return _provision(connection, grant, password)
    except DBAPIError as error:
        if _sqlstate(error) != _INSUFFICIENT_PRIVILEGE:
            raise UnavailableError(f"PostgreSQL refused: {error.orig}") from None
        raise _not_allowed(engine, grant) from None


def _not_allowed(engine: Engine, grant: Grant) -> NotAllowedError:
    return NotAllowedError(
        f"the login {engine.url.username!r} may not create the role {grant.role!r} and the schema {grant.schema!r}. Have"
        " the SQL below run by somebody who may, then give that login: `childrun init"
        f" --url postgresql://{grant.role}:PASSWORD@HOST/{grant.database} --schema {grant.schema}` (with --url - it asks"
        " the standard input for the URL)",
        statements=statements(grant),
    )


def _provision(connection: Connection, grant: Grant, password: str | None) -> Provisioned:
    schema_exists = _truth(connection, "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = :x)", grant.schema)
    exists = _role_exists(connection, grant.role)
    if not exists and password is None:
        raise HostError(f"the role {grant.role!r} does not exist and no password was given", code="role_missing")
    if password is not None:
        verb = "ALTER" if exists else "CREATE"
        # PostgreSQL takes no bound parameters in DDL: format() quotes them on the server.
        statement = connection.scalar(
            text("SELECT format(:form, CAST(:role AS text), CAST(:verifier AS text))"),
            {"form": f"{verb} ROLE %I LOGIN PASSWORD %L", "role": grant.role, "verifier": scram_verifier(password)},
        )
        connection.exec_driver_sql(str(statement))
    if not schema_exists:
        connection.exec_driver_sql(f"CREATE SCHEMA {_quoted(grant.schema)}")
    for statement in _missing_grants(connection, grant):
        connection.exec_driver_sql(statement)
    return Provisioned(role_created=not exists, schema_created=not schema_exists, password_set=password is not None)


def has_role(engine: Engine, role: str) -> bool:
    """Return whether the server has this role.

    :raises UnavailableError: if the database cannot be reached
    """
    try:
        with engine.connect() as connection:
            return _role_exists(connection, role)
    except DBAPIError as error:
        raise UnavailableError(_first_line(error)) from None


def _role_exists(connection: Connection, role: str) -> bool:
    return _truth(connection, "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = :x)", role)


def _missing_grants(connection: Connection, grant: Grant) -> Iterator[str]:
    """Yield only what is missing: granting again needs rights that the administrator may not have."""
    connect, schema, search_path = _grants(grant)
    holds = connection.execute(
        text(
            "SELECT has_database_privilege(:role, :database, 'CONNECT'), has_schema_privilege(:role, :schema, 'USAGE')"
            " AND has_schema_privilege(:role, :schema, 'CREATE'),"
            " EXISTS (SELECT FROM pg_db_role_setting s JOIN pg_roles r ON r.oid = s.setrole"
            " JOIN pg_database d ON d.oid = s.setdatabase WHERE r.rolname = :role AND d.datname = :database)"
        ),
        {"role": grant.role, "database": grant.database, "schema": grant.schema},
    ).one()
    for held, statement in zip(holds, (connect, schema, search_path), strict=True):
        if not held:
            yield statement


def _grants(grant: Grant) -> tuple[str, str, str]:
    role, schema, database = _quoted(grant.role), _quoted(grant.schema), _quoted(grant.database)
    return (
        f"GRANT CONNECT ON DATABASE {database} TO {role}",
        f"GRANT USAGE, CREATE ON SCHEMA {schema} TO {role}",
        f"ALTER ROLE {role} IN DATABASE {database} SET search_path = {schema}",
    )


def ensure_schema(address: URL, schema: str) -> None:
    """Create a schema with the address's own login if it is missing; for a dialect without schemas do nothing.

    :raises NotAllowedError: if the login may not
    :raises UnavailableError: if the database cannot be reached
    """
    if address.get_backend_name() != "postgresql":
        return
    engine = admin_engine(address)
    try:
        with engine.begin() as connection:
            if not _truth(connection, "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = :x)", schema):
                connection.exec_driver_sql(f"CREATE SCHEMA {_quoted(schema)}")
    except DBAPIError as error:
        if _sqlstate(error) != _INSUFFICIENT_PRIVILEGE:
            raise UnavailableError(_first_line(error)) from None
        raise NotAllowedError(
            f"the login {address.username!r} may not create the schema {schema!r}. Have the SQL below run by somebody who"
            " may, then try again",
            statements=(
                f"CREATE SCHEMA {_quoted(schema)}",
                f"GRANT USAGE, CREATE ON SCHEMA {_quoted(schema)} TO {_quoted(address.username or '')}",
            ),
        ) from None


def readable_elsewhere(address: URL, schema: str | None, limit: int = 20) -> list[str]:
    """Return the tables outside our schema that the login can read, as ``schema.table``; empty where it does not apply.

    :raises UnavailableError: if the database cannot be reached
    """
    query = (
        "SELECT n.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE c.relkind IN ('r', 'p') AND n.nspname NOT IN ('pg_catalog', 'information_schema')"
        " AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> COALESCE(:own, current_schema())"
        " AND c.relname NOT LIKE 'childrun\\_%' AND c.relname NOT LIKE 'alembic\\_version%'"
        " AND has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT') ORDER BY 1 LIMIT :limit"
    )
    return _listed(address, query, own=schema, limit=limit)


def forgetful_settings(address: URL) -> list[str]:
    """Return the settings, such as ``fsync = off``, with which a PostgreSQL that crashes forgets what it has acknowledged.

    :raises UnavailableError: if the database cannot be reached
    """
    query = (
        "SELECT name || ' = ' || setting FROM pg_settings WHERE setting = 'off'"
        " AND name IN ('fsync', 'full_page_writes', 'synchronous_commit') ORDER BY 1"
    )
    return _listed(address, query)


def _listed(address: URL, query: str, **parameters: Any) -> list[str]:
    """Ask PostgreSQL for a column of texts; nothing is asked of another database."""
    if address.get_backend_name() != "postgresql":
        return []
    try:
        with admin_engine(address).connect() as connection:
            return list(connection.scalars(text(query), parameters))
    except DBAPIError as error:
        raise UnavailableError(_first_line(error)) from None


def scram_verifier(password: str) -> str:
    """Return what PostgreSQL stores of a password (RFC 5802, SCRAM-SHA-256).

    :param password: ASCII, so that it needs no normalisation
    """
    salt = SystemEntropy().random_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode("ascii"), salt, _SCRAM_ITERATIONS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    salt64, stored64, server64 = (base64.b64encode(part).decode() for part in (salt, stored, server))
    return f"SCRAM-SHA-256${_SCRAM_ITERATIONS}:{salt64}${stored64}:{server64}"


def _truth(connection: Connection, query: str, value: str) -> bool:
    return bool(connection.scalar(text(query), {"x": value}))


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _sqlstate(error: DBAPIError) -> str | None:
    """Return the SQLSTATE; the two drivers that Airflow may use name it differently."""
    return getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)


def _first_line(error: DBAPIError) -> str:
    return str(error.orig).strip().splitlines()[0]
