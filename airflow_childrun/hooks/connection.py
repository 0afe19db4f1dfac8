"""From an Airflow connection of type ``childrun`` to an open store.

What is secret stands in the password field alone: extras are shown in clear. A password enters the URL object, whose
text form hides it, and nothing else: no message, log line or repr of ours has it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qsl

from airflow_childrun.canonical import canonical_json_bytes
from airflow_childrun.errors import HostError, SchemaError, UnavailableError
from airflow_childrun.hooks.settings import DEFAULT_CONN_ID
from airflow_childrun.store.api import Store

if TYPE_CHECKING:
    from airflow_childrun.store.sql.address import Address

CONN_TYPE = "childrun"
CONN_NAME_ATTR = "childrun_conn_id"
EXTRAS = frozenset({"dialect", "driver", "query", "schema", "deployment_id"})
"""What may stand in the extras of a connection; all of it is shown in clear."""

_open: dict[tuple[int, str], Store] = {}
"""Open stores by process and digest. Never shrunk by a fork: a parent's connections must not be closed by its child."""


class ConnectionFields(Protocol):
    """What we read of an Airflow connection, of the SDK's class or of the metadata database's."""

    conn_id: Any
    conn_type: Any
    host: Any
    port: Any
    schema: Any
    login: Any
    password: Any
    extra: Any


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Where a store is and which Airflow uses it.

    :param conn_id: the connection's id; empty for settings made from a bare URL
    :param address: a SQLAlchemy URL
    :param schema: the database schema of our tables; None = the login's default
    :param deployment_id: tells this Airflow from others, also from its own copies
    :param digest: SHA-256 hex of all of it, the password included: two equal digests are one store
    """

    conn_id: str
    address: Address = field(repr=False)
    schema: str | None
    deployment_id: str
    digest: str = field(repr=False)

    @property
    def place(self) -> str:
        """Where the store is, for people: without password."""
        from airflow_childrun.store.sql.address import describe_address

        schema = f", schema {self.schema}" if self.schema else ""
        origin = f"connection {self.conn_id!r}, " if self.conn_id else ""
        return f"{origin}{describe_address(self.address)}{schema}"


def settings_from_connection(connection: ConnectionFields) -> StoreSettings:
    """Read a connection.

    :raises HostError: code ``connection_invalid``, ``deployment_id_missing``, ``dialect_unknown`` or ``driver_unknown``
    """
    conn_id = str(connection.conn_id)
    if connection.conn_type != CONN_TYPE:
        raise HostError(
            f"connection {conn_id!r} is of type {connection.conn_type!r}, not {CONN_TYPE!r}: `childrun init` makes one",
            code="connection_invalid",
        )
    try:
        extras = _read_extras(connection.extra)
        address = _address_of(connection, extras)
    except HostError as error:
        raise HostError(f"connection {conn_id!r}: {error.info.message}", code=error.code) from None
    deployment_id = extras.get("deployment_id")
    if not isinstance(deployment_id, str) or not deployment_id.strip():
        raise HostError(
            f"connection {conn_id!r} has no deployment_id: run `childrun init --conn-id {conn_id}`, or add"
            ' {"deployment_id": "<a new random UUID>"} to its extras. It keeps a copy of this Airflow, such as a staging'
            " system, from adopting the runs of the original",
            code="deployment_id_missing",
        )
    return _settings(conn_id, address, extras.get("schema") or None, deployment_id.strip())


def settings_from_url(url: str, schema: str | None = None) -> StoreSettings:
    """Read a bare URL, for a command that needs no Airflow; there is no deployment id then.

    :raises HostError: code ``connection_invalid``, ``dialect_unknown`` or ``driver_unknown``
    """
    from airflow_childrun.store.sql.address import parse_address

    return _settings("", parse_address(url), schema, "")


def read_store_settings(conn_id: str = DEFAULT_CONN_ID) -> StoreSettings:
    """Ask Airflow for a connection and read it.

    :raises HostError: code ``connection_missing`` if there is none, else as :func:`settings_from_connection`
    """
    from airflow_childrun._airflow import AirflowNotFoundException, BaseHook, mask_secret

    try:
        connection = BaseHook.get_connection(conn_id)
    except AirflowNotFoundException:
        raise connection_missing(conn_id) from None
    settings = settings_from_connection(connection)
    hidden = _password_of_url(settings, connection)
    if hidden:
        mask_secret(hidden)
    return settings


async def read_store_settings_async(conn_id: str = DEFAULT_CONN_ID) -> StoreSettings:
    """Do what :func:`read_store_settings` does, from an event loop.

    :raises HostError: as there
    """
    from airflow_childrun._airflow import AirflowNotFoundException, BaseHook, mask_secret_async

    try:
        connection = await BaseHook.aget_connection(conn_id)
    except AirflowNotFoundException:
        raise connection_missing(conn_id) from None
    settings = settings_from_connection(connection)
    hidden = _password_of_url(settings, connection)
    if hidden:
        await mask_secret_async(hidden)
    return settings


def _password_of_url(settings: StoreSettings, connection: ConnectionFields) -> str | None:
    """Return the password inside a whole URL: Airflow masks what stands in the field, which is the URL."""
    password = str(settings.address.password) if settings.address.password else None
    return None if password == connection.password else password


def connection_missing(conn_id: str) -> HostError:
    """Return the error that says how a connection comes to be."""
    option = "" if conn_id == DEFAULT_CONN_ID else f" --conn-id {conn_id}"
    return HostError(
        f"there is no connection {conn_id!r}: an administrator makes it, and the tables, with `childrun init{option}`",
        code="connection_missing",
    )


def open_store(settings: StoreSettings) -> Store:
    """Return the process's store for these settings; the first call checks that it can be reached and used.

    Cached per process; what failed is not, so that a changed password or a migration is noticed by the next call.

    :raises HostError: code ``driver_missing``
    :raises SchemaError: if tables are missing or of another major version
    :raises UnavailableError: if the database cannot be reached, or refuses the login
    """
    key = (os.getpid(), settings.digest)
    if key not in _open:
        _open.setdefault(key, _connect(settings))
    return _open[key]


def forget_store(settings: StoreSettings) -> None:
    """Close the process's store for these settings: the next :func:`open_store` connects anew.

    Call it after an :class:`~airflow_childrun.errors.UnavailableError`, read the connection again, open again: a
    password that was rotated meanwhile is then in use.
    """
    store = _open.pop((os.getpid(), settings.digest), None)
    if store is not None:
        store.close()


def _connect(settings: StoreSettings) -> Store:
    from airflow_childrun.store.sql import migrate
    from airflow_childrun.store.sql.address import require_driver, require_file
    from airflow_childrun.store.sql.store import SqlStore

    option = f" --conn-id {settings.conn_id}" if settings.conn_id not in ("", DEFAULT_CONN_ID) else ""
    require_driver(settings.address)
    try:
        require_file(settings.address)
        migrate.check(settings.address, schema=settings.schema)
    except UnavailableError as error:
        raise UnavailableError(
            f"cannot reach the store ({settings.place}): {_reason(error, settings)}; `childrun check{option}` tests it"
        ) from None
    except SchemaError as error:
        # Whoever types the command as it stands here must reach this store, not the default connection's.
        told = error.info.message.replace("`childrun migrate`", f"`childrun migrate{option}`")
        raise SchemaError(f"{told} ({settings.place})", code=error.code) from None
    return SqlStore(settings.address, schema=settings.schema)


def _reason(error: UnavailableError, settings: StoreSettings) -> str:
    """Return what the driver said: its first line tells a wrong password from a wrong host."""
    said = str(getattr(error.__cause__, "orig", None) or error.info.message).strip().splitlines()[0]
    password = str(settings.address.password or "")
    return said.replace(password, "***") if password else said


def _read_extras(extra: Any) -> dict[str, Any]:
    """Read the extras ourselves: Airflow's ``extra_dejson`` would register harmless values as secrets."""
    try:
        extras = json.loads(extra) if extra else {}
    except ValueError:
        raise HostError("its extras are not JSON", code="connection_invalid") from None
    if not isinstance(extras, dict):
        raise HostError("its extras are not a JSON object", code="connection_invalid")
    strange = sorted(set(extras) - EXTRAS)
    if strange:
        raise HostError(
            f"its extras hold {', '.join(strange)}; they may hold {', '.join(sorted(EXTRAS))}. Extras are shown in clear: "
            "login, password or a whole URL belong into the login and password fields",
            code="connection_invalid",
        )
    return extras


