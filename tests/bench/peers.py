"""The peers' sides: what users pick instead, with the settings that their documentation gives for production."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid4, uuid5

from tests.bench.work import Measured

CHILD_BYTES = 1024
FACT_BYTES = 260
"""What one recorded step of ours puts into tables: its event's body and its answer."""


def _dbos(url: str, write_ahead: bool) -> Any:
    """Start DBOS.

    :param write_ahead: give a SQLite file the journal that ours has, which DBOS neither sets nor documents
    """
    from dbos import DBOS, DBOSConfig

    if write_ahead:
        _write_ahead(url)
    config: DBOSConfig = {"name": "bench", "system_database_url": url, "log_level": "WARNING"}
    DBOS(config=config)
    return DBOS


def _write_ahead(url: str) -> None:
    with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
        connection.execute("PRAGMA journal_mode=WAL")


def dbos_steps(url: str, count: int, write_ahead: bool = False) -> Measured:
    """Measure a workflow of ``count`` steps."""
    dbos = _dbos(url, write_ahead)

    @dbos.step()
    def number(value: int) -> int:
        return value

    @dbos.workflow()
    def many_steps(count: int) -> int:
        return sum(number(index) for index in range(count))

    dbos.launch()
    many_steps(min(count, 50))
    return lambda: many_steps(count) and None


def dbos_children(url: str, count: int, write_ahead: bool = False) -> Measured:
    """Measure a workflow that starts ``count`` workflows and gets the result of each."""
    dbos = _dbos(url, write_ahead)

    @dbos.workflow()
    def leaf(text: str) -> str:
        return text

    @dbos.workflow()
    def fan_out(count: int) -> int:
        texts = [f"{index:06d}".ljust(CHILD_BYTES, "x") for index in range(count)]
        handles = [dbos.start_workflow(leaf, text) for text in texts]
        return sum(len(handle.get_result()) == CHILD_BYTES for handle in handles)

    dbos.launch()
    fan_out(min(count, 50))

    def measured() -> None:
        if fan_out(count) != count:
            raise RuntimeError("a child did not answer")

    return measured


def raw_inserts(url: str, count: int) -> Measured:
    """Measure ``count`` autocommit INSERTs of one row each, with the bytes of a recorded step."""
    return _sqlite_inserts(url, count) if url.startswith("sqlite") else _postgres_inserts(url, count)


_TABLE = (
    "CREATE TABLE IF NOT EXISTS raw_event (run_id {bytes} NOT NULL, seq BIGINT NOT NULL, recorded_at BIGINT NOT NULL, "
    "body {bytes} NOT NULL, hash {bytes} NOT NULL, PRIMARY KEY (run_id, seq))"
)


def _postgres_inserts(url: str, count: int) -> Measured:
    import psycopg

    connection = psycopg.connect(url.replace("+psycopg", ""), autocommit=True)
    connection.execute(_TABLE.format(bytes="BYTEA"))

    def measured() -> None:
        run_id = uuid4().bytes
        for seq in range(count):
            row = (run_id, seq, seq, os.urandom(FACT_BYTES), os.urandom(32))
            connection.execute("INSERT INTO raw_event VALUES (%s, %s, %s, %s, %s)", row)

    measured()
    return measured


def _sqlite_inserts(url: str, count: int) -> Measured:
    connection = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute(_TABLE.format(bytes="BLOB"))

    def measured() -> None:
        run_id = uuid4().bytes
        for seq in range(count):
            row = (run_id, seq, seq, os.urandom(FACT_BYTES), os.urandom(32))
            connection.execute("INSERT INTO raw_event VALUES (?, ?, ?, ?, ?)", row)

    measured()
    return measured


def aggregate_replay(path: str, count: int) -> Measured:
    """Measure how ``eventsourcing`` reads an aggregate of ``count`` events from its SQLite."""
    from eventsourcing.application import Application
    from eventsourcing.domain import Aggregate, event

    class Ledger(Aggregate):
        def __init__(self, name: str) -> None:
            self.facts: dict[str, str] = {}

        @event("FactRecorded")
        def record(self, key: str, payload_id: str, request_digest: str) -> None:
            self.facts[key] = payload_id

        @staticmethod
        def create_id(name: str) -> UUID:
            return uuid5(NAMESPACE_URL, name)

    with contextlib.suppress(FileNotFoundError):
        Path(path).unlink()
    environment = {"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": path}
    application: Application[UUID] = Application(environment)
    ledger = Ledger(name="bench")
    for index in range(count - 1):
        ledger.record(f"main/number#{index}", f"{index:064d}", f"{index:064d}")
    application.save(ledger)

    def measured() -> dict[str, Any]:
        found: Ledger = application.repository.get(ledger.id)
        return {"events": found.version}

    measured()
    return measured
