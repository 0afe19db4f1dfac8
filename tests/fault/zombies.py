"""Zombies: ``python -m tests.fault.zombies --url URL --rounds 125 --seed 1``.

In each round a process that drives eight runs is paused (SIGSTOP) for longer than its session lives, another process ends
the runs, and the first one wakes up (SIGCONT) in the middle of its calls. Every write that it then tries must be refused,
no run may have two writers after one another had begun, and its log must say what became of each run.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from airflow_childrun.authoring.operation import operation
from airflow_childrun.authoring.registry import RegistryResolver
from airflow_childrun.model.config import RunConfig
from airflow_childrun.model.manifest import build_manifest
from airflow_childrun.runtime.engine import ExecutionEngine
from airflow_childrun.runtime.house import House, Limits
from airflow_childrun.secret_policy import standard
from airflow_childrun.store.api import Owner
from airflow_childrun.store.sql.migrate import upgrade
from airflow_childrun.store.sql.store import SqlStore
from airflow_childrun.store.verify import verify_run
from tests.soak.__main__ import answer_of, forked
from tests.soak.worker import MarkedEntropy, worker_of

TTL_S = 0.8
LONGEST_S = 40.0
"""Longer than the server lets a transaction of a paused process last."""
RUNS = 8
STEPS = 16
ZOMBIE, HEIR, LAST = 1, 2, 3


def slow(number: int) -> int:
    time.sleep(0.06)
    return number


@operation(version="1")
def zombie_run(io: Any) -> int:
    return sum(int(io.step(slow, number)) for number in range(STEPS))


def engine_of(url: str, number: int) -> ExecutionEngine:
    """Make a process's engine, whose ids say whose they are."""
    # The last one has time: on a busy machine the others may lose their sessions by themselves.
    limits = Limits(
        session_ttl_s=30.0 if number == LAST else TTL_S, max_concurrency=RUNS, poll_s=0.05, inbox_poll_s=0.5
    )
    owner, entropy = Owner(f"process {number}"), MarkedEntropy(number)
    return ExecutionEngine(
        House(SqlStore(url), RegistryResolver(), standard(), limits=limits, owner=owner, entropy=entropy)
    )


def drive(url: str, number: int, run_ids: list[str], log: Path) -> None:
    """Drive runs to their ends, or until somebody else has them."""
    logging.disable(logging.NOTSET)
    logging.basicConfig(filename=log, level=logging.INFO, force=True)
    engine = engine_of(url, number)
    for run_id in run_ids:
        engine.supervisor.hand_over(UUID(run_id))
    while not engine.supervisor.is_idle():
        engine.supervisor.wait_until_idle(0.1)
    engine.close()


def create(url: str) -> list[str]:
    engine = engine_of(url, 9)
    made = build_manifest("zombie_run", "1", input=None, run_config=RunConfig())
    return [str(engine.create(made, run_id=uuid4())) for _ in range(RUNS)]


def look(url: str, run_ids: list[str]) -> dict[str, Any]:
    """Say how many runs changed hands, and what is wrong with any."""
    store, problems, taken = SqlStore(url), [], 0
    for run_id in map(UUID, run_ids):
        row, events = store.find_run(run_id), store.read_events(run_id)
        writers = [worker_of(one.commit_id) for one in events[1:]]
        epochs = [one.epoch for one in events]
        taken += HEIR in writers and ZOMBIE in writers
        by_epoch = {one.epoch: worker_of(one.commit_id) for one in events[1:]}
        if epochs != sorted(epochs) or writers != [by_epoch[epoch] for epoch in epochs[1:]]:
            problems.append(f"run {run_id}: a late write was let in: {writers}")
        if row is None or row.status != "Completed":
            problems.append(f"run {run_id} did not complete")
        problems += [finding.message for finding in verify_run(store, run_id)]
    return {"taken": taken, "problems": problems}


def _ended(pid: int) -> bool:
    """Wait for a process, but not for ever: a zombie in a transaction keeps SQLite's file to itself while it sleeps."""
    until = time.monotonic() + LONGEST_S
    while time.monotonic() < until:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return True
        time.sleep(0.05)
    return False


def play(url: str, folder: Path, chance: random.Random) -> dict[str, Any]:
    """Play one round."""
    run_ids, log = answer_of(lambda: create(url)), folder / f"{uuid4()}.log"
    zombie = forked(lambda: drive(url, ZOMBIE, run_ids, log))
    time.sleep(chance.uniform(0.4, 0.9))
    os.kill(zombie, signal.SIGSTOP)
    time.sleep(TTL_S + 0.1)
    heir = forked(lambda: drive(url, HEIR, run_ids, folder / f"{uuid4()}.log"))
    if chance.random() < 0.5:
        time.sleep(chance.uniform(0.1, 0.5))  # wakes up beside its heir
    else:
        heir = 0 if _ended(heir) else heir
    os.kill(zombie, signal.SIGCONT)
    for pid in filter(None, (heir, zombie)):
        os.waitpid(pid, 0)
    time.sleep(TTL_S)
    os.waitpid(forked(lambda: drive(url, LAST, run_ids, folder / f"{uuid4()}.log")), 0)
    found: dict[str, Any] = answer_of(lambda: look(url, run_ids))
    said = log.read_text().count("this process leaves it alone") if log.exists() else 0
    if said < found["taken"]:
        found["problems"].append(f"{found['taken']} runs were taken from the zombie; its log tells of {said}")
    return found


def main() -> None:
    """Play the rounds, print the figures, exit 1 if a late write was let in."""
    parser = argparse.ArgumentParser(prog="python -m tests.fault.zombies")
    parser.add_argument("--url", required=True)
    parser.add_argument("--rounds", type=int, default=125)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    chance = random.Random(given.seed)
    answer_of(lambda: upgrade(given.url))
    refused, problems = 0, []
    with tempfile.TemporaryDirectory(prefix="childrun-zombies-") as folder:
        for _ in range(given.rounds):
            found = play(given.url, Path(folder), chance)
            refused += found["taken"]
            problems += found["problems"]
            print(f"{refused} late writes refused, {len(problems)} problems", file=sys.stderr, flush=True)
    print(json.dumps({"rounds": given.rounds, "late_writes_refused": refused, "problems": problems}))
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
