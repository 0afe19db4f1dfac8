"""The recovery limit, recounted from the events: who was given up deserved it, and nobody else did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from airflow_childrun.canonical import decode_stored
from airflow_childrun.engine.decide import RECOVERY_LIMIT_EXCEEDED
from airflow_childrun.engine.facts import fact_of
from airflow_childrun.model.events import DomainEvent, StateCompleted, StateFailed
from airflow_childrun.model.manifest import RunManifest
from airflow_childrun.store.api import RunRow
from airflow_childrun.store.codec import decode_events


def check_recoveries(store: Any, rows: Sequence[RunRow], limit: int) -> frozenset[str]:
    """Check every run against the limit, and return the labels of the programs whose runs were given up.

    :raises AssertionError: if a run was given up too early, too late, or not at all
    """
    labels = set()
    for row in rows:
        lost, given_up = 0, False
        for stored, event in decode_events(store.read_events(row.run_id)):
            assert not given_up or stored.seq == row.head.seq, f"{row.run_id} went on after it was given up"
            if isinstance(event, StateCompleted) or _is_fact(event, stored.seq):
                lost = 0
            if isinstance(event, StateFailed) and event.recovered == "lapsed":
                lost += 1
            if isinstance(event, StateFailed) and event.error.error.code == RECOVERY_LIMIT_EXCEEDED:
                given_up = True
                assert lost == limit, f"{row.run_id} was given up after {lost} lost processes, the limit being {limit}"
            assert lost <= limit, f"{row.run_id} goes on though {lost} processes were lost over it"
        assert given_up == (row.error_code == RECOVERY_LIMIT_EXCEEDED)
        if given_up:
            assert row.status == "Failed"
            manifest = store.get_artifacts(row.root_run_id, [row.manifest_id])[row.manifest_id]
            labels.add(str(RunManifest.from_json(decode_stored(manifest)).input["label"]))
    return frozenset(labels)


def _is_fact(event: Any, seq: int) -> bool:
    return isinstance(event, DomainEvent) and fact_of(event, (0, seq), None) is not None
