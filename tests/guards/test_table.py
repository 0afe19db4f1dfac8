"""The table of promises fits the code: every guard is there, every test exists, and the page says the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.guards.table import GUARDS, Guard

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "promises.md"


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.name)
def test_what_a_patch_takes_away_stands_in_the_code_once(guard: Guard) -> None:
    assert (ROOT / "airflow_childrun" / guard.file).read_text().count(guard.old) == 1


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.name)
def test_the_named_test_exists(guard: Guard) -> None:
    file, *_, name = guard.test.split("::")
    sources = [ROOT / file, *(ROOT / "airflow_childrun" / "testing").glob("store_contract*.py")]
    assert any(f"def {name}(" in source.read_text() for source in sources)


def test_the_page_shows_the_table() -> None:
    """Row by row: promise, guard, test."""
    rows = re.findall(r"^\| (.+?) \| `(.+?)` \| `(.+?)` \|$", PAGE.read_text(), re.MULTILINE)
    assert rows == [(guard.promise, guard.file, guard.test.split("::")[-1]) for guard in GUARDS]
