"""Fixtures of the tests of section 10.6."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engine.kit import Lab, new_lab


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Make a store, a world and processes, closed at the end."""
    with new_lab() as made:
        yield made
