"""The gate to Airflow: every name of Airflow that the package uses comes through here.

Two rules: what tasks and triggers need is imported at the top, from the public SDK; what only an administrator's process
may touch (the metadata database, the command line's classes) is imported inside the function that uses it, so that a
task never loads it. Features are detected, versions are not compared. ``type: ignore`` is allowed here alone.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from airflow.sdk import DAG, BaseHook, BaseOperator, Connection, Context, conf
from airflow.sdk.bases.decorator import DecoratedOperator as BaseDecoratedOperator
from airflow.sdk.bases.decorator import task_decorator_factory
from airflow.sdk.exceptions import (
    AirflowException,
    AirflowFailException,
    AirflowNotFoundException,
    AirflowTaskTimeout,
    TaskDeferralError,
    TaskDeferralTimeout,
    TaskDeferred,
)
from airflow.triggers.base import BaseTrigger, TaskSuccessEvent, TriggerEvent

from airflow_childrun.errors import HostError

if TYPE_CHECKING:
    from airflow.utils.db_manager import BaseDBManager

__all__ = [
    # What is imported; what is defined here is public anyway.
    "DAG",
    "AirflowException",
    "AirflowFailException",
    "AirflowNotFoundException",
    "AirflowTaskTimeout",
    "BaseDBManager",
    "BaseDecoratedOperator",
    "BaseHook",
    "BaseOperator",
    "BaseTrigger",
    "Connection",
    "Context",
    "TaskDeferralError",
    "TaskDeferralTimeout",
    "TaskDeferred",
    "TaskSuccessEvent",
    "TriggerEvent",
    "conf",
    "task_decorator_factory",
]

OPEN_DAG_RUN_STATES = ("queued", "running")


# ------------------------------------------------------------------------------------------------- in tasks and triggers


def mask_secret(value: str) -> None:
    """Have Airflow replace ``value`` by asterisks in every log of this process."""
    from airflow.sdk.log import mask_secret as mask

    mask(value)


async def mask_secret_async(value: str) -> None:
    """Do what :func:`mask_secret` does, from an event loop."""
    from airflow.sdk import log

    mask = getattr(log, "amask_secret", None)
    if mask is None:
        # Before 3.3 the one function serves both.
        log.mask_secret(value)
    else:
        await mask(value)


def registered_secrets(min_length: int = 12) -> frozenset[str]:
    """Return the values that Airflow's maskers of this process hide, those of ``min_length`` characters or more."""
    found: set[str] = set()
    for name in ("airflow.sdk._shared.secrets_masker", "airflow._shared.secrets_masker"):
        module = sys.modules.get(name)
        masker = getattr(module, "_secrets_masker", None)
        if masker is not None:
            # The masker keeps what re.escape made of each secret.
            found.update(map(_unescaped, tuple(masker().patterns)))
    return frozenset(value for value in found if len(value) >= min_length)


@lru_cache(maxsize=1024)
def _unescaped(pattern: str) -> str:
    """Return the text of which ``re.escape`` made a pattern; asked of the same ones for every value that is recorded."""
    return re.sub(r"\\(.)", r"\1", pattern, flags=re.DOTALL)


def channel_is_shared() -> bool:
    """Whether this process talks to Airflow through the in-process channel, which takes one caller at a time.

    True under ``dag.test`` and ``airflow dags test``. The channel hides itself during a request, so ask on the main
    thread, before other threads use it.
    """
    runner = sys.modules.get("airflow.sdk.execution_time.task_runner")
    comms = getattr(runner, "SUPERVISOR_COMMS", None)
    return type(comms).__name__ == "InProcessSupervisorComms"


def _ask_supervisor(message: str, **fields: Any) -> Any:
    """Send a request over the channel that a task process has; the answer, or an error, as Airflow's client has it.

    :param message: the name of one of Airflow's message classes
    :raises HostError: codes ``dag_not_found``, ``dag_refused``, ``airflow_unavailable``
    """
    from airflow.sdk.api.client import ServerResponseError
    from airflow.sdk.exceptions import AirflowRuntimeError
    from airflow.sdk.execution_time import comms, task_runner

    try:
        return task_runner.SUPERVISOR_COMMS.send(getattr(comms, message)(**fields))
    except AirflowRuntimeError as error:
        detail = error.error.detail or {}
        raise _refusal(detail.get("status_code", 0), detail.get("detail"), str(error), fields["dag_id"]) from None
    except ServerResponseError as error:
        # Under dag.test there is no supervisor that would put it into an answer.
        raise _refusal(error.response.status_code, {"detail": error.detail}, str(error), fields["dag_id"]) from None


