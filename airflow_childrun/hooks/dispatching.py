"""``dispatch="dag_run"`` as a task sees it: what its author asked for, Airflow's DAG runs, and whether a runner knows the operation."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from airflow_childrun import _airflow
from airflow_childrun.authoring.handles import Spawnable
from airflow_childrun.authoring.registry import REGISTRY, Place, Registered
from airflow_childrun.errors import ErrorInfo, InputError, OperationError
from airflow_childrun.hooks.operations import shared_modules
from airflow_childrun.hooks.settings import read_settings
from airflow_childrun.model.requests import ClosePolicy
from airflow_childrun.runtime.dispatch import ACTIVE, Batch, Cutter, OnRunnerLost

DispatchMode = Literal["inline", "dag_run"]
RUNNER_TASK_ID = "drive"
ERROR_KEY = "childrun_error"
"""Under which XCom key a runner's task says why it could not drive its children."""
LONGEST_TAG = 100
_log = logging.getLogger("airflow.task.childrun")


@dataclass(frozen=True, slots=True)
class Dispatch:
    """That DAG runs of a runner DAG drive a task's children.

    :param batch_size: how many children one DAG run drives
    :param on_runner_lost: what is done when a DAG run is over, or gone, before its children have ended
    """

    runner_dag_id: str
    batch_size: int = 1
    on_runner_lost: OnRunnerLost = "redispatch"

    @property
    def cutter(self) -> Cutter:
        """What cuts children into batches."""
        return Cutter(self.runner_dag_id, self.batch_size, self.on_runner_lost)


def read_dispatch(mode: str, runner_dag_id: str | None, batch_size: int, on_runner_lost: str) -> Dispatch | None:
    """Return what the arguments of an operator ask for; None if its task is to drive the children itself.

    :raises InputError: codes ``argument_invalid``, ``runner_dag_missing``
    """
    for name, value, takes in (
        ("dispatch", mode, get_args(DispatchMode)),
        ("on_runner_lost", on_runner_lost, get_args(OnRunnerLost)),
    ):
        if value not in takes:
            raise InputError(f"{name} is {value!r}; it takes {', '.join(takes)}", code="argument_invalid")
    if mode == "inline":
        if runner_dag_id is not None or batch_size != 1:
            raise InputError(
                'runner_dag_id and batch_size belong to dispatch="dag_run"; this task drives its children itself',
                code="argument_invalid",
            )
        return None
    if not runner_dag_id:
        raise InputError(
            'dispatch="dag_run" needs runner_dag_id=: the id of a DAG made with childrun_runner_dag(...)',
            code="runner_dag_missing",
        )
    if type(batch_size) is not int or batch_size < 1:
        raise InputError(f"batch_size is {batch_size!r}; it takes an integer >= 1", code="argument_invalid")
    return Dispatch(runner_dag_id, batch_size, "fail" if on_runner_lost == "fail" else "redispatch")


def check_runner(dispatch: Dispatch | None, policy: str, dag_id: str | None) -> Dispatch | None:
    """Refuse what does not go with who drives the children.

    :param dag_id: the DAG whose runs are the children, if they are
    :raises InputError: codes ``argument_invalid``, ``inline_abandon``
    """
    if policy not in get_args(ClosePolicy):
        raise InputError(f"parent_close_policy is {policy!r}; it takes cancel, abandon", code="argument_invalid")
    if dispatch is None and policy == "abandon" and not dag_id:
        raise InputError(
            'parent_close_policy="abandon" needs dispatch="dag_run": children that their task drives end with it',
            code="inline_abandon",
        )
    if dispatch is not None and dag_id:
        raise InputError(
            'dispatch="dag_run" is for operations: children of dag_id= are DAG runs', code="argument_invalid"
        )
    return dispatch


class TaskDagRuns:
    """What a task may ask Airflow about DAG runs, over the channel that its process has; no credentials are needed."""

    def trigger(self, dag_id: str, run_id: str, conf: Mapping[str, Any]) -> bool:
        """Make a DAG run; False if there is one of this id."""
        return _airflow.trigger_dag_run(dag_id, run_id, conf)

    def state(self, dag_id: str, run_id: str) -> str | None:
        """Return a DAG run's state; None if there is none."""
        return _airflow.dag_run_state(dag_id, run_id)

    def count_active(self, dag_id: str, run_ids: Sequence[str]) -> int:
        """Return how many of them are queued or run."""
        return _airflow.count_active_dag_runs(dag_id, run_ids)

    def error_of(self, dag_id: str, run_id: str) -> ErrorInfo | None:
        """Return why a runner's task failed, if it said so."""
        found = _airflow.read_xcom(dag_id, run_id, RUNNER_TASK_ID, ERROR_KEY)
        return ErrorInfo.from_json(found) if isinstance(found, Mapping) else None


