"""Verification finds every change that is made behind the store's back, and nothing in a sound tree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from airflow_childrun.canonical import canonical_json_bytes
from airflow_childrun.ids import child_run_id, key_digest
from airflow_childrun.model.events import (
    DomainEvent,
    Event,
    Parent,
    RunCompleted,
    RunStarted,
    StateCompleted,
    StateEntered,
)
from airflow_childrun.store.api import Artifact, RunStep, TakeLease
from airflow_childrun.store.codec import encode_event
from airflow_childrun.store.memory import MemoryStore
from airflow_childrun.store.projection import moves_of
from airflow_childrun.store.verify import verify_run, verify_tree
from airflow_childrun.testing.clock import ManualClock
from airflow_childrun.testing.store_harness import artifact, must, new_id, new_run, submit

ROOT = new_id()
CHILD = child_run_id(ROOT, "spawn")


def _json(value: Any) -> Artifact:
    return artifact(ROOT, canonical_json_bytes(value))


EMPTY, PLAN, MANIFEST = _json({}), _json({"plan": 1}), _json({"op_id": "op"})


def _started(**fields: Any) -> RunStarted:
    return RunStarted(
        op_id="op",
        op_version="1",
        manifest_id=MANIFEST.id,
        initial_snapshot_id=EMPTY.id,
        plan_id=PLAN.id,
        engine=1,
        root_run_id=str(ROOT),
        **fields,
    )


class Tree:
    """A parent that awaited its child, both ended."""

    def __init__(self) -> None:
        self.store = MemoryStore(ManualClock())
        fields: dict[str, Any] = {"manifest_id": MANIFEST.id, "initial_snapshot_id": EMPTY.id, "plan_id": PLAN.id}
        self.write([_started()], artifacts=(EMPTY, PLAN, MANIFEST), create=new_run(ROOT, **fields))
        self.write([StateEntered(state_id="op.main.a", attempt=0, base_snapshot_id=EMPTY.id)])
        born = _started(parent=Parent(run_id=str(ROOT), fact_key="spawn", slot_owner_id=str(ROOT)), depth=1)
        self.write([born], run_id=CHILD, create=new_run(CHILD, parent=ROOT, **fields))
        end = self.write([RunCompleted(status="Completed", final_snapshot_id=EMPTY.id)], run_id=CHILD)
        self.answer = _json({"child_run_id": str(CHILD), "status": "Completed"})
        meta = {"head_seq": end.seq, "head_hash": end.hash, "request_digest": "d" * 64}
        fact = DomainEvent(name="fact_recorded", payload={"key": "await", "payload_id": self.answer.id, "meta": meta})
        self.write([fact], artifacts=(self.answer,))
        self.write(
            [
                StateCompleted(state_id="op.main.a", context_snapshot_id=EMPTY.id),
                RunCompleted(status="Completed", final_snapshot_id=EMPTY.id),
            ]
        )

    def write(self, events: list[Event], *, run_id: Any = ROOT, artifacts: Any = (), create: Any = None) -> Any:
        row = self.store.find_run(run_id)
        head = row.head.seq if row else 0
        lease = TakeLease(None) if create is None else None
        step = RunStep(run_id, head, None, tuple(map(encode_event, events)), moves_of(events), create, lease)
        return must(submit(self.store, step, artifacts=artifacts)).heads[run_id]

    def codes(self) -> list[tuple[str, int | None]]:
        return [(finding.code, finding.seq) for finding in verify_tree(self.store, ROOT)]


def test_a_sound_tree_has_no_findings() -> None:
    """Parent and child, facts, artifacts, rows and the certified end of the child all fit."""
    tree = Tree()
    assert verify_tree(tree.store, ROOT) == []
    assert verify_run(tree.store, CHILD) == []


def _change_event(tree: Tree, seq: int, **fields: Any) -> None:
    events = tree.store._events[ROOT]
    events[seq - 1] = events[seq - 1]._replace(**fields)


def _drop_event(tree: Tree) -> None:
    del tree.store._events[ROOT][2]


def _drop_last_event(tree: Tree) -> None:
    del tree.store._events[ROOT][-1]


def _drop_artifact(tree: Tree) -> None:
    del tree.store._artifacts[ROOT][PLAN.id]


def _change_artifacts(tree: Tree) -> None:
    stored = tree.store._artifacts[ROOT]
    stored[PLAN.id] = stored[PLAN.id]._replace(body=b"{}x")


def _drop_facts(tree: Tree) -> None:
    tree.store._facts.clear()


def _change_row(tree: Tree) -> None:
    stored = tree.store._runs[ROOT]
    tree.store._runs[ROOT] = stored._replace(row=stored.row._replace(status="Failed", error_code="boom"))


def _let_the_child_go_on(tree: Tree) -> None:
    tree.write([DomainEvent(name="late")], run_id=CHILD)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda tree: _change_event(tree, 2, body=b'{"Domain":{"name":"x"}}'), {("hash_mismatch", 2)}),
        (lambda tree: _change_event(tree, 2, recorded_at=5), {("hash_mismatch", 2)}),
        (lambda tree: _change_event(tree, 3, body=b"[]"), {("event_malformed", 3), ("hash_mismatch", 3)}),
        (_drop_event, {("seq_gap", 3), ("hash_mismatch", 4), ("facts_mismatch", 3)}),
        (_drop_last_event, {("row_mismatch", None)}),
        (_drop_artifact, {("artifact_missing", 1)}),
        (_change_artifacts, {("artifact_corrupt", 1)}),
        (_drop_facts, {("facts_mismatch", 3)}),
        (_change_row, {("row_mismatch", None)}),
        (_let_the_child_go_on, {("child_mismatch", 3)}),
    ],
)
def test_every_damage_is_found(damage: Callable[[Tree], None], expected: set[tuple[str, int | None]]) -> None:
    """Each change is reported with its code and place, and with what to do about it."""
    tree = Tree()
    damage(tree)
    assert expected <= set(tree.codes())
    assert all(";" in finding.message for finding in verify_tree(tree.store, ROOT))


def test_a_forged_chain_is_found_out_by_the_parent() -> None:
    """Who rewrites a child's whole stream, hashes included, still contradicts what its parent recorded."""
    tree = Tree()
    forged = MemoryStore(ManualClock(5))
    forged._artifacts = tree.store._artifacts
    tree.store._events[CHILD] = []
    fields: dict[str, Any] = {"manifest_id": MANIFEST.id, "initial_snapshot_id": EMPTY.id, "plan_id": PLAN.id}
    events: list[Event] = [_started(), RunCompleted(status="Failed")]
    step = RunStep(CHILD, 0, None, tuple(map(encode_event, events)), create=new_run(CHILD, **fields))
    must(submit(forged, step))
    tree.store._events[CHILD] = forged._events[CHILD]
    assert ("child_mismatch", 3) in tree.codes()


def test_what_is_not_there_is_said() -> None:
    """An unknown run, an unknown tree."""
    store = MemoryStore(ManualClock())
    assert [finding.code for finding in verify_run(store, ROOT)] == ["run_missing"]
    assert [finding.code for finding in verify_tree(store, ROOT)] == ["run_missing"]


def test_fact_digests_are_those_of_their_keys() -> None:
    """The index of facts in these tests is the real one."""
    assert Tree().store.get_facts(ROOT)[0].key_digest == key_digest("await")
