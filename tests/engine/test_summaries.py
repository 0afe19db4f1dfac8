"""Going on from a summary means the same as reading everything, over random chains of generations; and refuses no less."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from random import Random
from typing import Any
from uuid import UUID

import pytest

from airflow_childrun.canonical import artifact_id
from airflow_childrun.engine.facts import KnownKeys
from airflow_childrun.engine.history import RunHistory
from airflow_childrun.engine.ports import RunIdentity
from airflow_childrun.engine.prepare import Lineage, create_step
from airflow_childrun.engine.summary import summarised
from airflow_childrun.errors import CorruptionError, ErrorInfo
from airflow_childrun.ids import child_run_id
from airflow_childrun.model.events import (
    CHILD_RUN_COMPLETED,
    CHILD_RUN_SPAWNED,
    FACT_FAILED,
    FACT_RECORDED,
    HOST_TRY,
    INBOX_CONSUMED,
    WAIT_OPENED,
    DomainEvent,
    Event,
    Failure,
    Parent,
    RunCompleted,
    RunStarted,
    StateCompleted,
    StateEntered,
    StateFailed,
)
from airflow_childrun.runtime import earlier, histories
from airflow_childrun.runtime.generations import continuation
from airflow_childrun.runtime.histories import Shortcut, load_history, load_run
from airflow_childrun.runtime.summaries import verify_summaries
from airflow_childrun.store.api import Artifact, Commit, Committed, RunFilter, RunRow, RunStep
from airflow_childrun.store.codec import encode_event
from airflow_childrun.store.memory import MemoryStore
from airflow_childrun.store.projection import moves_of
from airflow_childrun.testing.clock import ManualClock

KEYS = [f"k{number}" for number in range(12)]
SNAPSHOT = artifact_id(b"{}")


@dataclass
class Walk:
    """A chain of runs that a seed writes, event by event, as the engine might."""

    seed: int
    after: int = 1

    def __post_init__(self) -> None:
        self.random = Random(self.seed)
        self.store = MemoryStore(ManualClock())
        root = self.root = self._id()
        started = RunStarted(op_id="op", manifest_id=SNAPSHOT, initial_snapshot_id=SNAPSHOT, engine=1)
        self.commit(create_step(started, Lineage(root, root)))
        self.run_id = child_run_id(root, "c")
        parent = Parent(run_id=str(root), fact_key="c", slot_owner_id=str(root))
        started = started.model_copy(update={"parent": parent, "root_run_id": str(root), "depth": 1})
        self.commit(create_step(started, Lineage(self.run_id, root, 1, self.run_id, 1, root)))
        self.states = 0

    @property
    def row(self) -> RunRow:
        row = self.store.find_run(self.run_id)
        assert row is not None
        return row

    def whole(self) -> RunHistory:
        return load_history(self.store, self.run_id)

    def short(self) -> RunHistory:
        return load_run(self.store, self.row, Shortcut(self.after, lambda work: work()))

    def commit(self, step: RunStep, *artifacts: Artifact) -> None:
        answer = self.store.commit([Commit(self._id(), (step,), artifacts)])[0]
        assert isinstance(answer, Committed), answer

    def write(self, history: RunHistory, event: Event) -> None:
        """Append to the stream and to the history that the writer holds."""
        kinds: list[tuple[str, bytes]] = []
        if isinstance(event, StateCompleted):
            event, kinds = summarised(history, event, self.after)
        artifacts = [Artifact(self.root, artifact_id(body), kind, body) for kind, body in kinds]
        head = history.head
        history.apply(head + 1, event)
        self.commit(RunStep(self.run_id, head, None, (encode_event(event),), moves_of([event])), *artifacts)

    def go(self, events: int) -> None:
        """Write some events; now and then by a process that reads what is there first, or in a new generation."""
        history = self.short()
        for _ in range(events):
            if self.random.random() < 0.1:
                history = self.short()
            if history.open_attempt is None and self.random.random() < 0.15:
                self.write(history, RunCompleted(status="Failed", final_snapshot_id=history.checkpoint_id))
                opener = RunIdentity(self.root, self.root, self.root, 0)
                self.run_id, step = continuation(self.store, self.row, opener)
                self.commit(step)
                history = self.short()
            else:
                self.write(history, self._next(history))

    def _next(self, history: RunHistory) -> Event:
        random, attempt = self.random, history.open_attempt
        if attempt is None:
            failed = history.last_entered
            if failed is None or failed in history.completed:
                self.states += 1
                failed = f"op.main.s{self.states}"
            number = history.last_attempt.get(failed, -1) + 1
            return StateEntered(state_id=failed, attempt=number, base_snapshot_id=history.checkpoint_id)
        chance = random.random()
        if chance < 0.15:
            return StateCompleted(state_id=attempt.state_id, context_snapshot_id=artifact_id(random.randbytes(2)))
        if chance < 0.3:
            info = ErrorInfo("x", retryable=True, details={"n": random.random()}).to_json()
            recovered: Any = random.choice([None, None, "lapsed", "released"])
            return StateFailed(state_id=attempt.state_id, error=Failure(state_id=None, info=info), recovered=recovered)
        return self._domain(history)

    def _domain(self, history: RunHistory) -> Event:
        random = self.random
        kind = random.choice([FACT_RECORDED] * 4 + [FACT_FAILED, WAIT_OPENED, CHILD_RUN_SPAWNED, HOST_TRY, "other"])
        kind = random.choice([kind] * 8 + [CHILD_RUN_COMPLETED, INBOX_CONSUMED])
        key = random.choice(KEYS)
        number = random.randrange(9)
        payloads: dict[str, Any] = {
            WAIT_OPENED: {"key": key, "try": number, "until": number},
            CHILD_RUN_SPAWNED: {"child_run_id": str(self._id()), "generation": 1, "child_manifest_id": SNAPSHOT},
            CHILD_RUN_COMPLETED: {"fact_key": key},
            HOST_TRY: {"try": number, "share": number / 7},
            INBOX_CONSUMED: {"n": history.inbox_consumed + 1, "kind": "cancel", "reason": "r"},
        }
        if kind not in {FACT_RECORDED, FACT_FAILED}:
            return DomainEvent(name=kind, payload=payloads.get(kind, number))
        facts = history.facts
        lives = facts.find(key) is not None
        supersedes = facts.next_supersession(key) if lives else facts.supersessions(key)
        meta: dict[str, Any] = {"request_digest": SNAPSHOT, "supersedes": supersedes}
        if kind == FACT_FAILED:
            error = {"kind": "Transport", **ErrorInfo("e", "Rpc", retryable=True, message="m").to_json()}
            return DomainEvent(name=kind, payload={"key": key, "error": error, "meta": meta})
        if random.random() < 0.3:
            meta["status"] = random.choice(["Failed", "Completed"])
        return DomainEvent(
            name=kind, payload={"key": key, "payload_id": artifact_id(random.randbytes(1)), "meta": meta}
        )

    def _id(self) -> UUID:
        return UUID(bytes=self.random.randbytes(16), version=4)


def told(history: RunHistory) -> dict[str, Any]:
    """Return everything that a history answers."""
    found = {field.name: getattr(history, field.name) for field in fields(history) if field.name != "facts"}
    facts = history.facts
    for key in [*KEYS, "never"]:
        fact = facts.find(key)
        found[key] = (
            fact,
            facts.has_forgotten(key),
            facts.supersessions(key),
            facts.next_supersession(key),
            fact is not None and facts.may_supersede(fact),
        )
    return found


@pytest.mark.parametrize("seed", range(48))
def test_a_summary_and_the_rest_mean_what_all_events_mean(seed: int):
    """At every length of a random chain, with writers that went on from summaries themselves."""
    walk = Walk(seed, after=seed % 3 * 4 + 1)
    for _ in range(12):
        walk.go(walk.random.randrange(1, 12))
        assert told(walk.short()) == told(walk.whole())
    for row in walk.store.find_runs(RunFilter(root_run_id=walk.root)).rows:
        assert verify_summaries(walk.store, row) == []


def test_summaries_are_written_and_used(monkeypatch: pytest.MonkeyPatch):
    """What the test above compares is read from summaries, and facts are looked up behind them."""
    found: list[Any] = []
    looked_up: list[Any] = []

    def noted(into: list[Any], function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            into.append(function(*given))
            return into[-1]

        return call

    monkeypatch.setattr(histories, "from_summary", noted(found, earlier.from_summary))
    monkeypatch.setattr(earlier.StoredFacts, "under", noted(looked_up, earlier.StoredFacts.under))
    for seed in range(20):
        walk = Walk(seed)
        walk.go(60)
        told(walk.short())
    assert sum(going is not None for going in found) > 50
    assert sum(bool(facts) for facts in looked_up) > 50


def settled(seed: int = 5) -> tuple[Walk, str]:
    """Return a chain with a summary, and the key of a fact that only the store knows."""
    walk = Walk(seed)
    while True:
        walk.go(10)
        history = walk.short()
        for key in KEYS:
            if history.facts.earlier is not None and key not in history.facts.all_keys() and history.facts.find(key):
                return walk, key


def test_a_summary_has_everything_that_a_history_has():
    """Whoever adds something to the fold has to add it here; the rest follows from where a summary stands."""
    walk, _ = settled()
    summary = walk.short().summary
    assert summary
    body = json.loads(walk.store.get_artifacts(walk.root, [summary.id])[summary.id])
    follows = {"finished", "has_v1", "summary"}
    assert {field.name for field in fields(RunHistory)} - follows <= body.keys()


def test_a_fact_that_the_index_lost_is_found_all_the_same():
    """The index is a projection: what the summary knows and the index does not is read from the events."""
    walk, key = settled()
    before = walk.whole().facts.find(key)
    for entries in walk.store._facts.values():
        entries.clear()
    assert before is not None
    assert walk.short().facts.find(key) == before


def test_an_entry_of_the_index_that_leads_elsewhere_is_not_believed():
    walk, key = settled()
    before = walk.whole().facts.find(key)
    for entries in walk.store._facts.values():
        digests = [entry.key_digest for entry in entries]
        swapped = zip(entries, digests[1:] + digests[:1], strict=True)
        entries[:] = [
            type(entry)(entry.run_id, entry.seq, digest, entry.payload_id, None, entry.failed)
            for entry, digest in swapped
        ]
    assert walk.short().facts.find(key) == before


@pytest.mark.parametrize("where", ["summary", "before", "tail", "first", "looked up"])
def test_what_is_read_is_what_was_written(where: str):
    """The event of the summary, the one before, all after, the first one, and each fact that is looked up are checked."""
    walk, key = settled()
    history = walk.short()
    assert history.summary
    events = walk.store._events[walk.run_id]
    fact = history.facts.find(key)
    assert fact is not None
    seqs = {"summary": history.summary.seq, "before": history.summary.seq - 1, "tail": history.head, "first": 1}
    if where == "looked up":
        events = list(walk.store._events.values())[1 + fact.at[0]]  # the first one is their parent's
    at = seqs.get(where, fact.at[1]) - 1
    old = events[at]
    changed = {"hash": SNAPSHOT} if where == "before" else {"recorded_at": old.recorded_at + 1}
    events[at] = old._replace(**changed)
    with pytest.raises(CorruptionError):
        walk.short().facts.find(key)


def test_a_summary_that_tells_something_else_is_found_by_verify(monkeypatch: pytest.MonkeyPatch):
    """Resuming trusts a summary that is bound to its event; that it tells the truth is what verify proves."""
    walk, _ = settled()
    row = walk.row
    assert verify_summaries(walk.store, row) == []
    body_of = walk.store.get_artifacts

    def lying(root: UUID, ids: Any) -> dict[str, bytes]:
        return {id_: body.replace(b'"recoveries":0', b'"recoveries":4') for id_, body in body_of(root, ids).items()}

    monkeypatch.setattr(walk.store, "get_artifacts", lying)
    assert {found.code for found in verify_summaries(walk.store, row)} == {"summary_mismatch"}


@pytest.mark.parametrize("seed", range(20))
def test_lists_of_keys_forget_none(seed: int):
    """A key that was added is known for ever, one that was not is not, and the lists stay few."""
    random, keys, known = Random(seed), set[str](), KnownKeys()
    for _ in range(40):
        more = {str(random.random()) for _ in range(random.randrange(1, 60))}
        keys |= more
        known = known.plus(more)
        assert all(map(known.may_have, keys))
    assert not any(known.may_have(str(random.random())) for _ in range(1000))
    assert len(known.lists) <= 12
