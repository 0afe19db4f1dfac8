"""Everything that can be refused is refused here, before a run exists; then its first event and row are built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol
from uuid import UUID

from airflow_childrun.canonical import artifact_id
from airflow_childrun.engine.context import snapshot_bytes
from airflow_childrun.errors import (
    CanonicalError,
    ContextSerializationError,
    InvalidPlanError,
    SecretsDetectedError,
)
from airflow_childrun.model.config import DEFAULT_FLAKE_ALLOWLIST, ChildRetryPolicy, CustomName
from airflow_childrun.model.events import ENGINE, Continues, Parent, RunStarted
from airflow_childrun.model.manifest import BuildProvenance, RunManifest
from airflow_childrun.model.plan import ExecutionPlan
from airflow_childrun.secret_policy import SecretPolicy
from airflow_childrun.store.api import AirflowCoordinates, Artifact, NewRun, RunKind, RunStep
from airflow_childrun.store.codec import encode_event

_NO_BUILD = BuildProvenance()
MANIFEST, SNAPSHOT, PLAN = "Manifest", "ContextSnapshot", "Plan"


class PlanResolver(Protocol):
    """Finds the plan that a manifest asks for."""

    def resolve(self, manifest: RunManifest) -> ExecutionPlan:
        """Return the plan; the same manifest always gives an equal one.

        :raises OperationError: if the operation is unknown or not reachable
        :raises InputError: if the input or the configuration does not fit the operation
        :raises InvalidPlanError: if the operation makes no valid plan of it
        """


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where a new run stands.

    :param slot_owner_id: start of the parent's chain; None for a run without parent
    """

    run_id: UUID
    root_run_id: UUID
    depth: int = 0
    slot_id: UUID | None = None
    generation: int = 1
    parent_run_id: UUID | None = None
    slot_owner_id: UUID | None = None
    fact_key: str | None = None
    state_id: str | None = None
    continues: Continues | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A run that can be created by a commit."""

    step: RunStep
    artifacts: tuple[Artifact, ...]
    started: RunStarted
    manifest_id: str
    initial_snapshot_id: str


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be run.

    :param initial_context: full keys (``<op>.main.<key>``) and values
    :param snapshot_id: the checkpoint that a continuing generation starts at, instead of a context
    :param is_checked: whoever read the request has held the manifest's input against the secret policy
    """

    manifest: RunManifest
    initial_context: Any = None
    snapshot_id: str | None = None
    parent_close_policy: Literal["cancel", "abandon"] | None = None
    airflow: Mapping[str, Any] | None = None
    deadline_at: int | None = None
    child_retry_policy: ChildRetryPolicy | None = None
    child_attempt: int = 1
    max_concurrency: int | None = None
    is_checked: bool = False


def check_secrets(manifest: RunManifest, policy: SecretPolicy) -> None:
    """Refuse a manifest in which a caller's text holds a secret.

    :raises SecretsDetectedError: naming the place
    """
    policy.check(manifest.input_params, "the run manifest")
    config = manifest.run_config
    names = (
        name.Custom for name in (config.event_profile, config.context_checkpointing) if isinstance(name, CustomName)
    )
    texts = [*config.skip_tags, *config.nix_flake_allowlist, *names]
    if texts != [*DEFAULT_FLAKE_ALLOWLIST]:
        policy.check(texts, "the texts of run_config")
    if manifest.build != _NO_BUILD:
        policy.check(manifest.build.to_json(), "the build provenance of the manifest")


def check_manifest(manifest: RunManifest, policy: SecretPolicy | None) -> bytes:
    """Return the canonical bytes of a manifest that may be executed.

    :param policy: None if the manifest's input was held against it before
    :raises InvalidPlanError: codes ``unsupported_execution_mode``, ``secrets_detected``, ``manifest_not_canonical``
    """
    if manifest.run_config.execution_mode != "Sequential":
        raise InvalidPlanError(
            "execution_mode FanOutJoin is not supported; spawn child runs instead", code="unsupported_execution_mode"
        )
    try:
        if policy is not None:
            check_secrets(manifest, policy)
        return manifest.canonical_bytes()
    except SecretsDetectedError as error:
        raise InvalidPlanError(
            error.info.message, code=error.code, category="ParsingInput", details=error.info.details
        ) from None
    except CanonicalError as error:
        raise InvalidPlanError(
            f"the run manifest is not canonical JSON: {error.info.message}",
            code="manifest_not_canonical",
            category="ParsingInput",
            details=error.info.details,
        ) from None


