"""The requests and answers of the child-run transport: wire version 1, new fields optional only."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from airflow_childrun.errors import OtherIoError
from airflow_childrun.ids import uuid_of
from airflow_childrun.model.config import V1_REQUIRED, ChildRetryPolicy, Duration, RunConfig
from airflow_childrun.model.wire import Wire

SPAWN = "machine.child_run.spawn"
AWAIT = "machine.child_run.await"
GROUP = "machine.child_run"
SPAWN_KIND: Literal["child_run_spawn_v1"] = "child_run_spawn_v1"
AWAIT_KIND: Literal["child_run_await_v1"] = "child_run_await_v1"

ClosePolicy = Literal["cancel", "abandon"]


class SpawnRequest(Wire):
    """``{"kind", "op_id", "op_version", "op_config", "input", "run_config", "initial_context"}``.

    :param parent_close_policy: what becomes of the child when its parent fails; absent (V1): ``abandon``
    :param timeout: after which the child ends as Failed, counted from the spawn; never later than its parent's deadline
    :param child_retry_policy: how often it is tried as a whole
    :param max_concurrency: how many children of this operation and parent work at a time
    """

    _added = frozenset({"parent_close_policy", "timeout", "child_retry_policy", "max_concurrency"})
    kind: Literal["child_run_spawn_v1"] = SPAWN_KIND
    op_id: str
    op_version: str
    op_config: Any = None
    input: Any = None
    run_config: RunConfig
    initial_context: Any = None
    parent_close_policy: ClosePolicy | None = None
    timeout: Duration | None = None
    child_retry_policy: ChildRetryPolicy | None = None
    max_concurrency: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None


class SpawnResponse(Wire):
    """``{"parent_run_id", "child_run_id", "child_manifest_id"}``."""

    parent_run_id: str
    child_run_id: str
    child_manifest_id: str


class AwaitRequest(Wire):
    """``{"kind", "child_run_id", "child_manifest_id"}``.

    :param compact: answer with status, snapshot id and output only
    """

    _added = frozenset({"compact"})
    kind: Literal["child_run_await_v1"] = AWAIT_KIND
    child_run_id: str
    child_manifest_id: str
    compact: bool = False


class Cause(Wire):
    """Why a child failed: its last failed state, sanitised."""

    state_id: str | None
    code: str
    category: str
    retryable: bool
    message: str
    attempt: int | None = None


class AwaitResponse(Wire):
    """``{"child_run_id", "status", "final_snapshot_id", "final_snapshot"}``; ``cause`` if it did not complete."""

    _added = frozenset({"cause"})
    child_run_id: str
    status: Literal["Completed", "Failed", "Cancelled"]
    final_snapshot_id: str | None
    final_snapshot: Any
    cause: Cause | None = None


class CompactResult(Wire):
    """What ``io.await_child`` and ``io.map`` record: ``{"child_run_id", "status", "final_snapshot_id", "output"}``."""

    _added = frozenset({"cause"})
    child_run_id: str
    status: Literal["Completed", "Failed", "Cancelled"]
    final_snapshot_id: str | None
    output: Any
    cause: Cause | None = None


def _invalid(message: str) -> OtherIoError:
    return OtherIoError(message, code="child_run_request_invalid", category="ParsingInput")


def read_spawn_request(value: Any) -> SpawnRequest:
    """Read a spawn request, from JSON or as it is.

    :raises OtherIoError: code ``child_run_request_invalid``
    """
    if type(value) is SpawnRequest:
        return value
    _check_kind(value, SPAWN_KIND, "spawn")
    config = value.get("run_config")
    if not isinstance(config, dict) or any(name not in config for name in V1_REQUIRED):
        raise _invalid("invalid child run spawn request")
    try:
        return SpawnRequest.from_json(value)
    except ValidationError:
        raise _invalid("invalid child run spawn request") from None


def read_await_request(value: Any) -> AwaitRequest:
    """Read an await request, from JSON or as it is.

    :raises OtherIoError: code ``child_run_request_invalid``
    """
    if type(value) is not AwaitRequest:
        _check_kind(value, AWAIT_KIND, "await")
    try:
        request = AwaitRequest.from_json(value)
        uuid_of(request.child_run_id)
    except ValueError:
        raise _invalid("invalid child run await request") from None
    return request


def _check_kind(value: Any, kind: str, verb: str) -> None:
    if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
        raise _invalid(f"invalid child run {verb} request")
    if value["kind"] != kind:
        raise _invalid(f"unsupported child run {verb} request kind")
