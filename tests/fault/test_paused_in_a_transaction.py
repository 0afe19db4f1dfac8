"""A process that is paused, or cut off, in the middle of a transaction holds the rows of its runs: not for ever."""

from __future__ import annotations

import time
from typing import Any

import pytest
from sqlalchemy import Connection, text

from airflow_childrun.errors import UnavailableError
from airflow_childrun.store.sql.dialects import postgresql
from airflow_childrun.store.sql.migrate import upgrade
from airflow_childrun.store.sql.store import SqlStore
from airflow_childrun.testing.store_harness import append, head_of, start

pytestmark = pytest.mark.fault
BOUND_S = 2


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgresql, "LONGEST_TRANSACTION_S", BOUND_S)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("in_a_pipeline", [False, True])
def test_whoever_takes_over_waits_no_longer_than_a_transaction_may_last(postgres_url: str, in_a_pipeline: bool) -> None:
    """The server breaks the sleeper's transaction off; what it then still says is refused, and it is told why."""
    upgrade(postgres_url)
    sleeper, heir = SqlStore(postgres_url), SqlStore(postgres_url)
    run_id = start(heir)

    def sleep_in_it(connection: Connection) -> None:
        connection.execute(text("SELECT 1 FROM childrun_run FOR UPDATE"))
        driver: Any = connection.connection.driver_connection
        pipeline = driver.pipeline() if in_a_pipeline else None
        if pipeline is not None:
            if int(driver.info.server_version) < postgresql._WITH_TRANSACTION_TIMEOUT:
                pytest.skip("this server cannot end a transaction in the middle of a pipeline")
            pipeline.__enter__()
            driver.execute("UPDATE childrun_run SET depth = 7")
            driver.pgconn.flush()
        began = time.monotonic()
        assert append(heir, run_id, "mine now").seq == 2
        assert 0.5 < time.monotonic() - began < BOUND_S + 5
        driver.execute("UPDATE childrun_run SET depth = 7")
        if pipeline is not None:
            pipeline.sync()
        driver.commit()

    with pytest.raises(UnavailableError):
        sleeper.database.transaction(sleep_in_it)
    row = heir.find_run(run_id)
    assert row is not None
    assert row.depth == 0
    assert head_of(sleeper, run_id).seq == 2
    for store in (sleeper, heir):
        store.close()


@pytest.mark.usefixtures("short")
def test_a_migration_may_take_its_time(postgres_url: str) -> None:
    """What moves the schema, or deletes a large tree, is not broken off."""
    upgrade(postgres_url)
    store = SqlStore(postgres_url)

    def work(connection: Connection) -> None:
        store.database.dialect.take_time(connection)
        connection.execute(text(f"SELECT pg_sleep({BOUND_S + 1})"))
        time.sleep(BOUND_S + 1)
        assert connection.execute(text("SELECT 1")).scalar() == 1

    store.database.transaction(work)
    store.close()


def test_the_bound_goes_with_its_transaction(postgres_url: str) -> None:
    """Behind a transaction pooler a server connection is given to others next: they find it as it was."""
    upgrade(postgres_url)
    store = SqlStore(postgres_url)

    def settings(connection: Connection) -> list[str]:
        names = ["idle_in_transaction_session_timeout"]
        driver: Any = connection.connection.driver_connection
        if driver.info.server_version >= postgresql._WITH_TRANSACTION_TIMEOUT:
            names.append("transaction_timeout")
        return [str(connection.execute(text(f"SHOW {name}")).scalar()) for name in names]

    start(store)
    assert set(store.database.transaction(settings)) == {f"{postgresql.LONGEST_TRANSACTION_S}s"}
    assert set(store.database.read(settings)) == {"0"}
    store.close()