def _refusal(status: int, detail: Any, text: str, dag_id: str) -> HostError:
    """Say what the API server's answer means."""
    inner = detail.get("detail") if isinstance(detail, Mapping) else None
    said = inner.get("message", text) if isinstance(inner, Mapping) else text
    if status == HTTPStatus.NOT_FOUND:
        return HostError(f"DAG {dag_id!r}: {said}", code="dag_not_found")
    if status in (HTTPStatus.BAD_REQUEST, HTTPStatus.FORBIDDEN, HTTPStatus.UNPROCESSABLE_ENTITY):
        return HostError(f"DAG {dag_id!r} cannot be run: {said}", code="dag_refused")
    return HostError(
        f"Airflow's API server cannot be asked about DAG {dag_id!r}: {said}", code="airflow_unavailable", retryable=True
    )


def trigger_dag_run(dag_id: str, run_id: str, conf: Mapping[str, Any]) -> bool:
    """Make a DAG run, without logical date; False if there is one of this id already.

    :raises HostError: codes ``dag_not_found``, ``dag_refused``, ``airflow_unavailable``
    """
    answer = _ask_supervisor("TriggerDagRun", dag_id=dag_id, run_id=run_id, conf=dict(conf))
    error = getattr(answer, "error", None)
    if error is None:
        return True
    if error.value == "DAGRUN_ALREADY_EXISTS":
        return False
    raise HostError(f"DAG {dag_id!r} cannot be run: {error.value}", code="dag_refused")


def dag_run_state(dag_id: str, run_id: str) -> str | None:
    """Return ``queued``, ``running``, ``success`` or ``failed``; None if there is no such DAG run.

    :raises HostError: code ``airflow_unavailable``
    """
    try:
        state = _ask_supervisor("GetDagRunState", dag_id=dag_id, run_id=run_id).state
        return str(getattr(state, "value", state))
    except HostError as error:
        if error.code == "dag_not_found":
            return None
        raise


def count_active_dag_runs(dag_id: str, run_ids: Sequence[str]) -> int:
    """Return how many of these DAG runs are queued or run: one question for many.

    :raises HostError: code ``airflow_unavailable``
    """
    answer = _ask_supervisor("GetDRCount", dag_id=dag_id, run_ids=list(run_ids), states=list(OPEN_DAG_RUN_STATES))
    return int(answer.count)


def dag_run_conf(dag_id: str, run_id: str) -> Mapping[str, Any]:
    """Return what a DAG run was told; nothing if there is no such run.

    :raises HostError: code ``airflow_unavailable``
    """
    try:
        return _ask_supervisor("GetDagRun", dag_id=dag_id, run_id=run_id).conf or {}
    except HostError as error:
        if error.code == "dag_not_found":
            return {}
        raise


def task_states(dag_id: str, run_id: str) -> dict[str, str]:
    """Return the states of a DAG run's tasks, those of mapped ones as ``<task>_<index>``.

    :raises HostError: code ``airflow_unavailable``
    """
    found = _ask_supervisor("GetTaskStates", dag_id=dag_id, run_ids=[run_id]).task_states
    return {task_id: str(state) for task_id, state in found.get(run_id, {}).items()}


def describe_dag(dag_id: str) -> tuple[bool, frozenset[str]]:
    """Return whether a DAG is paused, and its tags.

    :raises HostError: codes ``dag_not_found``, ``airflow_unavailable``
    """
    found = _ask_supervisor("GetDag", dag_id=dag_id)
    return bool(found.is_paused), frozenset(found.tags)


def read_xcom(dag_id: str, run_id: str, task_id: str, key: str) -> Any:
    """Return what a task of another DAG run pushed; None if there is nothing, or no such DAG run."""
    from airflow.sdk.bases.xcom import BaseXCom
    from airflow.sdk.exceptions import AirflowRuntimeError

    try:
        return BaseXCom.get_one(key=key, dag_id=dag_id, task_id=task_id, run_id=run_id)
    except AirflowRuntimeError:
        return None


def current_default_args() -> Mapping[str, Any]:
    """Return the ``default_args`` of the DAG that is being defined; none outside of one."""
    from airflow.sdk.definitions._internal.contextmanager import DagContext

    dag = DagContext.get_current()
    return {} if dag is None else dag.default_args


# ----------------------------------------------------------------------------------------- in an administrator's process


def __getattr__(name: str) -> Any:
    """Import on demand what only ``airflow db`` needs."""
    if name == "BaseDBManager":
        from airflow.utils.db_manager import BaseDBManager

        return BaseDBManager
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _initialise() -> None:
    """Make Airflow's settings and the configuration of providers known, as ``airflow`` itself does."""
    from airflow import settings
    from airflow.providers_manager import ProvidersManager

    ProvidersManager().initialize_providers_configuration()  # type: ignore[no-untyped-call]
    if settings.engine is None:
        settings.initialize()  # type: ignore[no-untyped-call]


def metadata_engine() -> Any:
    """Return the SQLAlchemy engine of Airflow's metadata database.

    :raises AirflowException: if this process may not use it (a task, a trigger)
    """
    from airflow import settings

    _initialise()
    engine = getattr(settings, "engine", None)
    if engine is None:
        raise AirflowException("this process has no access to Airflow's metadata database")
    return engine


