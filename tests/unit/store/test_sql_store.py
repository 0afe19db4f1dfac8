"""What the SQL store promises beyond the contract: connections, addresses, codecs, error translation."""

from __future__ import annotations

import hashlib
import os
import threading
from operator import methodcaller
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from sqlalchemy import Connection, make_url, select, update
from sqlalchemy import event as sql_events

from airflow_childrun.errors import CorruptionError, InputError, UnavailableError
from airflow_childrun.store.api import Commit, Moves, RunFilter, RunStep
from airflow_childrun.store.chain import check_chain
from airflow_childrun.store.memory import MemoryStore
from airflow_childrun.store.sql.dialects.sqlite import SqliteDialect
from airflow_childrun.store.sql.engine import POOL_SIZE
from airflow_childrun.store.sql.migrate import upgrade
from airflow_childrun.store.sql.provision import forgetful_settings
from airflow_childrun.store.sql.schema import tables_in
from airflow_childrun.store.sql.store import SqlStore
from airflow_childrun.testing.clock import ManualClock
from airflow_childrun.testing.store_harness import (
    append,
    artifact,
    at_once,
    commit_of,
    event,
    must,
    new_id,
    start,
    submit,
)


@pytest.fixture
def store(tmp_path: Path) -> SqlStore:
    url = f"sqlite:///{tmp_path / 'store.db'}"
    upgrade(url)
    return SqlStore(url)


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///:memory:", "mssql://host/db", "oracle://host/db", "not a url", "mysql://u:pw@h/d"]
)
def test_addresses_that_cannot_work_are_refused_at_once(url: str) -> None:
    """A database in memory, or one without a dialect: an error that names the remedy and never the password."""
    with pytest.raises(InputError) as caught:
        SqlStore(url)
    assert "pw" not in str(caught.value)


def test_nothing_is_opened_before_the_first_use(tmp_path: Path) -> None:
    """Making a store costs nothing: no file, no connection."""
    path = tmp_path / "store.db"
    SqlStore(f"sqlite:///{path}")
    assert not path.exists()


def test_a_store_never_shows_its_password() -> None:
    """Neither its name nor its place."""
    store = SqlStore("postgresql://user:hush@db.example/runs")
    assert "hush" not in repr(store) + store.database.place
    assert repr(store) == "SqlStore('postgresql://db.example/runs', schema=None)"


def test_a_process_has_at_most_two_connections(store: SqlStore) -> None:
    """However many threads ask: the others wait."""
    opened: list[object] = []
    sql_events.listen(store.database.engine(), "connect", lambda connection, _: opened.append(connection))
    run_ids = at_once(16, lambda _: start(store))
    assert len(set(run_ids)) == 16
    assert len(opened) <= POOL_SIZE == 2
    store.close()


