"""``childrun init``: tables, a login for them, and the connection that tasks use. Run twice, it changes nothing."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

from airflow_childrun.cli import metadata, output
from airflow_childrun.cli.target import read_url
from airflow_childrun.clock import SystemEntropy
from airflow_childrun.errors import HostError
from airflow_childrun.hooks.connection import CONN_TYPE, StoreSettings, settings_from_connection
from airflow_childrun.hooks.settings import DEFAULT_CONN_ID
from airflow_childrun.store.sql import migrate
from airflow_childrun.store.sql.address import Address, describe_address, parse_address, require_driver
from airflow_childrun.store.sql.provision import (
    Grant,
    admin_engine,
    airflow_database,
    default_role,
    ensure_schema,
    has_role,
    new_password,
    provision,
    readable_elsewhere,
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where the tables go and who uses them.

    :param address: as this process reaches it, with the login that tasks get
    """

    address: Address
    schema: str | None
    deployment_id: str


def run(arguments: argparse.Namespace) -> int:
    """Make what is missing and say what was done.

    :raises HostError: if that cannot be done as asked; the message names what to do instead
    """
    _refuse_contradictions(arguments)
    conn_id = arguments.conn_id or DEFAULT_CONN_ID
    known = None if arguments.print_connection and arguments.url else _known(conn_id)
    place = _place_of_url(arguments, known) if arguments.url else _place_in_airflow(arguments, known)
    connection = connection_of(place, worker_host=arguments.worker_host or _worker_host(known))
    if not arguments.print_connection:
        _write(conn_id, connection)
    if place.schema:
        ensure_schema(place.address, place.schema)
    version = migrate.upgrade(place.address, schema=place.schema)
    _say(f"tables       {describe_address(place.address)}" + (f", schema {place.schema}" if place.schema else ""))
    _say(f"             are at version {version}")
    if arguments.share_metadata_credentials:
        _warn_of_sharing(place)
    if arguments.print_connection:
        _print(conn_id, connection, as_json=arguments.output)
        if known is None and not arguments.deployment_id:
            _say(f"             its deployment id is new; print it again with --deployment-id {place.deployment_id}")
    else:
        _say(f"connection   {conn_id}, deployment id {place.deployment_id}")
        _say("next         childrun check" + ("" if conn_id == DEFAULT_CONN_ID else f" --conn-id {conn_id}"))
    return 0


def connection_of(place: Place, worker_host: str | None = None) -> dict[str, Any]:
    """Return the fields of the Airflow connection, ``extra`` as an object; the password stands in its field alone."""
    address = place.address
    extra: dict[str, Any] = {
        "dialect": address.get_backend_name(),
        "driver": address.get_driver_name(),
        "deployment_id": place.deployment_id,
    }
    if place.schema:
        extra["schema"] = place.schema
    if address.query:
        extra["query"] = dict(address.query)
    return {
        "conn_type": CONN_TYPE,
        "host": worker_host or address.host,
        "port": address.port,
        "schema": address.database,
        "login": address.username,
        "password": str(address.password) if address.password else None,
        "extra": extra,
    }


# ------------------------------------------------------------------------------------------------------------ deciding


def _place_of_url(arguments: argparse.Namespace, known: StoreSettings | None) -> Place:
    address = parse_address(read_url(arguments.url))
    require_driver(address)
    schema = arguments.schema or (metadata.SCHEMA if arguments.create_role else None)
    deployment_id = _deployment_id(arguments, known)
    _refuse_another(known, address, schema)
    if arguments.create_role and schema:
        address = _with_own_login(address, schema, arguments, known)
    return Place(address, schema, deployment_id)


def _place_in_airflow(arguments: argparse.Namespace, known: StoreSettings | None) -> Place:
    from airflow_childrun._airflow import metadata_url

    address, schema = metadata.shared_address(metadata_url())
    require_driver(address)
    schema = (arguments.schema or schema) if schema else None
    deployment_id = _deployment_id(arguments, known)
    if schema is None and not arguments.share_metadata_credentials:
        address = metadata.beside(address)
    _refuse_another(known, address, schema)
    if schema is not None and not arguments.share_metadata_credentials:
        address = _with_own_login(address, schema, arguments, known)
    return Place(address, schema, deployment_id)


