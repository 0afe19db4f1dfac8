"""The composition root: an Airflow connection becomes a store, a store and a task become a runtime."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

from airflow_childrun._airflow import BaseHook, channel_is_shared, registered_secrets
from airflow_childrun.authoring.registry import Registered
from airflow_childrun.canonical import decode_stored
from airflow_childrun.errors import ChildRunError, InputError, NotFoundError, UnavailableError
from airflow_childrun.hooks.connection import (
    CONN_NAME_ATTR,
    CONN_TYPE,
    StoreSettings,
    forget_store,
    open_store,
    read_store_settings,
)
from airflow_childrun.hooks.coordinates import TaskPlace, read_on_clear, read_place
from airflow_childrun.hooks.dag_runs import DagChild
from airflow_childrun.hooks.dispatching import Dispatch, can_dispatch, check_reachable
from airflow_childrun.hooks.driving import AWAIT_TIMED_OUT, Driving
from airflow_childrun.hooks.elements import SpawnOrder, wanted_children
from airflow_childrun.hooks.observer import TaskObserver
from airflow_childrun.hooks.operations import make_resolver
from airflow_childrun.hooks.results import (
    SHOWN,
    FailureMode,
    Results,
    check_ends,
    check_handles,
    check_size,
    handle_of,
    read_handle,
    results_of,
)
from airflow_childrun.hooks.runner import RunnerTask
from airflow_childrun.hooks.settings import DEFAULT_CONN_ID, Settings, check_max_concurrency, read_settings
from airflow_childrun.hooks.task import HostTask
from airflow_childrun.model.config import Duration
from airflow_childrun.model.events import event_to_json
from airflow_childrun.runtime.ends import end_of
from airflow_childrun.runtime.generations import newest_of
from airflow_childrun.runtime.host import OnPlanChange
from airflow_childrun.runtime.host_try import OnClear
from airflow_childrun.runtime.house import House, Limits
from airflow_childrun.runtime.overdue import as_read, find_as_read
from airflow_childrun.secret_policy import SecretPolicy, standard, strict
from airflow_childrun.store.api import RunFilter, RunPage, RunRow, Store
from airflow_childrun.store.codec import decode_events
from airflow_childrun.store.verify import Finding, verify_run

LEAVE_WITHIN_S = 3.0
"""Airflow kills a process 5 s after it has called ``on_kill``."""


class ChildRunHook(BaseHook):
    """Reads child runs, and spawns and awaits them on behalf of a task.

    :param childrun_conn_id: connection of type ``childrun``; `childrun init` makes it
    :param max_concurrency: how many children of one task work at the same time; by default ``[childrun] max_concurrency``
    """

    conn_name_attr = CONN_NAME_ATTR
    default_conn_name = DEFAULT_CONN_ID
    conn_type = CONN_TYPE
    hook_name = "Child Runs"

    def __init__(
        self, childrun_conn_id: str = DEFAULT_CONN_ID, max_concurrency: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        check_max_concurrency(max_concurrency)
        self.childrun_conn_id = childrun_conn_id
        self._max_concurrency = max_concurrency
        self._task: Driving | None = None
        self._store_settings: StoreSettings | None = None

    def get_conn(self) -> Store:
        """Return the store.

        :raises HostError: what is wrong with the connection, and the command that mends it
        :raises StorageError: if it cannot be reached or used
        """
        # Asking Airflow takes some 12 ms: reading a thousand outputs must not do it a thousand times.
        self._store_settings = self._store_settings or read_store_settings(self.childrun_conn_id)
        return self._open(self._store_settings)

    def spawn(
        self,
        context: Any,
        order: SpawnOrder,
        *,
        on_clear: OnClear = "auto",
        on_plan_change: OnPlanChange = "fail",
        dispatch: Dispatch | None = None,
    ) -> list[dict[str, Any]]:
        """Spawn children from a running task and return their handles in order.

        DAG runs of ``dag_id`` are triggered, and left to themselves.

        :param dispatch: has DAG runs of a runner DAG drive the children; None: nobody drives them yet
        :raises ChildRunFailedError: if a DAG run could not be triggered
        :raises HostError: codes ``stale_attempt``, ``host_list_changed``, ``child_run_conflict``
        :raises OperationError: code ``operation_not_reachable``
        :raises ChildRunError: what is wrong with operation, input or configuration; nothing is stored then
        """
        task, policy, place = self._begin(context)
        clear = read_on_clear(on_clear, place.conf)

        runner = can_dispatch(dispatch)

        def work() -> list[RunRow]:
            check_reachable(order.operation, runner, place.dag_file)
            rows = task.spawn(wanted_children(order, policy), clear, on_plan_change, runner)
            if isinstance(order.operation, DagChild):
                return self._started(task, rows)
            return rows if runner == dispatch else task.drive(rows)

        rows = self._carry_out(task, work, is_last_try=place.is_last_try)
        dag_id = None if runner is None else runner.runner_dag_id
        keys = _keys(task, rows)
        return [handle_of(row, key, self.childrun_conn_id, dag_id) for row, key in zip(rows, keys, strict=True)]

    def spawn_and_await(
        self,
        context: Any,
        order: SpawnOrder,
        *,
        on_clear: OnClear = "auto",
        on_plan_change: OnPlanChange = "fail",
        results: Results = "values",
        failure_mode: FailureMode = "raise",
        await_timeout: Duration | None = None,
        dispatch: Dispatch | None = None,
    ) -> list[dict[str, Any]]:
        """Spawn children from a running task, drive them, and return how each ended, in order.

        :param dispatch: has DAG runs drive them instead
        :raises OperationError: code ``operation_not_reachable``
        :raises ChildRunFailedError: if children did not complete and ``failure_mode`` is ``raise``
        :raises HostError: codes ``stale_attempt``, ``host_list_changed``, ``child_run_conflict``, ``xcom_too_large``,
            ``await_timed_out``
        """
        task, policy, place = self._begin(context)
        clear = read_on_clear(on_clear, place.conf)

        runner = can_dispatch(dispatch)

        def work() -> list[dict[str, Any]]:
            check_reachable(order.operation, runner, place.dag_file)
            rows = task.spawn(wanted_children(order, policy), clear, on_plan_change, runner)
            return self._ends(task, rows, results, failure_mode, await_timeout)

        found: list[dict[str, Any]] = self._carry_out(task, work, is_last_try=place.is_last_try)
        return found

    def await_runs(
        self,
        context: Any,
        handles: Sequence[Mapping[str, Any]] | Mapping[str, Any],
        *,
        results: Results = "values",
        failure_mode: FailureMode = "raise",
        await_timeout: Duration | None = None,
    ) -> list[dict[str, Any]]:
        """Drive and await children by their handles, and return how each ended, in order; one handle is a list of one.

        :raises HostError: codes ``handle_invalid``, ``child_run_missing``, ``stale_attempt``, ``xcom_too_large``,
            ``await_timed_out``
        :raises ChildRunFailedError: if children did not complete and ``failure_mode`` is ``raise``
        """
        read = [read_handle(handle) for handle in check_handles(handles)]
        task, _, place = self._begin(context)

        def work() -> list[dict[str, Any]]:
            return self._ends(task, task.attach(read), results, failure_mode, await_timeout)

        found: list[dict[str, Any]] = self._carry_out(task, work, is_last_try=place.is_last_try)
        return found

    def drive(self, context: Any, run_ids: Sequence[UUID], operations: Iterable[Registered] = ()) -> list[RunRow]:
        """Drive runs that another task spawned, as the task of a runner DAG does, and return how each ended, in order.

        :param operations: known here beside those of the DAG file and of the shared modules
        :raises HostError: code ``child_run_missing``
        :raises ChildRunError: if one cannot be driven here; the others have ended then
        """
        house, place, observer = self._make_house(context, operations)
        self._task = task = RunnerTask(house, place, observer)
        try:
            return task.in_background(lambda: task.drive(task.find(run_ids)))
        finally:
            task.in_background(task.close)

    def abandon(self) -> None:
        """Give up what a running task of this hook drives; the next try goes on."""
        if self._task is not None:
            self._task.leave(within_s=LEAVE_WITHIN_S)

    def find_run(self, run_id: str | UUID) -> RunRow | None:
        """Return a run's row, or None; one that is over though nobody has written so reads as Cancelled.

        :param run_id: a whole id; the same for every method that takes one
        :raises InputError: code ``run_id_invalid``
        """
        store = self.get_conn()
        row = store.find_run(_uuid(run_id))
        return None if row is None else as_read(store, [row])[0]

    def get_run(self, run_id: str | UUID) -> RunRow:
        """Return a run's row.

        :raises NotFoundError: code ``run_not_found``
        """
        row = self.find_run(run_id)
        if row is None:
            raise NotFoundError(f"there is no run {run_id}; see `childrun runs list`", code="run_not_found")
        return row

    def find_runs(
        self, where: RunFilter, cursor: str | None = None, limit: int = 100, *, newest_first: bool = False
    ) -> RunPage:
        """Return a page of runs, the oldest first or the newest; a cursor goes on in the same order.

        Where statuses are asked for, it may be shorter than ``limit`` though more follow.
        """
        return find_as_read(self.get_conn(), where, cursor, limit, newest_first=newest_first)

    def children_of(self, run_id: str | UUID) -> list[RunRow]:
        """Return the runs that a run spawned, every generation of them.

        :raises NotFoundError: code ``run_not_found``
        """
        store = self.get_conn()
        return as_read(store, store.children_of(_uuid(run_id))) or self._none_of(run_id)

    def read_events(self, run_id: str | UUID) -> list[dict[str, Any]]:
        """Return a run's events in V1's envelope: ``{run_id, seq, ts_millis, event}``.

        :raises NotFoundError: code ``run_not_found``
        """
        stored = decode_events(self.get_conn().read_events(_uuid(run_id)) or self._none_of(run_id))
        return [
            {
                "run_id": str(row.run_id),
                "seq": row.seq,
                "ts_millis": row.recorded_at // 1000,
                "event": event_to_json(event),
            }
            for row, event in stored
        ]

    def read_snapshot(self, run_id: str | UUID) -> Any:
        """Return a run's last snapshot: the final one, or that of its last checkpoint.

        :raises NotFoundError: codes ``run_not_found``, ``artifact_not_found``
        """
        store = self.get_conn()
        row = self.get_run(run_id)
        snapshot_id = row.final_snapshot_id or row.checkpoint_snapshot_id
        found = store.get_artifacts(row.root_run_id, [snapshot_id])
        if snapshot_id not in found:
            raise NotFoundError(
                f"the snapshot {snapshot_id} of run {row.run_id} is missing; run `childrun verify {row.run_id}` and restore "
                "it from a backup",
                code="artifact_not_found",
            )
        return decode_stored(found[snapshot_id])

    def read_output(self, handle: Mapping[str, Any]) -> Any:
        """Return what a child's operation returned: of the generation that a result names, or the newest of its slot.

        :raises ChildRunFailedError: if it did not complete
        """
        read = read_handle(handle)
        store = self.get_conn()
        slot_id = UUID(read["slot_id"])
        row = self.get_run(read["child_run_id"]) if "generation" in read else newest_of(store, [slot_id])[slot_id]
        (row,) = as_read(store, [row])
        # One that only reads as Cancelled has no end yet that could be read.
        answer = end_of(store, row, compact=True) if row.status in ("Completed", "Failed") else {}
        check_ends([{**read, "key": read.get("key", row.op_id), "status": row.status, "error": answer.get("cause")}])
        return answer["output"]

    def verify(self, run_id: str | UUID) -> list[Finding]:
        """Check a run's chain, artifacts and row; an empty list means that all is well."""
        return verify_run(self.get_conn(), _uuid(run_id))

    def test_connection(self) -> tuple[bool, str]:
        """Say whether the connection works, as Airflow's form asks."""
        try:
            store = self.get_conn()
            store.now_us()
        except ChildRunError as error:
            return False, str(error)
        return True, "Connected; the tables are there and of this release's version"

    def _none_of(self, run_id: str | UUID) -> list[Any]:
        """Return nothing for a run that has nothing.

        :raises NotFoundError: if there is no such run
        """
        self.get_run(run_id)
        return []

    def _begin(self, context: Any) -> tuple[HostTask, SecretPolicy, TaskPlace]:
        house, place, observer = self._make_house(context)
        task = HostTask(house, place, observer)
        self._task = task
        return task, house.policy, place

    def _make_house(self, context: Any, listed: Iterable[Registered] = ()) -> tuple[House, TaskPlace, TaskObserver]:
        settings = read_settings()
        store_settings = read_store_settings(self.childrun_conn_id)
        place = read_place(context, store_settings.deployment_id)
        store = self._open(store_settings)
        observer = TaskObserver(store)
        house = House(
            store=store,
            resolver=make_resolver(settings, place.dag_file, listed),
            policy=strict() if settings.preset == "strict" else standard(registered_secrets),
            limits=self._limits(settings),
            observer=observer,
        )
        return house, place, observer

    def _limits(self, settings: Settings) -> Limits:
        wanted = self._max_concurrency or settings.max_concurrency
        return Limits(
            max_concurrency=1 if channel_is_shared() else wanted,
            max_depth=settings.max_depth,
            session_ttl_s=settings.session_ttl_s,
        )

    def _started(self, task: HostTask, rows: Sequence[RunRow]) -> list[RunRow]:
        last = task.start(rows)
        ended = [row for row in last if row.is_terminal]
        check_ends(results_of(task.store, ended, _keys(task, ended), self.childrun_conn_id, "references"))
        return last

    def _ends(
        self,
        task: HostTask,
        rows: Sequence[RunRow],
        results: Results,
        failure_mode: FailureMode,
        await_timeout: Duration | None,
    ) -> list[dict[str, Any]]:
        keys = _keys(task, rows)
        ended = task.drive(rows, await_timeout)
        found = results_of(task.store, ended, keys, self.childrun_conn_id, results)
        if failure_mode == "raise":
            bad = [row for row in ended if row.status != "Completed"]
            check_ends(found, {str(row.run_id): task.name_of(row) for row in bad[:SHOWN]})
        check_size(found, read_settings().xcom_max_bytes)
        return found

    def _carry_out(self, task: HostTask, work: Any, *, is_last_try: bool) -> Any:
        try:
            return task.in_background(work)
        except ChildRunError as error:
            # Who only has waited long enough asks nobody to end.
            if error.code != AWAIT_TIMED_OUT and (is_last_try or not error.retryable):
                task.in_background(task.fail_for_good)
            raise
        finally:
            task.in_background(task.close)

    def _open(self, settings: StoreSettings) -> Store:
        """Open the store; a password that was rotated is read again once."""
        try:
            return open_store(settings)
        except UnavailableError:
            forget_store(settings)
            self._store_settings = read_store_settings(self.childrun_conn_id)
            return open_store(self._store_settings)


def _uuid(run_id: str | UUID) -> UUID:
    """Read a run's id.

    :raises InputError: code ``run_id_invalid``
    """
    try:
        return UUID(str(run_id))
    except ValueError:
        raise InputError(f"{run_id!r} is no run id: it takes a whole UUID", code="run_id_invalid") from None


def _keys(task: HostTask, rows: Sequence[RunRow]) -> list[str]:
    return [task.key_of(row) for row in rows]
