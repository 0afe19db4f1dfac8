"""Summaries: what a long history means, written down at a checkpoint, so that going on does not take reading all of it.

A summary tells everything that the fold of the events before its ``StateCompleted`` tells, but for the facts that nothing
can make the run forget: of those it has a mark per key, and whoever asks for one looks it up. Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from airflow_childrun.canonical import artifact_id, canonical_json_bytes, decode_stored
from airflow_childrun.engine.facts import EarlierFacts, Fact, FactIndex, Position
from airflow_childrun.engine.history import Attempt, ChildLink, Completion, FailedAttempt, RunHistory, Wait
from airflow_childrun.errors import CanonicalError, ChildRunError, ErrorInfo
from airflow_childrun.model.events import Continues, RunStarted, StateCompleted, StateFailed, Summary

FORMAT = 1
SUMMARY, FACT_KEYS = "HistorySummary", "FactKeys"
"""Kinds of the artifacts: a summary, and a list of marks of keys."""
EVENTS_TO_ENTRIES = 4
"""How many entries of a summary an event pays for."""


@dataclass(frozen=True, slots=True)
class Read:
    """A summary as it was read.

    :param key_lists: ids of the artifacts with the marks of all keys
    """

    history: RunHistory
    key_lists: tuple[str, ...]


def summarised(
    history: RunHistory, event: StateCompleted, after: int
) -> tuple[StateCompleted, list[tuple[str, bytes]]]:
    """Return the event that is to close a state with its summary, and kind and body of the artifacts that tell it.

    :param after: for how many events since the last summary none is written
    """
    before, seq = history.summary, history.head + 1
    since = seq - (before.seq if before else 0)
    # What the original engine wrote is read by its own rules, and whole. A wide summary is written less often: its size
    # is to stay in proportion to what happened.
    if history.has_v1 or since < after or since * EVENTS_TO_ENTRIES < _weight(history):
        return event.model_copy(update={"summary": before}) if before else event, []
    recorded, keys = history.facts.known_keys()
    ids = tuple(artifact_id(marks) for marks in keys.lists)
    try:
        body = canonical_json_bytes({"format": FORMAT, "keys": ids, **_plain(history)})
    except CanonicalError:  # an event nests as deeply as can be, and here it stands one level deeper
        return event, []
    history.facts.seal(keys)
    new = [(FACT_KEYS, marks) for marks in keys.lists if marks not in recorded.lists]
    summary = Summary(seq=seq, id=artifact_id(body))
    return event.model_copy(update={"summary": summary}), [(SUMMARY, body), *new]


def _weight(history: RunHistory) -> int:
    """Return how many things a summary would list, more or less."""
    lists = (
        history.children,
        history.linked,
        history.waits,
        history.turns,
        history.host_tries,
        history.dispatched,
        history.ancestors,
    )
    return sum(map(len, lists))


def read_summary(body: bytes, earlier: Callable[[Read], EarlierFacts]) -> Read | None:
    """Read a summary; None if it is none that this release knows.

    :param earlier: where the facts are that it does not tell
    """
    value = decode_stored(body)
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        return None
    try:
        read = Read(_history(value), tuple(value["keys"]))
        facts = FactIndex(earlier=earlier(read))
    except (KeyError, TypeError, ValueError, AttributeError, ChildRunError):
        return None
    facts.take_in(_fact(fact) for fact in value["facts"])
    for at, state_id in value["failures_at"]:
        facts.forget_errors_of(state_id, _position(at))
    for at in value["continued_at"]:
        facts.forget_unhappy_awaits(_position(at))
    read.history.facts = facts
    return read


def is_summary_of(body: bytes, history: RunHistory) -> bool:
    """Whether a summary tells what a history, folded from all its events, means; the keys apart."""
    value = decode_stored(body)
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        return True  # another release's: this one does not use it
    expected = {"format": FORMAT, "keys": value.get("keys"), **_plain(history)}
    return canonical_json_bytes(expected) == body


def _plain(history: RunHistory) -> dict[str, Any]:
    failures, continued = history.facts.forgotten_from()
    return {
        "run_id": str(history.run_id),
        "chain_id": str(history.chain_id),
        "segment": history.segment,
        "head": history.head,
        "started": history.start.to_json(),
        "checkpoint_id": history.checkpoint_id,
        "completed": [
            [done.state_id, done.at, done.base_snapshot_id, done.snapshot_id, done.skipped]
            for done in history.completed.values()
        ],
        "open_attempt": _attempt_json(history.open_attempt) if history.open_attempt else None,
        "last_attempt": history.last_attempt,
        "last_failure": [
            [_attempt_json(failed.attempt), failed.event.to_json()] for failed in history.last_failure.values()
        ],
        "failures": history.failures,
        "last_entered": history.last_entered,
        "deadlines": history.deadlines,
        "recoveries": history.recoveries,
        "is_waiting": history.is_waiting,
        "waits": [[wait.key, wait.number, wait.until, wait.at, wait.state_id] for wait in history.waits.values()],
        "children": [
            [str(child.child_run_id), child.fact_key, child.generation, child.at, child.manifest_id]
            for child in history.children
        ],
        "linked": sorted(history.linked),
        "inbox_consumed": history.inbox_consumed,
        "end_request": history.end_request,
        "has_cleaned_up": history.has_cleaned_up,
        "host_tries": history.host_tries,
        "dispatched": history.dispatched,
        "last_fact_key": history.last_fact_key,
        "turns": history.turns,
        "ancestors": [ancestor.to_json() for ancestor in history.ancestors],
        "facts": list(map(_fact_json, history.facts.unsteady())),
        "failures_at": failures,
        "continued_at": continued,
    }


def _history(value: dict[str, Any]) -> RunHistory:
    return RunHistory(
        UUID(value["run_id"]),
        UUID(value["chain_id"]),
        segment=value["segment"],
        head=value["head"],
        started=RunStarted.from_json(value["started"]),
        checkpoint_id=value["checkpoint_id"],
        completed={
            state: Completion(state, _position(at), base, snapshot, skipped)
            for state, at, base, snapshot, skipped in value["completed"]
        },
        open_attempt=_attempt(value["open_attempt"]) if value["open_attempt"] else None,
        last_attempt=value["last_attempt"],
        last_failure={
            attempt[0]: FailedAttempt(_attempt(attempt), StateFailed.from_json(event))
            for attempt, event in value["last_failure"]
        },
        failures=value["failures"],
        last_entered=value["last_entered"],
        deadlines=value["deadlines"],
        recoveries=value["recoveries"],
        is_waiting=value["is_waiting"],
        waits={key: Wait(key, n, until, _position(at), state) for key, n, until, at, state in value["waits"]},
        children=[
            ChildLink(UUID(child), key, generation, _position(at), manifest_id)
            for child, key, generation, at, manifest_id in value["children"]
        ],
        linked=set(value["linked"]),
        inbox_consumed=value["inbox_consumed"],
        end_request=value["end_request"],
        has_cleaned_up=value["has_cleaned_up"],
        host_tries=value["host_tries"],
        dispatched=value["dispatched"],
        last_fact_key=value["last_fact_key"],
        turns=[(_position(at), state) for at, state in value["turns"]],
        ancestors=[Continues.from_json(ancestor) for ancestor in value["ancestors"]],
    )


def _attempt_json(attempt: Attempt) -> list[Any]:
    return [attempt.state_id, attempt.number, attempt.base_snapshot_id, attempt.entered]


def _attempt(value: list[Any]) -> Attempt:
    state_id, number, base, entered = value
    return Attempt(state_id, number, base, _position(entered))


def _fact_json(fact: Fact) -> dict[str, Any]:
    return {
        "at": fact.at,
        "key": fact.key,
        "payload_id": fact.payload_id,
        "error": fact.error.to_json() if fact.error else None,
        "request_digest": fact.request_digest,
        "state_id": fact.state_id,
        "supersedes": fact.supersedes,
        "meta": fact.meta,
    }


def _fact(value: dict[str, Any]) -> Fact:
    error = value["error"]
    given = {**value, "at": _position(value["at"]), "error": None if error is None else ErrorInfo.from_json(error)}
    return Fact(**given)


def _position(value: list[int]) -> Position:
    segment, seq = value
    return (segment, seq)
