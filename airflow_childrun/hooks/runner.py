"""The task of a runner DAG: drives runs that other tasks spawned. It is nobody's parent, and closes nothing."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from airflow_childrun.errors import HostError
from airflow_childrun.hooks.coordinates import TaskPlace
from airflow_childrun.hooks.driving import Driving
from airflow_childrun.hooks.observer import TaskObserver
from airflow_childrun.runtime.dispatch import CONF_KEY
from airflow_childrun.runtime.generations import get_many
from airflow_childrun.runtime.histories import read_starts
from airflow_childrun.runtime.house import House
from airflow_childrun.store.api import Owner, RunRow

_log = logging.getLogger("airflow.task.childrun")


class RunnerTask(Driving):
    """One try of a runner's task."""

    def __init__(self, house: House, place: TaskPlace, observer: TaskObserver) -> None:
        super().__init__(house, observer)
        # A later try, also one of a DAG run that was deleted and made again, takes over from this one at once: task
        # instance ids begin with the time at which they were made.
        made_at = place.facts.ti_id.int >> 80
        label = f"{place.coordinates.label} try {place.facts.try_number}"
        house.keeper.owner = Owner(label, f"runner {place.coordinates.run_id()}", made_at)

    def find(self, run_ids: Sequence[UUID]) -> list[RunRow]:
        """Return the rows of the runs to be driven, and say in the log whose they are.

        :raises HostError: code ``child_run_missing``
        """
        found = get_many(self._house.store, run_ids)
        missing = [run_id for run_id in run_ids if run_id not in found]
        if missing:
            raise HostError(
                f"there is no child run {missing[0]} in this store; was it purged, or does its task use another "
                "connection than this runner DAG?",
                code="child_run_missing",
            )
        rows = [found[run_id] for run_id in run_ids]
        for run_id, started in read_starts(self._house.store, run_ids).items():
            if started.parent is not None:
                self._observer.keys[run_id] = started.parent.fact_key
        self._announce(rows)
        return rows

    def _announce(self, rows: Sequence[RunRow]) -> None:
        parents = get_many(self._house.store, (row.parent_run_id for row in rows if row.parent_run_id is not None))
        for parent in parents.values():
            at = parent.airflow
            told = f"run {parent.run_id}" if at is None else f"task {at.dag_id}.{at.task_id}, DAG run {at.dag_run_id}"
            _log.info("driving %d child runs of %s", sum(row.parent_run_id == parent.run_id for row in rows), told)


def read_conf(conf: Mapping[str, Any]) -> list[UUID]:
    """Return the runs that a runner's DAG run is told to drive.

    :raises HostError: code ``runner_conf_invalid``
    """
    own = conf.get(CONF_KEY)
    run_ids = own.get("run_ids") if isinstance(own, Mapping) else None
    try:
        if not isinstance(run_ids, list) or not run_ids:
            raise ValueError
        return [UUID(run_id) for run_id in run_ids]
    except (ValueError, TypeError, AttributeError):
        raise HostError(
            'a DAG run of a runner DAG is triggered by a task with dispatch="dag_run"; by hand it needs the conf '
            '{"childrun": {"run_ids": ["<id of a child run>"]}}',
            code="runner_conf_invalid",
        ) from None
