"""What a crash of the original engine could leave undone right after it had recorded an answer of the child-run transport."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow_childrun.model.events import CHILD_RUN_COMPLETED, CHILD_RUN_SPAWNED, DomainEvent
from airflow_childrun.model.requests import AWAIT, SPAWN

_LINKAGE: Mapping[str, tuple[str, tuple[str, ...]]] = {
    SPAWN: (CHILD_RUN_SPAWNED, ("parent_run_id", "child_run_id", "child_manifest_id")),
    AWAIT: (CHILD_RUN_COMPLETED, ("child_run_id", "status", "final_snapshot_id")),
}


def linkage_of(namespace: str, recorded: Any, key: str) -> DomainEvent | None:
    """Return the linkage event of a recorded answer, naming its fact since it does not stand right behind it.

    :returns: None, if the answer is none that the original recorded in this namespace
    """
    name, fields = _LINKAGE.get(namespace, ("", ()))
    if not fields or not isinstance(recorded, Mapping) or not set(fields) <= set(recorded):
        return None
    return DomainEvent(name=name, payload={**{field: recorded[field] for field in fields}, "fact_key": key})
