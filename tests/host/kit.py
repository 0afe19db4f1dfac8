"""The kit of the host's tests: a task instance as Airflow would carry it through tries, clears and re-creations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast
from uuid import UUID

from airflow_childrun.canonical import artifact_id
from airflow_childrun.engine.context import snapshot_bytes
from airflow_childrun.hooks.coordinates import TaskPlace
from airflow_childrun.hooks.observer import TaskObserver
from airflow_childrun.hooks.results import handle_of, results_of
from airflow_childrun.hooks.task import HostTask
from airflow_childrun.ids import child_run_id
from airflow_childrun.model.events import HOST_TRY
from airflow_childrun.model.manifest import manifest_id
from airflow_childrun.runtime.dispatch import DagRuns
from airflow_childrun.runtime.host import OnPlanChange
from airflow_childrun.runtime.host_tree import WantedChild
from airflow_childrun.runtime.host_try import HostCoordinates, OnClear, TryFacts
from airflow_childrun.store.api import RunRow
from tests.engine.kit import Lab, Process, Stage, manifest

HOUR_US = 3_600_000_000
RETRIES = 2


@dataclass(frozen=True)
class AirflowTask:
    """What Airflow says of a task instance's try; each method is something that happens to it (spec: airflow.md, G1 and L)."""

    task_id: str = "spawn"
    dag_run_id: str = "manual__1"
    map_index: int = -1
    number: int = 1
    facts: TryFacts = field(default_factory=lambda: TryFacts(UUID(int=1), 1, RETRIES, 0, HOUR_US))

    @property
    def coordinates(self) -> HostCoordinates:
        return HostCoordinates("here", "report", self.dag_run_id, self.task_id, self.map_index)

    @property
    def place(self) -> TaskPlace:
        airflow = {"dag_id": "report", "run_id": self.dag_run_id, "logical_date": None}
        return TaskPlace(self.coordinates, self.facts, airflow, None, {})

    def retry(self) -> AirflowTask:
        return self._next(try_number=self.facts.try_number + 1)

    def clear(self) -> AirflowTask:
        cleared = self.clear_sibling()
        number = self.facts.try_number
        return cleared._next(try_number=number + 1, max_tries=number + RETRIES)

    def clear_sibling(self) -> AirflowTask:
        """Start the DAG run again; this task instance is as it was until its own next try."""
        facts = self.facts
        later = replace(facts, clear_number=facts.clear_number + 1, dag_run_start=facts.dag_run_start + HOUR_US)
        return replace(self, facts=later)

    def recreate(self) -> AirflowTask:
        """Delete the DAG run and make it again under the same run id."""
        start = self.facts.dag_run_start + HOUR_US
        return self._next(try_number=1, max_tries=RETRIES, clear_number=0, dag_run_start=start)

    def _next(self, **changes: int) -> AirflowTask:
        number = self.number + 1
        return replace(self, number=number, facts=replace(self.facts, ti_id=UUID(int=number), **changes))


@dataclass
class Try:
    """A try at work in a process of its own."""

    host: HostTask
    process: Process

    def spawn(
        self, wanted: Sequence[WantedChild], on_clear: OnClear = "auto", on_plan_change: OnPlanChange = "fail"
    ) -> list[RunRow]:
        return self.host.spawn(wanted, on_clear, on_plan_change)

    def run(
        self, wanted: Sequence[WantedChild], on_clear: OnClear = "auto", on_plan_change: OnPlanChange = "fail"
    ) -> list[dict[str, Any]]:
        """Spawn and await; return the results."""
        return self._end(self.spawn(wanted, on_clear, on_plan_change))

    def join(self, handles: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Only await; return the results."""
        return self._end(self.host.attach(handles))

    def handles(self, rows: Sequence[RunRow]) -> list[dict[str, Any]]:
        return [handle_of(row, self.host.key_of(row), "childrun_default") for row in rows]

    def _end(self, rows: Sequence[RunRow]) -> list[dict[str, Any]]:
        keys = [self.host.key_of(row) for row in rows]
        ended = self.host.drive(rows)
        found = results_of(self.host.store, ended, keys, "childrun_default", "values")
        self.host.note_return()
        self.host.close()
        return found


class HostLab(Lab):
    """A lab whose processes are tries of tasks."""

    def begin(self, task: AirflowTask, dag_runs: DagRuns | None = None, **limits: Any) -> Try:
        """Begin a try in a process of its own."""
        process = self.process(owner="", **limits)
        return Try(HostTask(process.house, task.place, TaskObserver(process.house.store), dag_runs), process)

    def wanted(self, op: str, inputs: Sequence[Any], *, version: str = "1", context: Any = None) -> list[WantedChild]:
        """Return one child per element, named by it, or by its ``id``."""
        return [self.child(op, value, version=version, context=context) for value in inputs]

    def child(
        self, op: str, value: Any, *, key: str | None = None, version: str = "1", context: Any = None
    ) -> WantedChild:
        made = manifest(op, value, version=version)
        snapshot = artifact_id(snapshot_bytes(context or {}, self.policy))
        name = key or f"{op}/{value['id'] if isinstance(value, dict) else value}"
        return WantedChild(name, made, manifest_id(made), context, snapshot)

    def host_id(self, task: AirflowTask, generation: int = 1) -> UUID:
        return task.coordinates.run_id(generation)

    def tries(self, task: AirflowTask, generation: int = 1) -> list[dict[str, Any]]:
        """Return the recorded tries of a task."""
        return cast("list[dict[str, Any]]", self.domain(self.host_id(task, generation), HOST_TRY))

    def generations(self, task: AirflowTask, key: str, host_generation: int = 1) -> list[str]:
        """Return the states of a child's generations, the oldest first."""
        slot = child_run_id(self.host_id(task, host_generation), key)
        rows = [row for row in self.all_runs() if row.slot_id == slot]
        return [row.status for row in sorted(rows, key=lambda row: row.generation)]


def outputs(results: Sequence[dict[str, Any]]) -> list[Any]:
    return [result["output"] for result in results]


def statuses(results: Sequence[dict[str, Any]]) -> list[str]:
    return [result["status"] for result in results]


def returning(function: Any) -> Any:
    """Make a handler of a function of the stage, whose result is the operation's output."""

    def handler(stage: Stage) -> None:
        stage.write(stage.state_id.rpartition(".")[2], function(stage))

    return handler
