"""The row follows from the events alone, wherever commits were cut."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_childrun.errors import CorruptionError
from airflow_childrun.ids import child_run_id
from airflow_childrun.model.events import (
    DomainEvent,
    Event,
    Failure,
    Parent,
    RunCompleted,
    RunStarted,
    StateCompleted,
    StateEntered,
    StateFailed,
)
from airflow_childrun.store.api import Moves, RunStep
from airflow_childrun.store.codec import encode_event
from airflow_childrun.store.memory import MemoryStore
from airflow_childrun.store.projection import columns_of, moves_of, rebuild
from airflow_childrun.testing.clock import ManualClock
from airflow_childrun.testing.store_harness import DIGEST_A, DIGEST_B, must, new_id, new_run, submit

STARTED = RunStarted(op_id="op", manifest_id=DIGEST_A, initial_snapshot_id=DIGEST_B, engine=1, op_version="1")
ENTERED = StateEntered(state_id="op.main.a", attempt=0, base_snapshot_id=DIGEST_B)


def _failed(code: str, retry_at: int | None = None) -> StateFailed:
    info = {"code": code, "category": "Unknown", "retryable": True, "message": "", "details": None}
    return StateFailed(state_id="op.main.a", error=Failure(state_id="op.main.a", info=info), retry_at=retry_at)


def _completed(snapshot: str) -> StateCompleted:
    return StateCompleted(state_id="op.main.a", context_snapshot_id=snapshot)


@pytest.mark.parametrize(
    ("events", "moves"),
    [
        ([], Moves()),
        ([DomainEvent(name="note")], Moves(wake_at=0)),
        ([DomainEvent(name="wait_opened", payload={"key": "k", "try": 1, "until": 99})], Moves(wake_at=99)),
        ([STARTED], Moves(status="Pending", checkpoint_at=0, checkpoint_snapshot_id=DIGEST_B, wake_at=0)),
        ([ENTERED], Moves(status="Running", wake_at=0)),
        (
            [DomainEvent(name="note"), _completed(DIGEST_A), ENTERED],
            Moves(status="Running", checkpoint_at=1, checkpoint_snapshot_id=DIGEST_A, error_code="", wake_at=0),
        ),
        ([_failed("boom", 77)], Moves(error_code="boom", wake_at=77)),
        ([_failed("boom")], Moves(error_code="boom", wake_at=0)),
        (
            [_failed("boom"), RunCompleted(status="Failed", final_snapshot_id=DIGEST_A)],
            Moves(status="Failed", final_snapshot_id=DIGEST_A, error_code="boom", wake_at=0),
        ),
        (
            [RunCompleted(status="Failed", reason={"code": "run_timed_out"})],
            Moves(status="Failed", error_code="run_timed_out", wake_at=0),
        ),
        ([RunCompleted(status="Cancelled")], Moves(status="Cancelled", error_code="", wake_at=0)),
    ],
)
def test_what_each_event_moves(events: list[Event], moves: Moves) -> None:
    assert moves_of(events) == moves


_steps = st.lists(
    st.one_of(
        st.just(ENTERED),
        st.just(DomainEvent(name="note")),
        st.sampled_from([DIGEST_A, DIGEST_B, "c" * 64]).map(_completed),
        st.builds(_failed, st.sampled_from(["boom", "bang"]), st.none() | st.integers(1, 99)),
    ),
    max_size=12,
)
_ends = st.none() | st.builds(
    RunCompleted,
    status=st.sampled_from(["Completed", "Failed", "Cancelled"]),
    final_snapshot_id=st.none() | st.just(DIGEST_A),
    reason=st.none() | st.just({"code": "run_timed_out"}),
)


@given(_steps, _ends, st.lists(st.integers(1, 4), min_size=14, max_size=14))
def test_a_row_moved_commit_by_commit_is_the_row_rebuilt(
    middle: list[Event], end: RunCompleted | None, sizes: list[int]
) -> None:
    """However the stream was cut into commits, rebuilding from the events gives the row that the commits moved."""
    events: list[Event] = [STARTED, *middle, *([end] if end else [])]
    clock = ManualClock()
    store, run_id, head = MemoryStore(clock), new_id(), 0
    for size in sizes:
        part = events[head : head + size]
        if not part:
            break
        clock.advance(1)
        fresh = new_run(run_id) if head == 0 else None
        step = RunStep(run_id, head, None, tuple(map(encode_event, part)), moves_of(part), fresh)
        head = must(submit(store, step)).heads[run_id].seq
    row = store.find_run(run_id)
    assert row is not None
    actual = columns_of(row)
    expected = rebuild(store.read_events(run_id))
    assert expected == {name: actual[name] for name in expected}
    assert {"status", "head_hash", "checkpoint_hash", "error_code", "wake_at", "ended_at", "slot_id"} <= set(expected)


def _stream(*events: Event) -> list[Any]:
    store, run_id = MemoryStore(ManualClock()), new_id()
    must(submit(store, RunStep(run_id, 0, None, tuple(map(encode_event, events)), create=new_run(run_id))))
    return store.read_events(run_id)


def test_lineage_is_rebuilt_from_the_first_event() -> None:
    """Parent, root and slot stand in ``RunStarted``: a later generation knows the slot of the first."""
    parent, owner, root = UUID(int=1), UUID(int=2), UUID(int=3)
    lineage = Parent(run_id=str(parent), fact_key="k", slot_owner_id=str(owner))
    first = STARTED.model_copy(
        update={"parent": lineage, "root_run_id": str(root), "depth": 2, "generation": 3, "deadline_at": 9}
    )
    columns = rebuild(_stream(first))
    assert columns["parent_run_id"] == parent
    assert columns["root_run_id"] == root
    assert columns["slot_id"] == child_run_id(owner, "k")
    assert (columns["depth"], columns["generation"], columns["deadline_at"]) == (2, 3, 9)


def test_a_v1_stream_claims_no_lineage() -> None:
    """V1 events say nothing of parent and root: what an importer knew is not contradicted."""
    v1 = RunStarted(op_id="op", manifest_id=DIGEST_A, initial_snapshot_id=DIGEST_B)
    assert {"parent_run_id", "root_run_id", "slot_id", "op_version"}.isdisjoint(rebuild(_stream(v1)))


@pytest.mark.parametrize("events", [[], [ENTERED]])
def test_a_stream_begins_with_its_start(events: list[Event]) -> None:
    with pytest.raises(CorruptionError, match="stream_broken"):
        rebuild(_stream(*events) if events else [])
