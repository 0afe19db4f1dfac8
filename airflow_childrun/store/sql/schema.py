"""The tables, and nothing else: one truth for statements and for the test that migrations lead here.

No foreign keys: runs of one tree are written by many processes, and a lock on a parent's row for every child's insert
would line them up. Ids and digests are bytes; times are integer microseconds, UTC; bodies are canonical JSON.
"""

from __future__ import annotations

from functools import cache

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, MetaData, String, Table, Text

from airflow_childrun.store.sql.column_types import Body, HexBytes, UuidBytes

VERSION_TABLE = "alembic_version_childrun"
RAW = "raw"
"""The only codec that this release writes and reads."""


class Tables:
    """The six tables in a schema.

    :param schema: name of a PostgreSQL schema; None = where the connection's search path leads
    """

    def __init__(self, schema: str | None) -> None:
        self.metadata = MetaData(schema=schema)
        self.run = _run(self.metadata)
        self.event = _event(self.metadata)
        self.fact = _fact(self.metadata)
        self.artifact = _artifact(self.metadata)
        self.inbox = _inbox(self.metadata)
        self.session = _session(self.metadata)


@cache
def tables_in(schema: str | None) -> Tables:
    """Return the tables of a schema; the same objects each time, so that compiled statements are found again."""
    return Tables(schema)


def _run(metadata: MetaData) -> Table:
    return Table(
        "childrun_run",
        metadata,
        Column("run_id", UuidBytes, primary_key=True),
        Column("kind", String(16), nullable=False),
        Column("parent_run_id", UuidBytes),
        Column("root_run_id", UuidBytes, nullable=False),
        Column("depth", Integer, nullable=False),
        Column("slot_id", UuidBytes, nullable=False),
        Column("generation", Integer, nullable=False),
        Column("op_id", String(255), nullable=False),
        Column("op_version", Text, nullable=False),
        Column("manifest_id", HexBytes, nullable=False),
        Column("initial_snapshot_id", HexBytes, nullable=False),
        Column("plan_id", HexBytes),
        Column("status", String(16), nullable=False),
        Column("head_seq", BigInteger, nullable=False),
        Column("head_hash", HexBytes, nullable=False),
        Column("epoch", BigInteger, nullable=False),
        Column("inbox_seq", BigInteger, nullable=False),
        Column("checkpoint_seq", BigInteger, nullable=False),
        Column("checkpoint_hash", HexBytes, nullable=False),
        Column("checkpoint_snapshot_id", HexBytes, nullable=False),
        Column("final_snapshot_id", HexBytes),
        Column("error_code", Text),
        Column("deadline_at", BigInteger),
        Column("wake_at", BigInteger),
        Column("created_at", BigInteger, nullable=False),
        Column("updated_at", BigInteger, nullable=False),
        Column("ended_at", BigInteger),
        Column("lease_session_id", UuidBytes),
        # The last step without events: such a commit has no event row to leave its identity on.
        Column("last_commit_id", UuidBytes),
        Column("last_commit_epoch", BigInteger),
        Column("last_commit_at", BigInteger),
        Column("dag_id", Text),
        Column("dag_run_id", Text),
        Column("task_id", Text),
        Column("map_index", Integer),
        Index("childrun_run_slot", "slot_id", "generation", unique=True),
        Index("childrun_run_root", "root_run_id", "created_at", "run_id"),
        Index("childrun_run_parent", "parent_run_id", "created_at", "run_id"),
        Index("childrun_run_status", "status", "created_at", "run_id"),
    )


def _event(metadata: MetaData) -> Table:
    return Table(
        "childrun_event",
        metadata,
        Column("run_id", UuidBytes, primary_key=True),
        Column("seq", BigInteger, primary_key=True, autoincrement=False),
        Column("recorded_at", BigInteger, nullable=False),
        Column("body", Body, nullable=False),
        Column("body_digest", HexBytes, nullable=False),
        Column("hash", HexBytes, nullable=False),
        Column("commit_id", UuidBytes, nullable=False),
        Column("epoch", BigInteger, nullable=False),
        Column("codec", String(16), nullable=False),
    )


def _fact(metadata: MetaData) -> Table:
    return Table(
        "childrun_fact",
        metadata,
        Column("run_id", UuidBytes, primary_key=True),
        Column("key_digest", HexBytes, primary_key=True),
        Column("seq", BigInteger, primary_key=True, autoincrement=False),
        Column("payload_id", HexBytes),
        Column("request_digest", HexBytes),
        Column("failed", Boolean, nullable=False),
    )


def _artifact(metadata: MetaData) -> Table:
    return Table(
        "childrun_artifact",
        metadata,
        Column("root_run_id", UuidBytes, primary_key=True),
        Column("id", HexBytes, primary_key=True),
        Column("kind", Text, nullable=False),
        Column("body", Body, nullable=False),
        Column("codec", String(16), nullable=False),
    )


def _inbox(metadata: MetaData) -> Table:
    return Table(
        "childrun_inbox",
        metadata,
        Column("run_id", UuidBytes, primary_key=True),
        Column("n", BigInteger, primary_key=True, autoincrement=False),
        Column("post_id", UuidBytes, nullable=False),
        Column("kind", String(255), nullable=False),
        Column("body", Body, nullable=False),
        Column("recorded_at", BigInteger, nullable=False),
        Index("childrun_inbox_post", "run_id", "post_id", unique=True),
    )


def _session(metadata: MetaData) -> Table:
    return Table(
        "childrun_session",
        metadata,
        Column("session_id", UuidBytes, primary_key=True),
        Column("label", Text, nullable=False),
        Column("owner_key", Text, nullable=False),
        # What is indexed is a digest: MySQL indexes no text of open length.
        Column("owner_key_digest", HexBytes, nullable=False),
        Column("incarnation", BigInteger, nullable=False),
        Column("expires_at", BigInteger, nullable=False),
        Column("ended", String(16)),
        Index("childrun_session_owner", "owner_key_digest", "incarnation"),
    )
