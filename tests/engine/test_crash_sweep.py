"""A process dies before and after every commit of a tree of runs; the next one ends with the same snapshot."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from airflow_childrun.engine.fact_io import token
from airflow_childrun.errors import StateError, TransportError
from airflow_childrun.store.verify import verify_run
from tests.engine.kit import Lab, Process, Stage, new_lab, retrying


def tree(lab: Lab) -> None:
    """Two children (one fails once and is retried, one nests a grandchild), facts, an error fact, awaits, three states."""
    lab.world.scripts["flaky"] = [TransportError("down")]
    lab.put("leaf", lambda s: s.write("r", call(s, f"leaf {s.input}")))

    def left(s: Stage) -> None:
        try:
            s.write("r", s.ask("flaky"))
        except TransportError as error:
            raise StateError("again", retryable=True) from error

    def right(s: Stage) -> None:
        s.write("a", call(s, "right a"))
        s.write("leaf", s.join(s.spawn("leaf", "g", 1), "ge", compact=True)["status"])

    lab.put("left", lambda s: s.write("first", call(s, "left first")), left)
    lab.put("right", right)

    def spawn(s: Stage) -> None:
        call(s, "top")
        s.write("left", s.spawn("left", "l", config=retrying(3))["child_manifest_id"])
        s.write("right", s.spawn("right", "r")["child_manifest_id"])

    def join(s: Stage) -> None:
        ends = [s.join(s.spawn("left", "l", config=retrying(3)), "le"), s.join(s.spawn("right", "r"), "re")]
        s.write("ends", [end["final_snapshot"] for end in ends])

    lab.put("top", spawn, join, lambda s: s.write("random", len(s.io.random_bytes(4))))


def call(s: Stage, key: str) -> Any:
    """Ask the world with the token along, as an author would."""
    s.ask(key, {"token": s.io.idempotency_token(key)})
    return key


def drive(lab: Lab, process: Process, run_id: Any) -> bool:
    """Return whether the process lived."""
    try:
        process.resume(run_id)
    except BaseException:
        assert process.gate.dead
    return not process.gate.dead


def clean_run(slots: int) -> tuple[dict[str, Any], int, str | None]:
    with new_lab() as lab:
        tree(lab)
        process = lab.process(max_concurrency=slots)
        result = process.start("top")
        assert result.phase == "Completed"
        return lab.final(result.run_id), len(process.gate.commits), result.final_snapshot_id


def check(lab: Lab, run_id: Any, expected: dict[str, Any], in_flight: int) -> None:
    """Check the end of a tree that had one process die in it."""
    assert lab.final(run_id) == expected
    repeated = {key: count for key, count in lab.world.counts.items() if count > (2 if key == "flaky" else 1)}
    assert sum(count - (2 if key == "flaky" else 1) for key, count in repeated.items()) <= in_flight, repeated
    tokens = {(key, str(request)) for key, request in lab.world.calls}
    assert len(tokens) == len(lab.world.counts), "a repeated call carried another token"
    for row in lab.all_runs():
        assert row.status == "Completed"
        assert row.lease_session_id is None
        facts = [fact["key"] for fact in lab.domain(row.run_id, "fact_recorded")]
        assert max(Counter(facts).values()) == 1, facts
        assert lab.processes[-1].engine.replay(row.run_id) == row.final_snapshot_id
        assert list(verify_run(lab.store, row.run_id)) == []


@pytest.mark.parametrize("slots", [1, 8])
@pytest.mark.parametrize("when", ["before", "after"])
def test_dying_at_every_commit_changes_nothing(when: str, slots: int):
    """Same final snapshot, each recorded call once, at most one call in flight repeated, with the same token."""
    expected, commits, _ = clean_run(slots)
    assert commits > 20
    survived = 0
    for number in range(1, commits + 3):
        with new_lab() as lab:
            tree(lab)
            run_id = lab.process(owner="other").create("top")
            dying = lab.process(max_concurrency=slots)
            setattr(dying.gate, f"die_{when}", number)
            survived += drive(lab, dying, run_id)
            assert lab.process(max_concurrency=slots).resume(run_id).phase == "Completed"
            check(lab, run_id, expected, in_flight=slots)
    assert survived <= 6


def test_dying_at_every_commit_of_every_process_ends_all_the_same():
    """Each process gets a little further and dies; recoveries never end a run that moves."""
    expected, _, _ = clean_run(1)
    with new_lab() as lab:
        tree(lab)
        run_id = lab.process(owner="other").create("top")
        for _ in range(200):
            process = lab.process(max_concurrency=1)
            process.gate.die_before = 8
            if drive(lab, process, run_id):
                break
        else:
            raise AssertionError("never ended")
        assert lab.final(run_id) == expected


def test_dying_inside_every_call_of_the_world_repeats_that_call_alone():
    """The call in flight is repeated once, with the same token; all others happened once."""
    with new_lab() as lab:
        tree(lab)
        expected = lab.final(lab.process(max_concurrency=1).start("top").run_id)
        keys = [key for key in lab.world.counts if key != "flaky"]
    for key in keys:
        with new_lab() as lab:
            tree(lab)
            run_id = lab.process(owner="other").create("top")
            dying = lab.process(max_concurrency=1)
            lab.world.scripts[key] = [lambda request, dying=dying: dying.crash()]
            assert not drive(lab, dying, run_id)
            assert lab.process(max_concurrency=1).resume(run_id).phase == "Completed"
            check(lab, run_id, expected, in_flight=1)
            assert lab.world.counts[key] == 2
            first, second = (request for name, request in lab.world.calls if name == key)
            assert first == second
            owner = next(row.run_id for row in lab.all_runs() if first["token"] == str(token(row.run_id, key, 0)))
            assert lab.row(owner).status == "Completed"
