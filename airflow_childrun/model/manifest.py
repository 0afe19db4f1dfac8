"""The content-addressed request that a run executes."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any

from pydantic import Field

from airflow_childrun.canonical import artifact_id, canonical_json_bytes
from airflow_childrun.model.config import RunConfig
from airflow_childrun.model.wire import Deferred

MAIN_STEP = "main"


class BuildProvenance(Deferred):
    """What the operation was built from; all null unless a launcher knows."""

    git_commit: str | None = None
    cargo_lock_hash: str | None = None
    flake_lock_hash: str | None = None
    rustc_version: str | None = None
    target_triple: str | None = None
    env_allowlist: Annotated[tuple[str, ...], Field(strict=False)] = ()


class RunManifest(Deferred):
    """``{op_id, op_version, input_params, run_config, build}``."""

    op_id: str
    op_version: str
    input_params: Any
    run_config: RunConfig
    build: BuildProvenance = BuildProvenance()

    def canonical_bytes(self) -> bytes:
        """Return the bytes whose SHA-256 is the manifest id; a manifest is written once and does not change.

        :raises CanonicalError: if the config or the input is not canonical JSON
        """
        return self._written

    @cached_property
    def _written(self) -> bytes:
        return canonical_json_bytes(self.to_json())

    @property
    def op_config(self) -> Any:
        """The operation's configuration, where the manifest is that of a single operation."""
        return self._step().get("op_config")

    @property
    def input(self) -> Any:
        """The operation's input."""
        return self.input_params.get("input") if isinstance(self.input_params, dict) else None

    def _step(self) -> dict[str, Any]:
        params = self.input_params if isinstance(self.input_params, dict) else {}
        pipeline = params.get("pipeline")
        steps = pipeline.get("steps") if isinstance(pipeline, dict) else None
        return steps[0] if isinstance(steps, list) and len(steps) == 1 and isinstance(steps[0], dict) else {}


def build_manifest(
    op_id: str, op_version: str, *, op_config: Any = None, input: Any = None, run_config: RunConfig
) -> RunManifest:
    """Build the manifest of a single operation: a pipeline of the one step ``main``."""
    step = {"step_id": MAIN_STEP, "op_id": op_id, "op_version": op_version, "op_config": op_config}
    pipeline = {"machine_id": op_id, "pipeline_version": op_version, "steps": [step]}
    return RunManifest(
        op_id=op_id,
        op_version=op_version,
        input_params={"pipeline": pipeline, "input": input},
        run_config=run_config,
    )


def manifest_id(manifest: RunManifest) -> str:
    """Return the artifact id of the manifest."""
    return artifact_id(manifest.canonical_bytes())
