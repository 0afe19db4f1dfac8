"""The short form of the failpoint sweep: a sample of all places, with real processes and real SIGKILLs.

All places, in minutes: ``python -m tests.fault.sweep --url URL --seconds 3600``; another sample: ``CHILDRUN_SEED=n``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fault.sweep import KINDS

pytestmark = [pytest.mark.fault, pytest.mark.slow]
SEED = os.environ.get("CHILDRUN_SEED", "1")


def swept(url: str, seconds: int, faults: int) -> dict[str, int]:
    """Sweep in a process of its own, which has no threads when it forks."""
    command = [sys.executable, "-m", "tests.fault.sweep", "--url", url, "--seed", SEED]
    command += ["--seconds", str(seconds), "--faults", str(faults)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0, "\n".join(figures["problems"])
    print(figures)
    kills: dict[str, int] = {kind: figures[kind]["kills"] for kind in KINDS.split(",")}
    return kills


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'store.db'}"
    return str(request.getfixturevalue("postgres_url"))


def test_a_process_killed_at_any_place_changes_nothing(url: str) -> None:
    """The next process ends every run alike; no fact is lost or doubled, no recorded call repeated."""
    kills = swept(url, seconds=16, faults=1)
    assert min(kills.values()) >= 3


def test_every_kind_of_place_is_passed(url: str, tmp_path: Path) -> None:
    """Statements, commits, verbs of the store, handlers, calls, requests to Airflow: what goes another way is swept no more."""
    code = """
import sys
from pathlib import Path
from tests.fault.sweep import Play, count_places
from airflow_childrun.store.sql.migrate import upgrade
upgrade(sys.argv[1])
for kind in ("runs", "airflow"):
    print(*sorted(set(count_places(Play(sys.argv[1], Path(sys.argv[2]), kind, "whole", 1))["places"])), sep="\\n")
"""
    command = [sys.executable, "-c", code, url, str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    names = done.stdout.splitlines()
    wanted = ["lock", "make_alone"]
    wanted += ["commit", "fetch", "write_rows", "write_and_commit", "get_runs", "the handler sweep_top.main.gather"]
    wanted += ["the call gather", "read_events", "get_artifacts", "open_session"]
    asked = ["GetConnection", "GetDag", "TriggerDagRun", "GetDRCount", "GetDagRunState", "GetXCom", "SetXCom"]
    wanted += [f"Airflow's {name}" for name in (*asked, "DeferTask", "SucceedTask")]
    assert [f"{when} {what}" for what in wanted for when in ("before", "after") if f"{when} {what}" not in names] == []


def test_processes_killed_one_after_the_other_change_nothing(url: str) -> None:
    """Two in a row die, the second one wherever it had come to."""
    kills = swept(url, seconds=9, faults=2)
    assert min(kills.values()) >= 2
