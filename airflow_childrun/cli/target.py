"""Which store a command means: that of ``--url``, or that of an Airflow connection."""

from __future__ import annotations

import argparse
import sys

from airflow_childrun.errors import HostError
from airflow_childrun.hooks.connection import (
    StoreSettings,
    connection_missing,
    open_store,
    settings_from_connection,
    settings_from_url,
)
from airflow_childrun.hooks.settings import DEFAULT_CONN_ID
from airflow_childrun.store.api import Store


def store_of(arguments: argparse.Namespace) -> Store:
    """Open the store that the arguments name; errors as :func:`airflow_childrun.hooks.connection.open_store`."""
    return open_store(settings_of(arguments))


def settings_of(arguments: argparse.Namespace) -> StoreSettings:
    """Return where the store is that the arguments name.

    :raises HostError: if there is no such connection, or it is unusable
    """
    if arguments.url:
        if arguments.conn_id:
            raise HostError("--url and --conn-id exclude each other", code="usage")
        return settings_from_url(read_url(arguments.url), arguments.schema)
    if arguments.schema:
        raise HostError("--schema goes with --url; a connection names its own", code="usage")
    return settings_of_connection(arguments.conn_id or DEFAULT_CONN_ID)


def settings_of_connection(conn_id: str) -> StoreSettings:
    """Return what a connection says, found as Airflow's command line finds it.

    :raises HostError: code ``connection_missing``, and as ``settings_from_connection``
    """
    from airflow_childrun._airflow import AirflowNotFoundException, connection_from_secrets

    try:
        connection = connection_from_secrets(conn_id)
    except AirflowNotFoundException:
        raise connection_missing(conn_id) from None
    return settings_from_connection(connection)


def read_url(text: str) -> str:
    """Return the URL itself; ``-`` is a line of the standard input."""
    return sys.stdin.readline().strip() if text == "-" else text
