"""The sweep: runs that nobody owns and that have not ended. Safe anywhere, any number of times, any number at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from uuid import UUID

from airflow_childrun.engine.inbox import CLOSE, standing_request
from airflow_childrun.errors import ChildRunError
from airflow_childrun.runtime.closing import cancel_run, close_policy, end_unowned, needs_clean_up
from airflow_childrun.runtime.dispatch import ACTIVE, Batch, DagRuns, batches_of, newest_dag_run
from airflow_childrun.runtime.engine import ExecutionEngine
from airflow_childrun.runtime.generations import all_runs
from airflow_childrun.runtime.histories import load_history, read_manifest
from airflow_childrun.runtime.host_try import HostCoordinates
from airflow_childrun.runtime.house import House
from airflow_childrun.store.api import AirflowCoordinates, RunFilter, RunRow

TaskState = Literal["active", "over", "unknown"]
"""What Airflow says of a task instance: it is active or will be; it is over and nothing will come; it cannot be asked."""

LookAtTask = Callable[[AirflowCoordinates, Mapping[str, Any]], TaskState]
"""Asks Airflow about a task instance: its coordinates, and its last recorded try (``ti_id`` and so on)."""

FINAL_FAILURES = frozenset({"failed", "upstream_failed", "removed"})


def task_state(state: str | None, *, dag_run_is_open: bool) -> TaskState:
    """Say what a task instance's state means for its children.

    A green task that did not wait leaves its children to another task of its DAG run, so it is over with the DAG run.

    :param state: as Airflow names it; None: it is about to be scheduled
    """
    if not dag_run_is_open or state in FINAL_FAILURES:
        return "over"
    return "active"


@dataclass
class Sweep:
    """What a sweep did.

    :param ended: runs that it ended, since their parent had ended or they were asked to
    :param in_grace: runs that were asked to end and may still be taken back
    :param awaited: runs whose task is active: its next try goes on with them; or which a DAG run of a runner drives
    :param left: runs that nobody will go on with by himself; by run id, the reason
    :param dispatched: runs that a runner DAG drives, whose DAG run was lost, and that have another one now
    :param unreachable: operations whose clean-up has to run and that this process does not know, as ``name version``
    """

    ended: list[UUID] = field(default_factory=list)
    in_grace: list[UUID] = field(default_factory=list)
    awaited: list[UUID] = field(default_factory=list)
    left: dict[UUID, str] = field(default_factory=dict)
    unreachable: set[str] = field(default_factory=set)
    dispatched: list[UUID] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON: ids as text, operations sorted."""
        return {
            "ended": [str(run_id) for run_id in self.ended],
            "in_grace": [str(run_id) for run_id in self.in_grace],
            "awaited": [str(run_id) for run_id in self.awaited],
            "left": {str(run_id): why for run_id, why in self.left.items()},
            "unreachable": sorted(self.unreachable),
            "dispatched": [str(run_id) for run_id in self.dispatched],
        }


def sweep(
    house: House,
    look: LookAtTask,
    deployment_id: str | None = None,
    engine: ExecutionEngine | None = None,
    dag_runs: DagRuns | None = None,
) -> Sweep:
    """End what is to end among the runs that nobody owns, the deepest first; run the clean-up that they owe.

    A run that somebody takes meanwhile is left to him, one that cannot be read does not stop the others.

    :param deployment_id: whose tasks ``look`` can see; None: all
    :param engine: drives the clean-up, and stays open; None makes one
    :param dag_runs: those of runner DAGs; None if they cannot be asked for
    """
    return _Sweeper(engine or ExecutionEngine(house), look, deployment_id, dag_runs).sweep()


