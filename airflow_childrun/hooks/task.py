"""A task that spawns, drives and awaits: the parent of its children through its tries."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from airflow_childrun._airflow import channel_is_shared
from airflow_childrun.errors import ChildRunError, HostError, Interrupt
from airflow_childrun.hooks.coordinates import TaskPlace
from airflow_childrun.hooks.deferral import HostMark
from airflow_childrun.hooks.dispatching import Dispatch, TaskDagRuns, link_to
from airflow_childrun.hooks.driving import Driving
from airflow_childrun.hooks.observer import TaskObserver
from airflow_childrun.hooks.starting import begin
from airflow_childrun.runtime.awaiting import left_running
from airflow_childrun.runtime.child_retry import Again
from airflow_childrun.runtime.dispatch import Cutter, DagRuns, Dispatcher
from airflow_childrun.runtime.host import HostRun, OnPlanChange, Opened, Slot
from airflow_childrun.runtime.host_tree import WantedChild
from airflow_childrun.runtime.host_try import Kind, OnClear
from airflow_childrun.runtime.house import House
from airflow_childrun.store.api import RunRow

_log = logging.getLogger("airflow.task.childrun")
SHORTEST_GRACE_S = 120
GRACE_AFTER_RETRY_S = 60
SHOWN, SHOWN_OF_EACH = 10, 3
"""How many DAG runs are named in the log, and children of each."""
KINDS: Mapping[Kind, str] = {
    "first": "first try",
    "same": "same try, come back",
    "retry": "retry",
    "clear": "cleared",
    "recreated": "DAG run made anew",
}


class HostTask(Driving):
    """One try of a task, as far as it has to do with child runs."""

    opens_attempts = True

    def __init__(self, house: House, place: TaskPlace, observer: TaskObserver, dag_runs: DagRuns | None = None) -> None:
        super().__init__(house, observer)
        self._dag_runs = dag_runs or TaskDagRuns()
        self._host = HostRun(house, place.coordinates, place.facts, place.airflow)
        self._grace_us = max(SHORTEST_GRACE_S, place.retry_delay_s + GRACE_AFTER_RETRY_S) * 1_000_000

    def spawn(
        self,
        wanted: Sequence[WantedChild],
        on_clear: OnClear,
        on_plan_change: OnPlanChange,
        dispatch: Dispatch | None = None,
    ) -> list[RunRow]:
        """Make the wanted children exist, and return their rows in order; DAG runs that are to drive them are triggered.

        :raises HostError: see :meth:`~airflow_childrun.runtime.host.HostRun.spawn`; codes ``dag_not_found``,
            ``dag_refused``, ``airflow_unavailable``
        """
        cut = None if dispatch is None else dispatch.cutter
        opened = self._host.spawn(wanted, on_clear, on_plan_change, cut)
        rows = self._rows(opened)
        inputs = {child.key: child.manifest.input for child in wanted}
        for slot in opened.slots:
            # Of a child that is taken as it is, only the store knows the input.
            if slot.key in inputs:
                self._observer.know(slot.run_id, slot.key, inputs[slot.key])
        self._announce(opened, rows)
        if cut is not None:
            self._dispatch(rows, cut)
        return rows

    def start(self, rows: Sequence[RunRow]) -> list[RunRow]:
        """Drive children until each has ended or waits, and return their rows then: nobody may come to await them.

        :raises ChildRunError: why one cannot be driven here
        """
        self._rows_driven = rows
        return begin(self._house, self._supervisor, rows)

    def come_back(self) -> list[RunRow]:
        """Go on with the children that this try spawned before it left its worker, and return their rows in order.

        :raises HostError: codes ``stale_attempt``, ``child_run_missing``
        """
        opened = self._host.come_back()
        rows = self._rows(opened)
        self._announce(opened, rows)
        self._dispatch(rows, None)
        return rows

    def rejoin(self) -> None:
        """Become the newest try again after a deferral that failed, to say what is to become of the children."""
        own = self._rows(self._host.come_back())
        driven = self._house.store.get_runs(slot.run_id for slot in self._host.awaited())
        batches = self._host.dispatched_by_parents(list(driven.values()))
        free = [row for row in driven.values() if row.lease_expires_at is None and row.run_id not in batches]
        self._rows_driven = [*own, *free]

    def attach(self, handles: Sequence[dict[str, Any]]) -> list[RunRow]:
        """Take hold of children that another task, or an earlier try, spawned.

        :raises HostError: codes ``stale_attempt``, ``child_run_missing``, ``child_run_foreign``
        """
        slot_ids = [UUID(handle["slot_id"]) for handle in handles]
        self._check_handles(handles, slot_ids)
        opened = self._host.attach(slot_ids)
        rows = self._rows(opened)
        for row, handle in zip(rows, handles, strict=True):
            self._observer.keys[row.run_id] = handle.get("key") or row.op_id
        if any("runner_dag_id" in handle for handle in handles) and not channel_is_shared():
            self._dispatch(rows, None)
        return rows

    def note_return(self) -> None:
        """Record that this try returns to Airflow.

        :raises HostError: code ``stale_attempt``
        """
        self._host.note_return()

    def _dispatch(self, rows: Sequence[RunRow], cut: Cutter | None) -> None:
        """Have every child that has not ended driven by the DAG run which was recorded for it, or is now."""
        left = [row for row in rows if not row.is_terminal]
        batches = self._host.dispatched_by_parents(left)
        new = [] if cut is None else cut([row.run_id for row in left if row.run_id not in batches])
        if new:
            self._host.dispatch(new)
            batches |= {run_id: batch for batch in new for run_id in batch.run_ids}
        self._dispatcher = Dispatcher(self._house.store, self._dag_runs, batches, self._host.dispatch)
        self._rows_driven = [row for row in rows if self._is_ours(row)]
        made = self._dispatcher.begin(left)
        named = list(dict.fromkeys(self._dispatcher.batches[row.run_id] for row in left if row.run_id in batches))
        if named:
            _log.info("child runs: %d of %d DAG runs triggered to drive them", made, len(named))
        for batch in named[:SHOWN]:
            mine = [row for row in left if row.run_id in set(batch.run_ids)]
            told = ", ".join(self.name_of(row) for row in mine[:SHOWN_OF_EACH])
            more = f" and {len(mine) - SHOWN_OF_EACH} more" if len(mine) > SHOWN_OF_EACH else ""
            _log.info("%s drives %s%s %s", batch, told, more, link_to(batch))
        if len(named) > SHOWN:
            _log.info("and %d more DAG runs", len(named) - SHOWN)

    def _is_ours(self, row: RunRow) -> bool:
        """Whether this task spawned a child, or is to drive it."""
        return super()._is_ours(row) or row.parent_run_id == self._host.run_id

    def _try_again(self, again: Again) -> RunRow:
        return self._host.try_again(again)

    def fail_for_good(self) -> None:
        """Ask the children to end that have not: no further try of this task will come by itself."""
        self._ask_children_to_end("its task failed", 0)
        rows = self._house.store.get_runs(self._closable())
        self._host.end((row.run_id for row in rows.values() if not row.is_terminal), "its task failed")

    def stop(self, reason: str) -> None:
        """Ask the children to end, with the grace in which the next try may take that back."""
        self._ask_children_to_end(reason, self._grace_us)

    def _closable(self) -> list[UUID]:
        """Return the children that end with this task: those that it spawned, and those that it drives."""
        awaiting, own = self._awaiting, self._host.run_id
        others = set() if awaiting is None else {*awaiting.elsewhere, *awaiting.errors}
        return [row.run_id for row in self._rows_driven if row.parent_run_id == own or row.run_id not in others]

    def _mark(self) -> HostMark | None:
        own = self._host.run_id
        if own is None:
            return None
        rows = {row.run_id: row for row in self._rows_driven}
        drove = tuple(run_id for run_id in self._closable() if rows[run_id].parent_run_id != own)
        return HostMark(own, self._host.epoch, self._grace_us, drove)

    def _before_leaving(self) -> None:
        """Ask the children to end, unless a retry or a clear comes back within the grace."""
        self._ask_children_to_end("the task was told to stop", self._grace_us)

    def _ask_children_to_end(self, reason: str, grace_us: int) -> None:
        try:
            self._host.close(self._closable(), reason, grace_us)
        except (ChildRunError, Interrupt) as error:
            _log.warning("the children of this task could not be asked to end: %s; see `childrun recover`", error)

    def _rows(self, opened: Opened) -> list[RunRow]:
        rows = self._house.store.get_runs(slot.run_id for slot in opened.slots)
        missing: list[Slot] = [slot for slot in opened.slots if slot.run_id not in rows]
        if missing:
            raise HostError(
                f"child {missing[0].key} is not in the store any more; clear the task to spawn it again",
                code="child_run_missing",
            )
        for slot in opened.slots:
            self._observer.keys[slot.run_id] = slot.key
        if opened.kind in ("same", "retry"):
            self._left_running = left_running(self._house.store, rows.values())
        return [rows[slot.run_id] for slot in opened.slots]

    def _announce(self, opened: Opened, rows: Sequence[RunRow]) -> None:
        done = sum(row.status == "Completed" for row in rows)
        open_before = sum(not row.is_terminal for row in rows) - opened.ran
        parts = (
            (opened.ran, "spawned" if opened.kind in ("first", "recreated") else "spawned or continued now"),
            (open_before, "not ended yet"),
            (done, "completed before"),
            (len(rows) - opened.ran - open_before - done, "ended otherwise before"),
        )
        said = ", ".join(f"{count} {what}" for count, what in parts if count > 0)
        _log.info("child runs: %d in this task (%s): %s", len(rows), KINDS[opened.kind], said or "nothing to do")
        if opened.repeated:
            _log.warning(
                "%d of these children had completed, and run again from their beginning, every call included: clear with "
                'on_clear="reuse" where that must not be',
                opened.repeated,
            )
        if opened.kind == "clear" and rows and opened.ran == 0 and done == len(rows):
            _log.warning(
                "this clear ran nothing: all %d children had completed and on_clear keeps their results. To run them "
                'again, clear with on_clear="respawn"',
                len(rows),
            )

    def _check_handles(self, handles: Sequence[dict[str, Any]], slot_ids: Sequence[UUID]) -> None:
        rows = self._house.store.get_runs(UUID(handle["child_run_id"]) for handle in handles)
        for handle, slot_id in zip(handles, slot_ids, strict=True):
            row = rows.get(UUID(handle["child_run_id"]))
            if row is None or row.slot_id != slot_id:
                raise HostError(
                    f"there is no child run {handle['child_run_id']} in this store; was it purged, or does its task use "
                    "another connection?",
                    code="child_run_missing",
                )
            if str(row.root_run_id) != handle["root_run_id"]:
                raise HostError(
                    f"child run {row.run_id} belongs to another tree than its handle says", code="child_run_foreign"
                )