def _address_of(connection: ConnectionFields, extras: Mapping[str, Any]) -> Address:
    from airflow_childrun.store.sql.address import build_address, parse_address

    password = connection.password
    if password and "://" in password and not (connection.host or connection.login or connection.schema):
        return parse_address(password)
    query = extras.get("query") or {}
    if isinstance(query, str):
        query = dict(parse_qsl(query, keep_blank_values=True))
    if not isinstance(query, dict):
        raise HostError("its 'query' is neither an object nor text such as sslmode=require", code="connection_invalid")
    if not extras.get("dialect"):
        raise HostError(
            "its extras have no 'dialect' (postgresql or sqlite), and its password field is no URL",
            code="connection_invalid",
        )
    return build_address(
        dialect=str(extras["dialect"]),
        driver=extras.get("driver"),
        host=connection.host,
        port=int(connection.port) if connection.port else None,
        database=connection.schema,
        login=connection.login,
        password=password,
        query={str(name): str(value) for name, value in query.items()},
    )


def _settings(conn_id: str, address: Address, schema: str | None, deployment_id: str) -> StoreSettings:
    url = address.render_as_string(hide_password=False)
    digest = hashlib.sha256(canonical_json_bytes([url, schema, deployment_id])).hexdigest()
    return StoreSettings(conn_id=conn_id, address=address, schema=schema, deployment_id=deployment_id, digest=digest)
