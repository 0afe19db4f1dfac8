"""Zombies: ``python -m tests.fault.zombies --url URL --rounds 63 --zombies 16 --seed 1``.

In each round some processes that drive a run each are paused (SIGSTOP) for longer than their sessions live, another
process ends the runs, and the first ones wake up (SIGCONT) in the middle of their calls. Every write that they then try
must be refused, no run may have two writers after one another had begun, and their logs must say what became of each run.
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
from tests.soak.kill import answer_of, forked
from tests.soak.worker import MarkedEntropy, worker_of

TTL_S = 1.5
LONGEST_S = 6.0
"""How long the heir may take alone: a zombie that was paused inside a transaction keeps its run to itself until it wakes up."""
RUNS = 1
"""Of each zombie."""
STEPS = 12
MOST_S = 4.0
"""How long a zombie may take to its first calls on a busy machine."""
ZOMBIE, HEIR, LAST = 1, 2, 3


beats: list[Path] = []
"""Where a zombie shows that it is at work."""


def slow(number: int) -> int:
    for path in beats:
        with path.open("a") as file:
            file.write("x")
    time.sleep(0.12)
    return number


@operation(version="1")
def zombie_run(io: Any) -> int:
    return sum(int(io.step(slow, number)) for number in range(STEPS))


def engine_of(url: str, number: int) -> ExecutionEngine:
    """Make a process's engine, whose ids say whose they are."""
    # The last one has time: on a busy machine the others may lose their sessions by themselves.
    limits = Limits(session_ttl_s=30.0 if number == LAST else TTL_S, max_concurrency=32, poll_s=0.05, inbox_poll_s=0.5)
    owner, entropy = Owner(f"process {number}"), MarkedEntropy(number)
    return ExecutionEngine(
        House(SqlStore(url), RegistryResolver(), standard(), limits=limits, owner=owner, entropy=entropy)
    )


def drive(url: str, number: int, run_ids: list[str], log: Path) -> None:
    """Drive runs to their ends, or until somebody else has them."""
    beats[:] = [log.with_suffix(".beats")] if number == ZOMBIE else []
    logging.disable(logging.NOTSET)
    logging.basicConfig(filename=log, level=logging.INFO, force=True)
    engine = engine_of(url, number)
    for run_id in run_ids:
        engine.supervisor.hand_over(UUID(run_id))
    while not engine.supervisor.is_idle():
        engine.supervisor.wait_until_idle(0.1)
    engine.close()


def create(url: str, count: int) -> list[str]:
    engine = engine_of(url, 9)
    made = build_manifest("zombie_run", "1", input=None, run_config=RunConfig())
    return [str(engine.create(made, run_id=uuid4())) for _ in range(count)]


def look(url: str, run_ids: list[str]) -> dict[str, Any]:
    """Say how many runs changed hands, and what is wrong with any."""
    store, problems, taken = SqlStore(url), [], 0
    for run_id in map(UUID, run_ids):
        row, events = store.find_run(run_id), store.read_events(run_id)
        writers = [worker_of(one.commit_id) for one in events[1:]]
        epochs = [one.epoch for one in events]
        # On a busy machine the heir may lose a run to the zombie, too: only what was taken from the zombie counts.
        taken += ZOMBIE in writers and HEIR in writers[writers.index(ZOMBIE) :]
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


def _stop_at_work(zombies: dict[int, Path], chance: random.Random) -> None:
    """Stop each zombie after some of its calls; one that has no time for them, where it is."""
    wanted = {pid: chance.randint(RUNS, RUNS * STEPS * 2 // 3) for pid in zombies}
    until = time.monotonic() + MOST_S
    while wanted:
        for pid, calls in list(wanted.items()):
            beats = zombies[pid]
            if time.monotonic() > until or (beats.exists() and beats.stat().st_size >= calls):
                os.kill(pid, signal.SIGSTOP)
                del wanted[pid]
        time.sleep(0.003)


def play(url: str, folder: Path, chance: random.Random, zombies: int) -> dict[str, Any]:
    """Play one round."""
    run_ids = answer_of(lambda: create(url, zombies * RUNS))
    groups = [run_ids[at : at + RUNS] for at in range(0, len(run_ids), RUNS)]
    logs = [folder / f"{uuid4()}.log" for _ in groups]
    pids = [
        forked(lambda: drive(url, ZOMBIE, group, log))  # noqa: B023 - forked at once
        for group, log in zip(groups, logs, strict=True)
    ]
    _stop_at_work({pid: log.with_suffix(".beats") for pid, log in zip(pids, logs, strict=True)}, chance)
    time.sleep(TTL_S + 0.1)
    heir = forked(lambda: drive(url, HEIR, run_ids, folder / f"{uuid4()}.log"))
    if chance.random() < 0.5:
        time.sleep(chance.uniform(0.1, 0.5))  # wake up beside their heir
    else:
        heir = 0 if _ended(heir) else heir
    for pid in chance.sample(pids, len(pids)):
        os.kill(pid, signal.SIGCONT)
    for pid in filter(None, (heir, *pids)):
        os.waitpid(pid, 0)
    time.sleep(TTL_S)
    os.waitpid(forked(lambda: drive(url, LAST, run_ids, folder / f"{uuid4()}.log")), 0)
    found: dict[str, Any] = {"paused": zombies, "taken": 0, "problems": []}
    for seen, log in zip(answer_of(lambda: [look(url, group) for group in groups]), logs, strict=True):
        found["taken"] += seen["taken"]
        found["problems"] += seen["problems"]
        text = log.read_text() if log.exists() else ""
        said = text.count("this process leaves it alone")
        if said < seen["taken"]:
            problem = f"{seen['taken']} runs were taken from a zombie, its log tells of {said}: {text[-1500:]}"
            found["problems"].append(problem)
    return found


def main() -> None:
    """Play the rounds, print the figures, exit 1 if a late write was let in."""
    parser = argparse.ArgumentParser(prog="python -m tests.fault.zombies")
    parser.add_argument("--url", required=True)
    parser.add_argument("--rounds", type=int, default=63)
    parser.add_argument("--zombies", type=int, default=16, help="processes that are paused in each round")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    chance = random.Random(given.seed)
    answer_of(lambda: upgrade(given.url))
    paused, refused = 0, 0
    problems: list[str] = []
    with tempfile.TemporaryDirectory(prefix="childrun-zombies-") as folder:
        for _ in range(given.rounds):
            found = play(given.url, Path(folder), chance, given.zombies)
            paused += found["paused"]
            refused += found["taken"]
            problems += found["problems"]
    figures = {"rounds": given.rounds, "paused": paused, "late_writes_refused": refused, "problems": problems}
    print(json.dumps({"seed": given.seed, **figures}))
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
