"""Children that are only begun: DAG runs that a task triggers and leaves to themselves."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from airflow_childrun.runtime.histories import load_history
from airflow_childrun.runtime.house import House
from airflow_childrun.runtime.supervisor import Supervisor
from airflow_childrun.store.api import RunRow

LOOK_EVERY_S = 0.5


def begin(house: House, supervisor: Supervisor, rows: Sequence[RunRow]) -> list[RunRow]:
    """Drive runs until each has ended, or waits for the first time; give them up and return their rows.

    :raises ChildRunError: why one cannot be driven here
    """
    going = [row.run_id for row in rows if not row.is_terminal]
    for run_id in going:
        supervisor.hand_over(run_id)
    while any(not _has_waited(house, run_id) for run_id in supervisor.wait_while_active(going, LOOK_EVERY_S)):
        pass
    for run_id in going:
        error = supervisor.error_of(run_id)
        if error is not None:
            raise error
    # Whoever awaits them must not find them owned by a process that is about to end.
    supervisor.close()
    while not supervisor.is_idle():
        supervisor.wait_until_idle(LOOK_EVERY_S)
    last = house.store.get_runs(row.run_id for row in rows)
    return [last[row.run_id] for row in rows]


def _has_waited(house: House, run_id: UUID) -> bool:
    return bool(house.patience.attempt(lambda: load_history(house.store, run_id)).waits)
