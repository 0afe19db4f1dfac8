"""A lone commit of a run's owner on SQLite: a transaction past SQLAlchemy, decided as ``lone_commit`` says."""

from __future__ import annotations

import hashlib
import sqlite3
from functools import lru_cache
from typing import Any

from airflow_childrun.store.api import TERMINAL, Commit, FactEntry, RunStep
from airflow_childrun.store.chain import raw_event_hash
from airflow_childrun.store.sql import raw_rows
from airflow_childrun.store.sql.lone_commit import ends_lease, moved_by
from airflow_childrun.store.sql.schema import RAW
from airflow_childrun.store.sql.texts import Row, Texts, Writing


def make_on_sqlite(connection: sqlite3.Connection, texts: Texts, commit: Commit) -> Row | None:
    """Make a commit happen; return time, hash of the last event and inbox number, or None if head or epoch are others."""
    try:
        connection.execute("BEGIN IMMEDIATE")
        row = _write(connection, texts, commit)
        connection.execute("COMMIT" if row else "ROLLBACK")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return row


def _write(connection: sqlite3.Connection, texts: Texts, commit: Commit) -> Row | None:
    step = commit.steps[0]
    run, execute = step.run_id.bytes, connection.execute
    row = execute(_head(texts), (run, step.expected_head, step.epoch)).fetchone()
    if row is None:
        return None
    previous, updated_at, inbox_seq, now = row
    at = max(now, updated_at)
    tips = []
    for seq, new in enumerate(step.events, step.expected_head + 1):
        digest = hashlib.sha256(new.body).digest()
        previous = raw_event_hash(run, seq, at, previous, digest)
        tips.append(previous)
        values = (run, seq, at, new.body, digest, previous, commit.commit_id.bytes, step.epoch, RAW)
        execute(text_of(texts.insert_events), values)
        if new.fact is not None:
            fact = FactEntry(step.run_id, seq, *new.fact)
            execute(text_of(texts.insert_facts), raw_rows.fact_values(fact))
    for artifact in commit.artifacts:
        execute(text_of(texts.insert_artifacts), raw_rows.artifact_values(artifact))
    changes = _changes(step, at, tips)
    execute(_move(texts, tuple(changes)), (*changes.values(), run))
    return at, previous, inbox_seq


def _changes(step: RunStep, at: int, tips: list[bytes]) -> dict[str, Any]:
    """Return the columns of the run's row that the step moves."""
    moves = step.moves
    changes: dict[str, Any] = {
        "head_seq": step.expected_head + len(step.events),
        "head_hash": tips[-1],
        "updated_at": at,
        **moved_by(moves),
    }
    if moves.checkpoint_at is not None:
        changes["checkpoint_seq"] = step.expected_head + moves.checkpoint_at + 1
        changes["checkpoint_hash"] = tips[moves.checkpoint_at]
    if moves.status in TERMINAL:
        changes["ended_at"] = at
    if ends_lease(step):
        changes["lease_session_id"] = None
    return changes


@lru_cache(maxsize=64)
def text_of(writing: Writing) -> str:
    """Return the statement that writes one row."""
    columns = writing.columns
    if writing.verb == "update":
        moved = ", ".join(f"{name} = ?{number}" for number, name in enumerate(columns[1:], 2))
        return f"UPDATE {writing.table} SET {moved} WHERE {columns[0]} = ?1"
    marks = ", ".join("?" for _ in columns)
    new = " ON CONFLICT DO NOTHING" if writing.verb == "insert_new" else ""
    return f"INSERT INTO {writing.table} ({', '.join(columns)}) VALUES ({marks}){new}"


@lru_cache(maxsize=8)
def _head(texts: Texts) -> str:
    return (
        f"SELECT head_hash, updated_at, inbox_seq, {texts.now} FROM {texts.run} "
        "WHERE run_id = ? AND head_seq = ? AND epoch = ?"
    )


@lru_cache(maxsize=256)
def _move(texts: Texts, columns: tuple[str, ...]) -> str:
    return f"UPDATE {texts.run} SET {', '.join(f'{name} = ?' for name in columns)} WHERE run_id = ?"
