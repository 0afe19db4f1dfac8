"""The sweep: runs that nobody owns and that have not ended. Safe anywhere, any number of times, any number at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import UUID

from airflow_childrun.engine.inbox import CLOSE, standing_request
from airflow_childrun.runtime.closing import cancel_run, close_policy, end_unowned
from airflow_childrun.runtime.generations import all_runs
from airflow_childrun.runtime.histories import load_history
from airflow_childrun.runtime.house import House
from airflow_childrun.store.api import AirflowCoordinates, RunFilter, RunRow

TaskState = Literal["active", "over", "unknown"]
"""What Airflow says of a task instance: it is active or will be; it is over and nothing will come; it cannot be asked."""

LookAtTask = Callable[[AirflowCoordinates, Mapping[str, Any]], TaskState]
"""Asks Airflow about a task instance: its coordinates, and its last recorded try (``ti_id`` and so on)."""


@dataclass
class Sweep:
    """What a sweep did.

    :param ended: runs that it ended, since their parent had ended or they were asked to
    :param in_grace: runs that were asked to end and may still be taken back
    :param awaited: runs whose task is active: its next try goes on with them
    :param left: runs that nobody will go on with by himself; by run id, the reason
    """

    ended: list[UUID] = field(default_factory=list)
    in_grace: list[UUID] = field(default_factory=list)
    awaited: list[UUID] = field(default_factory=list)
    left: dict[UUID, str] = field(default_factory=dict)


def sweep(house: House, look: LookAtTask) -> Sweep:
    """End what is to end among the runs that nobody owns, the deepest first."""
    found = Sweep()
    for row in sorted(_unowned(house), key=lambda row: -row.depth):
        _settle(house, row, look, found)
    return found


def _unowned(house: House) -> Iterator[RunRow]:
    where = RunFilter(kind="operation", statuses=frozenset({"Pending", "Running"}), unowned=True)
    yield from all_runs(house.store, where)


def _settle(house: House, row: RunRow, look: LookAtTask, found: Sweep) -> None:
    request = standing_request(house.store.read_inbox(row.run_id))
    if request is not None:
        if request.effective_at > house.patience.attempt(house.store.now_us):
            found.in_grace.append(row.run_id)
        elif end_unowned(house, row.run_id):
            found.ended.append(row.run_id)
        else:
            found.left[row.run_id] = "it was asked to end, and its operation's clean-up has to run first"
        return
    host = _host_of(house, row)
    if host is None:
        found.left[row.run_id] = "no task stands above it; whoever started it has to resume it"
        return
    tries = load_history(house.store, host.run_id).host_tries
    state = look(host.airflow, tries[-1] if tries else {}) if host.airflow is not None else "unknown"
    if state == "active":
        found.awaited.append(row.run_id)
    elif state == "unknown":
        found.left[row.run_id] = "Airflow cannot be asked about its task"
    elif close_policy(house.store, row) != "cancel":
        found.left[row.run_id] = "its task is over and left it running"
    else:
        ended = cancel_run(house, row.run_id, "its task is over", kind=CLOSE)
        found.ended += [run_id for run_id, what in ended.items() if what == "cancelled"]


def _host_of(house: House, row: RunRow) -> RunRow | None:
    """Return the task's run above a run, if there is one."""
    current: RunRow | None = row
    while current is not None and current.kind != "task_instance":
        current = house.find_run(current.parent_run_id) if current.parent_run_id else None
    return current
