"""A task that lost its children to another process waits for their results, and ends green with them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from airflow_childrun.store.api import RunFilter
from airflow_childrun.store.sql.migrate import upgrade
from airflow_childrun.store.sql.store import SqlStore
from airflow_childrun.store.verify import verify_run
from tests.fault.lost_ownership import ITEMS, STEPS, TTL_S

pytestmark = [pytest.mark.fault, pytest.mark.slow]


def begin(url: str, folder: Path, role: str) -> subprocess.Popen[str]:
    with (folder / f"{role}.log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.fault.lost_ownership", url, str(folder), role],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=Path(__file__).parents[2],
        )


def calls_of(folder: Path, pid: int | None = None) -> list[list[str]]:
    path = folder / "calls"
    lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return [line for line in lines if pid is None or line[0] == str(pid)]


def wait_until(holds: Callable[[], object]) -> None:
    until = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_task_whose_children_went_to_another_process_waits_for_their_results(
    postgres_url: str, tmp_path: Path
) -> None:
    """Paused beyond its session, then woken up beside its heir: no run fails, no task fails, each says what happened.

    Every recorded call was made once; those in flight at most twice, with the same token.
    """
    upgrade(postgres_url)
    first = begin(postgres_url, tmp_path, "spawn")
    wait_until(lambda: len(calls_of(tmp_path, first.pid)) >= len(ITEMS))
    os.kill(first.pid, signal.SIGSTOP)
    try:
        time.sleep(TTL_S + 0.2)
        second = begin(postgres_url, tmp_path, "await")
        wait_until(lambda: len(calls_of(tmp_path, second.pid)) >= len(ITEMS))
    finally:
        os.kill(first.pid, signal.SIGCONT)
    wanted = [["Completed", 1, STEPS]] * len(ITEMS)
    said = ""
    for process in (first, second):
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0, (tmp_path / "spawn.log").read_text() + (tmp_path / "await.log").read_text()
        # Airflow's own lines may go to the standard output, too.
        assert json.loads(out.splitlines()[-1]) == wanted
        said += out if process is first else ""
    said += (tmp_path / "spawn.log").read_text()
    assert said.count("this process leaves it alone") >= len(ITEMS), said
    assert "Traceback" not in said
    calls = [(name, token) for _, name, token in calls_of(tmp_path)]
    assert len(set(calls)) == len(ITEMS) * STEPS
    assert len(calls) <= len(ITEMS) * (STEPS + 2)
    store = SqlStore(postgres_url)
    rows = [row for row in store.find_runs(RunFilter(), limit=100).rows if row.kind == "operation"]
    assert [row.status for row in rows] == ["Completed"] * len(ITEMS)
    assert all(row.head.epoch >= 2 for row in rows), "nobody took them over"
    assert [finding for row in rows for finding in verify_run(store, row.run_id)] == []
    store.close()
