"""Processes that sleep through their session and wake up: the short form of ``python -m tests.fault.zombies``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.fault, pytest.mark.slow]


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
def test_every_late_write_of_a_paused_process_is_refused(
    backend: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Whoever wakes up after another process took over writes nothing more, and says so in its log."""
    url = f"sqlite:///{tmp_path / 'store.db'}" if backend == "sqlite" else request.getfixturevalue("postgres_url")
    command = [sys.executable, "-m", "tests.fault.zombies", "--url", url, "--rounds", "2", "--zombies", "4"]
    command += ["--seed", os.environ.get("CHILDRUN_SEED", "1")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["problems"] == []
    assert figures["late_writes_refused"] > 0
