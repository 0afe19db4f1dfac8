"""Fixtures of the authors' tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from airflow_childrun.authoring.registry import REGISTRY
from tests.authoring.kit import Desk


@pytest.fixture(autouse=True)
def own_registry() -> Iterator[None]:
    """Forget afterwards what a test defines."""
    before = {key: dict(places) for key, places in REGISTRY._known.items()}
    yield
    REGISTRY._known.clear()
    REGISTRY._known.update(before)


@pytest.fixture
def desk() -> Iterator[Desk]:
    """Give a store in memory and processes that follow one another."""
    made = Desk()
    yield made
    made.close()
