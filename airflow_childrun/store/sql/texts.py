"""The statements of the hot paths as text, written once per schema: what SQLAlchemy would work out at every execution.

Rows come and go as tuples of the driver's own values: ids and digests as bytes. Nothing but names of tables and columns
and numbers of parameters is ever written into a text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Table
from sqlalchemy.engine import Dialect

from airflow_childrun.store.sql.schema import Tables

Row = tuple[Any, ...]
CHUNK = 500
"""How many ids one statement names: SQLite and PostgreSQL limit the number of parameters."""


@dataclass(frozen=True, slots=True, eq=False)  # each is made once, and found by itself
class Writing:
    """A statement that is executed for many rows.

    :param table: quoted, with its schema
    :param columns: in the order of a row's values
    :param types: of the columns, as the database writes them
    :param verb: ``insert``; ``insert_new``: rows whose primary key exists stay; ``update``: the first column says which row
    """

    table: str
    columns: tuple[str, ...]
    types: tuple[str, ...]
    verb: str = "insert"


class Texts:
    """The hot statements on some tables.

    :param dialect: SQLAlchemy's, for names and types
    :param mark: the driver's placeholder
    """

    def __init__(self, tables: Tables, dialect: Dialect, mark: str, now: str) -> None:
        self._dialect = dialect
        self.now = now
        self.run = self._name(tables.run)
        self.event = self._name(tables.event)
        self.fact = self._name(tables.fact)
        self.artifact = self._name(tables.artifact)
        self.insert_runs = self._writing(tables.run, ALL)
        self.move_runs = self._writing(tables.run, ("run_id", *MOVING), "update")
        self.insert_events = self._writing(tables.event, EVENT)
        self.insert_facts = self._writing(tables.fact, FACT)
        self.insert_artifacts = self._writing(tables.artifact, ARTIFACT, "insert_new")
        self.insert_entries = self._writing(tables.inbox, ENTRY)
        columns = ", ".join(f"r.{name}" for name in ALL)
        # What stands behind {} is the dialect's: how it says "one of these ids".
        self.runs = (
            f"SELECT {columns}, s.expires_at, s.ended, {now} FROM {self.run} r "
            f"LEFT JOIN {self._name(tables.session)} s ON s.session_id = r.lease_session_id WHERE r.run_id {{}}"
        )
        # Everybody locks in the order of ids, so that two batches never wait for each other.
        self.locked_runs = f"{self.runs} ORDER BY r.run_id"
        self.events = (
            f"SELECT {', '.join(EVENT[1:])} FROM {self.event} WHERE run_id = {mark} AND seq >= {mark} AND seq <= {mark} "
            "ORDER BY seq"
        )
        self.ends = (
            f"SELECT {', '.join(f'e.{name}' for name in EVENT)} FROM {self.run} r JOIN {self.event} e "
            "ON e.run_id = r.run_id WHERE r.run_id {} AND (e.seq = 1 OR e.seq BETWEEN r.head_seq - 1 AND r.head_seq) "
            "ORDER BY e.run_id, e.seq"
        )
        self.artifacts = f"SELECT id, body, codec FROM {self.artifact} WHERE root_run_id = {mark} AND id {{}}"

    def _name(self, table: Table) -> str:
        return str(self._dialect.identifier_preparer.format_table(table))

    def _writing(self, table: Table, columns: tuple[str, ...], verb: str = "insert") -> Writing:
        types = (table.c[name].type.compile(self._dialect) for name in columns)
        return Writing(self._name(table), columns, tuple(types), verb)


MOVING = (
    "status",
    "head_seq",
    "head_hash",
    "epoch",
    "inbox_seq",
    "checkpoint_seq",
    "checkpoint_hash",
    "checkpoint_snapshot_id",
    "final_snapshot_id",
    "error_code",
    "wake_at",
    "updated_at",
    "ended_at",
    "lease_session_id",
    "last_commit_id",
    "last_commit_epoch",
    "last_commit_at",
)
"""The columns of a run that commits move."""

ALL = (
    *MOVING,
    "run_id",
    "kind",
    "parent_run_id",
    "root_run_id",
    "depth",
    "slot_id",
    "generation",
    "op_id",
    "op_version",
    "manifest_id",
    "initial_snapshot_id",
    "plan_id",
    "deadline_at",
    "created_at",
    "dag_id",
    "dag_run_id",
    "task_id",
    "map_index",
)
"""Every column of a run."""

EVENT = ("run_id", "seq", "recorded_at", "body", "body_digest", "hash", "commit_id", "epoch", "codec")
FACT = ("run_id", "key_digest", "seq", "payload_id", "request_digest", "failed")
ARTIFACT = ("root_run_id", "id", "kind", "body", "codec")
ENTRY = ("run_id", "n", "post_id", "kind", "body", "recorded_at")
