"""Thousands of schedules, each from a seed; and the proof that they notice what is broken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from airflow_childrun.engine import decide, live_io
from airflow_childrun.runtime import driver
from airflow_childrun.runtime.sessions import SessionKeeper
from airflow_childrun.runtime.waiting import Hold
from airflow_childrun.store import decision
from tests.simulation.run import FAULTS, Simulation, simulate

NORMAL, MANY, PACK = 2_000, 100_000, 1_000
FIRST = int(os.environ.get("CHILDRUN_SIMULATION_FIRST", "0"))
HAPPENINGS = (*FAULTS, "given_up")


def simulate_many(first: int, count: int) -> Counter[str]:
    """Simulate in two processes side by side; a failing seed prints its schedule, and how to see it alone."""
    half = count // 2
    command = [sys.executable, "-m", "tests.simulation", "--json", "--count", str(half), "--first"]
    processes = [
        subprocess.Popen([*command, str(begin)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for begin in (first, first + half)
    ]
    happened: Counter[str] = Counter()
    for process in processes:
        out, _ = process.communicate()
        assert process.returncode == 0, out[-20_000:]
        happened.update(json.loads(out.splitlines()[-1]))
    return happened


def test_every_schedule_comes_right() -> None:
    """Whatever fails prints its schedule, and how to see it alone."""
    happened = simulate_many(FIRST, NORMAL)
    assert happened["schedules"] == NORMAL
    assert min(happened[name] for name in HAPPENINGS) > 50, happened


@pytest.mark.soak
@pytest.mark.parametrize("pack", range(NORMAL // PACK, MANY // PACK))
def test_very_many_schedules_come_right(pack: int) -> None:
    assert simulate_many(FIRST + pack * PACK, PACK)["schedules"] == PACK


def test_an_undisturbed_run_ends_like_a_disturbed_one() -> None:
    """The final snapshots of the same trees, with one process and no faults, are the same."""
    compared = 0
    for seed in range(60):
        wild, calm = simulate(seed), Simulation(seed, calm=True)
        calm.programs, calm.ends, calm.expected = wild.programs, wild.ends, wild.expected
        if wild.cancelled or wild.expected.has_timeouts or wild.given_up:
            # Compared by the simulation itself with what must come out then.
            continue
        calm.run()
        compared += 1
        assert [_end(calm, root) for root in calm.setting.roots] == [_end(wild, root) for root in wild.setting.roots]
    assert compared > 22


def _end(simulation: Simulation, root: Any) -> tuple[str, str | None]:
    row = simulation.setting.store._runs[root].row
    return row.status, row.final_snapshot_id if row.status == "Completed" else None


def test_a_seed_repeats_its_schedule_in_another_process() -> None:
    """The log of a schedule is the same to the last microsecond, whatever the hash seed of the process."""
    script = (
        "import hashlib\nfrom tests.simulation.run import simulate\n"
        "print(hashlib.sha256(repr([simulate(seed).baton.log for seed in range(12)]).encode()).hexdigest())"
    )
    logs = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(logs) == 1


def _unfenced(step: Any, stored: Any, picture: Any) -> Any:
    refusal = _REFUSAL(step, stored, picture)
    return None if refusal is not None and refusal.reason in ("head", "epoch") else refusal


_REFUSAL = decision._refusal
_KEEP_SLOT: Callable[[Any], None] = lambda self: None


def _late_limit(history: Any, *, lapsed: bool, limit: int) -> Any:
    return _CLOSE(history, lapsed=lapsed, limit=limit + 1)


def _early_limit(history: Any, *, lapsed: bool, limit: int) -> Any:
    return _CLOSE(history, lapsed=lapsed, limit=max(0, limit - 1))


_CLOSE = decide.close_orphan
MUTANTS: dict[str, tuple[Any, str, Any]] = {
    "commits are not fenced": (decision, "_refusal", _unfenced),
    "a commit forgets that it happened": (decision, "_original_result", lambda commit, steps, picture: None),
    "an outside call starts after the lease": (SessionKeeper, "is_safe", property(lambda self: True)),
    "who waits keeps its slot": (Hold, "release", _KEEP_SLOT),
    "a run is given up too late": (driver, "close_orphan", _late_limit),
    "a run is given up too early": (driver, "close_orphan", _early_limit),
    "recorded facts are not looked up": (live_io.LiveIo, "_recorded", lambda self, key, digest, call: None),
}


LOST_ANSWERS = ("unheard", "late", "refused")


@pytest.mark.parametrize("only", LOST_ANSWERS)
def test_one_answer_that_is_lost_costs_no_attempt(only: str) -> None:
    """With one process and one fault nothing hides what the fault costs."""
    happened = [simulation.setting.faults.happened for seed in range(90) for simulation in [simulate(seed, only=only)]]
    assert happened.count([only]) > 45


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_guard_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one guard taken away some seed among the first few hundred fails."""
    monkeypatch.setattr(*MUTANTS[name])
    for seed in range(600):
        try:
            Simulation(seed).run()
            Simulation(seed, only=LOST_ANSWERS[seed % 3]).run()
        except Exception:
            return
    raise AssertionError(f"{name}: 600 schedules did not notice")
