"""The kill soak in its short form: twenty seconds of SIGKILLs, zombies and a database that is broken off three times.

The long one: ``python -m tests.soak.kill --minutes 10 --seed N``; all figures: ``python -m tests.soak``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.fault, pytest.mark.slow, pytest.mark.postgres]


def test_nothing_is_stuck_lost_or_doubled_whoever_is_killed() -> None:
    """Workers die, sleep through their sessions and wake up, the database restarts: every run ends once, as it should."""
    seed = os.environ.get("CHILDRUN_SEED", "1")
    command = [sys.executable, "-m", "tests.soak.kill", "--minutes", "0.3", "--runs", "35", "--seed", seed]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
    figures = json.loads(done.stdout.splitlines()[-1])
    print(figures)
    assert figures["kills"] >= 5
    assert figures["restarts"] == 3
    assert figures["takeovers"] > 0
    assert figures["losses"] == 0
