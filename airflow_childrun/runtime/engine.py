"""The engine as a library: start a run, resume it, replay it. What Airflow does with child runs is in ``host``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

from airflow_childrun.engine.ports import IoCall, RunIdentity
from airflow_childrun.engine.prepare import Lineage, Request, prepare_run
from airflow_childrun.engine.replay import Replayer
from airflow_childrun.errors import ConcurrencyError, IoError, NotFoundError, OtherRunError, StoreInterrupt
from airflow_childrun.model.manifest import RunManifest
from airflow_childrun.runtime.ends import check_ends
from airflow_childrun.runtime.histories import load_whole_run, read_manifest
from airflow_childrun.runtime.house import House
from airflow_childrun.runtime.supervisor import Supervisor
from airflow_childrun.store.api import Commit, Conflict, RunRow
from airflow_childrun.transports.child_requests import ChildRunBinding
from airflow_childrun.transports.registry import LiveIoEnv, Router

Phase = Literal["Running", "Completed", "Failed", "Cancelled"]


@dataclass(frozen=True, slots=True)
class RunResult:
    """Where a run stands: ``{run_id, phase, final_snapshot_id}``."""

    run_id: UUID
    phase: Phase
    final_snapshot_id: str | None


class ExecutionEngine:
    """Runs operations in this process, over any store."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.supervisor = Supervisor(house)

    def start(self, manifest: RunManifest, initial_context: Any = None, run_id: UUID | None = None) -> RunResult:
        """Create a run without parent and drive it to its end.

        :raises InvalidPlanError: what is wrong with manifest or plan; nothing is stored
        :raises ContextError: what is wrong with the initial context; nothing is stored
        :raises ConcurrencyError: code ``run_already_exists``
        """
        return self.resume(self.create(manifest, initial_context, run_id))

    def create(self, manifest: RunManifest, initial_context: Any = None, run_id: UUID | None = None) -> UUID:
        """Create a run without parent, and leave it."""
        house = self.house
        new_id = run_id or house.entropy.new_id()
        request = Request(manifest, initial_context)
        prepared = prepare_run(request, Lineage(new_id, new_id), house.resolver, house.policy)
        commit = Commit(house.entropy.new_id(), (prepared.step,), prepared.artifacts)
        answer = house.patience.attempt(lambda: house.committer.submit(commit))
        if isinstance(answer, Conflict):
            raise ConcurrencyError(f"the run {new_id} exists already", code="run_already_exists")
        return new_id

    def resume(self, run_id: UUID) -> RunResult:
        """Drive a run to its end; one that has ended is answered as it is.

        :raises NotFoundError: code ``run_not_found``
        :raises ChildRunError: why the run cannot be driven; nothing was written then
        """
        house = self.house
        row = house.find_run(run_id)
        if row is None:
            raise NotFoundError(f"there is no run {run_id}; see `childrun runs list`", code="run_not_found")
        if not row.is_terminal:
            self.supervisor.hand_over(run_id)
            while self.supervisor.wait_while_active([run_id], None):
                pass
            error = self.supervisor.error_of(run_id)
            if error is not None:
                raise error
            row = house.find_run(run_id) or row if run_id in self.supervisor.stopped else self.supervisor.wait(run_id)
        house.patience.attempt(lambda: check_ends(house.store, [row]))
        return RunResult(run_id, _phase(row), row.final_snapshot_id or row.checkpoint_snapshot_id)

    def replay(self, run_id: UUID) -> str:
        """Run the handlers of a run again over its recorded facts; return the snapshot id that they end with.

        :raises NondeterminismError: naming the state where code and history part
        """
        house = self.house
        row = house.find_run(run_id)
        if row is None:
            raise NotFoundError(f"there is no run {run_id}; see `childrun runs list`", code="run_not_found")
        history = load_whole_run(house.store, row)
        manifest = read_manifest(house.store, row.root_run_id, history.start)
        plan = house.resolver.resolve(manifest)
        identity = RunIdentity(run_id, history.chain_id, row.root_run_id, row.depth, history.start.airflow)
        binding = RouterBinding(house, identity)
        replayer = Replayer(identity, plan, manifest.run_config, house.policy, binding)

        def read(artifact_id: str) -> bytes:
            found = house.store.get_artifacts(row.root_run_id, [artifact_id])
            if artifact_id not in found:
                missing = NotFoundError(
                    f"artifact {artifact_id} is missing; run `childrun verify`", code="artifact_not_found"
                )
                raise StoreInterrupt(str(missing), missing)
            return found[artifact_id]

        try:
            return replayer.replay(history, read)
        except StoreInterrupt as broken:
            raise broken.cause or OtherRunError(str(broken)) from broken

    def close(self) -> None:
        """Give up what is driven; the session ends when the last thread of a run has."""
        self.supervisor.close()


class RouterBinding:
    """How requests are bound to answers in replay: like live, but nothing can be performed."""

    def __init__(self, house: House, identity: RunIdentity) -> None:
        self._children = ChildRunBinding(identity, house.policy)
        self._router = Router(house.transports, LiveIoEnv(identity, "", 0), replay=True)

    def request_digest(self, call: IoCall) -> str:
        """Bind like the live transports."""
        return self._for(call).request_digest(call)

    def mismatch(self, call: IoCall, recorded: Any) -> IoError:
        """Refuse like the live transports."""
        return self._for(call).mismatch(call, recorded)

    def _for(self, call: IoCall) -> ChildRunBinding | Router:
        return self._children if call.namespace.startswith("machine.child_run.") else self._router


def _phase(row: RunRow) -> Phase:
    phases: Mapping[str, Phase] = {"Completed": "Completed", "Failed": "Failed", "Cancelled": "Cancelled"}
    return phases.get(row.status, "Running")
