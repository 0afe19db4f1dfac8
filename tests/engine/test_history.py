"""The fold refuses every stream that no engine can have written, and reads those of V1 (spec 5 and 9.2)."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from airflow_childrun.engine.facts import Fact, FactIndex
from airflow_childrun.engine.history import RunHistory, fold
from airflow_childrun.errors import CorruptionError, ErrorInfo, InvalidHistoryError
from airflow_childrun.model.events import (
    DomainEvent,
    Event,
    Failure,
    RunCompleted,
    RunStarted,
    StateCompleted,
    StateEntered,
    StateFailed,
    event_from_json,
)

RUN = UUID("00000000-0000-4000-8000-000000000001")
S0, S1, S2 = "a" * 64, "b" * 64, "c" * 64


def started(**more: Any) -> RunStarted:
    return RunStarted(op_id="op", manifest_id=S0, initial_snapshot_id=S0, **{"engine": 1, **more})


def v1() -> RunStarted:
    return started(engine=None)


def entered(state: str = "x", attempt: int = 0, base: str = S0) -> StateEntered:
    return StateEntered(state_id=f"op.main.{state}", attempt=attempt, base_snapshot_id=base)


def completed(state: str = "x", snapshot: str = S1) -> StateCompleted:
    return StateCompleted(state_id=f"op.main.{state}", context_snapshot_id=snapshot)


def failed(state: str = "x", code: str = "x", **more: Any) -> StateFailed:
    info = ErrorInfo(code, retryable=True).to_json()
    return StateFailed(state_id=f"op.main.{state}", error=Failure(state_id=None, info=info), **more)


def fact(key: str = "k", payload: str = S0, **meta: Any) -> DomainEvent:
    meta = {"request_digest": S2, **meta}
    return DomainEvent(name="fact_recorded", payload={"key": key, "payload_id": payload, "meta": meta})


def ended(status: Any = "Completed") -> RunCompleted:
    return RunCompleted(status=status, final_snapshot_id=S1)


def read(*events: Event) -> RunHistory:
    return fold(RUN, list(enumerate(events, 1)))


SHAPES: list[tuple[str, Any]] = [
    ("fact_recorded", None),
    ("fact_recorded", {"key": 5}),
    ("fact_recorded", {"key": "k"}),
    ("fact_failed", {"key": "k", "error": "no"}),
    ("wait_opened", {"key": "k"}),
    ("child_run_spawned", {"child_run_id": "no uuid"}),
    ("inbox_consumed", []),
]
MALFORMED = [DomainEvent(name=name, payload=payload) for name, payload in SHAPES]

REFUSED: dict[str, tuple[list[Event], str]] = {
    "no events": ([], "missing_run_started"),
    "no RunStarted": ([entered()], "missing_run_started"),
    "second RunStarted": ([started(), started()], "invalid_attempt_envelopes"),
    "after the end": ([started(), entered(), completed(), ended(), fact()], "invalid_attempt_envelopes"),
    "entered while open": ([started(), entered(), entered(attempt=1)], "invalid_attempt_envelopes"),
    "terminal without entered": ([started(), completed()], "terminal_without_entered"),
    "failed without entered": ([started(), failed()], "terminal_without_entered"),
    "terminal of another state": ([started(), entered(), completed("y")], "invalid_attempt_envelopes"),
    "end while open": ([started(), entered(), ended()], "invalid_attempt_envelopes"),
    "attempt came twice": ([started(), entered(), failed(), entered()], "invalid_attempt_envelopes"),
    "entered after completion": (
        [started(), entered(), completed(), entered(attempt=1, base=S1)],
        "invalid_attempt_envelopes",
    ),
    "base is no checkpoint": ([started(), entered(base=S2)], "invalid_attempt_envelopes"),
    "base is an old checkpoint": ([started(), entered(), completed(), entered("y")], "invalid_attempt_envelopes"),
    "key bound twice": ([started(), entered(), fact(), fact(payload=S1)], "fact_recorded_conflict"),
}


@pytest.mark.parametrize(("events", "code"), REFUSED.values(), ids=REFUSED)
def test_streams_that_nobody_can_have_written_are_refused(events: list[Event], code: str):
    """Each rule that the original engine did not check is checked."""
    with pytest.raises(InvalidHistoryError) as caught:
        read(*events)
    assert caught.value.code == code


@pytest.mark.parametrize("event", MALFORMED, ids=lambda event: f"{event.name}-{event.payload}")
def test_malformed_events_of_the_engine_are_refused_by_number(event: DomainEvent):
    """No KeyError: an error that names run and event, without the payload."""
    with pytest.raises(InvalidHistoryError) as caught:
        read(started(), entered(), event)
    assert caught.value.code == f"{event.name}_malformed"
    assert caught.value.info.details["seq"] == 3


@pytest.mark.parametrize("seqs", [(1, 3), (1, 1), (2, 3), (0, 1)])
def test_gaps_and_repetitions_of_seq_are_refused(seqs: tuple[int, int]):
    """A stream is contiguous from 1."""
    with pytest.raises(InvalidHistoryError):
        fold(RUN, list(zip(seqs, (started(), entered()), strict=True)))


def test_conflict_names_key_and_event_and_never_the_payload():
    """Details for programs: run, seq, key."""
    with pytest.raises(InvalidHistoryError) as caught:
        read(started(), entered(), fact(), fact(payload=S1))
    assert caught.value.info.details == {"run_id": str(RUN), "seq": 4, "key": "k"}
    assert S1 not in str(caught.value)


def test_a_repeated_equal_binding_is_accepted():
    """Once more the same payload under the same key is no contradiction."""
    assert read(started(), entered(), fact(), fact()).facts.find("k") is not None


def test_a_replacement_says_so_and_is_accepted():
    """Supersedes counts up."""
    history = read(started(), entered(), fact(), fact(payload=S1, supersedes=1))
    found = history.facts.find("k")
    assert found is not None
    assert found.payload_id == S1


def test_a_trailing_entry_is_an_open_attempt():
    """State, number and place are known."""
    history = read(started(), entered())
    assert history.open_attempt is not None
    assert (history.open_attempt.state_id, history.open_attempt.number, history.open_attempt.entered) == (
        "op.main.x",
        0,
        (0, 2),
    )


@pytest.mark.parametrize("noise", [(), (DomainEvent(name="noise", payload={"a": 1}),)])
def test_domain_events_move_no_checkpoint(noise: tuple[Event, ...]):
    """With and without them the checkpoint is the same."""
    assert read(started(), entered(), *noise, completed()).checkpoint_id == S1


def test_a_recovered_orphan_is_valid_and_leaves_the_last_checkpoint():
    """Entered(0), Failed(orphan_attempt_recovered), Entered(1), Completed."""
    history = read(started(), entered(), failed(code="orphan_attempt_recovered"), entered(attempt=1), completed())
    assert history.open_attempt is None
    assert history.checkpoint_id == S1
    assert (history.failures, history.recoveries) == ({}, 0)


def test_v1_nested_entries_are_read_and_counted_as_recoveries():
    """What the original engine wrote after a crash stays readable."""
    history = read(v1(), entered(), entered(attempt=1), entered(attempt=2))
    assert history.is_v1
    assert history.recoveries == 2
    assert history.open_attempt is not None
    assert history.open_attempt.number == 2
    assert read(v1(), entered(), entered(attempt=1), completed(), ended()).finished is not None


def test_v1_lets_the_first_binding_win_and_skips_malformed_facts():
    """As the original engine did."""
    odd = DomainEvent(name="fact_recorded", payload={"key": 5})
    first = DomainEvent(name="fact_recorded", payload={"key": "k", "payload_id": S0, "meta": {}})
    second = DomainEvent(name="fact_recorded", payload={"key": "k", "payload_id": S1, "meta": {}})
    found = read(v1(), entered(), odd, first, second).facts.find("k")
    assert found is not None
    assert (found.payload_id, found.request_digest) == (S0, None)


@pytest.mark.parametrize(
    "value",
    [None, {}, {"Kernel": {}}, {"Kernel": {"Nonsense": {}}}, {"Kernel": {"StateEntered": {}}}, {"Domain": {}}, [1]],
)
def test_stored_events_of_another_shape_are_corruption(value: Any):
    """event_malformed, not a traceback of the decoder."""
    with pytest.raises(CorruptionError) as caught:
        event_from_json(value)
    assert caught.value.code == "event_malformed"


def test_a_real_failure_keeps_the_sleep_that_was_slept():
    """Waits under the keys of forgotten errors are forgotten, a durable sleep is not."""
    wait = lambda key: DomainEvent(name="wait_opened", payload={"key": key, "try": 1, "until": 5})
    error = {"kind": "Other", **ErrorInfo("x").to_json()}
    lost = DomainEvent(name="fact_failed", payload={"key": "step", "error": error, "meta": {}})
    history = read(started(), entered(), wait("nap"), wait("step"), lost, failed())
    assert set(history.waits) == {"nap"}


def test_every_prefix_of_a_history_folds():
    """A crash may cut a stream anywhere between commits."""
    events: list[Event] = [
        started(),
        entered(),
        fact(),
        completed(),
        entered("y", base=S1),
        failed("y"),
        ended("Failed"),
    ]
    for end in range(1, len(events) + 1):
        assert read(*events[:end]).head == end


def test_what_is_learnt_of_a_childs_end_belongs_to_the_last_fact_whoever_looks_back() -> None:
    """A view of earlier must not put an earlier fact in the place of the last one."""
    facts = FactIndex()
    for seq, payload_id in enumerate(("a", "b"), 1):
        facts.add(Fact((0, seq), "k", payload_id, None, None, None, seq - 1, {}))
    facts.as_of((0, 1)).note_end("k", "Completed")
    last = facts.find("k")
    assert last is not None
    assert (last.payload_id, last.meta) == ("b", {"status": "Completed"})
