"""A lone commit of a run's owner as one statement of PostgreSQL: one round trip, one transaction.

It is what ``decision`` decides for such a commit: it happens if head and epoch of the row are the expected ones, which
locks the row and is asked of its newest version. The chain's hashes need the previous hash and the database's time, so
the database works them out, by the formula of ``chain``. Where no row answers, the caller decides the long way: why the
commit is refused, or that it happened before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from airflow_childrun.store.api import STILL, TERMINAL, Commit, Committed, Head, Moves, ReleaseLease, RunStep
from airflow_childrun.store.chain import DOMAIN
from airflow_childrun.store.sql.raw_rows import unhex
from airflow_childrun.store.sql.schema import RAW
from airflow_childrun.store.sql.texts import Row, Texts

MOST_EVENTS = 4
MOST_ARTIFACTS = 4

Shape = tuple[Any, ...]
"""What of a commit decides the text: how many events and artifacts, which events are facts, what moves."""


def is_lone(commit: Commit) -> bool:
    """Whether a commit can be one statement: the owner's own progress on one run, and nothing else."""
    if len(commit.steps) != 1 or commit.posts or len(commit.artifacts) > MOST_ARTIFACTS:
        return False
    step = commit.steps[0]
    if step.create is not None or step.epoch is None or not 1 <= len(step.events) <= MOST_EVENTS:
        return False
    return step.lease is None or isinstance(step.lease, ReleaseLease)


def statement_of(commit: Commit, texts: Texts) -> tuple[str, dict[str, Any]]:
    """Return the text and its parameters."""
    step = commit.steps[0]
    moves = step.moves
    facts = tuple(event.fact is not None for event in step.events)
    moved = moved_by(moves)
    shape = (
        facts,
        len(commit.artifacts),
        moves.checkpoint_at,
        moves.status in TERMINAL,
        ends_lease(step),
        tuple(moved),
    )
    return _text(texts, shape), _parameters(commit, step) | moved


def answer_of(commit: Commit, row: Row) -> Committed:
    """Return the answer to a commit that happened: the statement's row is time, hash of the last event, inbox number."""
    step = commit.steps[0]
    at, tip, inbox_seq = row
    head = Head(step.expected_head + len(step.events), tip.hex(), step.epoch or 0, inbox_seq)
    return Committed(at, {step.run_id: head})


def ends_lease(step: RunStep) -> bool:
    """Whether the run has no owner afterwards."""
    return step.lease is not None or step.moves.status in TERMINAL


def moved_by(moves: Moves) -> dict[str, Any]:
    """Return the columns that a step's moves name, with their new values: "" and 0 clear a column."""
    if moves == STILL:
        return {}
    values = {
        "status": moves.status,
        "checkpoint_snapshot_id": unhex(moves.checkpoint_snapshot_id),
        "final_snapshot_id": unhex(moves.final_snapshot_id),
        "error_code": moves.error_code,
        "wake_at": moves.wake_at,
    }
    return {name: value or None for name, value in values.items() if value is not None}


def _parameters(commit: Commit, step: RunStep) -> dict[str, Any]:
    given: dict[str, Any] = {
        "run": step.run_id.bytes,
        "head": step.expected_head,
        "epoch": step.epoch,
        "commit": commit.commit_id.bytes,
    }
    for number, event in enumerate(step.events, 1):
        digest = hashlib.sha256(event.body).digest()
        seq = step.expected_head + number
        # What stands before the time in the hashed bytes, and behind the previous hash.
        given |= {
            f"seq{number}": seq,
            f"before{number}": DOMAIN + step.run_id.bytes + seq.to_bytes(8, "big"),
            f"body{number}": event.body,
            f"digest{number}": digest,
        }
        if event.fact is not None:
            given[f"key{number}"] = bytes.fromhex(event.fact.key_digest)
            given[f"payload{number}"] = unhex(event.fact.payload_id)
            given[f"request{number}"] = unhex(event.fact.request_digest)
            given[f"failed{number}"] = event.fact.failed
    ordered = sorted(commit.artifacts, key=lambda artifact: (artifact.root_run_id, artifact.id))
    for number, artifact in enumerate(ordered, 1):
        given[f"root{number}"] = artifact.root_run_id.bytes
        given[f"id{number}"] = bytes.fromhex(artifact.id)
        given[f"kind{number}"] = artifact.kind
        given[f"plain{number}"] = artifact.body
    return given


@lru_cache(maxsize=256)
def _text(texts: Texts, shape: Shape) -> str:
    return _one_event(texts, shape) if len(shape[0]) == 1 else _some_events(texts, shape)