class DatabaseDagRuns:
    """The same for an administrator's process, which asks Airflow's metadata database."""

    def trigger(self, dag_id: str, run_id: str, conf: Mapping[str, Any]) -> bool:
        """Make a DAG run; False if there is one of this id."""
        return _airflow.trigger_dag_run_as_admin(dag_id, run_id, conf)

    def state(self, dag_id: str, run_id: str) -> str | None:
        """Return a DAG run's state; None if there is none."""
        return _airflow.dag_run_states(dag_id, [run_id]).get(run_id)

    def count_active(self, dag_id: str, run_ids: Sequence[str]) -> int:
        """Return how many of them are queued or run."""
        return sum(state in ACTIVE for state in _airflow.dag_run_states(dag_id, run_ids).values())

    def error_of(self, dag_id: str, run_id: str) -> ErrorInfo | None:  # noqa: ARG002
        """Return None: whoever sweeps dispatches anew whatever the cause was."""
        return None


def link_to(batch: Batch) -> str:
    """Return where Airflow's UI shows a DAG run; empty if this process does not know where that is."""
    base = str(_airflow.conf.get("api", "base_url", fallback="") or "").rstrip("/")
    return f"{base}/dags/{batch.runner_dag_id}/runs/{batch.dag_run_id}" if base else ""


# --------------------------------------------------------------------------------------- does the runner know the operation


@dataclass(frozen=True, slots=True)
class Runner:
    """A runner DAG that this process has made.

    :param file: the DAG file that it stands in
    """

    file: str
    operations: frozenset[tuple[str, str]]


RUNNERS: dict[str, Runner] = {}
"""The runner DAGs of this process, by id."""


def operation_tag(name: str, version: str) -> str:
    """Return the tag by which a runner DAG says in Airflow that it knows an operation."""
    return f"operation:{name}@{version}"[:LONGEST_TAG]


def can_dispatch(dispatch: Dispatch | None) -> Dispatch | None:
    """Return None where nobody would run the DAG runs: ``dag.test`` runs one DAG run, in one process."""
    if dispatch is None or not _airflow.channel_is_shared():
        return dispatch
    _log.warning(
        "this is no scheduler's task (dag.test): the children are driven here, one at a time. Under a scheduler DAG runs "
        "of %s drive them",
        dispatch.runner_dag_id,
    )
    return None


def check_reachable(operation: Spawnable, dispatch: Dispatch | None, dag_file: str | None) -> None:
    """Refuse to spawn what the runner DAG could not drive; warn if it is paused.

    :raises OperationError: code ``operation_not_reachable``
    :raises HostError: codes ``dag_not_found``, ``airflow_unavailable``
    """
    if dispatch is None:
        return
    is_paused, tags = _airflow.describe_dag(dispatch.runner_dag_id)
    if is_paused:
        _log.warning(
            "the runner DAG %s is paused: its DAG runs, and the children in them, wait until somebody unpauses it",
            dispatch.runner_dag_id,
        )
    name, version = operation.name, operation.version
    if operation_tag(name, version) in tags or _is_shared(name, version):
        return
    runner = RUNNERS.get(dispatch.runner_dag_id)
    if runner is not None and ((name, version) in runner.operations or runner.file == dag_file):
        return
    raise OperationError(
        f"operation {name!r} version {version!r} is not known where DAG {dispatch.runner_dag_id!r} runs: add it to the "
        f"runner DAG, childrun_runner_dag({dispatch.runner_dag_id!r}, operations=[...]), or list its module in "
        "[childrun] operations_modules or as an entry point `airflow_childrun.operations`",
        code="operation_not_reachable",
    )


def _is_shared(name: str, version: str) -> bool:
    """Whether a module that every worker imports defines an operation, or has it among its names."""
    modules = shared_modules(read_settings())
    places: Iterable[Place] = REGISTRY.known().get((name, version), ())
    homes = {str(place.module.get("__name__")) for place in places if place.module is not None}
    if any(home == module or home.startswith(f"{module}.") for home in homes for module in modules):
        return True
    return any(
        (getattr(thing, "name", None), getattr(thing, "version", None)) == (name, version)
        for module in modules
        if module in sys.modules
        for thing in vars(sys.modules[module]).values()
    )


def keys_of(operations: Iterable[Registered]) -> frozenset[tuple[str, str]]:
    """Return name and version of operations."""
    return frozenset((made.name, made.version) for made in operations)
