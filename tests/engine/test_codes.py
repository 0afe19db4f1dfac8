"""Codes that only damage, or an author's mistake beside the usual ones, can bring about: each is reached, and says what it means."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest

from airflow_childrun.canonical import artifact_id
from airflow_childrun.engine.decide import decide
from airflow_childrun.engine.history import fold
from airflow_childrun.engine.prepare import Lineage, create_step
from airflow_childrun.errors import ChildRunError, OperationError, OtherIoError, OtherRunError
from airflow_childrun.model.config import RunConfig
from airflow_childrun.model.events import DomainEvent, RunStarted, StateCompleted, StateEntered
from airflow_childrun.store.api import Artifact, Commit, Committed, RunStep
from airflow_childrun.store.codec import encode_event
from airflow_childrun.transports.registry import FunctionTransport, TransportRegistry
from tests.engine.kit import Lab, Op, Process, Stage, manifest


def refused(lab: Lab, process: Process, run_id: UUID) -> str:
    """Return the code with which a run is refused; nothing was written."""
    before = lab.names(run_id)
    with pytest.raises(ChildRunError) as caught:
        process.resume(run_id)
    assert lab.names(run_id) == before
    return caught.value.code


def written_with(lab: Lab, process: Process, **changes: Any) -> UUID:
    """Write a run whose first event differs from what the engine writes, its artifacts beside it."""
    model = process.create("op")
    run_id = uuid4()
    started = lab.started(model).model_copy(update={"root_run_id": str(run_id), **changes})
    artifacts = tuple(Artifact(run_id, one.id, one.kind, one.body) for one in lab.store._artifacts[model].values())
    commit = Commit(uuid4(), (create_step(started, Lineage(run_id, run_id)),), artifacts)
    assert isinstance(lab.store.commit([commit])[0], Committed)
    return run_id


def test_a_run_without_its_manifest_is_refused(lab: Lab) -> None:
    lab.put("op", lambda s: None)
    process = lab.process()
    run_id = process.create("op")
    del lab.store._artifacts[run_id][lab.row(run_id).manifest_id]
    assert refused(lab, process, run_id) == "manifest_not_found"


def test_what_is_no_manifest_is_refused(lab: Lab) -> None:
    lab.put("op", lambda s: None)
    process = lab.process()
    run_id = written_with(lab, process, manifest_id=artifact_id(b"{}"))
    assert refused(lab, process, run_id) == "manifest_deserialize_failed"


def test_a_manifest_of_another_operation_is_refused(lab: Lab) -> None:
    lab.put("op", lambda s: None)
    process = lab.process()
    assert refused(lab, process, written_with(lab, process, op_id="other")) == "run_started_op_id_mismatch"


def test_a_resolver_that_answers_with_another_operation_is_refused(lab: Lab) -> None:
    """At the start, and after one that was right at the start."""
    lab.put("op", lambda s: None)
    process = lab.process()
    run_id = process.create("op")
    lab.shelf.ops["op", "1"] = Op("other", lab.shelf.ops["op", "1"].states)
    assert refused(lab, process, run_id) == "plan_op_id_mismatch"
    with pytest.raises(ChildRunError) as caught:
        process.create("op")
    assert caught.value.code == "manifest_op_id_mismatch"
    assert len(lab.all_runs()) == 1


def test_a_plan_without_a_state_of_a_v1_history_is_refused(lab: Lab) -> None:
    """V1 recorded no plan to compare: the states of the history are all that is known."""
    op = lab.put("op", lambda s: None)
    history = fold(
        UUID(int=1),
        [
            (1, RunStarted(op_id="op", manifest_id="0" * 64, initial_snapshot_id="1" * 64)),
            (2, StateEntered(state_id="op.main.gone", attempt=0, base_snapshot_id="1" * 64)),
            (3, StateCompleted(state_id="op.main.gone", context_snapshot_id="2" * 64)),
        ],
    )
    with pytest.raises(ChildRunError) as caught:
        decide(history, op.plan(manifest("op")), RunConfig(), 0)
    assert caught.value.code == "recovery_state_not_in_plan"
    assert caught.value.info.details == {"states": ["op.main.gone"]}


def test_a_recorded_answer_that_is_no_json_is_told(lab: Lab) -> None:
    """Only V1 records bytes under a key that a call may name."""
    seen: list[str] = []

    def handler(stage: Stage) -> None:
        with pytest.raises(OtherIoError) as caught:
            stage.ask("k")
        seen.append(caught.value.code)

    lab.put("op", handler)
    process = lab.process()
    run_id = process.create("op")
    body = Artifact(run_id, artifact_id(b"\xff\xfe"), "FactPayload", b"\xff\xfe")
    fact = DomainEvent(name="fact_recorded", payload={"key": "k", "payload_id": body.id, "meta": {}})
    lab.store.commit([Commit(uuid4(), (RunStep(run_id, 1, None, (encode_event(fact),)),), (body,))])
    assert process.resume(run_id).phase == "Completed"
    assert seen == ["fact_payload_decode_failed"]
    assert lab.world.calls == []


@pytest.mark.parametrize(("name", "payload"), [("seen", {"x": float("nan")}), ("seen", {1: 2}), ("fact_recorded", {})])
def test_an_event_that_cannot_be_recorded_is_refused(lab: Lab, name: str, payload: Any) -> None:
    def handler(stage: Stage) -> None:
        with pytest.raises(OtherRunError) as caught:
            stage.rec.emit(name, payload)
        assert caught.value.code == "domain_event_invalid"
        stage.write("told", True)

    lab.put("op", handler)
    run_id = lab.process().start("op").run_id
    assert lab.final(run_id) == {"op.main.told": True}
    assert lab.domain(run_id, name) == []


def test_an_input_that_is_not_canonical_starts_nothing(lab: Lab) -> None:
    lab.put("op", lambda s: None)
    with pytest.raises(ChildRunError) as caught:
        lab.process().create("op", {"x": float("inf")})
    assert caught.value.code == "manifest_not_canonical"
    assert lab.all_runs() == []


@pytest.mark.parametrize("group", ["", "  "])
def test_a_transport_without_a_group_is_refused(group: str) -> None:
    with pytest.raises(OperationError) as caught:
        TransportRegistry([FunctionTransport(group, lambda call, env: None)])
    assert caught.value.code == "transport_group_empty"