def _one_event(texts: Texts, shape: Shape) -> str:
    """Write the text for one event: most are that. The moved row tells all that is to be written, once it has moved."""
    facts, artifacts, *moves = shape
    at = "GREATEST(t.now, x.updated_at)"
    tip = _hash(1, at, "x.head_hash")
    changes = _changes(at, [tip], *moves)
    moving = f"UPDATE {texts.run} x SET {changes} FROM t WHERE {_expected('x')}"
    parts = [
        _now(texts),
        f"u AS ({moving} RETURNING x.updated_at AS at, x.head_hash AS h, x.inbox_seq)",
        *_inserts(texts, facts, artifacts, "u.at, u.h FROM u"),
    ]
    return f"WITH {', '.join(parts)} SELECT at, h, inbox_seq FROM u"


def _some_events(texts: Texts, shape: Shape) -> str:
    """Write the text for more events: the hash of each takes that of the one before it."""
    facts, artifacts, *moves = shape
    last = len(facts)
    locked = (
        "SELECT r.head_hash AS h, GREATEST(t.now, r.updated_at) AS at, r.inbox_seq "
        f"FROM {texts.run} r, t WHERE {_expected('r')} FOR UPDATE OF r"
    )
    hashes = [
        f"h{n} AS MATERIALIZED (SELECT {_hash(n, 'r.at', f'h{n - 1}.h' if n > 1 else 'r.h')} AS h "
        f"FROM r{f', h{n - 1}' if n > 1 else ''})"
        for n in range(1, last + 1)
    ]
    tips = [f"(SELECT h FROM h{n})" for n in range(1, last)] + [f"h{last}.h"]
    changes = _changes("r.at", tips, *moves)
    moving = f"UPDATE {texts.run} x SET {changes} FROM r, h{last} WHERE {_expected('x')} RETURNING 1"
    parts = [
        _now(texts),
        f"r AS MATERIALIZED ({locked})",
        *hashes,
        f"u AS ({moving})",
        *_inserts(texts, facts, artifacts, "r.at, h{n}.h FROM r, h{n}, u"),
    ]
    return f"WITH {', '.join(parts)} SELECT r.at, h{last}.h, r.inbox_seq FROM r, h{last}, u"


def _now(texts: Texts) -> str:
    return f"t AS MATERIALIZED (SELECT {texts.now} AS now)"


def _expected(row: str) -> str:
    return f"{row}.run_id = %(run)s AND {row}.head_seq = %(head)s AND {row}.epoch = %(epoch)s"


def _hash(number: int, at: str, previous: str) -> str:
    before, digest = f"CAST(%(before{number})s AS BYTEA)", f"CAST(%(digest{number})s AS BYTEA)"
    return f"sha256({before} || int8send({at}) || {previous} || {digest})"


def _changes(
    at: str, tips: Sequence[str], checkpoint_at: int | None, is_end: bool, ends_lease: bool, moved: Sequence[str]
) -> str:
    """Return what moves in the row.

    :param at: the expression of the commit's time
    :param tips: those of the events' hashes
    """
    changes = [f"head_seq = %(seq{len(tips)})s, head_hash = {tips[-1]}, updated_at = {at}"]
    changes += [f"{name} = %({name})s" for name in moved]
    if checkpoint_at is not None:
        changes.append(f"checkpoint_seq = %(seq{checkpoint_at + 1})s, checkpoint_hash = {tips[checkpoint_at]}")
    if is_end:
        changes.append(f"ended_at = {at}")
    if ends_lease:
        changes.append("lease_session_id = NULL")
    return ", ".join(changes)


def _inserts(texts: Texts, facts: Sequence[bool], artifacts: int, source: str) -> list[str]:
    """Write what follows from the moved row: without one, nothing is written.

    :param source: time and hash of event ``{n}``, and where they come from
    """
    parts = []
    if artifacts:
        rows = ", ".join(
            f"(CAST(%(root{n})s AS BYTEA), CAST(%(id{n})s AS BYTEA), CAST(%(kind{n})s AS TEXT), "
            f"CAST(%(plain{n})s AS BYTEA))"
            for n in range(1, artifacts + 1)
        )
        columns = "root_run_id, id, kind, body, codec"
        parts.append(
            f"a AS (INSERT INTO {texts.artifact} ({columns}) SELECT v.*, '{RAW}' FROM (VALUES {rows}) v, u "
            "ON CONFLICT DO NOTHING)"
        )
    for number, is_fact in enumerate(facts, 1):
        parts.append(
            f"e{number} AS (INSERT INTO {texts.event} (run_id, seq, body, body_digest, commit_id, epoch, codec, "
            f"recorded_at, hash) SELECT %(run)s, %(seq{number})s, %(body{number})s, %(digest{number})s, %(commit)s, "
            f"%(epoch)s, '{RAW}', {source.format(n=number)})"
        )
        if is_fact:
            columns = "run_id, key_digest, seq, payload_id, request_digest, failed"
            parts.append(
                f"f{number} AS (INSERT INTO {texts.fact} ({columns}) SELECT %(run)s, %(key{number})s, %(seq{number})s, "
                f"%(payload{number})s, %(request{number})s, %(failed{number})s FROM u)"
            )
    return parts
