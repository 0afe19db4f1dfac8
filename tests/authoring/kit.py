"""The kit of the authors' tests: real operations, run in one process, killed, resumed and replayed."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, cast
from uuid import UUID

from airflow_childrun.authoring.operation import Operation
from airflow_childrun.authoring.registry import RegistryResolver
from airflow_childrun.errors import ChildRunError, ErrorInfo
from airflow_childrun.model.config import RunConfig
from airflow_childrun.model.events import StateFailed
from airflow_childrun.model.manifest import RunManifest, build_manifest
from airflow_childrun.runtime.ends import end_of
from tests.engine.kit import Died, Lab, Process, Shelf


@dataclass(frozen=True)
class End:
    """How a run ended."""

    run_id: UUID
    status: str
    output: Any
    cause: dict[str, Any] | None


class Desk(Lab):
    """Where an author tries his operations."""

    def process(self, **given: Any) -> Process:
        """Begin a process that knows what is registered."""
        return super().process(shelf=cast("Shelf", RegistryResolver()), **given)

    def manifest(
        self, op: Operation, input: Any = None, *, config: Any = None, run_config: RunConfig | None = None
    ) -> RunManifest:
        """Ask for a run as a spawn does."""
        checked = op.encode_input(input)
        return build_manifest(
            op.name, op.version, op_config=config, input=checked, run_config=run_config or op.run_config
        )

    def run(self, op: Operation, input: Any = None, **given: Any) -> End:
        """Run an operation to its end; a completed one must replay to the same snapshot."""
        run_id = self.process().engine.start(self.manifest(op, input, **given)).run_id
        end = self.end(op, run_id)
        if end.status == "Completed":
            assert self.replay(run_id) == self.row(run_id).final_snapshot_id
        return end

    def kill(self, op: Operation, input: Any = None, *, after: int, **given: Any) -> UUID:
        """Begin a run, and kill its process after that many of the commits that follow its creation."""
        first = self.process()
        run_id = first.engine.create(self.manifest(op, input, **given))
        first.gate.die_after = after + 1
        with contextlib.suppress(Died, ChildRunError):
            first.engine.resume(run_id)
        return run_id

    def resume(self, op: Operation, run_id: UUID) -> End:
        """Go on in a process of its own."""
        self.process().engine.resume(run_id)
        return self.end(op, run_id)

    def replay(self, run_id: UUID) -> str:
        """Run the handlers again over what is recorded."""
        return self.process().engine.replay(run_id)

    def end(self, op: Operation, run_id: UUID) -> End:
        """Tell how a run ended, its output as the author's type."""
        row = self.row(run_id)
        answer = end_of(self.store, row, compact=True)
        output = op.decode_output(answer["output"]) if row.status == "Completed" else None
        return End(run_id, row.status, output, answer.get("cause"))

    def failures(self, run_id: UUID) -> list[ErrorInfo]:
        """Return the real failures of a run, in order."""
        return [e.error.error for e in self.events(run_id) if isinstance(e, StateFailed) and e.is_real]

    def keys(self, run_id: UUID) -> list[str]:
        """Return the fact keys of a run, in the order in which they were recorded."""
        return [payload["key"] for name in ("fact_recorded", "fact_failed") for payload in self.domain(run_id, name)]


def load(path: Path, body: str = "") -> ModuleType:
    """Read a file as Airflow reads a DAG file: each time anew. With a body, write it first."""
    if body:
        path.write_text(f"from airflow_childrun import Operation, operation\n{body}\n")
    module = ModuleType("unusual_prefix_dag")
    module.__file__ = str(path)
    exec(compile(path.read_text(), str(path), "exec"), module.__dict__)  # noqa: S102 - the code is the test's own
    return module
