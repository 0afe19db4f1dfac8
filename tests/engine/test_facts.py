"""Facts: recorded once, bound to their request, errors among them; what is forgotten and what is replaced (rules 6 and 8)."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from airflow_childrun.engine.fact_io import token
from airflow_childrun.engine.ports import IoCall
from airflow_childrun.errors import IoError, OtherIoError, StateError, TransportError
from airflow_childrun.ids import child_run_id
from tests.engine.kit import DEATH, Lab, Stage, retrying, spawn_call


def codes_of(work: Any) -> str:
    """Return the code of what a call raises, or "" if it raises nothing."""
    try:
        work()
    except IoError as error:
        return error.code
    return ""


def again(lab: Lab, run_id: UUID) -> None:
    """Crash after the handler, then let the next process finish."""
    process = lab.process()
    process.stop_after_handler(run_id)
    assert process.resume(run_id).phase == "Running"
    process.crash()
    assert lab.process().resume(run_id).phase == "Completed"


def test_same_key_and_request_is_asked_once(lab: Lab):
    """Twice in an attempt and again after a crash: one call, one fact, equal answers."""
    lab.put("op", lambda s: s.write("r", [s.ask("k", 1), s.ask("k", 1)]))
    run_id = lab.process().create("op")
    again(lab, run_id)
    assert lab.world.counts == {"k": 1}
    assert len(lab.domain(run_id, "fact_recorded")) == 1
    assert lab.final(run_id) == {"op.main.r": [{"echo": 1}, {"echo": 1}]}


def test_same_key_with_another_request_is_refused_and_not_recorded(lab: Lab):
    """fact_request_mismatch is raised before the call, so the refusal is no fact."""
    seen: list[str] = []

    def handler(s: Stage) -> None:
        s.ask("k", 1)
        seen.append(codes_of(lambda: s.ask("k", 2)))

    lab.put("op", handler)
    run_id = lab.process().start("op").run_id
    assert seen == ["fact_request_mismatch"]
    assert lab.world.counts == {"k": 1}
    assert "fact_failed" not in lab.names(run_id)


def test_a_later_state_with_the_same_key_and_request_gets_the_fact(lab: Lab):
    """Facts belong to the run, not to the state."""
    lab.put("op", lambda s: s.ask("k"), lambda s: s.write("r", s.ask("k")))
    lab.process().start("op")
    assert lab.world.counts == {"k": 1}


@pytest.mark.parametrize(
    ("key", "code"),
    [("password=hunter2hunter2 AKIAABCDEFGHIJKLMNOP", "secrets_detected"), ("a\x1f2", "fact_key_invalid")],
    ids=["secret", "separator"],
)
def test_a_refused_key_reaches_neither_world_nor_record(lab: Lab, key: str, code: str):
    """Errors that follow from the key alone are raised before the call, for spawn and await as for any call."""
    seen: list[str] = []

    def handler(s: Stage) -> None:
        seen.append(codes_of(lambda: s.ask(key)))
        seen.append(codes_of(lambda: s.spawn("op", key)))
        seen.append(codes_of(lambda: s.io.record_value(key, 1)))

    lab.put("op", handler)
    run_id = lab.process().start("op").run_id
    assert seen == [code] * 3
    assert lab.world.counts == {}
    assert lab.names(run_id) == ["RunStarted", "StateEntered", "StateCompleted", "RunCompleted"]


def test_a_request_that_is_no_json_is_refused_before_the_call(lab: Lab):
    """A float that is no number has no digest, so nothing can be bound to it."""
    seen: list[str] = []
    lab.put("op", lambda s: seen.append(codes_of(lambda: s.ask("k", float("nan")))))
    run_id = lab.process().start("op").run_id
    assert seen == ["fact_request_not_canonical"]
    assert "fact_failed" not in lab.names(run_id)


def test_an_error_is_delivered_again_after_a_crash_and_on_replay(lab: Lab):
    """fact_failed answers in place of the world."""
    lab.world.scripts["k"] = [TransportError("down", retryable=True)]
    seen: list[tuple[str, bool]] = []

    def handler(s: Stage) -> None:
        try:
            s.ask("k")
        except TransportError as error:
            seen.append((error.code, error.retryable))
            s.write("failed", error.code)

    lab.put("op", handler)
    run_id = lab.process().create("op")
    again(lab, run_id)
    lab.process().engine.replay(run_id)
    assert seen == [("transport", True)] * 3
    assert lab.world.counts == {"k": 1}
    (failed,) = lab.domain(run_id, "fact_failed")
    assert (failed["key"], failed["error"]["code"], len(failed["request_digest"])) == ("k", "transport", 64)


def test_errors_are_forgotten_after_a_real_failure_of_their_state(lab: Lab):
    """The next attempt asks again, and replay reads the facts as they stood when the state completed."""
    lab.world.scripts["k"] = [TransportError("down"), "up"]

    def handler(s: Stage) -> None:
        try:
            s.write("r", s.ask("k"))
        except TransportError as error:
            raise StateError("try again", retryable=True) from error

    lab.put("op", handler)
    process = lab.process()
    result = process.start("op", config=retrying(2))
    assert result.phase == "Completed"
    assert lab.world.counts == {"k": 2}
    assert lab.final(result.run_id) == {"op.main.r": "up"}
    assert process.engine.replay(result.run_id) == result.final_snapshot_id


def test_errors_of_another_state_are_not_forgotten(lab: Lab):
    """A state forgets only what it recorded itself."""
    lab.world.scripts["k"] = [TransportError("down")]
    tries: list[str] = []

    def second(s: Stage) -> None:
        tries.append(codes_of(lambda: s.ask("k")))
        if len(tries) == 1:
            raise ValueError("once")

    lab.put("op", lambda s: codes_of(lambda: s.ask("k")) and None, second)
    assert lab.process().start("op", config=retrying(2)).phase == "Completed"
    assert tries == ["transport", "transport"]
    assert lab.world.counts == {"k": 1}


def test_a_fact_recorded_after_a_forgotten_error_may_be_replaced(lab: Lab):
    """Attempt 1 fell back to B because A failed; attempt 2 gets A, asks B otherwise: B is superseded with a new token."""
    lab.world.scripts["a"] = [TransportError("down"), "A"]
    tokens: list[str] = []

    def handler(s: Stage) -> None:
        try:
            a = s.ask("a")
        except TransportError:
            a = None

        def send(waits: Any) -> dict[str, Any]:
            tokens.append(s.io.idempotency_token("b"))
            return {"sent": a}

        call = IoCall("local", a, "b", local=send)
        s.write("b", s.io.call(call).response)
        if a is None:
            raise ValueError("once")

    lab.put("op", handler)
    process = lab.process()
    result = process.start("op", config=retrying(2))
    assert result.phase == "Completed"
    assert tokens == [str(token(result.run_id, "b", 0)), str(token(result.run_id, "b", 1))]
    assert lab.final(result.run_id) == {"op.main.b": {"sent": "A"}}
    assert [fact["meta"].get("supersedes") for fact in lab.domain(result.run_id, "fact_recorded")] == [None, None, 1]
    assert process.engine.replay(result.run_id) == result.final_snapshot_id


def test_a_value_recorded_after_a_forgotten_error_may_be_replaced(lab: Lab):
    """record_value is no trap for a state that took another way the first time."""
    lab.world.scripts["a"] = [TransportError("down"), "A"]

    def handler(s: Stage) -> None:
        failed = codes_of(lambda: s.ask("a"))
        s.io.record_value("v", failed or "fine")
        if failed:
            raise ValueError("once")

    lab.put("op", handler)
    process = lab.process()
    result = process.start("op", config=retrying(2))
    assert result.phase == "Completed"
    assert process.engine.replay(result.run_id) == result.final_snapshot_id


def test_a_value_under_a_taken_key_is_a_conflict(lab: Lab):
    """The same value is fine, another one is fact_payload_conflict."""
    seen: list[str] = []

    def handler(s: Stage) -> None:
        assert s.io.record_value("v", {"a": 1}) == s.io.record_value("v", {"a": 1}) == s.io.find_fact("v")
        seen.append(codes_of(lambda: s.io.record_value("v", 2)))

    lab.put("op", handler)
    run_id = lab.process().start("op").run_id
    assert seen == ["fact_payload_conflict"]
    assert len(lab.domain(run_id, "fact_recorded")) == 1


def test_a_fact_recorded_before_the_error_is_not_replaced(lab: Lab):
    """Only what came after something forgotten may be another request: before it, the mismatch stands."""
    lab.world.scripts["a"] = [TransportError("down"), "A"]
    seen: list[str] = []

    def handler(s: Stage) -> None:
        seen.append(codes_of(lambda: s.ask("before", len(seen))))
        if codes_of(lambda: s.ask("a")):
            raise ValueError("once")

    lab.put("op", handler)
    assert lab.process().start("op", config=retrying(2)).phase == "Completed"
    assert seen == ["", "fact_request_mismatch"]


def test_replacing_a_spawn_opens_the_next_generation_afresh(lab: Lab):
    """The slot's first child was asked for after a forgotten error; another request ends in generation 2."""
    lab.world.scripts["a"] = [TransportError("down"), "A"]
    lab.put("child", lambda s: s.write("input", s.input))

    def handler(s: Stage) -> None:
        failed = codes_of(lambda: s.ask("a"))
        child = s.spawn("child", "c", failed or "fine")
        end = s.join(child, "end")
        s.write("child", end["final_snapshot"])
        if failed:
            raise ValueError("once")

    lab.put("op", handler)
    process = lab.process()
    result = process.start("op", config=retrying(2))
    assert result.phase == "Completed"
    assert lab.final(result.run_id) == {"op.main.child": {"child.main.input": "fine"}}
    first, second = sorted(lab.children(result.run_id), key=lambda row: row.generation)
    assert first.run_id == child_run_id(result.run_id, "c")
    assert second.run_id == child_run_id(result.run_id, "c", 2)
    assert (second.generation, second.slot_id) == (2, first.run_id)
    assert lab.started(second.run_id).continues is None
    assert process.engine.replay(result.run_id) == result.final_snapshot_id


