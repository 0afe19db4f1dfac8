"""The connection that a process keeps out of its pool: nobody waits for it, and it is looked at like any other."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import PoolProxiedConnection
from sqlalchemy import event as sql_events
from sqlalchemy.pool import QueuePool

from airflow_childrun.clock import SystemClock
from airflow_childrun.errors import UnavailableError
from airflow_childrun.store.sql import connections as connections_module
from airflow_childrun.store.sql.engine import Database
from tests.engine.kit import eventually

WAIT_S = 10.0


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(f"sqlite:///{tmp_path / 'store.db'}", SystemClock())
    yield made
    made.close()


def pool_of(database: Database) -> QueuePool:
    """Return the pool as it stands: asking for the engine would give the spare one back."""
    return cast("QueuePool", database._here().engine.pool)


def visits_of(database: Database) -> list[str]:
    visits: list[str] = []
    sql_events.listen(database._here().engine, "checkout", lambda *_: visits.append("out"))
    return visits


def ask(database: Database) -> list[Any]:
    return database.query("SELECT 1", ())


def test_one_use_after_the_other_visits_the_pool_once(database: Database) -> None:
    visits = visits_of(database)
    for _ in range(5):
        assert ask(database) == [(1,)]
    assert len(visits) == 1
    assert pool_of(database).checkedout() == 1


def test_one_that_is_out_of_the_pool_for_long_goes_through_it(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which looks how old it is, and what was closed meanwhile; also where it is used all the time."""
    visits, clock = visits_of(database), iter(range(100))
    monkeypatch.setattr(database._here()._clock, "monotonic_s", lambda: float(next(clock)))
    for _ in range(20):
        ask(database)
    assert connections_module.FRESH_S == 5
    assert len(visits) == 4


def test_whoever_waits_for_the_pool_gets_what_would_have_been_kept(database: Database) -> None:
    """Both connections are at work when a third thread comes: it does not wait until the pool gives it up."""
    at_work, go_on = threading.Semaphore(0), threading.Semaphore(0)

    def work(_: PoolProxiedConnection) -> None:
        at_work.release()
        assert go_on.acquire(timeout=2 * WAIT_S)

    busy = [threading.Thread(target=database.past, args=(work,)) for _ in range(2)]
    for thread in busy:
        thread.start()
    assert all(at_work.acquire(timeout=WAIT_S) for _ in busy)
    found: list[int] = []
    third = threading.Thread(
        target=lambda: found.append(
            database.read(lambda connection: connection.exec_driver_sql("SELECT 3").scalar_one())
        )
    )
    third.start()
    eventually(lambda: bool(database._here()._wanting))
    go_on.release()
    third.join(WAIT_S)
    assert found == [3]
    go_on.release()
    for thread in busy:
        thread.join(WAIT_S)


def test_two_connections_are_there_for_whoever_asks_the_engine(database: Database) -> None:
    """What goes through SQLAlchemy finds the pool whole."""
    ask(database)
    engine = database.engine()
    with engine.connect() as one, engine.connect() as two:
        assert [each.exec_driver_sql("SELECT 2").scalar_one() for each in (one, two)] == [2, 2]


def test_a_transaction_takes_the_kept_one_instead_of_opening_another(database: Database) -> None:
    opened: list[object] = []
    sql_events.listen(database.engine(), "connect", lambda connection, _: opened.append(connection))
    ask(database)
    database.write(lambda connection: connection.exec_driver_sql("CREATE TABLE a (b INTEGER)"))
    ask(database)
    assert len(opened) == 1


def test_after_an_error_nothing_is_kept(database: Database) -> None:
    """What else stands open may be as broken."""

    def fail(_: PoolProxiedConnection) -> None:
        ask(database)
        assert pool_of(database).checkedout() == 2
        raise UnavailableError("gone")

    with pytest.raises(UnavailableError):
        database.past(fail)
    assert pool_of(database).checkedout() == 0


def test_no_more_than_one_is_kept(database: Database) -> None:
    connections = database._here()
    taken = [connections.take(), connections.take()]
    for connection in taken:
        connections.keep(connection)
    assert pool_of(database).checkedout() <= 1


def test_one_that_is_kept_while_somebody_turns_to_the_pool_is_taken(database: Database) -> None:
    """Who wants one says so, and looks once more: what was kept in between would not come back to the pool."""
    connections = database._here()
    visits, kept = visits_of(database), connections.take()
    wants = connections._want

    def late() -> Any:
        connections.keep(kept)
        return wants()

    connections._want = late  # type: ignore[method-assign]
    assert connections.take() is kept
    assert len(visits) == 1


def test_closed_while_in_use_a_connection_is_closed_as_well(database: Database) -> None:
    """It would stay open for as long as the process lives."""
    connections = database._here()
    connection = connections.take()
    driver: Any = connection.driver_connection
    database.close()
    connections.keep(connection)
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        driver.execute("SELECT 1")


def test_a_disposed_engine_leaves_no_more_connections_than_its_pool_has_places(database: Database) -> None:
    """What was in use when a connection was lost has no place in the pool that follows."""
    connections = database._here()
    old = [connections.take(), connections.take()]
    connections.engine.dispose()
    new = [connections.take(), connections.take()]
    for connection in (*old, *new):
        connections.keep(connection)
    taken = [connections.take(), connections.take()]
    assert pool_of(database).checkedout() == 2
    assert not {id(connection) for connection in taken} & {id(connection) for connection in old}
    for connection in taken:
        connections.keep(connection)


def test_a_thread_torn_away_as_it_wants_one_leaves_no_mark(database: Database) -> None:
    """With one nothing would ever be kept again."""

    class Tearing(deque[object]):
        def append(self, mark: object) -> None:
            super().append(mark)
            raise KeyboardInterrupt

    connections = database._here()
    connections._wanting = Tearing()
    with pytest.raises(KeyboardInterrupt):
        connections.take()
    assert not connections._wanting


def test_a_forked_child_keeps_one_of_its_own(database: Database) -> None:
    """It never speaks on its parent's."""
    ask(database)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            visits = visits_of(database)
            ask(database)
            code = 0 if len(visits) == 1 else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert ask(database) == [(1,)]


def test_threads_at_once_end_with_one_kept_at_most(database: Database) -> None:
    """Two are in use, eight threads read and write; nobody waits for ever, nothing is lost."""
    database.write(lambda connection: connection.exec_driver_sql("CREATE TABLE a (b INTEGER)"))
    barrier = threading.Barrier(8)

    def work(number: int) -> None:
        barrier.wait(WAIT_S)
        for turn in range(100):
            if (turn + number) % 4:
                assert ask(database) == [(1,)]
            else:
                database.write(lambda connection: connection.exec_driver_sql("INSERT INTO a VALUES (1)"))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert database.query("SELECT count(*) FROM a", ()) == [(200,)]
    assert pool_of(database).checkedout() == 1
    assert not database._here()._wanting
