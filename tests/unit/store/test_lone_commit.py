"""An owner's commit as one statement: the same as the long way, to the byte, and refused wherever that refuses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest

from airflow_childrun.store.api import (
    GENESIS_HASH,
    Commit,
    Committed,
    FactRow,
    Moves,
    Owner,
    ReleaseLease,
    RunStep,
    TakeLease,
)
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


EVENTS = {
    "an event": (event("one"),),
    "a fact": (event("one")._replace(fact=FactRow("1" * 64, "2" * 64, "3" * 64, failed=False)),),
    "a failed fact": (event("one")._replace(fact=FactRow("1" * 64, None, None, failed=True)),),
    "two events, the second a fact": (
        event("one"),
        event("two")._replace(fact=FactRow("4" * 64, "5" * 64, None, failed=False)),
    ),
    "four events": tuple(event(name) for name in ("one", "two", "three", "four")),
}


@pytest.fixture(scope="module", params=["postgresql", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqlStore]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('lone') / 'store.db'}"
    else:
        url = request.getfixturevalue("postgres_module_url")
    upgrade(url)
    store = SqlStore(url)
    yield store
    store.close()


def _lone(store: SqlStore, commit: Commit) -> Committed:
    """Commit the short way, and by no other."""
    committer: Any = store._committer
    answer = committer._lone(commit)
    assert answer is not None
    return must(answer)


def _long(store: SqlStore, commit: Commit) -> Committed:
    """Commit as a member of a batch is committed."""
    committer: Any = store._committer
    return must(committer._attempt([commit])[0])


def _written(store: SqlStore, run_id: UUID, at: int) -> dict[str, Any]:
    """Return all that a commit at some time has left of a run, with no id, hash or time that another run has not."""
    row = store.find_run(run_id)
    assert row is not None
    events = store.read_events(run_id)
    tips = {one.hash: one.seq for one in events}
    columns = row._asdict() | {"lease_session_id": row.lease_session_id is not None}
    columns |= {
        "head": (tips[row.head.hash], *row.head._replace(hash="")),
        "checkpoint_hash": tips[row.checkpoint_hash],
    }
    columns |= {"updated_at": row.updated_at - at, "ended_at": row.ended_at and row.ended_at - at}
    for name in ("run_id", "root_run_id", "slot_id", "created_at", "lease_expires_at"):
        columns.pop(name, None)
    stored = [(one.seq, one.body, one.epoch, one.seq == 1 or one.recorded_at == at) for one in events]
    facts = [fact._replace(run_id=UUID(int=0)) for fact in store.get_facts(run_id)]
    return {"row": columns, "events": stored, "facts": facts, "kinds": store.find_artifact_kinds(run_id)}


@pytest.mark.parametrize("release", [False, True])
@pytest.mark.parametrize("events", EVENTS)
@pytest.mark.parametrize("what", MOVES)
def test_one_statement_writes_what_the_long_way_writes(store: SqlStore, what: str, events: str, release: bool) -> None:
    """Rows, events, facts, artifacts and answer are the same, but for ids and times; the chain verifies."""
    moves = MOVES[what]
    if moves.checkpoint_at is not None:
        moves = moves._replace(checkpoint_at=min(moves.checkpoint_at, len(EVENTS[events]) - 1))
    found = []
    for commit_by in (_lone, _long):
        session = store.open_session(new_id(), Owner("test", "", 0), 60_000_000)
        run_id = start(store, lease=TakeLease(session.session_id))
        lease = ReleaseLease() if release else None
        step = RunStep(run_id, 1, 1, EVENTS[events], moves, lease=lease)
        commit = commit_of(step, artifacts=(artifact(run_id, b"first"), artifact(run_id, b"second")))
        assert is_lone(commit)
        result = commit_by(store, commit)
        assert head_of(store, run_id) == result.heads[run_id]
        previous = GENESIS_HASH
        for one in store.read_events(run_id):
            assert one.hash == event_hash(run_id, one.seq, one.recorded_at, previous, body_digest(one.body))
            previous = one.hash
        assert {one.commit_id for one in store.read_events(run_id, 2)} == {commit.commit_id}
        bodies = [one.body for one in commit.artifacts]
        kept = store.get_artifacts(run_id, [one.id for one in commit.artifacts])
        assert sorted(kept.values()) == sorted(bodies)
        assert store.commit([commit]) == [result], "submitted again, it answers with its result"
        found.append(_written(store, run_id, result.recorded_at))
    assert found[0] == found[1]


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
