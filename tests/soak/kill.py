"""The kill soak: ``python -m tests.soak.kill --minutes 10 --seed 1``.

Workers drive 500 runs and their children on PostgreSQL. All the while one is killed (SIGKILL) every 0.2 to 2 s, one is
paused beyond the life of its session and woken up again, and three times the database is broken off and started again.
New runs come as long as there is time. Then everything has two minutes to end, and all is looked at.

Prints the figures and the times of all kills; exits 1 if a run is stuck, lost, given up or ended otherwise, if a fact is
doubled, a recorded call repeated, or a late write not refused.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from airflow_childrun.authoring.registry import RegistryResolver
from airflow_childrun.model.config import RunConfig
from airflow_childrun.model.manifest import build_manifest
from airflow_childrun.runtime.engine import ExecutionEngine
from airflow_childrun.runtime.house import House
from airflow_childrun.secret_policy import standard
from airflow_childrun.store.api import RunFilter
from airflow_childrun.store.sql.migrate import upgrade
from airflow_childrun.store.sql.store import SqlStore
from tests.soak.report import Report, look
from tests.soak.server import RestartableServer
from tests.soak.worker import TTL_S, UNFINISHED, work

WORKERS = 3
SETTLE_S = 120.0
PAUSE_S = TTL_S + 1.5
WAKE_S = 2.0
ENOUGH_LEFT = 40


def forked(work: Callable[[], Any]) -> int:
    """Run ``work`` in a forked process; this one has neither threads nor connections."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return pid


def answer_of(work: Callable[[], Any]) -> Any:
    """Run ``work`` in a forked process and return what it returned."""
    read, write = os.pipe()
    pid = forked(lambda: os.write(write, json.dumps(work()).encode()))
    os.close(write)
    with os.fdopen(read) as heard:
        answer = heard.read()
    os.waitpid(pid, 0)
    return json.loads(answer) if answer else None


@dataclass
class Worker:
    """A worker process: alive, or paused until ``wake_at``; not killed before ``spare_until``."""

    slot: int
    number: int
    pid: int
    wake_at: float | None = None
    spare_until: float = 0.0


