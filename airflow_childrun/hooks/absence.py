"""What is done in the name of a task that is away in the triggerer: ask its children to end, or end it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from airflow_childrun.clock import SystemEntropy
from airflow_childrun.engine.inbox import CLOSE, request_body
from airflow_childrun.hooks.results import check_ends, check_size, results_of
from airflow_childrun.model.events import HOST_RETURNED, DomainEvent
from airflow_childrun.runtime.child_retry import next_attempt
from airflow_childrun.runtime.closing import closable_children
from airflow_childrun.store.api import Commit, Committed, InboxPost, RunStep, Store, TakeLease
from airflow_childrun.store.codec import encode_event
from airflow_childrun.store.projection import moves_of


def close_absent(store: Store, closing: Mapping[str, Any], reason: str) -> bool:
    """Ask the children of a task that is away to end after a grace; False if another try of it has begun.

    One commit under the epoch with which the task left, which it raises.

    :param closing: ``{host_run_id, epoch, grace_us, drove}``
    :raises StorageError: if the store cannot be reached or used
    """
    host_id = UUID(closing["host_run_id"])
    host = store.find_run(host_id)
    if host is None or host.head.epoch != closing["epoch"]:
        return False
    entropy = SystemEntropy()
    wanted = {row.run_id for row in store.children_of(host_id)} | set(map(UUID, closing["drove"]))
    body = request_body(reason, closing["grace_us"])
    closable = closable_children(store, wanted)
    posts = tuple(InboxPost(row.run_id, entropy.new_id(), CLOSE, body) for row in closable)
    step = RunStep(host_id, host.head.seq, host.head.epoch, lease=TakeLease(None))
    (answer,) = store.commit([Commit(entropy.new_id(), (step,), posts=posts)])
    return isinstance(answer, Committed)


def note_return(store: Store, closing: Mapping[str, Any]) -> bool:
    """Record that the try of a task that is away returns to Airflow; False if another one has begun.

    :raises StorageError: if the store cannot be reached or used
    """
    host = store.find_run(UUID(closing["host_run_id"]))
    if host is None or host.head.epoch != closing["epoch"]:
        return False
    event = DomainEvent(name=HOST_RETURNED, payload={})
    step = RunStep(host.run_id, host.head.seq, host.head.epoch, (encode_event(event),), moves_of([event]))
    (answer,) = store.commit([Commit(SystemEntropy().new_id(), (step,))])
    return isinstance(answer, Committed)


def ending_of(store: Store, ending: Mapping[str, Any], conn_id: str, limit: int) -> list[dict[str, Any]] | None:
    """Return what a task returns whose children have ended; None if another attempt of one of them is to follow.

    :param ending: ``{run_ids, keys, results, failure_mode}``
    :raises ChildRunFailedError: if children did not complete and ``failure_mode`` is ``raise``
    :raises HostError: code ``xcom_too_large``
    """
    run_ids = [UUID(run_id) for run_id in ending["run_ids"]]
    rows = store.get_runs(run_ids)
    if any(next_attempt(store, row) is not None for row in rows.values()):
        return None
    found = results_of(store, [rows[run_id] for run_id in run_ids], ending["keys"], conn_id, ending["results"])
    if ending["failure_mode"] == "raise":
        check_ends(found)
    check_size(found, limit, ending["results"])
    return found