def test_spawn_conflict_names_what_differs(lab: Lab):
    """Another input or another initial context under the key of a spawn is child_run_conflict."""
    seen: list[tuple[str, Any]] = []

    def handler(s: Stage) -> None:
        s.spawn("child", "c", 1)
        for call in (spawn_call("child", "c", 2), spawn_call("child", "c", 1, context={"child.main.x": 1})):
            with pytest.raises(OtherIoError) as caught:
                s.io.call(call)
            seen.append((caught.value.code, caught.value.info.details))

    lab.put("child", lambda s: None)
    lab.put("op", handler)
    assert lab.process().start("op").phase == "Completed"
    assert seen == [
        ("child_run_conflict", {"differs": "operation, configuration, input or run_config"}),
        ("child_run_conflict", {"differs": "initial context"}),
    ]


def test_time_and_random_keys_do_not_name_the_attempt(lab: Lab):
    """A second attempt sees the time and the bytes of the first; kind and ordinal tell values apart."""
    seen: list[Any] = []

    def handler(s: Stage) -> None:
        seen.append((s.io.now_millis(), s.io.random_bytes(8), s.io.now_millis()))
        if len(seen) == 1:
            raise ValueError("once")
        s.write("t", seen[-1][0])

    lab.put("op", handler)
    process = lab.process()
    result = process.start("op", config=retrying(2))
    assert seen[0] == seen[1]
    assert len(seen[0][1]) == 8
    run_id = result.run_id
    assert [fact["key"] for fact in lab.domain(run_id, "fact_recorded")] == [
        f"mfm:now_millis|run:{run_id}|state:op.main.s0|ord:0",
        f"mfm:random_bytes|run:{run_id}|state:op.main.s0|ord:1",
        f"mfm:now_millis|run:{run_id}|state:op.main.s0|ord:2",
    ]
    assert process.engine.replay(run_id) == result.final_snapshot_id


