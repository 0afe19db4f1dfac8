"""The page of errors names every code that the source can raise, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from tests.docs.codes import codes_in_source

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"


def codes_on_page() -> list[str]:
    """Return the codes in the first column of the tables."""
    cells = [line.split("|")[1] for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    return [code for cell in cells for code in re.findall(r"`([a-z0-9_]+)`", cell)]


def test_every_code_of_the_source_is_explained() -> None:
    """Whoever meets a code finds its cause and remedy."""
    missing = {code: place for code, place in codes_in_source().items() if code not in codes_on_page()}
    assert missing == {}


def test_no_code_is_explained_that_cannot_occur() -> None:
    """A code that was renamed leaves no ghost."""
    assert set(codes_on_page()) - set(codes_in_source()) == set()


def test_every_code_is_explained_once() -> None:
    """Two explanations would contradict each other one day."""
    page = codes_on_page()
    assert sorted(page) == sorted(set(page))


def test_codes_are_found_in_every_form() -> None:
    """The search itself sees keywords, constants, defaults of classes and of functions, conditional and composed codes."""
    found = codes_in_source()
    assert {"connection_missing", "handler_raised", "store_schema", "attempt_released", "too_deep"} <= set(found)
    assert "fact_recorded_malformed" in found
