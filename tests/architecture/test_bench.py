"""The benchmark measures what it is asked for, says so in the shape that its page names, and fails where a goal is not met."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.bench import __main__ as bench
from tests.bench.rows import GOALS, MEASURES, Outcome

ROOT = Path(__file__).parents[2]
WITHOUT_PEERS = ("children-memory", "facts-memory", "import")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.bench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=240, check=False)


def test_rows_that_need_no_peer_are_measured() -> None:
    done = run(*WITHOUT_PEERS, "--quick", "--json")
    *lines, last = done.stdout.splitlines()
    report = json.loads(last)
    assert [line.split()[0] for line in lines] == list(report)
    assert set(report) == set(WITHOUT_PEERS)
    assert all(entry["ratio"] > 0 for entry in report.values()), done.stderr
    assert {name: entry["goal"] for name, entry in report.items()} == {name: str(GOALS[name]) for name in report}
    assert done.returncode == (0 if all(entry["met"] for entry in report.values()) else 1)


def test_a_row_that_is_none_is_named() -> None:
    done = run("import", "steps-mysql")
    assert done.returncode == 2
    assert "no row steps-mysql" in done.stderr


def test_a_name_means_that_row_and_a_beginning_all_of_them() -> None:
    assert bench._rows("steps-postgresql") == ["steps-postgresql"]
    assert bench._rows("steps-p") == ["steps-postgresql", "steps-postgresql-raw"]
    assert bench._rows("") == list(GOALS)


def test_every_row_is_measured_by_one_measure() -> None:
    assert sorted(name for names, _ in MEASURES for name in names) == sorted(GOALS)


@pytest.mark.parametrize(("ours", "met"), [([400.0], True), ([399.0], False), ([], False)])
def test_a_goal_that_is_missed_or_not_measured_is_not_met(ours: Sequence[float], met: bool) -> None:
    outcome = Outcome(ours[0], 50, "children/s") if ours else None
    entry = bench._entry("children-postgresql", outcome)
    assert entry == {"ratio": ours[0] / 50 if ours else None, "goal": ">= 8", "met": met}
    verdict = "NOT MET" if outcome and not met else "met" if met else "FAILED"
    assert f" {verdict} " in bench._line("children-postgresql", outcome)


def test_what_is_to_be_small_is_met_by_less() -> None:
    assert bench._entry("import", Outcome(39, 40, "ms"))["met"]
    assert not bench._entry("import", Outcome(41, 40, "ms"))["met"]
