"""The six tables.

What stands here is frozen: it says what the tables were, ``schema.py`` what they are.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "v1_0001"
down_revision = None
branch_labels = None
depends_on = None

_MYSQL = ("mysql", "mariadb")


def _id() -> sa.types.TypeEngine[bytes]:
    return sa.LargeBinary(16).with_variant(mysql.BINARY(16), *_MYSQL)


def _digest() -> sa.types.TypeEngine[bytes]:
    return sa.LargeBinary(32).with_variant(mysql.BINARY(32), *_MYSQL)


def _body() -> sa.types.TypeEngine[bytes]:
    return sa.LargeBinary().with_variant(mysql.LONGBLOB(), *_MYSQL)


def upgrade(schema: str | None) -> None:
    _create_run(schema)
    op.create_table(
        "childrun_event",
        sa.Column("run_id", _id(), nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("recorded_at", sa.BigInteger, nullable=False),
        sa.Column("body", _body(), nullable=False),
        sa.Column("body_digest", _digest(), nullable=False),
        sa.Column("hash", _digest(), nullable=False),
        sa.Column("commit_id", _id(), nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("codec", sa.String(16), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "seq"),
        schema=schema,
    )
    op.create_table(
        "childrun_fact",
        sa.Column("run_id", _id(), nullable=False),
        sa.Column("key_digest", _digest(), nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("payload_id", _digest()),
        sa.Column("request_digest", _digest()),
        sa.Column("failed", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("run_id", "key_digest", "seq"),
        schema=schema,
    )
    op.create_table(
        "childrun_artifact",
        sa.Column("root_run_id", _id(), nullable=False),
        sa.Column("id", _digest(), nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("body", _body(), nullable=False),
        sa.Column("codec", sa.String(16), nullable=False),
        sa.PrimaryKeyConstraint("root_run_id", "id"),
        schema=schema,
    )
    _create_inbox(schema)
    _create_session(schema)


def _create_run(schema: str | None) -> None:
    op.create_table(
        "childrun_run",
        sa.Column("run_id", _id(), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("parent_run_id", _id()),
        sa.Column("root_run_id", _id(), nullable=False),
        sa.Column("depth", sa.Integer, nullable=False),
        sa.Column("slot_id", _id(), nullable=False),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("op_id", sa.String(255), nullable=False),
        sa.Column("op_version", sa.Text, nullable=False),
        sa.Column("manifest_id", _digest(), nullable=False),
        sa.Column("initial_snapshot_id", _digest(), nullable=False),
        sa.Column("plan_id", _digest()),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("head_seq", sa.BigInteger, nullable=False),
        sa.Column("head_hash", _digest(), nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("inbox_seq", sa.BigInteger, nullable=False),
        sa.Column("checkpoint_seq", sa.BigInteger, nullable=False),
        sa.Column("checkpoint_hash", _digest(), nullable=False),
        sa.Column("checkpoint_snapshot_id", _digest(), nullable=False),
        sa.Column("final_snapshot_id", _digest()),
        sa.Column("error_code", sa.Text),
        sa.Column("deadline_at", sa.BigInteger),
        sa.Column("wake_at", sa.BigInteger),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        sa.Column("ended_at", sa.BigInteger),
        sa.Column("lease_session_id", _id()),
        sa.Column("last_commit_id", _id()),
        sa.Column("last_commit_epoch", sa.BigInteger),
        sa.Column("last_commit_at", sa.BigInteger),
        sa.Column("dag_id", sa.Text),
        sa.Column("dag_run_id", sa.Text),
        sa.Column("task_id", sa.Text),
        sa.Column("map_index", sa.Integer),
        sa.PrimaryKeyConstraint("run_id"),
        schema=schema,
    )
    op.create_index("childrun_run_slot", "childrun_run", ["slot_id", "generation"], unique=True, schema=schema)
    for name, column in (("root", "root_run_id"), ("parent", "parent_run_id"), ("status", "status")):
        op.create_index(f"childrun_run_{name}", "childrun_run", [column, "created_at", "run_id"], schema=schema)


def _create_inbox(schema: str | None) -> None:
    op.create_table(
        "childrun_inbox",
        sa.Column("run_id", _id(), nullable=False),
        sa.Column("n", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("post_id", _id(), nullable=False),
        sa.Column("kind", sa.String(255), nullable=False),
        sa.Column("body", _body(), nullable=False),
        sa.Column("recorded_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("run_id", "n"),
        schema=schema,
    )
    op.create_index("childrun_inbox_post", "childrun_inbox", ["run_id", "post_id"], unique=True, schema=schema)


def _create_session(schema: str | None) -> None:
    op.create_table(
        "childrun_session",
        sa.Column("session_id", _id(), nullable=False),
        sa.Column("label", sa.Text, nullable=False),
        sa.Column("owner_key", sa.Text, nullable=False),
        sa.Column("owner_key_digest", _digest(), nullable=False),
        sa.Column("incarnation", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("ended", sa.String(16)),
        sa.PrimaryKeyConstraint("session_id"),
        schema=schema,
    )
    op.create_index("childrun_session_owner", "childrun_session", ["owner_key_digest", "incarnation"], schema=schema)
