"""Several processes write the same artifacts and the same runs in random order, in batches: nobody hangs, nobody is harmed."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import pytest

from airflow_childrun.store.api import GENESIS_HASH, Commit, Committed, Conflict, InboxPost, RunStep
from airflow_childrun.store.chain import body_digest, event_hash
from airflow_childrun.store.sql.address import parse_address
from airflow_childrun.store.sql.migrate import upgrade
from airflow_childrun.store.sql.store import SqlStore
from airflow_childrun.testing.store_harness import artifact, commit_of, creation, event, new_id, start

pytestmark = pytest.mark.fault

PROCESSES, RUNS, TREES, BODIES = 4, 24, 3, 12
SPACE = UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")


def newcomer(seed: int, number: int) -> UUID:
    """Return the id of a run that every process with this seed wants to create."""
    return uuid5(SPACE, f"{seed}/{number}")


def write(url: str, seed: int, me: int, seconds: float, runs: list[UUID], roots: list[UUID]) -> dict[str, Any]:
    """Submit random batches until the time is over; count the answers by what they should be."""
    store = SqlStore(parse_address(url))
    chance = random.Random(f"{seed}/{me}")
    counts: Counter[str] = Counter()
    appended: Counter[str] = Counter()
    until, number, slowest = time.monotonic() + seconds, 0, 0.0
    while time.monotonic() < until:
        number += 1
        heads = {row.run_id: row.head for row in store.get_runs(runs).values()}
        chosen = chance.sample(runs, chance.randint(2, 8))
        bad = chosen[0] if chance.random() < 0.5 else None
        batch = [_member(chance, run_id, heads[run_id].seq, roots, wrong=run_id == bad) for run_id in chosen]
        if chance.random() < 0.3:
            fresh = newcomer(seed, number // 2)
            batch.append(commit_of(creation(fresh), artifacts=_artifacts(chance, roots)))
        chance.shuffle(batch)
        began = time.monotonic()
        answers = store.commit(batch)
        slowest = max(slowest, time.monotonic() - began)
        for commit, answer in zip(batch, answers, strict=True):
            counts[_judge(commit, answer, bad)] += 1
            if isinstance(answer, Committed):
                appended.update({str(step.run_id): len(step.events) for step in commit.steps})
    store.close()
    return {"counts": counts, "appended": appended, "slowest_s": slowest}


def _member(chance: random.Random, run_id: UUID, head: int, roots: list[UUID], *, wrong: bool) -> Commit:
    step = RunStep(run_id, head + 1000 if wrong else head, None, tuple(event("n") for _ in range(chance.randint(1, 3))))
    posts = (InboxPost(run_id, new_id(), "cancel", b"{}"),) if chance.random() < 0.2 else ()
    return commit_of(step, artifacts=_artifacts(chance, roots), posts=posts)


def _artifacts(chance: random.Random, roots: list[UUID]) -> tuple[Any, ...]:
    """Return some of the few artifacts that everybody writes, in random order."""
    return tuple(
        artifact(chance.choice(roots), b"body %d" % chance.randrange(BODIES)) for _ in range(chance.randint(1, 5))
    )


def _judge(commit: Commit, answer: Committed | Conflict, bad: UUID | None) -> str:
    run_id = commit.steps[0].run_id
    if isinstance(answer, Committed):
        return "bad member happened" if run_id == bad else "happened"
    if answer.run_id != run_id or answer.reason not in ("head", "exists"):
        return f"strange conflict {answer.reason}"
    return "bad member refused" if run_id == bad else "another was faster"


def check(url: str, seconds: float) -> dict[str, Any]:
    """Let processes write side by side, then read what became of it."""
    upgrade(parse_address(url))
    store = SqlStore(parse_address(url))
    roots = [start(store) for _ in range(TREES)]
    runs = [start(store, root=roots[at % TREES]) for at in range(RUNS)]
    seed = random.SystemRandom().randrange(2**32)
    print("seed", seed)
    given = json.dumps([url, seed, seconds, [str(run) for run in runs], [str(root) for root in roots]])
    command = [sys.executable, "-m", "tests.fault.test_group_commit_processes", given]
    processes = [
        subprocess.Popen([*command, str(me)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2], env=os.environ)
        for me in range(PROCESSES)
    ]
    reports = []
    for process in processes:
        out, _ = process.communicate(timeout=seconds + 60)
        assert process.returncode == 0
        reports.append(json.loads(out))
    counts = sum((Counter(report["counts"]) for report in reports), Counter[str]())
    appended = sum((Counter(report["appended"]) for report in reports), Counter[str]())
    for run_id in runs:
        assert _chained(store, run_id) == appended[str(run_id)] + 1, "an answer and the log disagree"
    store.close()
    return {"counts": counts, "slowest_s": max(report["slowest_s"] for report in reports), "seed": seed}


def _chained(store: SqlStore, run_id: UUID) -> int:
    """Return how many events a run has, each of which follows the one before it."""
    previous = GENESIS_HASH
    stored = store.read_events(run_id)
    for seq, row in enumerate(stored, 1):
        previous = event_hash(run_id, seq, row.recorded_at, previous, body_digest(row.body))
        assert (row.seq, row.hash) == (seq, previous)
    head = store.get_runs([run_id])[run_id].head
    assert (head.seq, head.hash) == (len(stored), previous)
    return len(stored)


def expect(found: dict[str, Any]) -> None:
    """Everybody got through; only bad and late members were refused; no batch took as long as a lock that waits for ever."""
    print(found)
    counts = found["counts"]
    assert set(counts) <= {"happened", "bad member refused", "another was faster"}, counts
    assert counts["happened"] > 100
    assert counts["bad member refused"] > 10
    assert counts["another was faster"] > 10, "the processes never met"
    assert found["slowest_s"] < 15


def test_processes_share_a_sqlite_file(tmp_path: Path) -> None:
    expect(check(f"sqlite:///{tmp_path / 'store.db'}", 3.0))


def test_processes_share_postgresql(postgres_url: str) -> None:
    expect(check(postgres_url, 3.0))


@pytest.mark.soak
def test_processes_share_a_sqlite_file_for_a_minute(tmp_path: Path) -> None:
    expect(check(f"sqlite:///{tmp_path / 'store.db'}", 60.0))


@pytest.mark.soak
def test_processes_share_postgresql_for_a_minute(postgres_url: str) -> None:
    expect(check(postgres_url, 60.0))


if __name__ == "__main__":
    _url, _seed, _seconds, _runs, _roots = json.loads(sys.argv[1])
    _found = write(
        _url, _seed, int(sys.argv[2]), _seconds, [UUID(run) for run in _runs], [UUID(root) for root in _roots]
    )
    print(json.dumps(_found))
