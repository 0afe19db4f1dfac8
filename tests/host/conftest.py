"""Fixtures of the host's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from airflow_childrun.store.memory import MemoryStore
from airflow_childrun.store.sql.migrate import upgrade
from airflow_childrun.store.sql.store import SqlStore
from tests.host.kit import HostLab


@pytest.fixture
def lab() -> Iterator[HostLab]:
    """Give a store in memory, a world, and the tries of tasks."""
    made = HostLab()
    yield made
    made.close()


@pytest.fixture
def sqlite_lab(tmp_path: Path) -> Iterator[HostLab]:
    """Give the same on SQLite."""
    url = f"sqlite:///{tmp_path / 'store.db'}"
    upgrade(url)
    made = HostLab()
    store = SqlStore(url)
    made.store = cast("MemoryStore", store)
    yield made
    made.close()
    store.close()