def _with_own_login(admin: Address, schema: str, arguments: argparse.Namespace, known: StoreSettings | None) -> Address:
    """Make sure that there is a login with rights on the schema alone, and return the address with it."""
    if admin.get_backend_name() != "postgresql" or not admin.database:
        raise HostError("a login of its own can be made on PostgreSQL only", code="usage")
    keep = known.address if known is not None and known.address.password else None
    role = arguments.role or (keep.username if keep else None) or default_role(schema, admin.database)
    keep = keep if keep is not None and keep.username == role else None
    grant = Grant(database=admin.database, schema=schema, role=role)
    engine = admin_engine(admin)
    exists = has_role(engine, role)
    if keep is not None and not arguments.rotate_password:
        password = str(keep.password)
        done = provision(engine, grant, None if exists else password)
    elif exists and not arguments.rotate_password:
        raise HostError(
            f"the login {role!r} exists, but no connection here holds its password: give it a new one with"
            " --rotate-password, take another with --role NAME, or give its password in --url with --schema " + schema,
            code="role_exists",
        )
    else:
        password = new_password()
        done = provision(engine, grant, password)
    if done.role_created:
        _say(f"login        {role} created, with rights on the schema {schema} alone")
    elif done.password_set:
        _say(f"login        {role} has a new password")
    if done.schema_created:
        _say(f"schema       {schema} created")
    return admin.set(username=role, password=password)


def _deployment_id(arguments: argparse.Namespace, known: StoreSettings | None) -> str:
    if known is not None and arguments.deployment_id not in {None, known.deployment_id}:
        raise HostError(
            f"connection {known.conn_id!r} has the deployment id {known.deployment_id}: with another one its running"
            " children would be nobody's. Delete the connection first if that is meant",
            code="deployment_id_differs",
        )
    return known.deployment_id if known else arguments.deployment_id or str(SystemEntropy().new_id())


def _known(conn_id: str) -> StoreSettings | None:
    """Return what Airflow's database holds under this id."""
    from airflow_childrun._airflow import environment_connections, read_metadata_connection

    if conn_id.lower() in environment_connections():
        output.note(f"note: AIRFLOW_CONN_{conn_id.upper()} is set here, and hides the connection in Airflow's database")
    with airflow_database():
        found = read_metadata_connection(conn_id)
    return None if found is None else settings_from_connection(found)


def _refuse_another(known: StoreSettings | None, address: Address, schema: str | None) -> None:
    def where(address: Address, schema: str | None) -> tuple[object, ...]:
        return address.get_backend_name(), address.database, schema

    if known is not None and where(known.address, known.schema) != where(address, schema):
        raise HostError(
            f"there is already a {known.place}: take another --conn-id for this store, or delete that connection first",
            code="connection_differs",
        )


def _refuse_contradictions(arguments: argparse.Namespace) -> None:
    if arguments.create_role and not arguments.url:
        raise HostError("--create-role goes with --url; in Airflow's database a login is made anyway", code="usage")
    if arguments.share_metadata_credentials and (arguments.url or arguments.role or arguments.rotate_password):
        raise HostError(
            "--share-metadata-credentials uses Airflow's database with Airflow's login: it excludes --url, --role and"
            " --rotate-password",
            code="usage",
        )
    if arguments.url and not arguments.create_role and (arguments.role or arguments.rotate_password):
        raise HostError("--role and --rotate-password go with --create-role: a URL has its own login", code="usage")


# ------------------------------------------------------------------------------------------------------------- telling


def _worker_host(known: StoreSettings | None) -> str | None:
    """Keep the name that an earlier --worker-host gave."""
    return known.address.host if known is not None else None


def _write(conn_id: str, connection: dict[str, Any]) -> None:
    from airflow_childrun._airflow import write_metadata_connection

    fields = {**connection, "extra": output.json_text(connection["extra"])}
    with airflow_database():
        write_metadata_connection(conn_id, fields, "The store of airflow-childrun, made by `childrun init`.")


def _print(conn_id: str, connection: dict[str, Any], *, as_json: bool) -> None:
    text = output.json_text({name: value for name, value in connection.items() if value is not None})
    quoted = text.replace("'", "'\\''")
    output.write(text if as_json else f"AIRFLOW_CONN_{conn_id.upper()}='{quoted}'")


def _warn_of_sharing(place: Place) -> None:
    readable = readable_elsewhere(place.address, place.schema, limit=10_000)
    telling = ", ".join(_telling(readable))
    tables = f"{len(readable)} tables, among them {telling}" if readable else "everything in that database"
    _say("")
    _say("WARNING      every task can now read and change what Airflow's own login can:")
    _say(f"             {tables}")
    _say("             Without --share-metadata-credentials they get a login that sees the store alone.")
    _say("")


def _telling(tables: list[str]) -> list[str]:
    """Choose the tables whose names say most."""
    first = ("connection", "variable", "dag_run", "task_instance", "xcom")
    telling = [name for name in tables if name.partition(".")[2] in first]
    return telling or tables[:5]


def _say(line: str) -> None:
    output.note(line)