class _Sweeper:
    """One sweep."""

    def __init__(
        self, engine: ExecutionEngine, look: LookAtTask, deployment_id: str | None, dag_runs: DagRuns | None
    ) -> None:
        self._house = engine.house
        self._look = look
        self._deployment_id = deployment_id
        self._engine = engine
        self._states: dict[UUID, TaskState | str] = {}
        self._found = Sweep()
        self._dag_runs = dag_runs
        self._batches: dict[UUID, dict[UUID, Batch]] = {}

    def sweep(self) -> Sweep:
        for row in sorted(self._unowned(), key=lambda row: -row.depth):
            self._try(row)
        return self._found

    def _unowned(self) -> Iterator[RunRow]:
        where = RunFilter(kind="operation", statuses=frozenset({"Pending", "Running"}), unowned=True)
        yield from all_runs(self._house.store, where)

    def _try(self, row: RunRow) -> None:
        try:
            self._settle(row)
        except ChildRunError as error:
            self._found.left[row.run_id] = f"{error.info.message} [{error.code}]"

    def _settle(self, row: RunRow) -> None:
        house, found = self._house, self._found
        request = standing_request(house.store.read_inbox(row.run_id))
        if request is not None:
            if request.effective_at > house.patience.attempt(house.store.now_us):
                found.in_grace.append(row.run_id)
            else:
                self._end(row, request.reason)
            return
        host = self._host_of(row)
        if host is None:
            found.left[row.run_id] = "no task stands above it; whoever started it has to resume it"
            return
        state = self._state_of(host)
        if state == "active":
            found.awaited.append(row.run_id)
        elif state != "over":
            found.left[row.run_id] = "Airflow cannot be asked about its task" if state == "unknown" else state
        elif self._is_driven_elsewhere(row, host):
            pass
        elif close_policy(house.store, row) != "cancel":
            found.left[row.run_id] = "its task is over and left it running"
        else:
            self._end(row, "its task is over")

    def _is_driven_elsewhere(self, row: RunRow, host: RunRow) -> bool:
        """Whether a DAG run of a runner DAG drives a run, or does now: one that was to outlive its task is dispatched anew.

        :param host: the task above it, which is over
        """
        top: RunRow | None = row
        while top is not None and top.parent_run_id != host.run_id and top.parent_run_id is not None:
            top = self._house.find_run(top.parent_run_id)
        if host.run_id not in self._batches:
            self._batches[host.run_id] = batches_of(self._house.store, [host.run_id])
        batch = None if top is None else self._batches[host.run_id].get(top.run_id)
        if batch is None or top is None or self._dag_runs is None:
            return False
        batch, state = newest_dag_run(self._dag_runs, batch)
        if state not in ACTIVE:
            if close_policy(self._house.store, top) == "cancel":
                return False
            batch = batch if state is None else replace(batch, number=batch.number + 1)
            self._dag_runs.trigger(batch.runner_dag_id, batch.dag_run_id, batch.conf)
            self._found.dispatched.append(row.run_id)
        self._found.awaited.append(row.run_id)
        return True

    def _end(self, row: RunRow, reason: str) -> None:
        """End a run and what is below it, the clean-up included that this process can run."""
        house, found = self._house, self._found
        asked = cancel_run(house, row.run_id, reason, kind=CLOSE)
        found.ended += [run_id for run_id, what in asked.items() if what == "cancelled" and run_id not in found.ended]
        for run_id in (run_id for run_id, what in asked.items() if what == "requested"):
            if self._clean_up(run_id):
                found.ended.append(run_id)

    def _clean_up(self, run_id: UUID) -> bool:
        """Run the clean-up that a run owes; False if another process has it, or this one does not know its operation."""
        house = self._house
        row = house.find_run(run_id)
        if row is None or row.is_terminal or row.lease_expires_at is not None:
            return False
        if not needs_clean_up(house.store, row):
            return end_unowned(house, run_id)
        started = load_history(house.store, run_id).start
        try:
            house.resolver.resolve(read_manifest(house.store, row.root_run_id, started))
        except ChildRunError as error:
            self._found.unreachable.add(f"{row.op_id} {row.op_version}")
            self._found.left[run_id] = f"its clean-up has to run first, and cannot here: {error.info.message}"
            return False
        return self._engine.resume(run_id).phase == "Cancelled"

    def _state_of(self, host: RunRow) -> TaskState | str:
        """Return what becomes of a task, or why nobody can say; asked once a sweep."""
        if host.run_id not in self._states:
            self._states[host.run_id] = self._ask(host)
        return self._states[host.run_id]

    def _ask(self, host: RunRow) -> TaskState | str:
        at = host.airflow
        if at is None:
            return "unknown"
        if self._deployment_id is not None and not is_of(self._deployment_id, host):
            return "its task belongs to another Airflow: its deployment_id is not that of this connection"
        tries = load_history(self._house.store, host.run_id).host_tries
        return self._look(at, tries[-1] if tries else {})

    def _host_of(self, row: RunRow) -> RunRow | None:
        """Return the task's run above a run, if there is one."""
        current: RunRow | None = row
        while current is not None and current.kind != "task_instance":
            current = self._house.find_run(current.parent_run_id) if current.parent_run_id else None
        return current


def is_of(deployment_id: str, host: RunRow) -> bool:
    """Whether a task's run belongs to an Airflow: several may share a store."""
    at = host.airflow
    if at is None:
        return False
    return HostCoordinates(deployment_id, at.dag_id, at.dag_run_id, at.task_id, at.map_index).root_run_id() == (
        host.root_run_id
    )
