"""What the original engine wrote is continued like our own: its failed tree heals downwards (rules 7 and 8)."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from airflow_childrun.canonical import decode_stored
from airflow_childrun.engine.ports import RunIdentity
from airflow_childrun.ids import child_run_id
from airflow_childrun.model.events import CHILD_RUN_COMPLETED, CHILD_RUN_SPAWNED, FACT_RECORDED
from airflow_childrun.runtime.generations import next_generation
from airflow_childrun.store.api import Commit, Committed
from airflow_childrun.store.verify import verify_tree
from airflow_childrun.testing.histories import import_history
from tests.engine.kit import Lab, Process, Stage

V1_DOMAIN = {FACT_RECORDED, CHILD_RUN_SPAWNED, CHILD_RUN_COMPLETED}
V1_STARTED = ("op_id", "manifest_id", "initial_snapshot_id")


def put_family(lab: Lab, broken: list[bool]) -> None:
    def child(stage: Stage) -> None:
        stage.ask("child")
        if broken[0]:
            raise ValueError("once")
        stage.write("done", 1)

    def parent(stage: Stage) -> None:
        stage.ask("parent")
        end = stage.join(stage.spawn("child", "c"), "e")
        if end["status"] != "Completed":
            raise ValueError("my child failed")
        stage.write("end", end["final_snapshot"])

    lab.put("child", child)
    lab.put("op", parent)


def as_v1(events: list[Any], *, without: str | None) -> list[dict[str, Any]]:
    """Return a stream as the original writes it: nothing that came later, and perhaps without a kind of event."""
    kept: list[Any] = []
    for event in events:
        domain = event.get("Domain")
        if domain is not None and (domain["name"] not in V1_DOMAIN or domain["name"] == without):
            continue
        if domain is not None and domain["name"] == FACT_RECORDED:
            kept.append({"Domain": {**domain, "payload": {**domain["payload"], "meta": {}}}})
        elif "RunStarted" in event.get("Kernel", {}):
            started = event["Kernel"]["RunStarted"]
            kept.append({"Kernel": {"RunStarted": {name: started[name] for name in V1_STARTED}}})
        else:
            kept.append(event)
    return [{"seq": seq, "event": event} for seq, event in enumerate(kept, 1)]


def imported(lab: Lab, *, without: str | None = None) -> UUID:
    """Let a failed tree be written, and import it elsewhere as if the original had written it; return its topmost run."""
    other = Lab()
    put_family(other, [True])
    top = other.process().start("op").run_id
    rows = sorted(other.all_runs(), key=lambda row: row.depth)
    assert [row.status for row in rows] == ["Failed", "Failed"]
    runs = []
    for row in rows:
        bodies = [decode_stored(event.body) for event in other.store.read_events(row.run_id)]
        runs.append({"run_id": str(row.run_id), "events": as_v1(bodies, without=without)})
    artifacts = [
        {"id": one.id, "kind": one.kind, "text": one.body.decode()} for one in other.store._artifacts[top].values()
    ]
    other.close()
    return import_history(lab.store, runs, artifacts)


def continued(lab: Lab, process: Process, run_id: UUID) -> UUID:
    opened = next_generation(process.house, lab.row(run_id), RunIdentity(run_id, run_id, run_id, 0))
    assert isinstance(lab.store.commit([Commit(process.house.entropy.new_id(), (opened.step,))])[0], Committed)
    return opened.run_id


@pytest.mark.parametrize("without", [None, CHILD_RUN_COMPLETED])
def test_a_failed_v1_tree_heals(lab: Lab, without: str | None) -> None:
    """The recorded end of the failed child is forgotten, linkage or not; every recorded call is kept."""
    top = imported(lab, without=without)
    put_family(lab, [False])
    process = lab.process()
    new = continued(lab, process, top)
    assert process.resume(new).phase == "Completed"
    child = child_run_id(top, "c", 2)
    assert lab.started(child).continues is not None
    assert lab.row(child).status == "Completed"
    assert lab.final(new) == {"op.main.end": {"child.main.done": 1}}
    assert lab.world.counts == {}
    assert verify_tree(lab.store, top) == []
    assert process.engine.replay(new) == lab.row(new).final_snapshot_id


def test_a_v1_tree_that_fails_again_opens_one_generation_for_each(lab: Lab) -> None:
    top = imported(lab)
    put_family(lab, [True])
    process = lab.process()
    for number in (2, 3):
        top = continued(lab, process, top)
        assert process.resume(top).phase == "Failed"
        assert sorted(row.generation for row in lab.all_runs() if row.op_id == "child") == list(range(1, number + 1))
    assert verify_tree(lab.store, lab.row(top).root_run_id) == []
