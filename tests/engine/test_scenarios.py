"""The original's own scenarios of contexts, IO and runtime (spec 12.4 to 12.8), under the numbers of the specification."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any
from uuid import UUID

import pytest

from airflow_childrun.authoring.operation import Operation
from airflow_childrun.canonical import artifact_id, canonical_json_bytes
from airflow_childrun.engine.context import NamespacedContext, StagedContext, read_snapshot, snapshot_bytes
from airflow_childrun.engine.ports import IoCall
from airflow_childrun.errors import (
    ChildRunError,
    ContextError,
    CorruptionError,
    InvalidPlanError,
    MissingFactKeyError,
    OperationError,
    OtherRunError,
    StateError,
)
from airflow_childrun.model.config import FanOutJoin, RunConfig
from airflow_childrun.model.events import DomainEvent, StateFailed
from airflow_childrun.model.manifest import build_manifest
from airflow_childrun.model.plan import StateMeta
from airflow_childrun.secret_policy import standard, strict
from airflow_childrun.store.api import Artifact, Commit, RunStep
from airflow_childrun.store.codec import encode_event, request_digest
from airflow_childrun.transports.registry import FunctionTransport, LiveIoEnv, TransportRegistry
from tests.engine.kit import DEATH, Background, Lab, Stage, new_lab, wait_for

# -- 12.4 contexts and snapshots


def test_s18_equal_contexts_have_one_snapshot_id(lab: Lab):
    """The order of writing does not matter."""

    def writing(keys: str) -> Any:
        def handler(s: Stage) -> None:
            for key in keys:
                s.write(key, ord(key))

        return handler

    lab.put("op", writing("ab"))
    one = lab.process().start("op")
    lab.put("op", writing("ba"))
    assert lab.process().start("op").final_snapshot_id == one.final_snapshot_id


def test_s19_staged_changes_are_seen_and_leave_the_base_alone():
    """Written, deleted and revived keys; the base stays what it was."""
    base = {"gone": 1, "kept": 2}
    staged = StagedContext(base)
    staged.write("new", 3)
    staged.delete("gone")
    staged.delete("absent")
    assert staged.read("gone") is None
    assert staged.dump() == {"kept": 2, "new": 3}
    staged.write("gone", 4)
    assert staged.dump() == {"gone": 4, "kept": 2, "new": 3}
    assert base == {"gone": 1, "kept": 2}
    named = NamespacedContext(staged, "op.main.")
    named.write("x", 1)
    assert (named.read("x"), named.dump(), staged.read("op.main.x")) == (1, {"x": 1}, 1)
    named.delete("x")
    assert staged.read("op.main.x") is None


def test_s20_s22_a_snapshot_that_is_not_what_its_id_says_is_corruption(lab: Lab):
    """Changed bytes are found on read; the run is left as it is."""
    lab.put("op", lambda s: s.write("a", 1), lambda s: s.ask("die"))
    process = lab.process()
    run_id = process.create("op")
    lab.world.scripts["die"] = [lambda request: process.crash()]
    with pytest.raises(DEATH):
        process.resume(run_id)
    checkpoint = lab.row(run_id).checkpoint_snapshot_id
    kept = lab.store._artifacts[run_id][checkpoint]
    lab.store._artifacts[run_id][checkpoint] = Artifact(run_id, checkpoint, kept.kind, b'{"op.main.a":2}')
    before = lab.names(run_id)
    for _ in range(7):
        with pytest.raises(CorruptionError):
            lab.process().resume(run_id)
    assert lab.names(run_id) == before
    lab.store._artifacts[run_id][checkpoint] = kept
    assert lab.process().resume(run_id).phase == "Completed"


@pytest.mark.parametrize(
    ("body", "code"),
    [(b"[1]", "context_snapshot_not_object"), (b"{", "context_snapshot_decode_failed"), (b"\xff", "context_snapshot_decode_failed")],
)  # fmt: skip
def test_s23_s27_only_an_object_is_a_snapshot(body: bytes, code: str):
    """Anything else is a typed context error."""
    assert read_snapshot(b'{"a":1}') == {"a": 1}
    with pytest.raises(ContextError) as caught:
        read_snapshot(body)
    assert caught.value.code == code
    with pytest.raises(ContextError):
        snapshot_bytes({"password": "hunter2hunter2"}, standard())


# -- 12.5 profiles


@pytest.mark.parametrize(("profile", "kept"), [("Minimal", False), ("Normal", True), ("Verbose", True)])
def test_s32_s33_s34_profiles_filter_what_a_handler_emits(lab: Lab, profile: Any, kept: bool):
    """Facts are always kept; a dropped event is no error."""
    lab.put("op", lambda s: [s.ask("k"), s.rec.emit("mine", {"a": 1})])
    run_id = lab.process().start("op", config=RunConfig(event_profile=profile)).run_id
    assert ("mine" in lab.names(run_id)) is kept
    assert "fact_recorded" in lab.names(run_id)


# -- 12.6 live and replay IO, router, registry


class Sentinel:
    """A factory that must not be asked for a transport."""

    def namespace_group(self) -> str:
        return "world"

    def make(self, env: LiveIoEnv) -> Any:
        raise AssertionError("replay made a transport")


REPLAY = RunConfig(io_mode="Replay")


def test_s35_s59_replay_mode_without_key_or_fact_fails_without_any_transport(lab: Lab):
    """missing_fact_key and missing_fact, and the factory is never asked."""
    codes: list[str] = []

    def handler(s: Stage) -> None:
        for key in (None, "k"):
            with pytest.raises(ChildRunError) as caught:
                s.ask(key)
            codes.append(caught.value.code)
            assert isinstance(caught.value, MissingFactKeyError) is (key is None)
        s.ask("k")

    lab.put("op", handler)
    process = lab.process(transports=TransportRegistry([Sentinel()]))
    assert process.start("op", config=REPLAY).phase == "Failed"
    assert codes == ["missing_fact_key", "missing_fact"]


@pytest.mark.parametrize("flag", [True, False])
def test_s36_a_missing_fact_is_retryable_if_the_run_says_so(lab: Lab, flag: bool):
    """replay_missing_fact_retryable decides."""
    lab.put("op", lambda s: s.ask("k"))
    config = RunConfig(io_mode="Replay", replay_missing_fact_retryable=flag)
    run_id = lab.process().start("op", config=config).run_id
    (failed,) = [event for event in lab.events(run_id) if isinstance(event, StateFailed)]
    assert failed.error.error.retryable is flag


def test_s37_s38_s39_the_longest_matching_group_serves_a_namespace(lab: Lab):
    """Prefixes end at dots; an unknown namespace is refused without its request."""

    def named(group: str, call: IoCall, env: LiveIoEnv) -> str:
        return group

    groups = ("proof", "evm", "local", "local.fs")
    registry = TransportRegistry([FunctionTransport(group, partial(named, group)) for group in groups])
    seen: list[str] = []

    def handler(s: Stage) -> None:
        for namespace in ("proof.read", "evm", "local.fs.read", "local.net", "local.fsx"):
            seen.append(s.io.call(IoCall(namespace, None)).response)
        for namespace in ("proofs", "nowhere"):
            with pytest.raises(ChildRunError) as caught:
                s.io.call(IoCall(namespace, {"request": "hunter2"}))
            seen.append(caught.value.code)
            assert "hunter2" not in str(caught.value)

    lab.put("op", handler)
    assert lab.process(transports=registry).start("op").phase == "Completed"
    assert seen == ["proof", "evm", "local.fs", "local", "local", "io_unknown_namespace", "io_unknown_namespace"]


def test_s40_a_group_is_registered_once_and_is_not_blank():
    """Duplicates and blanks are refused."""
    answer = lambda call, env: None
    registry = TransportRegistry([FunctionTransport("a", answer)])
    for group in ("a", " "):
        with pytest.raises(OperationError):
            registry.register(FunctionTransport(group, answer))
    assert registry.resolve("a") is not None
    assert registry.resolve("a.b") is None
    assert set(registry.all()) == {"a"}


# -- 12.7 runtime


def test_s47_secret_in_the_initial_context_stops_the_start(lab: Lab):
    """secrets_detected, no run, no artifact."""
    lab.put("op", lambda s: None)
    with pytest.raises(ContextError) as caught:
        lab.process().start("op", initial_context={"op.main.password": "hunter2", "password": "hunter2"})
    assert caught.value.code == "secrets_detected"
    assert lab.all_runs() == []
    assert lab.stored_text() == ""


def test_s48_secret_of_an_error_is_redacted():
    """Message redacted, details dropped, state named."""
    error = StateError("the password is hunter2", details={"a": "hunter2"})

    def fails(s: Stage) -> None:
        raise error

    with new_lab(policy=strict()) as lab:
        lab.put("op", fails)
        run_id = lab.process().start("op").run_id
        (failed,) = [event for event in lab.events(run_id) if isinstance(event, StateFailed)]
        assert failed.error.error.message == "error details redacted"
        assert failed.error.state_id == "op.main.s0"
        assert "hunter2" not in lab.stored_text()


@pytest.mark.parametrize("event", [("mine", {"password": "hunter2hunter2"}), ("AKIAABCDEFGHIJKLMNOP", None)])
def test_s49_secret_in_an_event_fails_the_run_and_is_not_stored(lab: Lab, event: tuple[str, Any]):
    """Name and payload are looked at."""
    lab.put("op", lambda s: s.rec.emit(*event))
    result = lab.process().start("op")
    assert result.phase == "Failed"
    assert lab.row(result.run_id).error_code == "secrets_detected"
    assert not any(isinstance(found, DomainEvent) for found in lab.events(result.run_id))
    assert "hunter2" not in lab.stored_text()


def test_s50_secret_in_an_answer_is_recorded_as_an_error_and_never_stored(lab: Lab):
    """No fact_recorded, no artifact with it; the refusal is what recovery delivers again."""
    lab.world.scripts["k"] = [{"password": "hunter2hunter2"}]
    lab.put("op", lambda s: s.ask("k"))
    result = lab.process().start("op")
    assert result.phase == "Failed"
    assert "fact_recorded" not in lab.names(result.run_id)
    assert lab.domain(result.run_id, "fact_failed")[0]["error"]["code"] == "secrets_detected"
    assert "hunter2" not in lab.stored_text()


def test_s53_fan_out_join_is_refused_at_start(lab: Lab):
    """unsupported_execution_mode, nothing stored."""
    lab.put("op", lambda s: None)
    with pytest.raises(InvalidPlanError) as caught:
        lab.process().start("op", config=RunConfig(execution_mode=FanOutJoin(max_concurrency=2)))
    assert caught.value.code == "unsupported_execution_mode"
    assert lab.all_runs() == []


def test_s58_replay_mode_answers_from_a_seeded_fact(lab: Lab):
    """Completed without any transport."""
    lab.put("op", lambda s: s.write("r", s.ask("k", 1)))
    process = lab.process(transports=TransportRegistry([Sentinel()]))
    run_id = process.create("op", config=REPLAY)
    body = canonical_json_bytes({"seeded": True})
    payload = Artifact(run_id, artifact_id(body), "FactPayload", body)
    meta = {"request_digest": request_digest("world", 1)}
    fact = DomainEvent(name="fact_recorded", payload={"key": "k", "payload_id": payload.id, "meta": meta})
    step = RunStep(run_id, 1, None, (encode_event(fact),))
    lab.store.commit([Commit(UUID(int=1), (step,), (payload,))])
    assert process.resume(run_id).phase == "Completed"
    assert lab.final(run_id) == {"op.main.r": {"seeded": True}}


def test_s60_s64_broken_records_are_refused_before_anything_is_written(lab: Lab):
    """Manifest bytes, manifest shape and a malformed fact."""
    lab.put("op", lambda s: s.ask("k"))
    process = lab.process()
    run_id = process.create("op")
    manifest_id = lab.row(run_id).manifest_id
    kept = lab.store._artifacts[run_id][manifest_id]
    lab.store._artifacts[run_id][manifest_id] = Artifact(run_id, manifest_id, kept.kind, kept.body + b" ")
    with pytest.raises(CorruptionError):
        process.resume(run_id)
    lab.store._artifacts[run_id][manifest_id] = kept
    odd = DomainEvent(name="fact_recorded", payload={"key": "k"})
    lab.store.commit([Commit(UUID(int=1), (RunStep(run_id, 1, None, (encode_event(odd),)),))])
    with pytest.raises(ChildRunError) as caught:
        process.resume(run_id)
    assert caught.value.code == "fact_recorded_malformed"
    assert "StateEntered" not in lab.names(run_id)


def test_a_run_id_is_taken_once(lab: Lab):
    """run_already_exists."""
    lab.put("op", lambda s: None)
    process = lab.process()
    run_id = process.create("op")
    with pytest.raises(ChildRunError) as caught:
        process.create("op", run_id=run_id)
    assert caught.value.code == "run_already_exists"


def test_handlers_cannot_write_the_engines_events(lab: Lab):
    """The names of facts, linkage and waits are taken."""

    def handler(s: Stage) -> None:
        for name in ("fact_recorded", "child_run_spawned", "wait_opened", "host_try"):
            with pytest.raises(OtherRunError):
                s.rec.emit(name, {})

    lab.put("op", handler)
    assert lab.process().start("op").phase == "Completed"


# -- 12.8 acceptance: the proof operation


def proof(lab: Lab) -> None:
    """Read a fact, apply an idempotent side effect, write the output; a parent spawns two and joins."""

    def effect(s: Stage) -> None:
        s.rec.emit("idempotency", {"key": f"effect {s.input}"})
        s.ask(f"effect {s.input}", {"token": s.io.idempotency_token(f"effect {s.input}")})

    def spawn(s: Stage) -> None:
        s.write(
            "child_refs", [s.spawn("proof", f"child_parent:spawn|op:top.main|i:{index}", index) for index in range(2)]
        )

    def join(s: Stage) -> None:
        refs = s.read("child_refs")
        ends = [s.join(ref, f"child_parent:await|op:top.main|i:{index}") for index, ref in enumerate(refs)]
        ends.sort(key=lambda end: UUID(end["child_run_id"]).bytes)
        s.write("joined", [end["final_snapshot"] for end in ends])

    lab.put(
        "proof",
        lambda s: s.write("read", s.ask(f"read {s.input}")),
        (effect, StateMeta(side_effects="ApplySideEffect", idempotency="effect")),
        lambda s: s.write("output", [s.input, s.read("read")]),
    )
    lab.put("top", spawn, join)


def linkage(lab: Lab, run_id: UUID) -> tuple[int, int]:
    return len(lab.domain(run_id, "child_run_spawned")), len(lab.domain(run_id, "child_run_completed"))


def each_once(lab: Lab) -> None:
    assert set(lab.world.counts.values()) == {1}


def test_s65_replay_reproduces_the_final_snapshot(lab: Lab):
    """Handlers run again over the record end with the same id; each transport was called once."""
    proof(lab)
    process = lab.process()
    result = process.start("proof", 7)
    assert process.engine.replay(result.run_id) == result.final_snapshot_id
    assert lab.world.counts == {"read 7": 1, "effect 7": 1}


def test_s66_crash_after_the_side_effect(lab: Lab):
    """Attempts 0 and 1 of the effect, called once, same final snapshot as a clean run."""
    proof(lab)
    clean = lab.process().start("proof", 7)
    lab.world.calls.clear()
    process = lab.process()
    run_id = process.create("proof", 7)
    process.stop_after_handler(run_id)
    process.resume(run_id)  # stops after the read
    process.stop_after_handler(run_id)
    process.resume(run_id)
    assert lab.attempts(run_id, "proof.main.s0") == [0, 1]
    process.resume(run_id)
    assert lab.row(run_id).final_snapshot_id == clean.final_snapshot_id
    assert lab.world.counts == {"read 7": 1, "effect 7": 1}


def test_s67_a_tree_and_its_children_replay(lab: Lab):
    """Two children, 2 + 2 linkage events, manifests and snapshots as linked, each call once."""
    proof(lab)
    process = lab.process()
    result = process.start("top")
    assert result.phase == "Completed"
    assert linkage(lab, result.run_id) == (2, 2)
    assert process.engine.replay(result.run_id) == result.final_snapshot_id
    spawned = {payload["child_run_id"]: payload for payload in lab.domain(result.run_id, "child_run_spawned")}
    ended = {payload["child_run_id"]: payload for payload in lab.domain(result.run_id, "child_run_completed")}
    for row in lab.children(result.run_id):
        assert row.manifest_id == spawned[str(row.run_id)]["child_manifest_id"]
        assert process.engine.replay(row.run_id) == row.final_snapshot_id
        assert ended[str(row.run_id)]["final_snapshot_id"] == row.final_snapshot_id
    each_once(lab)


def test_s68_parent_stopped_while_its_children_are_blocked(lab: Lab):
    """The children exist durably when spawn returned; a resume in the background waits for them; each ran once."""
    proof(lab)
    gate, blocked = threading.Event(), threading.Semaphore(0)

    def hold(request: Any) -> str:
        blocked.release()
        wait_for(gate)
        return "done"

    for index in range(2):
        lab.world.scripts[f"effect {index}"] = [hold]
    process = lab.process()
    run_id = process.create("top")
    process.stop_after_handler(run_id)
    assert process.resume(run_id).phase == "Running"
    assert linkage(lab, run_id) == (2, 0)
    assert [row.status for row in lab.children(run_id) if row.is_terminal] == []
    for row in lab.children(run_id):
        assert lab.names(row.run_id)[0] == "RunStarted"
    assert all(blocked.acquire(timeout=20) for _ in range(2))
    run = Background(lambda: process.resume(run_id))
    assert not run.is_done
    gate.set()
    assert run.join().phase == "Completed"
    assert linkage(lab, run_id) == (2, 2)
    each_once(lab)


def test_s69_parent_stopped_after_the_join(lab: Lab):
    """Resume completes, linkage stays 2 + 2, no call is repeated, replay agrees."""
    proof(lab)
    top = lab.shelf.ops["top", "1"]
    join = top.states[1]
    process = lab.process()
    stopped: list[int] = []

    def join_and_stop(s: Stage) -> None:
        join[1](s)
        if not stopped:
            stopped.append(1)
            process.stop_after_handler(run_id)

    top.states[1] = (join[0], join_and_stop, join[2])
    run_id = process.create("top")
    assert process.resume(run_id).phase == "Running"
    assert linkage(lab, run_id) == (2, 2)
    assert process.resume(run_id).phase == "Completed"
    assert linkage(lab, run_id) == (2, 2)
    each_once(lab)
    assert process.engine.replay(run_id) == lab.row(run_id).final_snapshot_id


# -- 12.9 what became of the original's front end


def test_s71_a_side_effect_needs_an_idempotency_key():
    """missing_idempotency_key, when the state is declared."""
    op = Operation("effects", version="1")
    with pytest.raises(InvalidPlanError) as caught:

        @op.state(side_effects="ApplySideEffect")
        def send(io: Any) -> None:
            """Send."""

    assert caught.value.code == "missing_idempotency_key"


@pytest.mark.parametrize("where", ["input", "op_config"])
def test_s73_s74_secret_in_input_or_config_stops_the_start(lab: Lab, where: str):
    """secrets_detected, and nothing is stored."""
    lab.put("op", lambda s: None)
    given: dict[str, Any] = {where: {"password": "hunter2hunter2"}}
    wanted = build_manifest("op", "1", run_config=RunConfig(), **given)
    with pytest.raises(InvalidPlanError) as caught:
        lab.process().engine.start(wanted)
    assert caught.value.code == "secrets_detected"
    assert lab.all_runs() == []


def test_s75_states_of_one_name_in_other_operations_do_not_collide(lab: Lab):
    """Keys begin with their operation's name, also where a child's snapshot is read by its parent."""
    lab.put("child", lambda s: s.write("x", "child"))

    def parent(s: Stage) -> None:
        s.write("x", "parent")
        s.write("child", s.join(s.spawn("child", "c"), "e")["final_snapshot"])

    lab.put("op", parent)
    run_id = lab.process().start("op").run_id
    assert lab.final(run_id) == {"op.main.x": "parent", "op.main.child": {"child.main.x": "child"}}


def test_s77_s78_s79_output_or_cause_of_a_single_operation(lab: Lab):
    """A compact await tells the output, null where the last state wrote none, or the failed state's own code."""

    def fails(s: Stage) -> None:
        raise StateError("no stock", code="no_stock")

    lab.put("good", lambda s: s.ctx.write(s.state_id, [1, 2]))
    lab.put("mute", lambda s: None)
    lab.put("bad", fails)

    def parent(s: Stage) -> None:
        ends = {op: s.join(s.spawn(op, op), f"{op} end", compact=True) for op in ("good", "mute", "bad")}
        s.write("ends", {op: [end["output"], (end.get("cause") or {}).get("code")] for op, end in ends.items()})

    lab.put("op", parent)
    run_id = lab.process().start("op").run_id
    assert lab.final(run_id) == {
        "op.main.ends": {"good": [[1, 2], None], "mute": [None, None], "bad": [None, "no_stock"]}
    }
