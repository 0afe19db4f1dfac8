"""The contract of a store, as tests: whoever writes a store of his own proves it with them.

::

    from airflow_childrun.testing.store_contract import StoreContract, StoreHarness

    class TestMyStore(StoreContract):
        @pytest.fixture
        def harness(self):
            return MyHarness()      # a StoreHarness with an empty store

Every sentence of ``airflow_childrun.store.api`` is a test here.
"""

from __future__ import annotations

import pytest

from airflow_childrun.store.api import Store
from airflow_childrun.testing.store_contract_commits import CommitContract
from airflow_childrun.testing.store_contract_leases import LeaseContract
from airflow_childrun.testing.store_contract_purge import PurgeContract
from airflow_childrun.testing.store_contract_reads import ReadContract
from airflow_childrun.testing.store_harness import StoreHarness

__all__ = ["StoreContract", "StoreHarness"]


class StoreContract(CommitContract, LeaseContract, ReadContract, PurgeContract):
    """Subclass it, give it a harness, and run it with pytest."""

    @pytest.fixture
    def harness(self) -> StoreHarness:
        """Give the store under test; every test gets an empty one of its own."""
        raise NotImplementedError("override the fixture `harness` with one that returns a StoreHarness")

    @pytest.fixture
    def store(self, harness: StoreHarness) -> Store:
        """Give the harness's store."""
        return harness.store
