"""Databases as production runs them: PostgreSQL with fsync, SQLite files on a disk; each comparison has fresh ones.

One Airflow stands on the same server, for whoever asks.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sqlalchemy import make_url

from airflow_childrun.store.sql.migrate import upgrade
from tests.bench.stand import Airflow, airflow
from tests.postgres import PostgresServer, start_embedded

FILL_EVENTS = """
INSERT INTO childrun_event (run_id, seq, recorded_at, body, body_digest, hash, commit_id, epoch, codec)
SELECT decode(md5(r::text), 'hex'), s, s, decode(repeat(md5(s::text), 7), 'hex'), sha256(int8send(s)), sha256(int8send(r)),
decode(md5(s::text), 'hex'), 1, 'raw' FROM generate_series(1, {runs}) r, generate_series(1, 1000) s
"""
FILL_FACTS = """
INSERT INTO childrun_fact (run_id, key_digest, seq, payload_id, request_digest, failed)
SELECT decode(md5(r::text), 'hex'), sha256(int8send(s)), s, sha256(int8send(r * s)), sha256(int8send(s)), false
FROM generate_series(1, {runs}) r, generate_series(1, 1000) s
"""
FILL_ARTIFACTS = """
INSERT INTO childrun_artifact (root_run_id, id, kind, body, codec)
SELECT decode(md5(r::text), 'hex'), sha256(int8send(s)), 'FactPayload', int8send(s), 'raw'
FROM generate_series(1, {runs}) r, generate_series(1, 1000) s
"""
SETTINGS = ("fsync", "synchronous_commit", "full_page_writes")


class Databases:
    """Makes databases; made by :func:`databases`.

    :param until_end: holds what is to be stopped in the end
    """

    def __init__(self, server: PostgresServer, folder: Path, until_end: ExitStack) -> None:
        self.server = server
        self._until_end = until_end
        self._airflow: Airflow | None = None
        self._folder = folder
        self._made = 0

    def fresh(self, kind: str, *, ours: bool) -> str:
        """Return the URL of a new database; with ``ours``, of one that has the store's tables.

        :param kind: ``postgresql`` or ``sqlite``
        """
        self._made += 1
        if kind == "postgresql":
            url = self.server.url(self.server.new_database())
        else:
            url = f"sqlite:///{self._folder}/{self._made}.db"
        if ours:
            upgrade(url)
        return url

    def path(self) -> str:
        """Return where a file may stand."""
        self._made += 1
        return f"{self._folder}/{self._made}.db"

    def airflow(self) -> Airflow:
        """Return a running Airflow, started when it is first asked for."""
        if self._airflow is None:
            self._airflow = self._until_end.enter_context(airflow(self.server))
        return self._airflow

    def fill(self, url: str, events: int) -> None:
        """Put runs of a thousand facts each into a store on PostgreSQL: their events, their keys and their answers."""
        import psycopg

        with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
            for text in (FILL_EVENTS, FILL_FACTS, FILL_ARTIFACTS):
                connection.execute(text.format(runs=events // 1000))  # type: ignore[arg-type, unused-ignore]
            connection.execute("VACUUM (ANALYZE)")
            connection.execute("CHECKPOINT")

    def deadlocks(self, url: str) -> int:
        """Return how many deadlocks a database has seen; those of processes that have ended."""
        name = make_url(url).database
        ((found,),) = self.server.execute(f"SELECT deadlocks FROM pg_stat_database WHERE datname = '{name}'")
        return int(str(found))


def _require_durable(server: PostgresServer) -> None:
    """Refuse a server that answers before what it has is on the disk: nobody's numbers would mean anything.

    :raises RuntimeError: naming the setting
    """
    for name in SETTINGS:
        ((value,),) = server.execute(f"SHOW {name}")
        if value != "on":
            raise RuntimeError(f"{name} is {value}, and must be on")


@contextmanager
def databases() -> Iterator[Databases]:
    """Start a durable PostgreSQL and make a folder for files."""
    server, stop = start_embedded(durable=True)
    try:
        _require_durable(server)
        with tempfile.TemporaryDirectory(prefix="childrun-bench-") as folder, ExitStack() as until_end:
            yield Databases(server, Path(folder), until_end)
    finally:
        stop()
