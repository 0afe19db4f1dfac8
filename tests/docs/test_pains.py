"""The table of pains names scenarios that are there."""

from __future__ import annotations

import re

from tests.docs.pages import ROOT
from tests.stack.matrix.cells import CELLS

PAINS = ROOT / "docs" / "pains.md"
ROW = re.compile(r"^\| (\d+) \|.*\| (.+) \|$", re.MULTILINE)
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def test_there_are_fifteen_and_each_is_shown_by_something():
    """Every row names a test, a cell or a command."""
    rows = ROW.findall(PAINS.read_text())
    assert [int(number) for number, _ in rows] == list(range(1, 16))
    assert [number for number, shown in rows if "`" not in shown] == []


def test_the_named_tests_are_there():
    """A file that has a function of that name."""
    found = TEST.findall(PAINS.read_text())
    assert len(found) > 15
    assert [test for path, test in found if f"def {test}(" not in (ROOT / path).read_text()] == []


def test_the_named_cells_are_there():
    """Words after *matrix:* are in the name of a cell."""
    told = [
        part for text in re.findall(r"matrix: ((?:`[^`]+`(?:, )?)+)", PAINS.read_text()) for part in text.split(", ")
    ]
    words = [part.strip("`") for part in told if part and "::" not in part]
    assert len(words) > 7
    assert [word for word in words if not any(word in cell.name for cell in CELLS)] == []
