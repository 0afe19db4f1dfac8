"""What is one commit, and what is durable before what (ARCHITECTURE 4, rules 2, 3 and 5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import pytest

from airflow_childrun.engine.ports import IoCall
from airflow_childrun.errors import TransportError, UnavailableError
from airflow_childrun.store.api import Commit, ReleaseLease, TakeLease
from tests.engine.kit import DEATH, Lab, Stage, retrying, spawn_call


def shapes(commits: list[Commit]) -> list[list[str]]:
    """Return per commit its events as words, all runs together."""
    return [[str(words_of(event.body)) for step in commit.steps for event in step.events] for commit in commits]


def words_of(body: bytes) -> str:
    text = body.decode()
    for word in ("RunStarted", "StateEntered", "StateCompleted", "StateFailed", "RunCompleted"):
        if text.startswith(f'{{"Kernel":{{"{word}"'):
            return word
    return text.split('"name":"')[1].split('"')[0]


def test_completion_snapshot_and_next_entry_are_one_commit(lab: Lab):
    """A run of two states takes three commits beside its creation: enter, move on, end."""
    lab.put("op", lambda s: s.write("a", 1), lambda s: s.write("b", 2))
    process = lab.process(summary_after=256)
    run_id = process.start("op").run_id
    assert shapes(process.gate.commits) == [
        ["RunStarted"],
        ["StateEntered"],
        ["StateCompleted", "StateEntered"],
        ["StateCompleted", "RunCompleted"],
    ]
    kinds = [[artifact.kind for artifact in commit.artifacts] for commit in process.gate.commits]
    assert kinds == [["Manifest", "Plan", "ContextSnapshot"], [], ["ContextSnapshot"], ["ContextSnapshot"]]
    leases = [commit.steps[0].lease for commit in process.gate.commits]
    assert isinstance(leases[1], TakeLease)
    assert leases[0] is None
    assert leases[2] is None
    assert lab.row(run_id).lease_session_id is None


def test_the_end_of_a_run_releases_its_lease_in_the_same_commit(lab: Lab):
    """After the terminal commit nothing more is written."""
    lab.put("op", lambda s: s.ask("k"))
    process = lab.process()
    process.start("op")
    assert isinstance(process.gate.commits[-1].steps[0].lease, ReleaseLease)


def test_entry_is_durable_before_the_handler_starts(lab: Lab):
    """The handler finds its own StateEntered in the store."""
    seen: list[list[str]] = []
    lab.put("op", lambda s: seen.append(lab.names(run_id)))
    process = lab.process()
    run_id = process.create("op")
    process.resume(run_id)
    assert seen == [["RunStarted", "StateEntered"]]


def test_a_fact_is_durable_before_the_handler_sees_it(lab: Lab):
    """Between the world's answer and the handler's next line stands the commit."""
    seen: list[list[str]] = []

    def handler(s: Stage) -> None:
        s.ask("k")
        seen.append(lab.names(run_id))

    lab.put("op", handler)
    process = lab.process()
    run_id = process.create("op")
    process.resume(run_id)
    assert seen == [["RunStarted", "StateEntered", "fact_recorded"]]


def test_handler_receives_what_was_decoded_from_the_record(lab: Lab):
    """Changing an answer changes neither the record nor the world's own object."""
    source = {"list": [1], "number": 1.0}
    lab.world.scripts["k"] = [source]
    kept: list[Any] = []

    def handler(s: Stage) -> None:
        first = s.ask("k")
        assert first is not source
        first["list"].append(2)
        again = s.ask("k")
        kept.append(again)
        s.write("list", again["list"])

    lab.put("op", handler)
    run_id = lab.process().start("op").run_id
    assert kept == [{"list": [1], "number": 1}]
    assert source == {"list": [1], "number": 1.0}
    assert lab.final(run_id) == {"op.main.list": [1]}


