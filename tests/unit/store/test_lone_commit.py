"""An owner's commit as one statement: the same as the long way, to the byte, and refused wherever that refuses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from airflow_childrun.store.api import GENESIS_HASH, Commit, Moves, ReleaseLease, RunStep, TakeLease
from airflow_childrun.store.chain import body_digest, event_hash
from airflow_childrun.store.sql.lone_commit import is_lone
from airflow_childrun.store.sql.migrate import upgrade
from airflow_childrun.store.sql.store import SqlStore
from airflow_childrun.testing.store_harness import artifact, commit_of, creation, event, head_of, must, new_id, start

MOVES = {
    "a fact's commit": Moves(),
    "the first attempt": Moves(status="Running", wake_at=0),
    "a state that ends": Moves(checkpoint_at=0, checkpoint_snapshot_id="a" * 64, error_code=""),
    "a failed attempt": Moves(error_code="step_failed", wake_at=17),
    "the end": Moves(
        status="Completed", checkpoint_at=1, checkpoint_snapshot_id="b" * 64, final_snapshot_id="c" * 64, wake_at=0
    ),
}


@pytest.fixture(scope="module")
def store(postgres_module_url: str) -> Iterator[SqlStore]:
    upgrade(postgres_module_url)
    store = SqlStore(postgres_module_url)
    yield store
    store.close()


def _long(store: SqlStore, commit: Commit) -> Any:
    dialect: Any = store.database.dialect
    dialect.has_lone_commits = False
    try:
        return must(store.commit([commit])[0])
    finally:
        del dialect.has_lone_commits


@pytest.mark.parametrize("release", [False, True])
@pytest.mark.parametrize("what", MOVES)
def test_one_statement_writes_what_the_long_way_writes(store: SqlStore, what: str, release: bool) -> None:
    """Rows, events, facts, artifacts and answer are the same, but for ids and times; the chain verifies."""
    rows = []
    for commit_by in (lambda commit: must(store.commit([commit])[0]), lambda commit: _long(store, commit)):
        run_id = start(store)
        lease = ReleaseLease() if release else None
        step = RunStep(run_id, 1, 0, (event("one"), event("two")), MOVES[what], lease=lease)
        commit = commit_of(step, artifacts=(artifact(run_id, b"first"), artifact(run_id, b"second")))
        assert is_lone(commit)
        result = commit_by(commit)
        assert head_of(store, run_id) == result.heads[run_id]
        previous = GENESIS_HASH
        for one in store.read_events(run_id):
            assert one.hash == event_hash(run_id, one.seq, one.recorded_at, previous, body_digest(one.body))
            previous = one.hash
        row = store.find_run(run_id)
        assert row is not None
        times = (row.updated_at - result.recorded_at, (row.ended_at or result.recorded_at) - result.recorded_at)
        tips = [one.hash for one in store.read_events(run_id)]
        places = (tips.index(row.checkpoint_hash) + 1, tips.index(row.head.hash) + 1)
        found = (row.status, row.head.seq, row.checkpoint_seq, row.checkpoint_snapshot_id, row.final_snapshot_id)
        rows.append((*found, row.error_code, row.wake_at, row.lease_session_id, places, times))
        assert {one.commit_id for one in store.read_events(run_id, 2)} == {commit.commit_id}
        bodies = [one.body for one in commit.artifacts]
        kept = store.get_artifacts(run_id, [one.id for one in commit.artifacts])
        assert sorted(kept.values()) == sorted(bodies)
    assert rows[0] == rows[1]


def test_what_the_row_does_not_expect_is_refused_as_ever(store: SqlStore) -> None:
    """Another head or epoch: a conflict, nothing written, artifacts included."""
    run_id = start(store)
    for seq, epoch, reason in ((5, 0, "head"), (1, 7, "epoch")):
        commit = commit_of(RunStep(run_id, seq, epoch, (event("x"),)), artifacts=(artifact(run_id, b"never"),))
        (answer,) = store.commit([commit])
        assert getattr(answer, "reason", None) == reason
        assert not store.get_artifacts(run_id, [one.id for one in commit.artifacts])
    assert head_of(store, run_id).seq == 1


def test_only_an_owners_own_progress_is_one_statement(store: SqlStore) -> None:
    """Spawns, leases taken, writers without an epoch, commits without events: decided the long way."""
    run_id = start(store)
    others = [
        (creation(new_id(), parent=run_id),),
        (RunStep(run_id, 1, 0, (event("x"),), lease=TakeLease(None)),),
        (RunStep(run_id, 1, None, (event("x"),)),),
        (RunStep(run_id, 1, 0),),
    ]
    assert not any(is_lone(commit_of(*steps)) for steps in others)