def test_recorded_bytes_of_another_length_are_an_error(lab: Lab):
    """Code that asks for another number of bytes than recorded is told so."""
    sizes = [8, 4]
    seen: list[str] = []

    def handler(s: Stage) -> None:
        seen.append(codes_of(lambda: s.io.random_bytes(sizes.pop(0))))
        if len(seen) == 1:
            raise ValueError("once")

    lab.put("op", handler)
    lab.process().start("op", config=retrying(2))
    assert seen == ["", "fact_payload_invalid"]


def test_token_is_the_same_before_and_after_a_crash(lab: Lab):
    """A call in flight when the process died carries the same token both times."""
    tokens: list[str] = []

    def handler(s: Stage) -> None:
        tokens.append(s.io.idempotency_token("k"))
        s.ask("k", {"token": tokens[-1]})

    lab.put("op", handler)
    run_id = lab.process().create("op")
    first = lab.process()
    lab.world.scripts["k"] = [lambda request: first.crash()]
    with pytest.raises(DEATH):
        first.resume(run_id)
    assert lab.process().resume(run_id).phase == "Completed"
    assert lab.world.counts == {"k": 2}
    assert tokens[0] == tokens[1] == str(token(run_id, "k", 0))
    assert lab.world.calls[0] == lab.world.calls[1]


def test_fact_then_retryable_failure_reuses_the_fact(lab: Lab):
    """One call and one event over two attempts."""

    def handler(s: Stage) -> None:
        s.ask("k")
        if s.io.find_fact("second") is None:
            s.io.record_value("second", True)
            raise ValueError("once")

    lab.put("op", handler)
    result = lab.process().start("op", config=retrying(2))
    assert result.phase == "Completed"
    assert lab.world.counts == {"k": 1}