def test_spawn_is_one_commit_over_both_streams(lab: Lab):
    """The parent's fact and linkage and the child's first event, snapshot and row come together."""
    lab.put("child", lambda s: None)
    lab.put("parent", lambda s: s.join(s.spawn("child", "k", 1, context={"child.main.x": 1}), "a"))
    process = lab.process()
    run_id = process.start("parent").run_id
    both = [commit for commit in process.gate.commits if len(commit.steps) == 2]
    assert shapes(both) == [["fact_recorded", "child_run_spawned", "RunStarted"]]
    assert sorted(artifact.kind for artifact in both[0].artifacts) == [
        "ContextSnapshot",
        "FactPayload",
        "Manifest",
        "Plan",
    ]
    (child,) = lab.children(run_id)
    assert lab.started(child.run_id).initial_snapshot_id == child.initial_snapshot_id


def test_spawn_commit_that_fails_leaves_neither_stream(lab: Lab):
    """A process that dies at the commit of the spawn has neither a fact nor a child."""
    lab.put("child", lambda s: None)
    lab.put("parent", lambda s: s.spawn("child", "k"))
    process = lab.process()
    run_id = process.create("parent")

    def at(number: int, commit: Commit) -> None:
        if len(commit.steps) == 2:
            process.gate.die()

    process.gate.on_commit = at
    with pytest.raises(DEATH):
        process.resume(run_id)
    assert lab.names(run_id) == ["RunStarted", "StateEntered"]
    assert lab.children(run_id) == []
    result = lab.process().resume(run_id)
    assert result.phase == "Completed"
    assert len(lab.children(run_id)) == 1


def test_call_many_records_all_answers_in_one_commit(lab: Lab):
    """Five spawns are one commit over six streams."""
    lab.put("child", lambda s: None)
    lab.put("parent", lambda s: s.fan_out("child", range(5)) and None)
    process = lab.process()
    process.start("parent")
    assert max(len(commit.steps) for commit in process.gate.commits) == 6


def test_call_many_with_the_same_key_twice_asks_once(lab: Lab):
    """Equal calls share one answer; a different request under the key is refused as it would be one by one."""
    got: list[Any] = []

    def handler(s: Stage) -> None:
        call = IoCall("world", 1, "k")
        got.extend(answer.response for answer in s.io.call_many([call, call]))
        children = s.io.call_many([spawn_call("child", "c"), spawn_call("child", "c")])
        assert children[0].response == children[1].response
        try:
            s.io.call_many([IoCall("world", 1, "x"), IoCall("world", 2, "x")])
        except Exception as error:
            got.append(getattr(error, "code", None))

    lab.put("child", lambda s: None)
    lab.put("op", handler)
    run_id = lab.process().start("op").run_id
    assert lab.row(run_id).status == "Completed"
    assert got == [{"echo": 1}, {"echo": 1}, "fact_request_mismatch"]
    assert lab.world.counts["k"] == 1


def test_facts_of_call_many_before_an_error_are_recorded_with_it(lab: Lab):
    """What the world said before it failed is not asked again, and the error comes in the same commit."""
    lab.world.scripts["b"] = [TransportError("down"), "fine"]

    def handler(s: Stage) -> None:
        s.io.call_many([IoCall("world", None, key) for key in ("a", "b", "c")])

    lab.put("op", handler)
    process = lab.process()
    result = process.start("op", config=retrying(2))
    assert result.phase == "Failed"
    assert lab.world.counts == {"a": 1, "b": 1}
    assert ["fact_recorded", "fact_failed"] in shapes(process.gate.commits)


def test_unknown_outcome_of_a_commit_is_settled_by_submitting_it_again(lab: Lab, monkeypatch: pytest.MonkeyPatch):
    """A connection lost after COMMIT duplicates nothing and loses nothing."""
    lab.put("op", lambda s: s.write("x", s.ask("k", 1)))
    real = lab.store.commit
    lost: set[UUID] = set()

    def commit(commits: Sequence[Commit]) -> Any:
        answer = real(commits)
        if commits[0].commit_id not in lost:
            lost.add(commits[0].commit_id)
            raise UnavailableError("connection lost around COMMIT")
        return answer

    monkeypatch.setattr(lab.store, "commit", commit)
    result = lab.process().start("op")
    assert result.phase == "Completed"
    assert lab.world.counts == {"k": 1}
    assert lab.names(result.run_id) == ["RunStarted", "StateEntered", "fact_recorded", "StateCompleted", "RunCompleted"]
