"""What child-run requests ask for, and what binds an answer to its request: the pure half of the transport."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from airflow_childrun.canonical import canonical_json_bytes
from airflow_childrun.engine.ports import IoCall, RunIdentity
from airflow_childrun.engine.prepare import check_context, check_secrets
from airflow_childrun.errors import ChildRunError, ErrorInfo, IoError, OtherIoError
from airflow_childrun.ids import is_op_id
from airflow_childrun.model.manifest import RunManifest, build_manifest, manifest_id
from airflow_childrun.model.requests import (
    AWAIT,
    SPAWN,
    AwaitRequest,
    SpawnRequest,
    read_await_request,
    read_spawn_request,
)
from airflow_childrun.secret_policy import SecretPolicy


@dataclass(frozen=True, slots=True)
class Wanted:
    """A spawn request, read and built."""

    request: SpawnRequest
    manifest: RunManifest
    manifest_id: str
    snapshot_id: str


def read_wanted(value: Any, policy: SecretPolicy) -> Wanted:
    """Read a spawn request and build its manifest.

    :param value: JSON, or the model
    :raises OtherIoError: codes ``child_run_request_invalid``, ``child_run_engine_failed``
    """
    request = read_spawn_request(value)
    if not is_op_id(request.op_id):
        raise _invalid("invalid child run op_id")
    if request.initial_context is not None and not isinstance(request.initial_context, dict):
        raise _invalid("initial_context must be an object of keys and values")
    if request.run_config.io_mode != "Live":
        raise _invalid("a live parent cannot have a child in replay mode")
    manifest = build_manifest(
        request.op_id,
        request.op_version,
        op_config=request.op_config,
        input=request.input,
        run_config=request.run_config,
    )
    try:
        check_secrets(manifest, policy)
        snapshot = check_context(request.initial_context, policy)
        return Wanted(request, manifest, manifest_id(manifest), hashlib.sha256(snapshot).hexdigest())
    except ChildRunError as error:
        raise engine_failed(error, "ParsingInput") from None


def child_request_digest(call: IoCall, identity: RunIdentity, policy: SecretPolicy) -> str:
    """Return the digest of what could change the result: of a spawn its manifest, context and parent.

    :raises IoError: if the request alone tells that it cannot be served
    """
    if call.namespace == SPAWN:
        return spawn_digest(read_wanted(call.asked, policy), identity)
    if call.namespace == AWAIT:
        return await_digest(read_await_request(call.asked))
    return hashlib.sha256(canonical_json_bytes([call.namespace])).hexdigest()


def await_digest(request: AwaitRequest) -> str:
    """Return the digest of what an await asks for: which child, and in which form its answer comes."""
    bound = [AWAIT, request.child_run_id, request.child_manifest_id, "compact" if request.compact else "v1"]
    return hashlib.sha256(canonical_json_bytes(bound)).hexdigest()


def spawn_digest(wanted: Wanted, identity: RunIdentity) -> str:
    """Return the digest of what could change a spawn's result: its manifest, context and parent."""
    bound = [SPAWN, wanted.manifest_id, wanted.snapshot_id, str(identity.chain_id)]
    return hashlib.sha256(canonical_json_bytes(bound)).hexdigest()


def child_mismatch(call: IoCall, recorded: Any, policy: SecretPolicy) -> IoError:
    """Return ``child_run_conflict`` naming what differs from the recorded spawn or await."""
    if call.namespace == SPAWN and isinstance(recorded, Mapping):
        same = recorded.get("child_manifest_id") == read_wanted(call.asked, policy).manifest_id
        return conflict("initial context" if same else "operation, configuration, input or run_config")
    return OtherIoError(
        f"the key {call.fact_key!r} holds another request; give the new one another key",
        code="fact_request_mismatch",
        category="ParsingInput",
    )


class ChildRunBinding:
    """The pure half of the transport, for replay."""

    def __init__(self, identity: RunIdentity, policy: SecretPolicy) -> None:
        self._identity = identity
        self._policy = policy

    def request_digest(self, call: IoCall) -> str:
        """Bind like the live transport."""
        return child_request_digest(call, self._identity, self._policy)

    def mismatch(self, call: IoCall, recorded: Any) -> IoError:
        """Refuse like the live transport."""
        return child_mismatch(call, recorded, self._policy)


def conflict(what: str) -> OtherIoError:
    """Return ``child_run_conflict``, naming what differs."""
    return OtherIoError(
        f"a child run exists under this key with a different {what}; give the new child another key",
        code="child_run_conflict",
        details={"differs": what},
    )


def engine_failed(error: ChildRunError, category: Any = None) -> OtherIoError:
    """Return ``child_run_engine_failed`` with the cause's own code in the details."""
    info: ErrorInfo = error.info
    return OtherIoError(
        f"the child run cannot be made: {info.message} [{info.code}]",
        code="child_run_engine_failed",
        category=category or info.category,
        retryable=info.retryable,
        details={"code": info.code},
    )


def _invalid(message: str) -> OtherIoError:
    return OtherIoError(message, code="child_run_request_invalid", category="ParsingInput")