@contextlib.contextmanager
def metadata_session() -> Iterator[Any]:
    """Give an ORM session on Airflow's metadata database, committed at the end."""
    from airflow.utils.session import create_session

    _initialise()
    with create_session() as session:
        yield session


def read_metadata_connection(conn_id: str) -> Any | None:
    """Return the connection as Airflow's metadata database holds it, or None.

    :returns: an ``airflow.models.Connection``, detached
    """
    from airflow.models.connection import Connection as StoredConnection

    with metadata_session() as session:
        found = session.query(StoredConnection).filter(StoredConnection.conn_id == conn_id).one_or_none()
        if found is not None:
            session.expunge(found)
        return found


def write_metadata_connection(conn_id: str, fields: dict[str, Any], description: str) -> None:
    """Create or replace a connection in Airflow's metadata database.

    :param fields: ``conn_type, host, port, schema, login, password`` and ``extra`` (JSON text)
    """
    from airflow.models.connection import Connection as StoredConnection

    with metadata_session() as session:
        found = session.query(StoredConnection).filter(StoredConnection.conn_id == conn_id).one_or_none()
        if found is None:
            found = StoredConnection(conn_id=conn_id)
            session.add(found)
        found.description = description
        for name, value in fields.items():
            setattr(found, name, value)


def connection_from_secrets(conn_id: str) -> Any:
    """Return a connection as the command line finds it: secrets backends, environment, metadata database.

    :raises AirflowNotFoundException: if there is none
    """
    from airflow.models.connection import Connection as StoredConnection

    _initialise()
    return StoredConnection.get_connection_from_secrets(conn_id)


def look_at_task(dag_id: str, dag_run_id: str, task_id: str, map_index: int) -> tuple[bool, str | None]:
    """Return whether a DAG run exists and has not ended, and the state of its task instance (``removed``: there is none).

    Asked of the metadata database, for an administrator's process.
    """
    from airflow.models.dagrun import DagRun
    from airflow.models.taskinstance import TaskInstance

    with metadata_session() as session:
        run = session.query(DagRun).filter(DagRun.dag_id == dag_id, DagRun.run_id == dag_run_id).one_or_none()
        if run is None or str(run.state) not in OPEN_DAG_RUN_STATES:
            return False, "removed"
        where = {"dag_id": dag_id, "run_id": dag_run_id, "task_id": task_id, "map_index": map_index}
        found = session.query(TaskInstance).filter_by(**where).one_or_none()
        if found is None:
            return True, "removed"
        return True, None if found.state is None else str(found.state)


def existing_dag_runs(dag_id: str, run_ids: Collection[str]) -> set[str]:
    """Return those of a DAG's runs that exist: asked of the metadata database, for an administrator's process."""
    return set(dag_run_states(dag_id, run_ids))


def dag_run_states(dag_id: str, run_ids: Collection[str]) -> dict[str, str]:
    """Return the states of those of a DAG's runs that exist: asked of the metadata database."""
    from airflow.models.dagrun import DagRun

    with metadata_session() as session:
        rows = session.query(DagRun.run_id, DagRun.state).filter(DagRun.dag_id == dag_id, DagRun.run_id.in_(run_ids))
        return {run_id: str(getattr(state, "value", state)) for run_id, state in rows}


def trigger_dag_run_as_admin(dag_id: str, run_id: str, conf: Mapping[str, Any]) -> bool:
    """Make a DAG run in the metadata database; False if there is one of this id already.

    :raises HostError: code ``dag_not_found``
    """
    from airflow.api.common.trigger_dag import trigger_dag
    from airflow.exceptions import DagNotFound, DagRunAlreadyExists
    from airflow.utils.types import DagRunTriggeredByType

    _initialise()
    by = DagRunTriggeredByType.CLI
    try:
        trigger_dag(dag_id=dag_id, run_id=run_id, triggered_by=by, conf=dict(conf), logical_date=None)
    except DagRunAlreadyExists:
        return False
    except DagNotFound as error:
        raise HostError(f"DAG {dag_id!r}: {error}", code="dag_not_found", retryable=True) from None
    return True


def command_classes() -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    """Return Airflow's classes ``Arg``, ``ActionCommand`` and ``GroupCommand``."""
    from airflow.cli.cli_config import ActionCommand, Arg, GroupCommand

    return Arg, ActionCommand, GroupCommand


def empty_metadata() -> Any:
    """Return a SQLAlchemy ``MetaData`` without tables."""
    from airflow.models.base import metadata

    return type(metadata)()


def metadata_url() -> str:
    """Return the URL of Airflow's metadata database, password included."""
    return str(metadata_engine().url.render_as_string(hide_password=False))


def environment_connections() -> Iterable[str]:
    """Return the ids (lower case) of the connections that environment variables define."""
    prefix = "AIRFLOW_CONN_"
    return [name.removeprefix(prefix).lower() for name in os.environ if name.startswith(prefix)]
