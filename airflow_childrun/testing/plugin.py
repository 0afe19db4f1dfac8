"""The pytest plugin: the fixture ``childrun``. pytest loads it wherever this package is installed, so it imports nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from airflow_childrun.testing.operations import OperationTester


@pytest.fixture
def childrun() -> OperationTester:
    """Give a tester of operations: memory for a store, fakes for the world, a clock that jumps; see docs/testing.md."""
    from airflow_childrun.testing.operations import OperationTester

    return OperationTester()
