"""The table of scenarios is whole, and what it names exists."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
TABLE = (TESTS / "scenarios.md").read_text("utf-8")
ROWS = re.findall(r"^\| (\d+)(?:-(\d+))? \| (.+?) \| (.+) \|$", TABLE, re.MULTILINE)


def test_every_scenario_has_exactly_one_row():
    """1 to 112, in order."""
    numbers = [number for first, last, _, _ in ROWS for number in range(int(first), int(last or first) + 1)]
    assert numbers == list(range(1, 113))


def test_every_row_names_a_test_or_a_reason():
    """An empty cell proves nothing."""
    for first, _, _, where in ROWS:
        assert "::test_" in where or where.startswith("not applicable: "), first


def test_every_named_test_exists():
    """A renamed test has to be renamed here."""
    named = re.findall(r"`([^`]+)::(test_\w+)`", TABLE)
    assert len(named) > 100
    missing = [f"{path}::{name}" for path, name in named if f"def {name}(" not in (TESTS / path).read_text("utf-8")]
    assert missing == []


def test_nothing_is_left_to_later():
    """What was once put off has its test by now."""
    assert [first for first, *_, where in ROWS if "later issue" in where] == []


def test_each_weakness_has_a_test_named_after_its_row():
    """The 36 rows of section 10.6."""
    files = (TESTS / "weaknesses").glob("test_*.py")
    rows = {
        int(number) for file in files for number in re.findall(r"^def test_row(\d\d)_", file.read_text(), re.MULTILINE)
    }
    assert rows == set(range(1, 37))
