"""Long histories, written at once: what took a run hours is there in seconds."""

from __future__ import annotations

import hashlib
from typing import Any
from uuid import UUID, uuid4

from airflow_childrun.authoring.operation import Operation
from airflow_childrun.canonical import artifact_id, canonical_json_bytes
from airflow_childrun.engine.summary import summarised
from airflow_childrun.model.config import RunConfig
from airflow_childrun.model.events import FACT_RECORDED, DomainEvent, Event, StateCompleted, StateEntered
from airflow_childrun.model.manifest import build_manifest
from airflow_childrun.runtime.engine import ExecutionEngine
from airflow_childrun.runtime.histories import load_history
from airflow_childrun.store.api import Artifact, Commit, Committed, RunStep, Store
from airflow_childrun.store.codec import encode_event
from airflow_childrun.store.projection import moves_of
from tests.bench.operations import number, open_engine
from tests.bench.work import Measured

CHUNK = 1000

two_states = Operation("two_states", version="1")


@two_states.state
def first(io: Any) -> int:
    """Be the state that recorded much, long ago."""
    return 0


@two_states.state
def second(io: Any, first: int) -> int:
    """Be the state that is resumed, and records something."""
    return first + int(io.step(number, 1))


def long_run(engine: ExecutionEngine, facts: int) -> UUID:
    """Write a run whose first state recorded so many facts and completed."""
    house = engine.house
    run_id = engine.create(build_manifest("two_states", "1", run_config=RunConfig()))
    row = house.find_run(run_id)
    if row is None:
        raise RuntimeError(f"{run_id} was not created")
    name, answer = "two_states.main.first", b"0"
    payload = Artifact(run_id, hashlib.sha256(answer).hexdigest(), "FactPayload", answer)
    body = canonical_json_bytes({name: 0})
    snapshot = Artifact(run_id, hashlib.sha256(body).hexdigest(), "ContextSnapshot", body)
    head = _append(
        house.store,
        run_id,
        row.head.seq,
        [StateEntered(state_id=name, attempt=0, base_snapshot_id=row.initial_snapshot_id)],
        payload,
        snapshot,
    )
    for start in range(0, facts, CHUNK):
        events = [_fact(index, payload.id) for index in range(start, min(start + CHUNK, facts))]
        head = _append(house.store, run_id, head, events)
    # The checkpoint as the runtime writes it.
    completed = StateCompleted(state_id=name, context_snapshot_id=snapshot.id)
    closing, kinds = summarised(load_history(house.store, run_id), completed, house.limits.summary_after)
    summary = [Artifact(run_id, artifact_id(body), kind, body) for kind, body in kinds]
    _append(house.store, run_id, head, [closing], *summary)
    return run_id


def _fact(index: int, payload_id: str) -> Event:
    digest = hashlib.sha256(str(index).encode()).hexdigest()
    payload = {"key": f"first/number#{index}", "payload_id": payload_id, "meta": {"request_digest": digest}}
    return DomainEvent(name=FACT_RECORDED, payload=payload)


def _append(store: Store, run_id: UUID, head: int, events: list[Event], *artifacts: Artifact) -> int:
    step = RunStep(run_id, head, None, tuple(map(encode_event, events)), moves_of(events))
    answer = store.commit([Commit(uuid4(), (step,), artifacts)])[0]
    if not isinstance(answer, Committed):
        raise TypeError(answer)
    return answer.heads[run_id].seq


def resume(url: str, facts: int) -> Measured:
    """Measure resuming at a checkpoint with so many facts behind it: read, enter the state, stop after its handler."""
    engine = open_engine(url)
    run_id = long_run(engine, facts)

    def measured() -> None:
        engine.house.failpoints.stop_after_handler = run_id
        phase = engine.resume(run_id).phase
        if phase != "Running":  # too many resumes at one checkpoint end a run
            raise RuntimeError(f"{run_id} is {phase}")

    measured()
    return measured


def fold(url: str, count: int) -> Measured:
    """Measure reading and folding a run's history of ``count`` events."""
    engine = open_engine(url)
    run_id = long_run(engine, count - 3)

    def measured() -> None:
        head = load_history(engine.house.store, run_id).head
        if head != count:
            raise RuntimeError(f"{run_id} has {head} events")

    measured()
    return measured
