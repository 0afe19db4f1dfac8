"""The one contract suite, on every store that we ship."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import update

from airflow_childrun.store.memory import MemoryStore
from airflow_childrun.store.sql.migrate import upgrade
from airflow_childrun.store.sql.schema import tables_in
from airflow_childrun.store.sql.store import SqlStore
from airflow_childrun.testing.clock import ManualClock
from airflow_childrun.testing.store_contract import StoreContract, StoreHarness


class MemoryHarness(StoreHarness):
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store: MemoryStore = MemoryStore(self.clock)

    def advance(self, us: int) -> None:
        self.clock.advance(us)

    def corrupt_artifact(self, root_run_id: UUID, artifact_id: str) -> None:
        tree = self.store._artifacts[root_run_id]
        tree[artifact_id] = tree[artifact_id]._replace(body=b"changed")


class SqlHarness(StoreHarness):
    def __init__(self, url: str, schema: str | None = None, clock: ManualClock | None = None) -> None:
        upgrade(url, schema)
        self.url, self.schema, self.clock = url, schema, clock
        self.stores: list[SqlStore] = []
        self.store: SqlStore = self.another_store()

    def another_store(self) -> SqlStore:
        self.stores.append(SqlStore(self.url, self.schema, self.clock))
        return self.stores[-1]

    def advance(self, us: int) -> None:
        if self.clock is None:
            time.sleep(us / 1_000_000)
        else:
            self.clock.advance(us)

    def corrupt_artifact(self, root_run_id: UUID, artifact_id: str) -> None:
        table = tables_in(self.schema).artifact
        this = (table.c.root_run_id == root_run_id, table.c.id == artifact_id)
        self.store.database.write(lambda connection: connection.execute(update(table).where(*this).values(body=b"x")))

    def close(self) -> None:
        for store in self.stores:
            pool = store.database.engine().pool
            assert pool.checkedout() == 0, "a connection was not given back"  # type: ignore[attr-defined]
            store.close()


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def harness(self) -> StoreHarness:
        return MemoryHarness()


class TestSqliteStore(StoreContract):
    @pytest.fixture
    def harness(self, tmp_path: Path) -> Iterator[StoreHarness]:
        harness = SqlHarness(f"sqlite:///{tmp_path / 'store.db'}", clock=ManualClock())
        yield harness
        harness.close()


class TestPostgresqlStore(StoreContract):
    @pytest.fixture
    def harness(self, postgres_module_url: str) -> Iterator[StoreHarness]:
        # Runs have fresh ids and every filter names its tree: tests may share a database.
        harness = SqlHarness(postgres_module_url, "childrun")
        # Real time: short enough to wait for, long enough for a loaded machine.
        harness.ttl_us = 1_500_000
        yield harness
        harness.close()
