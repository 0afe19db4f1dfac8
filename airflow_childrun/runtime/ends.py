"""How runs ended, as those are told who awaited them: read for many runs at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

from airflow_childrun.canonical import decode_stored
from airflow_childrun.errors import NotFoundError
from airflow_childrun.model.events import DEADLINE_OVER, RUN_TIMED_OUT, RunCompleted, StateEntered, StateFailed
from airflow_childrun.model.requests import AwaitResponse, Cause, CompactResult
from airflow_childrun.store.api import RunRow, Store
from airflow_childrun.store.chain import check_chain
from airflow_childrun.store.codec import decode_events
from airflow_childrun.store.projection import check_end

PAGE = 500
LAST_EVENTS = 200
"""How far back the last failure of a failed run is looked for: it stands right before the end."""


def ends_of(store: Store, rows: Sequence[RunRow], *, compact: bool) -> dict[UUID, dict[str, Any]]:
    """Return the await's answer for each terminal run: V1's four fields, or the compact ones; the cause if it failed.

    :raises NotFoundError: code ``artifact_not_found``: no answer may be recorded in place of a missing snapshot
    :raises CorruptionError: if a row is not what its first and last events say, or an artifact not what its id says
    """
    check_ends(store, rows)
    bodies: dict[tuple[UUID, str], bytes] = {}
    for root in {row.root_run_id for row in rows}:
        wanted = {id_ for row in rows if row.root_run_id == root for id_ in (row.final_snapshot_id, row.plan_id) if id_}
        found = read_artifacts(store, root, wanted)
        for row in rows:
            needed = {row.final_snapshot_id, row.plan_id} - {None} if row.root_run_id == root else set()
            if not needed <= found.keys():
                raise NotFoundError(
                    f"the final snapshot or the plan of run {row.run_id} (event {row.head.seq}) is missing; run "
                    f"`childrun verify {row.run_id}` and restore it from a backup",
                    code="artifact_not_found",
                )
        bodies |= {(root, id_): body for id_, body in found.items()}
    plans = {row.plan_id for row in rows}
    outputs = {key: _output_state(body) for key, body in bodies.items() if key[1] in plans}
    return {row.run_id: _answer(store, row, bodies, outputs, compact=compact) for row in rows}


def check_ends(store: Store, rows: Sequence[RunRow]) -> None:
    """Refuse rows of ended runs that their events contradict.

    :raises CorruptionError: codes ``run_row_mismatch``, ``event_chain_broken``
    """
    ended = [row for row in rows if row.is_terminal]
    for start in range(0, len(ended), PAGE):
        page = ended[start : start + PAGE]
        ends = store.read_ends([row.run_id for row in page])
        for row in page:
            check_end(row, ends.get(row.run_id, ()))


def end_of(store: Store, row: RunRow, *, compact: bool) -> dict[str, Any]:
    """Return the await's answer for one terminal run."""
    return ends_of(store, [row], compact=compact)[row.run_id]


def read_artifacts(store: Store, root_run_id: UUID, ids: Iterable[str]) -> dict[str, bytes]:
    """Return those artifacts of a tree that exist, some hundred to a query."""
    found: dict[str, bytes] = {}
    wanted = sorted(ids)
    for start in range(0, len(wanted), PAGE):
        found |= store.get_artifacts(root_run_id, wanted[start : start + PAGE])
    return found


def _output_state(plan: bytes) -> str | None:
    """Return the context key of a plan's output: the id of its last state."""
    states = decode_stored(plan)["states"]
    return str(states[-1]["name"]) if states else None


def _answer(
    store: Store,
    row: RunRow,
    bodies: Mapping[tuple[UUID, str], bytes],
    outputs: Mapping[tuple[UUID, str], str | None],
    *,
    compact: bool,
) -> dict[str, Any]:
    body = bodies.get((row.root_run_id, row.final_snapshot_id or ""))
    snapshot = None if body is None else decode_stored(body)
    status: Any = row.status
    cause = None if row.status == "Completed" else find_cause(store, row)
    answer: AwaitResponse | CompactResult
    if compact:
        key = outputs.get((row.root_run_id, row.plan_id or ""))
        done = row.status == "Completed" and isinstance(snapshot, dict) and key is not None
        answer = CompactResult(
            child_run_id=str(row.run_id),
            status=status,
            final_snapshot_id=row.final_snapshot_id,
            output=snapshot.get(key) if done and isinstance(snapshot, dict) else None,
            cause=cause,
        )
    else:
        answer = AwaitResponse(
            child_run_id=str(row.run_id),
            status=status,
            final_snapshot_id=row.final_snapshot_id,
            final_snapshot=snapshot,
            cause=cause,
        )
    return answer.to_json()


def find_cause(store: Store, row: RunRow) -> Cause | None:
    """Return why a run failed: its last failed attempt, as it was recorded."""
    attempt: int | None = None
    cause: Cause | None = None
    stored = store.read_events(row.run_id, max(1, row.head.seq - LAST_EVENTS))
    check_chain(row.run_id, stored)
    for _, event in decode_events(stored):
        if isinstance(event, StateEntered):
            attempt = event.attempt
        if isinstance(event, StateFailed) and event.is_real:
            info = event.error.error
            cause = Cause(
                state_id=event.state_id,
                code=info.code,
                category=info.category,
                retryable=info.retryable,
                message=info.message,
                attempt=attempt,
            )
        if isinstance(event, RunCompleted) and is_timed_out(event) and (cause is None or cause.code != RUN_TIMED_OUT):
            # It ran out of time between two attempts: what failed before is not what ended it.
            cause = Cause(state_id=None, code=RUN_TIMED_OUT, category="Unknown", retryable=False, message=DEADLINE_OVER)
    return cause


def is_timed_out(end: RunCompleted) -> bool:
    """Whether a run ended because its deadline was over."""
    return isinstance(end.reason, Mapping) and end.reason.get("code") == RUN_TIMED_OUT
