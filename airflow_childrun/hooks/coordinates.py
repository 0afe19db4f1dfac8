"""What a task's context says of where it stands: the one place that reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from airflow_childrun.errors import HostError
from airflow_childrun.runtime.host_try import ON_CLEAR, HostCoordinates, OnClear, TryFacts


@dataclass(frozen=True, slots=True)
class TaskPlace:
    """A task instance's try.

    :param airflow: what children are told: dag_id, run_id, logical_date, data_interval_start, data_interval_end
    :param dag_file: the file that the DAG was parsed from
    :param retry_delay_s: how long Airflow waits before a retry, at first
    """

    coordinates: HostCoordinates
    facts: TryFacts
    airflow: Mapping[str, Any]
    dag_file: str | None
    conf: Mapping[str, Any]
    retry_delay_s: int = 0

    @property
    def is_last_try(self) -> bool:
        """Whether Airflow makes no further try by itself."""
        return self.facts.try_number > self.facts.max_tries


def read_place(context: Any, deployment_id: str) -> TaskPlace:
    """Read the context of a running task."""
    ti, dag_run = context["ti"], context["dag_run"]
    map_index = ti.map_index if ti.map_index is not None else -1
    region = getattr(ti, "region_id", None)
    index = getattr(ti, "region_index", None)
    coordinates = HostCoordinates(
        deployment_id=deployment_id,
        dag_id=ti.dag_id,
        dag_run_id=ti.run_id,
        task_id=ti.task_id,
        map_index=map_index,
        region=None if region is None else f"{region}:{index}",
    )
    facts = TryFacts(
        ti_id=UUID(str(ti.id)),
        try_number=ti.try_number,
        max_tries=ti.max_tries,
        clear_number=getattr(dag_run, "clear_number", 0) or 0,
        dag_run_start=_micros(dag_run.start_date),
        run_after=_micros(getattr(dag_run, "run_after", None)),
    )
    airflow = {
        "dag_id": ti.dag_id,
        "run_id": ti.run_id,
        "logical_date": _text(getattr(dag_run, "logical_date", None)),
        "data_interval_start": _text(getattr(dag_run, "data_interval_start", None)),
        "data_interval_end": _text(getattr(dag_run, "data_interval_end", None)),
    }
    task = context.get("task")
    dag = getattr(task, "dag", None) if task is not None else None
    conf = getattr(dag_run, "conf", None) or {}
    retry_delay = getattr(task, "retry_delay", None)
    retry_delay_s = round(retry_delay.total_seconds()) if isinstance(retry_delay, timedelta) else 0
    return TaskPlace(coordinates, facts, airflow, getattr(dag, "fileloc", None), conf, retry_delay_s)


def read_on_clear(value: Any, conf: Mapping[str, Any]) -> OnClear:
    """Return what a clear is to do: ``dag_run.conf["childrun"]["on_clear"]`` wins over the operator's.

    :raises HostError: code ``on_clear_invalid``
    """
    own = conf.get("childrun")
    wanted = own.get("on_clear", value) if isinstance(own, Mapping) else value
    for choice in ON_CLEAR:
        if wanted == choice:
            return choice
    raise HostError(f"on_clear is {wanted!r}; it takes {', '.join(ON_CLEAR)}", code="on_clear_invalid")


def _micros(moment: datetime | None) -> int:
    return 0 if moment is None else int(moment.timestamp() * 1_000_000)


def _text(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()