def check_context(context: Any, policy: SecretPolicy) -> bytes:
    """Return the canonical bytes of an initial context (None: an empty one).

    :raises ContextSerializationError: codes ``context_snapshot_not_object``, ``context_snapshot_not_canonical``
    :raises OtherContextError: code ``secrets_detected``
    """
    if context is None:
        return b"{}"
    if not isinstance(context, dict):
        raise ContextSerializationError(
            "initial_context must be an object of keys and values", code="context_snapshot_not_object"
        )
    return snapshot_bytes(context, policy)


def prepare_run(request: Request, lineage: Lineage, resolver: PlanResolver, policy: SecretPolicy) -> Prepared:
    """Validate a request whole and build what creates the run.

    :raises InvalidPlanError: what is wrong with manifest or plan
    :raises ContextError: what is wrong with the initial context
    :raises OperationError: if the operation is unknown or not reachable
    :raises InputError: if the input does not fit
    """
    manifest_body = check_manifest(request.manifest, None if request.is_checked else policy)
    plan = resolver.resolve(request.manifest)
    if plan.op_id != request.manifest.op_id:
        raise InvalidPlanError(
            f"the plan is that of {plan.op_id}, the manifest asks for {request.manifest.op_id}",
            code="manifest_op_id_mismatch",
            category="ParsingInput",
        )
    root = lineage.root_run_id
    artifacts = [_artifact(root, MANIFEST, manifest_body), _artifact(root, PLAN, plan.description_bytes())]
    if request.snapshot_id is None:
        artifacts.append(_artifact(root, SNAPSHOT, check_context(request.initial_context, policy)))
    snapshot_id = request.snapshot_id or artifacts[-1].id
    started = _started(request, lineage, plan, artifacts[0].id, snapshot_id)
    return Prepared(create_step(started, lineage), tuple(artifacts), started, artifacts[0].id, snapshot_id)


def _started(request: Request, lineage: Lineage, plan: ExecutionPlan, manifest_id: str, snapshot_id: str) -> RunStarted:
    return RunStarted(
        op_id=plan.op_id,
        manifest_id=manifest_id,
        initial_snapshot_id=snapshot_id,
        engine=ENGINE,
        op_version=plan.op_version,
        plan_id=plan.plan_id,
        code_digest=plan.code_digest,
        parent=_parent(lineage),
        root_run_id=str(lineage.root_run_id),
        depth=lineage.depth,
        generation=lineage.generation,
        continues=lineage.continues,
        parent_close_policy=request.parent_close_policy,
        child_retry_policy=request.child_retry_policy,
        child_attempt=request.child_attempt,
        max_concurrency=request.max_concurrency,
        deadline_at=request.deadline_at,
        on_cancel=plan.on_cancel is not None,
        airflow=dict(request.airflow) if request.airflow else None,
    )


def create_step(
    started: RunStarted, lineage: Lineage, kind: RunKind = "operation", airflow: AirflowCoordinates | None = None
) -> RunStep:
    """Return the step that creates a run with its first event."""
    new = NewRun(
        kind=kind,
        parent_run_id=lineage.parent_run_id,
        root_run_id=lineage.root_run_id,
        depth=lineage.depth,
        slot_id=lineage.slot_id or lineage.run_id,
        generation=lineage.generation,
        op_id=started.op_id,
        op_version=started.op_version or "",
        manifest_id=started.manifest_id,
        initial_snapshot_id=started.initial_snapshot_id,
        plan_id=started.plan_id,
        deadline_at=started.deadline_at,
        airflow=airflow,
    )
    return RunStep(lineage.run_id, 0, None, (encode_event(started),), create=new)


def _parent(lineage: Lineage) -> Parent | None:
    if lineage.parent_run_id is None or lineage.fact_key is None:
        return None
    return Parent(
        run_id=str(lineage.parent_run_id),
        fact_key=lineage.fact_key,
        slot_owner_id=str(lineage.slot_owner_id or lineage.parent_run_id),
        state_id=lineage.state_id,
    )


def _artifact(root_run_id: UUID, kind: str, body: bytes) -> Artifact:
    return Artifact(root_run_id, artifact_id(body), kind, body)
