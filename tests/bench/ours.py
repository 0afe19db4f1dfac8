"""Our sides of the comparisons; each prepares, warms up and returns what is measured."""

from __future__ import annotations

import hashlib
from uuid import UUID, uuid4

from airflow_childrun.runtime.engine import ExecutionEngine
from airflow_childrun.store.api import Artifact, Commit, Committed, FactRow, Moves, NewEvent, NewRun, RunStep, Store
from tests.bench.operations import open_engine, open_store, run
from tests.bench.work import Measured


def steps(url: str, count: int) -> Measured:
    """Measure one run of ``count`` steps."""
    engine = open_engine(url)
    run(engine, "many_steps", min(count, 50))
    return lambda: _measured(engine, "many_steps", count)


def children(url: str, count: int) -> Measured:
    """Measure one run that spawns, drives and awaits ``count`` children."""
    engine = open_engine(url)
    run(engine, "fan_out", min(count, 50))
    return lambda: _measured(engine, "fan_out", count)


def _measured(engine: ExecutionEngine, op: str, count: int) -> None:
    run(engine, op, count)


def commits(url: str, count: int) -> Measured:
    """Measure ``count`` commits, one after the other, of one fact each, into one new run."""
    store = open_store(url)

    def measured() -> None:
        run_id, head, epoch = new_run(store)
        for index in range(count):
            answer = store.commit([fact_commit(run_id, head, epoch, index)])[0]
            if not isinstance(answer, Committed):
                raise TypeError(answer)
            head = answer.heads[run_id].seq

    measured()
    return measured


def new_run(store: Store) -> tuple[UUID, int, int]:
    """Create a run that has nothing but its first event; return id, head and epoch."""
    run_id, zero = uuid4(), "0" * 64
    new = NewRun("operation", None, run_id, 0, run_id, 1, "bench", "1", zero, zero)
    step = RunStep(run_id, 0, None, (NewEvent(b'{"Kernel":{"RunStarted":{}}}'),), create=new)
    head = _committed(store, Commit(uuid4(), (step,))).heads[run_id]
    return run_id, head.seq, head.epoch


def fact_commit(run_id: UUID, head: int, epoch: int, index: int) -> Commit:
    """Return a commit of one fact as a step of an operation writes it."""
    answer = str(index).encode()
    payload_id = hashlib.sha256(answer).hexdigest()
    key = f"main/number#{index}"
    digest = hashlib.sha256(key.encode()).hexdigest()
    body = (
        f'{{"Domain":{{"name":"fact_recorded","payload":{{"key":"{key}","meta":{{"request_digest":"{digest}"}},'
        f'"payload_id":"{payload_id}"}},"payload_ref":null}}}}'
    ).encode()
    event = NewEvent(body, FactRow(digest, payload_id, digest, failed=False))
    artifacts = (Artifact(run_id, payload_id, "FactPayload", answer),)
    return Commit(uuid4(), (RunStep(run_id, head, epoch, (event,), Moves()),), artifacts)


def _committed(store: Store, commit: Commit) -> Committed:
    answer = store.commit([commit])[0]
    if not isinstance(answer, Committed):
        raise TypeError(answer)
    return answer