def test_a_forked_child_uses_connections_of_its_own(store: SqlStore) -> None:
    """The child commits, the parent goes on: neither sees a socket or a lock of the other."""
    run_id = start(store)
    mine = store.database.engine()
    pid = os.fork()
    if pid == 0:
        own = store.database.engine() is not mine
        append(store, run_id, "child")
        os._exit(0 if own else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert append(store, run_id, "parent").seq == 3
    assert store.database.engine() is mine
    store.close()


def test_a_codec_of_a_later_release_is_refused_by_name(store: SqlStore) -> None:
    """What this release cannot read is never handed out as if it were plain."""
    run_id = start(store)
    found = artifact(run_id, b"bytes")
    must(submit(store, RunStep(run_id, 1, 0, (event(),)), artifacts=(found,)))
    tables = tables_in(None)
    for table in (tables.event, tables.artifact):
        later = update(table).values(codec="zstd")
        store.database.write(methodcaller("execute", later))
    for read in (lambda: store.read_events(run_id), lambda: store.get_artifacts(run_id, [found.id])):
        with pytest.raises(CorruptionError, match=r"'zstd'.*upgrade") as caught:
            read()
        assert (caught.value.code, caught.value.info.details) == ("codec_unknown", {"codec": "zstd"})
    store.close()


def test_a_locked_file_is_busy_not_broken(store: SqlStore) -> None:
    """Whoever waits in vain for the write lock is told that trying again helps; readers are not held up."""
    run_id = start(store)
    held, release = threading.Event(), threading.Event()

    def hold(connection: Connection) -> None:
        connection.execute(select(1))
        held.set()
        release.wait(10)

    holder = threading.Thread(target=lambda: store.database.write(hold))
    holder.start()
    held.wait(10)
    late = SqlStore(store.database.url)
    assert isinstance(late.database.dialect, SqliteDialect)
    late.database.dialect.busy_timeout_s = 0.05
    try:
        with pytest.raises(UnavailableError, match="store_busy") as caught:
            start(late)
        assert caught.value.retryable
        assert late.find_run(run_id) is not None
    finally:
        release.set()
        holder.join()
        late.close()
        store.close()


def test_times_of_a_stream_never_step_back() -> None:
    """A clock that is set back does not reorder a history."""
    clock = ManualClock()
    store = MemoryStore(clock)
    run_id = start(store)
    first = store.read_events(run_id)[0].recorded_at
    clock.advance(-5_000_000)
    append(store, run_id, "later")
    assert store.read_events(run_id)[1].recorded_at == first


def test_a_commit_takes_few_statements(store: SqlStore) -> None:
    """One statement locks, one writes each table: their number does not grow with the batch."""
    run_ids = [start(store) for _ in range(50)]
    seen: list[str] = []
    sql_events.listen(
        store.database.engine(), "before_cursor_execute", lambda *arguments: seen.append(arguments[2].split()[0])
    )
    dialect: Any = store.database.dialect
    fetch = dialect.fetch

    def counting(*given: Any) -> Any:
        seen.append(given[1].split()[0])
        return fetch(*given)

    dialect.fetch = counting
    store.commit([_two_events(run_id) for run_id in run_ids])
    assert seen == ["BEGIN", "SELECT", "INSERT", "INSERT", "UPDATE"], "sent in another order, or more of them"
    store.close()


def test_a_lone_commit_takes_few_statements(store: SqlStore) -> None:
    """Its own head is looked at, and every row is written once."""
    run_id = start(store)
    seen: list[str] = []
    with store.database.engine().connect() as connection:
        driver: Any = connection.connection.driver_connection
        driver.set_trace_callback(lambda statement: seen.append(statement.split()[0]))
    store.commit([_two_events(run_id)])
    assert seen == ["BEGIN", "SELECT", "INSERT", "INSERT", "INSERT", "UPDATE", "COMMIT"]
    store.close()


def _two_events(run_id: UUID) -> Commit:
    step = RunStep(run_id, 1, 0, (event(), event()), Moves(status="Running"))
    return commit_of(step, artifacts=(artifact(run_id, run_id.bytes),))


@pytest.mark.parametrize("is_pooled", [False, True])
def test_postgresql_sessions_are_set_explicitly(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, is_pooled: bool
) -> None:
    """READ COMMITTED whatever the server's default; no named prepared statement where a pooler stands in between.

    A pooler tells its clients of a server process that is none of the server's.
    """
    if is_pooled:
        monkeypatch.setattr(psycopg.ConnectionInfo, "backend_pid", property(lambda info: -1))
    upgrade(postgres_url)
    store = SqlStore(postgres_url)
    engine = store.database.engine()
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER ROLE CURRENT_USER SET default_transaction_isolation = 'serializable'")
    store.close()
    level = store.database.write(
        lambda connection: connection.exec_driver_sql("SHOW transaction_isolation").scalar_one()
    )
    run_id = start(store)
    for _ in range(20):
        append(store, run_id, "on")
    prepared = store.database.read(
        lambda connection: connection.exec_driver_sql("SELECT count(*) FROM pg_prepared_statements").scalar_one()
    )
    with store.database.engine().begin() as connection:
        connection.exec_driver_sql("ALTER ROLE CURRENT_USER RESET default_transaction_isolation")
    assert level == "read committed"
    assert (prepared == 0) == is_pooled
    assert [row.run_id for row in store.find_runs(RunFilter()).rows] == [run_id]
    assert store.find_run(new_id()) is None
    store.close()


def test_on_postgresql_runs_are_one_query_however_many(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that a triggerer waits for."""
    upgrade(postgres_url)
    store = SqlStore(postgres_url)
    asked: list[str] = []
    query = store.database.query

    def counted(text: str, parameters: Any) -> Any:
        asked.append(text)
        return query(text, parameters)

    monkeypatch.setattr(store.database, "query", counted)
    assert store.get_runs([new_id() for _ in range(10_000)]) == {}
    assert len(asked) == 1
    store.close()


def test_settings_under_which_a_database_forgets_are_named(postgres_module_url: str, tmp_path: Path) -> None:
    """Those of the server and those of this login's connections; SQLite's are ours."""
    address = make_url(postgres_module_url)
    on = forgetful_settings(address)
    off = forgetful_settings(address.update_query_dict({"options": "-csynchronous_commit=off"}))
    assert "synchronous_commit = off" not in on
    assert set(off) - set(on) == {"synchronous_commit = off"}
    assert forgetful_settings(make_url(f"sqlite:///{tmp_path}/absent.db")) == []


def test_an_event_with_another_body_breaks_the_chain(store: SqlStore) -> None:
    """What was worked out for the body that was read does not vouch for another one."""
    run_id = start(store)
    append(store, run_id, "on")
    first, second = store.read_events(run_id)
    check_chain(run_id, [first, second])
    assert second.known_digest == hashlib.sha256(second.body).digest()
    with pytest.raises(CorruptionError, match="event 2"):
        check_chain(run_id, [first, second._replace(body=b"{}", known_digest=None)])
