"""The composition root: an Airflow connection becomes a store, a store and a task become a runtime."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

from airflow_childrun._airflow import BaseHook, channel_is_shared, registered_secrets
from airflow_childrun.authoring.registry import Registered
from airflow_childrun.errors import ChildRunError, UnavailableError
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
from airflow_childrun.hooks.deferral import AWAIT_TIMED_OUT, AwaitPolicy
from airflow_childrun.hooks.dispatching import Dispatch, can_dispatch, check_reachable
from airflow_childrun.hooks.driving import Driving
from airflow_childrun.hooks.elements import SpawnOrder, wanted_children
from airflow_childrun.hooks.observer import TaskObserver
from airflow_childrun.hooks.operations import make_resolver
from airflow_childrun.hooks.reading import RunReader
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
from airflow_childrun.runtime.host import OnPlanChange
from airflow_childrun.runtime.host_try import OnClear
from airflow_childrun.runtime.house import House, Limits
from airflow_childrun.secret_policy import SecretPolicy, standard, strict
from airflow_childrun.store.api import RunRow, Store

LEAVE_WITHIN_S = 3.0
"""Airflow kills a process 5 s after it has called ``on_kill``."""


class ChildRunHook(RunReader, BaseHook):
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
        self._lives_on = False
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
                rows = self._started(task, rows)
            elif runner != dispatch:
                rows = task.drive(rows)
            task.note_return()
            return rows

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
        policy: AwaitPolicy | None = None,
        dispatch: Dispatch | None = None,
    ) -> list[dict[str, Any]]:
        """Spawn children from a running task, drive them, and return how each ended, in order.

        :param policy: how to wait
        :param dispatch: has DAG runs drive them instead
        :raises Deferral: if the policy lets the task leave its worker; :meth:`come_back` goes on
        :raises OperationError: code ``operation_not_reachable``
        :raises ChildRunFailedError: if children did not complete and ``failure_mode`` is ``raise``
        :raises HostError: codes ``stale_attempt``, ``host_list_changed``, ``child_run_conflict``, ``xcom_too_large``,
            ``await_timed_out``
        """
        task, secrets, place = self._begin(context)
        clear = read_on_clear(on_clear, place.conf)

        runner = can_dispatch(dispatch)

        def work() -> list[dict[str, Any]]:
            check_reachable(order.operation, runner, place.dag_file)
            rows = task.spawn(wanted_children(order, secrets), clear, on_plan_change, runner)
            return self._ends(task, rows, results, failure_mode, policy)

        found: list[dict[str, Any]] = self._carry_out(task, work, is_last_try=place.is_last_try)
        return found

    def come_back(
        self,
        context: Any,
        *,
        results: Results = "values",
        failure_mode: FailureMode = "raise",
        policy: AwaitPolicy | None = None,
    ) -> list[dict[str, Any]]:
        """Go on after a deferral of :meth:`spawn_and_await`: with the children that this try has, whatever it would ask now.

        :raises HostError: code ``child_run_missing``; else as :meth:`spawn_and_await`
        """
        task, _, place = self._begin(context)

        def work() -> list[dict[str, Any]]:
            return self._ends(task, task.come_back(), results, failure_mode, policy)

        found: list[dict[str, Any]] = self._carry_out(task, work, is_last_try=place.is_last_try)
        return found

    def await_runs(
        self,
        context: Any,
        handles: Sequence[Mapping[str, Any]] | Mapping[str, Any],
        *,
        results: Results = "values",
        failure_mode: FailureMode = "raise",
        policy: AwaitPolicy | None = None,
    ) -> list[dict[str, Any]]:
        """Drive and await children by their handles, and return how each ended, in order; one handle is a list of one.

        :raises HostError: codes ``handle_invalid``, ``child_run_missing``, ``stale_attempt``, ``xcom_too_large``,
            ``await_timed_out``
        :raises ChildRunFailedError: if children did not complete and ``failure_mode`` is ``raise``
        """
        read = [read_handle(handle) for handle in check_handles(handles)]
        task, _, place = self._begin(context)

        def work() -> list[dict[str, Any]]:
            return self._ends(task, task.attach(read), results, failure_mode, policy)

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

    def give_up(self, context: Any, reason: str, *, gracefully: bool = False) -> None:
        """Have become of the children what becomes of them when a try ends badly, after a deferral that failed.

        :param gracefully: as when the task is told to stop; else as when it fails, which only the last try's end is for good
        """
        task, _, place = self._begin(context)

        def work() -> None:
            if gracefully or place.is_last_try:
                task.rejoin()
            if gracefully:
                task.stop(reason)
            elif place.is_last_try:
                task.fail_for_good()

        try:
            task.in_background(work)
        except ChildRunError as error:
            self.log.warning("the children of this task could not be asked to end: %s; see `childrun recover`", error)
        finally:
            task.in_background(task.close)

    def abandon(self) -> None:
        """Give up what a running task of this hook drives; the next try goes on."""
        if self._task is not None:
            self._task.leave(within_s=LEAVE_WITHIN_S)

    def test_connection(self) -> tuple[bool, str]:
        """Say whether the connection works, as Airflow's form asks."""
        try:
            store = self.get_conn()
            store.now_us()
        except ChildRunError as error:
            return False, str(error)
        return True, "Connected; the tables are there and of this release's version"

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
        self._lives_on = channel_is_shared()
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
            max_concurrency=1 if self._lives_on else wanted,
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
        policy: AwaitPolicy | None,
    ) -> list[dict[str, Any]]:
        keys = _keys(task, rows)
        ended = task.drive(rows, policy and replace(policy, lives_on=self._lives_on))
        found = results_of(task.store, ended, keys, self.childrun_conn_id, results)
        if failure_mode == "raise":
            bad = [row for row in ended if row.status != "Completed"]
            check_ends(found, {str(row.run_id): task.name_of(row) for row in bad[:SHOWN]})
        check_size(found, read_settings().xcom_max_bytes, results)
        task.note_return()
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


def _keys(task: HostTask, rows: Sequence[RunRow]) -> list[str]:
    return [task.key_of(row) for row in rows]
