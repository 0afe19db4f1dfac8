"""Rows of the table that hold for every scenario: what of ours they explain is set aside, and what they promise is checked."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from airflow_childrun.canonical import canonical_json_bytes
from airflow_childrun.model.events import FACT_FAILED
from airflow_childrun.secret_policy import strict
from tests.golden.recording import Bodies, Line, Scenario, Side, facts_of, linkage_of, recorded, value_of

LINKAGE_COMPLETE = "row 16: linkage that the original lost, or never wrote, is there"
ONE_ATTEMPT_MORE = "row 3: a crashed attempt does not count as one of max_attempts"
NOT_ASKED_AGAIN = "caught IO errors: recorded, so not asked again"
CAUSE_TOLD = "row 18: an await tells why the child failed"
REFUSED_LEAVES_NOTHING = "row 31: what is refused leaves nothing behind"
SECRET_KEY_FIRST = "a secret fact key is refused before the call"
V1_CAUGHT_AN_ERROR = "caught IO errors: a V1 history did not record one, so its replay stops there"


@dataclass
class Explained:
    """Which rows of the table a scenario needed, and where one was not kept."""

    rows: set[str] = field(default_factory=set)
    broken: list[str] = field(default_factory=list)


# ---------------------------------------------------------------------------------------------------------- linkage


def without_regained_linkage(
    before: Sequence[Line], after: Sequence[Line], bodies: Bodies, explained: Explained
) -> list[Line]:
    """Return our events without the linkage that the recording lacks although it has the fact.

    :param bodies: what is behind the recording's ids
    """
    belonging = (linkage_of(line[2], bodies) for line in before if line[0] == "fact")
    missing = Counter(_key(["event", *linkage]) for linkage in belonging if linkage) - _linkages(before)
    kept: list[Line] = []
    for line in after:
        if _is_linkage(line) and missing[_key(line)] > 0:
            missing[_key(line)] -= 1
            explained.rows.add(LINKAGE_COMPLETE)
        else:
            kept.append(line)
    return kept


def check_linkage(ours: Side, crashed: Mapping[str, Sequence[Any]], explained: Explained) -> None:
    """Check that every spawn and await fact of ours has its linkage event, and every V1 fact of an attempt that crashed."""
    for run_id, events in ours.streams.items():
        old = crashed.get(run_id, ())
        facts = [*_orphaned(old), *facts_of(events[len(old) :])]
        wanted = Counter(
            _key(["event", *linkage])
            for fact in facts
            if (linkage := linkage_of(fact["payload_id"], ours.bodies)) is not None
        )
        if wanted - _linkages(ours.lines(run_id)):
            explained.broken.append(f"{run_id} has a spawn or an await without linkage")


def _orphaned(events: Sequence[Any]) -> Iterator[Any]:
    """Yield the facts of the attempt that a V1 crash left open."""
    closes = {"StateCompleted", "StateFailed", "RunCompleted"}
    last = max((n for n, event in enumerate(events) if closes & set(event.get("Kernel", ()))), default=-1)
    yield from facts_of(events[last + 1 :])


def check_causes(ours: Side, explained: Explained) -> None:
    """Check that an await of ours tells why the child did not complete: by its last failed state."""
    for run_id, events in ours.streams.items():
        for fact in facts_of(events):
            answer = value_of(fact["payload_id"], ours.bodies)
            if "request_digest" not in fact["meta"] or linkage_of(fact["payload_id"], ours.bodies) is None:
                continue
            failed = [line for line in ours.lines(answer["child_run_id"]) if line[0] == "StateFailed"]
            wanted = failed[-1][2]["info"]["code"] if failed and answer.get("status") == "Failed" else None
            if wanted is not None:
                explained.rows.add(CAUSE_TOLD)
            if (answer.get("cause") or {}).get("code") != wanted:
                explained.broken.append(f"{run_id} has another cause than {wanted} under {fact['key']}")


def _linkages(lines: Iterable[Line]) -> Counter[str]:
    return Counter(_key(line) for line in lines if _is_linkage(line))


def _is_linkage(line: Line) -> bool:
    return line[0] == "event" and line[1] in {"child_run_spawned", "child_run_completed"}


def _key(line: Line) -> str:
    return canonical_json_bytes(list(line)).decode()


# --------------------------------------------------------------------------------------------------------- attempts


def without_extra_attempts(
    before: Sequence[Line], after: Sequence[Line], side: Side, explained: Explained
) -> list[Line]:
    """Return our events without the attempts that the original did not make any more after a crash.

    They stand where the recording ends Failed by a retryable failure, after fewer failures than are allowed; they begin
    at the same checkpoint, and all but the last one fail.
    """
    if len(before) < 2 or before[-1][:2] != ["RunCompleted", "Failed"] or before[-2][0] != "StateFailed":
        return list(after)
    state, failure = before[-2][1], before[-2][2]["info"]
    allowed = max(1, json.loads(side.bodies[before[0][2]])["run_config"]["retry_policy"]["max_attempts"])
    failures = sum(line[:2] == ["StateFailed", state] for line in before)
    ended = len(before) - 1
    if not failure["retryable"] or failures >= allowed or list(after[:ended]) != list(before[:-1]):
        return list(after)
    attempt = next(line[2] for line in reversed(before) if line[:2] == ["StateEntered", state])
    end = ended
    while failures < allowed and list(after[end : end + 1]) == [["StateEntered", state, attempt + 1, before[-1][2]]]:
        end, attempt, failures = end + 1, attempt + 1, failures + 1
        while end < len(after) and after[end][0] in {"fact", "event"}:
            end += 1
        if end < len(after) and after[end][:2] == ["StateFailed", state]:
            end += 1
    if end > ended:
        explained.rows.add(ONE_ATTEMPT_MORE)
    return [*after[:ended], *after[end:]]


# ------------------------------------------------------------------------------------------------------------ calls


def explain_missing_call(call: Any, ours: Side, explained: Explained) -> bool:
    """Whether a call had not to be made: its error is recorded under its key, or its key is a secret."""
    key = call["fact_key"]
    if key is not None and strict().is_secret_text(key):
        explained.rows.add(SECRET_KEY_FIRST)
        return True
    for event in ours.streams.get(call["run_id"], ()):
        domain = event.get("Domain", {})
        if domain.get("name") == FACT_FAILED and domain["payload"]["key"] == key:
            explained.rows.add(NOT_ASKED_AGAIN)
            return True
    return False


# ---------------------------------------------------------------------------------------------------------- replays


def explain_replay(scenario: Scenario, run_id: str, state_id: str, explained: Explained) -> bool:
    """Whether a replay had to stop: the original completed the state before the crash, and it can catch an error."""
    side = recorded(scenario, "at_crash")
    lines = side.lines(run_id)
    if not any(line[:2] == ["StateCompleted", state_id] for line in lines):
        return False
    script = json.loads(side.bodies[lines[0][2]])["input_params"]["pipeline"]["steps"][0]["op_config"]
    catches = any(
        arguments.get("catch_to") is not None
        for state in script["states"]
        if state_id.endswith(f".{state['name']}")
        for step in state["do"]
        for arguments in step.values()
        if isinstance(arguments, dict)
    )
    if catches:
        explained.rows.add(V1_CAUGHT_AN_ERROR)
    return catches