@dataclass
class Soak:
    """The soak as it goes."""

    url: str
    folder: Path
    chance: random.Random
    server: RestartableServer
    names: dict[str, str] = field(default_factory=dict)
    workers: list[Worker] = field(default_factory=list)
    woken: dict[int, list[int]] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    kills: int = 0
    pauses: int = 0
    restarts: int = 0
    _number: int = 0
    _began: float = field(default_factory=time.monotonic)

    def note(self, text: str) -> None:
        self.log.append(f"{time.monotonic() - self._began:.2f} {text}")

    def add_runs(self, count: int) -> None:
        """Create topmost runs."""
        new = {str(uuid4()): f"{len(self.names) + number}" for number in range(count)}
        url = self.url

        def create() -> int:
            engine = ExecutionEngine(House(SqlStore(url), RegistryResolver(), standard()))
            for run_id, name in new.items():
                made = build_manifest("soak_top", "1", input=name, run_config=RunConfig())
                engine.create(made, run_id=UUID(run_id))
            return len(new)

        if answer_of(create) != count:
            raise RuntimeError("the runs could not be created")
        self.names |= new

    def begin_worker(self, slot: int) -> Worker:
        self._number += 1
        number, url, folder = self._number, self.url, self.folder
        return Worker(slot, number, forked(lambda: work(url, folder, slot, number)))

    def left(self) -> int:
        """Return how many topmost runs have not ended, at most a page."""
        url = self.url
        where = RunFilter(op_id="soak_top", statuses=UNFINISHED)
        return int(answer_of(lambda: len(SqlStore(url).find_runs(where, limit=1000).rows)) or 0)

    def kill_one(self) -> None:
        """Kill a worker that is neither paused nor spared, and begin another in its place."""
        now = time.monotonic()
        mortal = [one for one in self.workers if one.wake_at is None and one.spare_until < now]
        if not mortal:
            return
        worker = self.chance.choice(mortal)
        os.kill(worker.pid, signal.SIGKILL)
        os.waitpid(worker.pid, 0)
        self.kills += 1
        self.note(f"kill {worker.number}")
        self.workers[self.workers.index(worker)] = self.begin_worker(worker.slot)

    def pause_one(self) -> None:
        """Stop a worker for longer than its session lives."""
        now = time.monotonic()
        running = [one for one in self.workers if one.wake_at is None and one.spare_until < now]
        if running and all(one.wake_at is None for one in self.workers):
            worker = self.chance.choice(running)
            os.kill(worker.pid, signal.SIGSTOP)
            worker.wake_at = time.monotonic() + PAUSE_S
            self.pauses += 1
            self.note(f"pause {worker.number}")

    def wake(self) -> None:
        """Wake up those whose time has come, and spare them for a while: let them try to write."""
        for worker in self.workers:
            if worker.wake_at is not None and worker.wake_at < time.monotonic():
                worker.wake_at, worker.spare_until = None, time.monotonic() + WAKE_S
                self.woken.setdefault(worker.number, []).append(time.time_ns() // 1000)
                os.kill(worker.pid, signal.SIGCONT)
                self.note(f"wake {worker.number}")

    def restart_database(self) -> None:
        self.note("break the database off")
        self.server.break_off()
        time.sleep(self.chance.uniform(0.1, 1.0))
        self.server.start()
        self.restarts += 1
        self.note("the database is back")

    def revive(self) -> None:
        """Begin a worker in the place of one that has left by itself."""
        for index, worker in enumerate(self.workers):
            pid, status = os.waitpid(worker.pid, os.WNOHANG)
            if pid:
                if status:
                    self.note(f"worker {worker.number} ended with status {status}")
                self.workers[index] = self.begin_worker(worker.slot)

    def run(self, seconds: float, runs: int) -> None:
        """Kill, pause and restart while the runs go on; then let them end."""
        self.add_runs(runs)
        self.workers = [self.begin_worker(slot) for slot in range(WORKERS)]
        began = time.monotonic()
        restarts = [began + seconds * part for part in (0.25, 0.5, 0.75)]
        next_kill = next_pause = next_look = began
        while (now := time.monotonic()) < began + seconds:
            self.wake()
            if restarts and now > restarts[0]:
                restarts.pop(0)
                self.restart_database()
            if now > next_kill:
                self.kill_one()
                next_kill = now + self.chance.uniform(0.2, 2.0)
            if now > next_pause:
                self.pause_one()
                next_pause = now + self.chance.uniform(1.0, 6.0)
            if now > next_look:
                self.revive()
                if self.left() < ENOUGH_LEFT:
                    self.add_runs(runs)
                next_look = now + 5.0
            time.sleep(0.02)
        self._settle()

    def _settle(self) -> None:
        """Let all that is left end, undisturbed."""
        for worker in self.workers:
            worker.wake_at = None if worker.wake_at is None else 0.0
        self.wake()
        until = time.monotonic() + SETTLE_S
        while self.left() and time.monotonic() < until:
            self.revive()
            time.sleep(1.0)
        time.sleep(1.0)
        for worker in self.workers:
            os.kill(worker.pid, signal.SIGKILL)
            os.waitpid(worker.pid, 0)


def soak(minutes: float, seed: int, runs: int) -> tuple[Soak, Report]:
    """Soak and look."""
    server = RestartableServer()
    try:
        with tempfile.TemporaryDirectory(prefix="childrun-soak-") as folder:
            url = server.url
            answer_of(lambda: upgrade(url))
            going = Soak(url, Path(folder), random.Random(seed), server)
            going.run(minutes * 60, runs)
            report = look(url, going.folder, going.names, going.woken)
    finally:
        server.close()
    return going, report


def main() -> None:
    """Soak, print, exit 1 on any loss."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.kill")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--runs", type=int, default=500, help="topmost runs at a time; each has two children")
    parser.add_argument("--log", action="store_true", help="print when what was killed, paused and restarted")
    given = parser.parse_args()
    began = time.monotonic()
    going, report = soak(given.minutes, given.seed, given.runs)
    if given.log or report.losses:
        print("\n".join(going.log))
    print("\n".join(report.losses[:50]))
    done = {"kills": going.kills, "pauses": going.pauses, "restarts": going.restarts, **report.figures()}
    print(
        json.dumps(
            {"seed": given.seed, "seconds": round(time.monotonic() - began), **done, "losses": len(report.losses)}
        )
    )
    sys.exit(1 if report.losses else 0)


if __name__ == "__main__":
    main()
