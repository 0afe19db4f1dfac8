"""One stand for all of these tests, made when the first of them asks."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.postgres import PostgresServer
from tests.stack.records import Records
from tests.stack.stand import Stand, started


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave what takes minutes to those who ask: ``pytest -m stack``, or a test by its name."""
    if "stack" in (config.getoption("markexpr") or "") or any("stack" in str(part) for part in config.args):
        return
    left_out = [item for item in items if item.get_closest_marker("stack") and item.get_closest_marker("long")]
    config.hook.pytest_deselected(items=left_out)
    gone = set(left_out)
    items[:] = [item for item in items if item not in gone]


@pytest.fixture(scope="session")
def stand(postgres_server: PostgresServer) -> Iterator[Stand]:
    """Give the running stand."""
    began = time.monotonic()
    with started(postgres_server) as made:
        print(f"stand ready in {time.monotonic() - began:.1f} s", file=sys.stderr)
        (made.home / "flags").mkdir()
        yield made


@pytest.fixture(scope="session")
def records(stand: Stand) -> Iterator[Records]:
    """Give what the stand's store holds."""
    made = Records.of(stand)
    yield made
    made.store.close()


@pytest.fixture
def flag(stand: Stand) -> Iterator[Callable[[str], Path]]:
    """Give a function that puts a flag up: children whose name it has fail until it is unlinked."""
    raised: list[Path] = []

    def put_up(name: str) -> Path:
        path = stand.home / "flags" / name.replace("/", "_")
        path.touch()
        raised.append(path)
        return path

    yield put_up
    for path in raised:
        path.unlink(missing_ok=True)
