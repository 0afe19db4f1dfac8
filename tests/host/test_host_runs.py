"""A task instance as the parent of child runs: tries, clears, generations, stale and re-created ones."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

from airflow_childrun.errors import ChildRunError, HostError, OperationError, OtherIoError, UnavailableError
from airflow_childrun.ids import child_run_id
from airflow_childrun.model.events import CHILD_RUN_SPAWNED, FACT_RECORDED
from airflow_childrun.runtime import host
from airflow_childrun.runtime.patience import Patience
from airflow_childrun.store.api import RunFilter
from airflow_childrun.store.verify import verify_run
from tests.engine.kit import Background, Died, Stage, eventually, wait_for
from tests.host.kit import AirflowTask, HostLab, outputs, returning, statuses

TASK = AirflowTask()


def put_double(lab: HostLab) -> None:
    """``double`` asks the world under ``ask`` and returns twice its input; the world may be told to fail."""

    def double(stage: Stage) -> Any:
        number = stage.input["id"] if isinstance(stage.input, dict) else stage.input
        answer = stage.ask("ask", number)
        return 2 * number if isinstance(answer, dict) else answer

    lab.put("double", returning(double))


def fail_once(lab: HostLab, number: int) -> None:
    """Let the world refuse one input, once."""
    script = lab.world.scripts.setdefault("ask", [])
    script.append(refuse(number, script))


def refuse(number: int, script: list[Any]) -> Callable[[Any], Any]:
    def answer(request: Any) -> Any:
        if request == number:
            raise OtherIoError("the world is down", code="down", retryable=True)
        script.append(answer)
        return {"echo": request}

    return answer


def asked(lab: HostLab) -> list[Any]:
    """Return what the world was asked, sorted."""
    return sorted(request for _, request in lab.world.calls)


def whole(lab: HostLab) -> None:
    """Check every stream of a store: chain, artifacts, and the row as the events tell it."""
    for row in lab.all_runs():
        assert verify_run(lab.store, row.run_id) == []


# -------------------------------------------------------------------------------------------------------------- tries


def test_a_try_spawns_and_awaits(lab: HostLab) -> None:
    put_double(lab)
    found = lab.begin(TASK).run(lab.wanted("double", [1, 2, 3]))
    assert outputs(found) == [2, 4, 6]
    assert [result["key"] for result in found] == ["double/1", "double/2", "double/3"]
    whole(lab)


def test_the_host_run_is_what_the_architecture_says(lab: HostLab) -> None:
    """Kind, root, stream and events; it never has an end."""
    put_double(lab)
    lab.begin(TASK).run(lab.wanted("double", [1, 2]))
    row = lab.row(lab.host_id(TASK))
    assert (row.kind, row.root_run_id, row.depth, row.is_terminal) == (
        "task_instance",
        TASK.coordinates.root_run_id(),
        0,
        False,
    )
    assert lab.names(row.run_id) == ["RunStarted", "host_try", *[FACT_RECORDED, CHILD_RUN_SPAWNED] * 2, "host_returned"]
    (recorded,) = lab.tries(TASK)
    assert recorded == {
        **TASK.facts.to_json(),
        "kind": "first",
        "keys": [{"key": "double/1", "generation": 1}, {"key": "double/2", "generation": 1}],
    }
    children = lab.children(row.run_id)
    assert {child.run_id for child in children} == {child_run_id(row.run_id, f"double/{n}") for n in (1, 2)}
    assert {child.root_run_id for child in children} == {row.root_run_id}
    assert row.airflow is not None
    assert (row.airflow.dag_id, row.airflow.task_id, row.airflow.map_index) == ("report", "spawn", -1)


def test_a_retry_repeats_nothing_that_completed(lab: HostLab) -> None:
    put_double(lab)
    fail_once(lab, 2)
    wanted = lab.wanted("double", [1, 2, 3])
    assert statuses(lab.begin(TASK).run(wanted)) == ["Completed", "Failed", "Completed"]
    retried = lab.begin(TASK.retry()).run(wanted)
    assert outputs(retried) == [2, 4, 6]
    assert asked(lab) == [1, 2, 2, 3]
    assert lab.generations(TASK, "double/2") == ["Failed", "Completed"]
    assert lab.generations(TASK, "double/1") == ["Completed"]
    second = lab.tries(TASK)[1]
    assert second["kind"] == "retry"
    continued = str(child_run_id(lab.host_id(TASK), "double/2"))
    assert second["keys"][1] == {"key": "double/2", "generation": 2, "continues": continued}
    whole(lab)


def test_a_retry_of_a_green_try_answers_from_the_record(lab: HostLab) -> None:
    """As after a worker that was lost between the last child and the end of its task."""
    put_double(lab)
    wanted = lab.wanted("double", [1, 2])
    first = lab.begin(TASK).run(wanted)
    before = len(lab.all_runs())
    assert lab.begin(TASK.retry()).run(wanted) == first
    assert len(lab.all_runs()) == before
    assert asked(lab) == [1, 2]


def test_many_retries_continue_again_and_again(lab: HostLab) -> None:
    put_double(lab)
    task = TASK
    for _ in range(3):
        fail_once(lab, 1)
        assert statuses(lab.begin(task).run(lab.wanted("double", [1]))) == ["Failed"]
        task = task.retry()
    assert outputs(lab.begin(task).run(lab.wanted("double", [1]))) == [2]
    assert lab.generations(TASK, "double/1") == ["Failed", "Failed", "Failed", "Completed"]
    whole(lab)


def test_a_retry_with_a_changed_request_is_refused_before_anything_is_written(lab: HostLab) -> None:
    put_double(lab)
    fail_once(lab, 1)
    lab.begin(TASK).run(lab.wanted("double", [{"id": 1, "amount": 5}]))
    heads = {row.run_id: row.head for row in lab.all_runs()}
    with pytest.raises(HostError, match=r"double/1 \(input at \$\.amount\)") as raised:
        lab.begin(TASK.retry()).run(lab.wanted("double", [{"id": 1, "amount": 6}]))
    assert raised.value.code == "child_run_conflict"
    assert {row.run_id: row.head for row in lab.all_runs()} == heads


def test_a_changed_initial_context_is_a_conflict_in_every_generation(lab: HostLab) -> None:
    """A continued generation starts at a checkpoint; what it was asked with stands at the start of its chain."""
    put_double(lab)
    task = TASK
    for _ in range(2):
        fail_once(lab, 1)
        lab.begin(task).run(lab.wanted("double", [1], context={"double.main.a": 1}))
        task = task.retry()
        with pytest.raises(HostError, match=r"double/1 \(initial_context\)"):
            lab.begin(task).run(lab.wanted("double", [1], context={"double.main.a": 2}))
    assert outputs(lab.begin(task).run(lab.wanted("double", [1], context={"double.main.a": 1}))) == [2]


def test_a_list_that_changed_between_tries_is_refused(lab: HostLab) -> None:
    put_double(lab)
    lab.begin(TASK).run(lab.wanted("double", [1, 2]))
    with pytest.raises(HostError, match="one element is not in it: double/3") as raised:
        lab.begin(TASK.retry()).run(lab.wanted("double", [1, 2, 3]))
    assert raised.value.code == "host_list_changed"
    assert len(lab.tries(TASK)) == 1


def test_an_empty_list_succeeds(lab: HostLab) -> None:
    assert lab.begin(TASK).run([]) == []
    assert lab.begin(TASK.retry()).run([]) == []


def test_what_can_be_refused_is_refused_before_anything_is_stored(lab: HostLab) -> None:
    with pytest.raises(OperationError):
        lab.begin(TASK).run(lab.wanted("unknown", [1]))
    assert lab.all_runs() == []


def test_a_respawn_that_is_refused_leaves_no_trace(lab: HostLab) -> None:
    """Also what only a clear starts afresh is looked at before the try is written."""
    put_double(lab)
    lab.begin(TASK).run(lab.wanted("double", [1]))
    del lab.shelf.ops["double", "1"]
    with pytest.raises(OperationError):
        lab.begin(TASK.clear()).run(lab.wanted("double", [1]))
    assert len(lab.tries(TASK)) == 1


def test_one_task_may_spawn_first_and_await_then(lab: HostLab) -> None:
    """As a Python task does with the hook; its retry finds both lists."""
    put_double(lab)
    fail_once(lab, 2)
    wanted = lab.wanted("double", [1, 2])
    first = lab.begin(TASK)
    handles = first.handles(first.spawn(wanted))
    assert statuses(first.join(handles)) == ["Completed", "Failed"]
    again = lab.begin(TASK.retry())
    assert outputs(again.join(again.handles(again.spawn(wanted)))) == [2, 4]
    assert [entry["kind"] for entry in lab.tries(TASK)] == ["first", "same", "retry", "same"]


def test_two_lists_in_one_try_are_refused(lab: HostLab) -> None:
    put_double(lab)
    task = lab.begin(TASK)
    task.spawn(lab.wanted("double", [1]))
    with pytest.raises(HostError, match="hand all of them over in one call"):
        task.spawn(lab.wanted("double", [2]))


def test_a_store_that_stays_away_is_an_error_of_the_task_and_no_interrupt(lab: HostLab) -> None:
    """Retryable, so that Airflow tries again; the next try finds nothing half done."""
    put_double(lab)
    attempt = lab.begin(TASK)
    attempt.process.house.patience = Patience(attempt.process.house.scheduler, limit_s=0)

    def away(number: int, commit: Any) -> None:
        raise UnavailableError("the database is away")

    attempt.process.gate.on_commit = away
    with pytest.raises(UnavailableError, match="the database is away") as raised:
        attempt.host.in_background(lambda: attempt.run(lab.wanted("double", [1])))
    assert raised.value.retryable
    assert outputs(lab.begin(TASK.retry()).run(lab.wanted("double", [1]))) == [2]


def test_map_indices_are_tasks_of_their_own(lab: HostLab) -> None:
    put_double(lab)
    for index in (0, 1):
        task = AirflowTask(map_index=index)
        assert outputs(lab.begin(task).run(lab.wanted("double", [1]))) == [2]
    assert asked(lab) == [1, 1]


# ------------------------------------------------------------------------------------------------------------- clears


def test_clearing_a_green_task_runs_all_again_afresh(lab: HostLab) -> None:
    put_double(lab)
    wanted = lab.wanted("double", [1, 2])
    lab.begin(TASK).run(wanted)
    cleared = lab.begin(TASK.clear()).run(wanted)
    assert outputs(cleared) == [2, 4]
    assert [result["generation"] for result in cleared] == [2, 2]
    assert asked(lab) == [1, 1, 2, 2]
    whole(lab)


def test_clearing_a_task_that_failed_after_its_children_repeats_none_of_them(lab: HostLab) -> None:
    """Its results were too large for Airflow, say: only a task whose try has returned was green."""
    put_double(lab)
    wanted = lab.wanted("double", [1, 2])
    red = lab.begin(TASK)
    red.host.drive(red.spawn(wanted))
    red.host.close()
    assert outputs(lab.begin(TASK.clear()).run(wanted)) == [2, 4]
    assert asked(lab) == [1, 2]
    assert outputs(lab.begin(TASK.clear().clear()).run(wanted)) == [2, 4]
    assert asked(lab) == [1, 1, 2, 2], "that clear returned, so the next one cleared a green task"
    whole(lab)


def test_clearing_a_red_task_goes_on_with_what_failed(lab: HostLab) -> None:
    put_double(lab)
    fail_once(lab, 2)
    wanted = lab.wanted("double", [1, 2])
    lab.begin(TASK).run(wanted)
    assert outputs(lab.begin(TASK.clear()).run(wanted)) == [2, 4]
    assert asked(lab) == [1, 2, 2]


def test_clear_with_reuse_runs_nothing_and_says_so(lab: HostLab, caplog: pytest.LogCaptureFixture) -> None:
    put_double(lab)
    wanted = lab.wanted("double", [1, 2])
    lab.begin(TASK).run(wanted)
    caplog.clear()
    assert outputs(lab.begin(TASK.clear()).run(wanted, "reuse")) == [2, 4]
    assert asked(lab) == [1, 2]
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "this clear ran nothing" in warning
    assert 'on_clear="respawn"' in warning


def test_reuse_bills_nobody_twice_though_the_amount_changed(lab: HostLab) -> None:
    """Nor does a retry of that clear."""
    put_double(lab)
    lab.begin(TASK).run(lab.wanted("double", [{"id": 1, "amount": 5}]))
    changed = lab.wanted("double", [{"id": 1, "amount": 6}])
    cleared = TASK.clear()
    assert outputs(lab.begin(cleared).run(changed, "reuse")) == [2]
    assert outputs(lab.begin(cleared.retry()).run(changed, "reuse")) == [2]
    assert asked(lab) == [1]


def test_a_clear_with_a_changed_request_starts_that_child_afresh(lab: HostLab) -> None:
    put_double(lab)
    fail_once(lab, 2)
    lab.begin(TASK).run(lab.wanted("double", [{"id": 1, "amount": 5}, {"id": 2, "amount": 5}]))
    again = lab.begin(TASK.clear()).run(lab.wanted("double", [{"id": 1, "amount": 6}, {"id": 2, "amount": 5}]))
    assert [result["generation"] for result in again] == [2, 2]
    first, second = (lab.started(UUID(result["child_run_id"])) for result in again)
    assert first.continues is None
    assert second.continues is not None


def test_respawn_ends_what_is_open_and_starts_afresh(lab: HostLab) -> None:
    """A child that a killed try left running is ended by whoever opens the next generation over it."""
    put_double(lab)
    killed = lab.begin(TASK)
    killed.spawn(lab.wanted("double", [1]))
    killed.process.crash()
    assert outputs(lab.begin(TASK.clear()).run(lab.wanted("double", [1]), "respawn")) == [2]
    assert lab.generations(TASK, "double/1") == ["Cancelled", "Completed"]
    whole(lab)


def test_a_child_that_another_process_drives_is_not_respawned_under_it(lab: HostLab) -> None:
    """Its owner lives: this try fails, retryable, and says whose turn it is."""
    put_double(lab)
    spawning = lab.begin(TASK)
    handles = spawning.handles(spawning.spawn(lab.wanted("double", [1])))
    release, entered = hold_world(lab)
    awaiting = lab.begin(AirflowTask("await"))
    joined = Background(lambda: awaiting.join(handles))
    wait_for(entered)
    with pytest.raises(HostError) as raised:
        lab.begin(TASK.clear()).run(lab.wanted("double", [1]), "respawn")
    assert (raised.value.code, raised.value.retryable) == ("child_run_busy", True)
    release.set()
    assert outputs(joined.join()) == [2]


def hold_world(lab: HostLab) -> tuple[threading.Event, threading.Event]:
    """Let the next question wait; return what releases it and what says that it was asked."""
    release, entered = threading.Event(), threading.Event()

    def answer(request: Any) -> Any:
        entered.set()
        wait_for(release)
        return {"echo": request}

    lab.world.scripts.setdefault("ask", []).append(answer)
    return release, entered


def test_a_shorter_list_asks_what_vanished_to_end(lab: HostLab) -> None:
    """The request stands in the child's inbox; results are those of the new list."""
    put_double(lab)
    killed = lab.begin(TASK)
    killed.spawn(lab.wanted("double", [1, 2]))
    killed.process.crash()
    assert outputs(lab.begin(TASK.clear()).run(lab.wanted("double", [1]))) == [2]
    gone = child_run_id(lab.host_id(TASK), "double/2")
    assert [entry.kind for entry in lab.store.read_inbox(gone)] == ["close"]
    assert lab.store.read_inbox(child_run_id(lab.host_id(TASK), "double/1")) == []


def test_an_extended_list_spawns_what_is_new(lab: HostLab) -> None:
    put_double(lab)
    fail_once(lab, 1)
    lab.begin(TASK).run(lab.wanted("double", [1, 2]))
    assert outputs(lab.begin(TASK.clear()).run(lab.wanted("double", [3, 2, 1]))) == [6, 4, 2]
    assert asked(lab) == [1, 1, 2, 3]


# ------------------------------------------------------------------------------------------------- stale and re-created


def test_a_stale_try_writes_nothing(lab: HostLab) -> None:
    """A try that wakes up after another one began is refused, at its begin as in the middle."""
    put_double(lab)
    wanted = lab.wanted("double", [1, 2])
    lab.begin(TASK.retry()).run(wanted)
    heads = {row.run_id: row.head for row in lab.all_runs()}
    with pytest.raises(HostError, match=r"report\.spawn manual__1 try 1 is not the newest try any more") as raised:
        lab.begin(TASK).run(wanted)
    assert (raised.value.code, raised.value.retryable) == ("stale_attempt", False)
    assert {row.run_id: row.head for row in lab.all_runs()} == heads


def test_a_try_that_sleeps_between_its_begin_and_its_spawns_is_fenced_off(lab: HostLab, monkeypatch: Any) -> None:
    """The next try takes the epoch: what the sleeper appends then is refused."""
    monkeypatch.setattr(host, "CHUNK", 1)
    put_double(lab)
    wanted = lab.wanted("double", [1, 2])
    sleeper = lab.begin(TASK)
    retried: list[Any] = []
    gate = sleeper.process.gate
    gate.on_commit = lambda number, commit: (
        retried.append(lab.begin(TASK.retry()).run(wanted)) if number == 2 and not retried else None
    )
    with pytest.raises(HostError) as raised:
        sleeper.run(wanted)
    assert raised.value.code == "stale_attempt"
    assert outputs(retried[0]) == [2, 4]
    assert asked(lab) == [1, 2]
    whole(lab)


def test_a_re_created_dag_run_is_another_host(lab: HostLab) -> None:
    """Nothing of the deleted run is taken over: its list, its results, its epoch; its open children are to end."""
    put_double(lab)
    old = lab.begin(TASK)
    old.spawn(lab.wanted("double", [1, 2]))
    again = TASK.recreate()
    assert outputs(lab.begin(again).run(lab.wanted("double", [1, 3]))) == [2, 6]
    assert lab.row(lab.host_id(TASK, 2)).generation == 2
    assert lab.row(lab.host_id(TASK, 2)).slot_id == lab.host_id(TASK)
    assert [entry["kind"] for entry in lab.tries(TASK, 2)] == ["recreated"]
    for child in lab.children(lab.host_id(TASK)):
        assert [entry.kind for entry in lab.store.read_inbox(child.run_id)] == ["close"]
    head = lab.row(lab.host_id(TASK)).head
    with pytest.raises(HostError) as raised:
        old.spawn(lab.wanted("double", [1, 2]))
    assert raised.value.code == "stale_attempt"
    assert lab.row(lab.host_id(TASK)).head == head
    assert outputs(lab.begin(again.retry()).run(lab.wanted("double", [1, 3]))) == [2, 6]
    assert outputs(lab.begin(again.retry().recreate()).run(lab.wanted("double", [1]))) == [2]
    assert lab.row(lab.host_id(TASK, 3)).generation == 3


def test_a_re_created_dag_run_fences_off_a_try_of_the_old_one(lab: HostLab, monkeypatch: Any) -> None:
    monkeypatch.setattr(host, "CHUNK", 1)
    put_double(lab)
    old = lab.begin(TASK)
    found: list[Any] = []
    old.process.gate.on_commit = lambda number, commit: (
        found.append(lab.begin(TASK.recreate()).run(lab.wanted("double", [1]))) if number == 3 and not found else None
    )
    with pytest.raises(HostError) as raised:
        old.run(lab.wanted("double", [1, 2]))
    assert raised.value.code == "stale_attempt"
    assert len(lab.children(lab.host_id(TASK))) == 1


# ------------------------------------------------------------------------------------------------------------ crashes


def undisturbed(wanted_of: Callable[[HostLab], Any]) -> tuple[int, list[Any]]:
    """Return how many commits a try takes, and its results."""
    lab = HostLab()
    put_double(lab)
    first = lab.begin(TASK)
    found = first.run(wanted_of(lab))
    return len(first.process.gate.commits), outputs(found)


def five(lab: HostLab) -> Any:
    return lab.wanted("double", [1, 2, 3, 4, 5])


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("retried", [AirflowTask.retry, AirflowTask.clear], ids=["retry", "clear"])
def test_a_try_killed_at_any_commit_is_completed_by_the_next(
    monkeypatch: Any, retried: Callable[[AirflowTask], AirflowTask], after: bool
) -> None:
    """Whichever commit is the last of the killed process: same results, no child twice, no recorded call repeated."""
    monkeypatch.setattr(host, "CHUNK", 2)
    commits, expected = undisturbed(five)
    for number in range(1, commits + 1):
        lab = HostLab()
        put_double(lab)
        killed = lab.begin(TASK, max_concurrency=1)
        setattr(killed.process.gate, "die_after" if after else "die_before", number)
        # Killed after its last commit, the try may just have had its results.
        with contextlib.suppress(Died, ChildRunError):
            killed.run(five(lab))
        again = lab.begin(retried(TASK)).run(five(lab), "resume_failed")
        assert outputs(again) == expected, number
        assert len(lab.all_runs()) == 6, number
        assert set(asked(lab)) == {1, 2, 3, 4, 5}
        assert len(asked(lab)) <= 6, number
        whole(lab)


@pytest.mark.parametrize("number", range(2, 9))
def test_a_clear_killed_at_any_commit_is_completed_by_its_retry(monkeypatch: Any, number: int) -> None:
    """The generations that the clear had listed are opened, each once, and none of the old results is taken."""
    monkeypatch.setattr(host, "CHUNK", 1)
    lab = HostLab()
    put_double(lab)
    wanted = lab.wanted("double", [1, 2, 3])
    lab.begin(TASK).run(wanted)
    cleared = TASK.clear()
    killed = lab.begin(cleared, max_concurrency=1)
    killed.process.gate.die_before = number
    with pytest.raises(Died):
        killed.run(wanted)
    again = lab.begin(cleared.retry()).run(wanted)
    assert outputs(again) == [2, 4, 6]
    assert [result["generation"] for result in again] == [2, 2, 2]
    assert len(lab.all_runs()) == 7
    whole(lab)


def test_a_try_killed_on_sqlite_is_completed_by_the_next(sqlite_lab: HostLab, monkeypatch: Any) -> None:
    """Half of the children spawned, one driven: the same on a database, seen through another way to the store."""
    monkeypatch.setattr(host, "CHUNK", 2)
    put_double(sqlite_lab)
    for number, run in ((3, "a"), (6, "b"), (8, "c")):
        task = AirflowTask(dag_run_id=run)
        killed = sqlite_lab.begin(task, max_concurrency=1)
        killed.process.gate.die_after = number
        with pytest.raises(Died):
            killed.run(five(sqlite_lab))
        assert outputs(sqlite_lab.begin(task.retry()).run(five(sqlite_lab))) == [2, 4, 6, 8, 10]
        assert len(sqlite_lab.children(sqlite_lab.host_id(task))) == 5
    whole(sqlite_lab)


def test_sqlite_keeps_tries_clears_and_generations(sqlite_lab: HostLab) -> None:
    """Red, retried, green, cleared, made again."""
    lab = sqlite_lab
    put_double(lab)
    fail_once(lab, 2)
    wanted = lab.wanted("double", [1, 2])
    assert statuses(lab.begin(TASK).run(wanted)) == ["Completed", "Failed"]
    assert outputs(lab.begin(TASK.retry()).run(wanted)) == [2, 4]
    cleared = TASK.retry().clear()
    assert [result["generation"] for result in lab.begin(cleared).run(wanted)] == [2, 3]
    assert [result["generation"] for result in lab.begin(cleared.recreate()).run(wanted)] == [1, 1]
    assert [entry["kind"] for entry in lab.tries(TASK)] == ["first", "retry", "clear"]
    whole(lab)


# ------------------------------------------------------------------------------------------------------- nested trees


def put_tree(lab: HostLab) -> None:
    """Three levels: ``top`` fans out to ``middle``, which fans out to ``double``; each counts what came back."""

    def down(op: str) -> Callable[[Stage], Any]:
        def collect(stage: Stage) -> Any:
            ends = stage.fan_out(op, stage.input)
            if any(end["status"] != "Completed" for end in ends):
                raise OtherIoError("a child is not well", code="child_unwell", retryable=True)
            return len(ends)

        return collect

    lab.put("middle", returning(down("double")))
    lab.put("top", returning(down("middle")))


def test_a_retry_heals_a_failed_tree_of_three_levels(lab: HostLab) -> None:
    """Each failed run is continued by its parent; what completed at any level is not run again."""
    put_double(lab)
    put_tree(lab)
    fail_once(lab, 3)
    wanted = [lab.child("top", [[1, 2], [3, 4]], key="top")]
    assert statuses(lab.begin(TASK).run(wanted)) == ["Failed"]
    assert sorted(row.status for row in lab.all_runs() if row.op_id == "middle") == ["Completed", "Failed"]
    assert outputs(lab.begin(TASK.retry()).run(wanted)) == [2]
    assert asked(lab) == [1, 2, 3, 3, 4]
    counts = {op: sorted(r.generation for r in lab.all_runs() if r.op_id == op) for op in ("top", "middle", "double")}
    assert counts == {"top": [1, 2], "middle": [1, 1, 2], "double": [1, 1, 1, 1, 2]}
    whole(lab)


# --------------------------------------------------------------------------------------------------------- plan change


def rename_state(lab: HostLab, result: Any) -> None:
    """Give the operation another plan under the same version."""
    op = lab.put("double", returning(lambda stage: result))
    op.states = [("other", *op.states[0][1:])]


def test_a_changed_plan_fails_the_child_by_default(lab: HostLab) -> None:
    put_double(lab)
    fail_once(lab, 1)
    lab.begin(TASK).run(lab.wanted("double", [1]))
    rename_state(lab, 20)
    with pytest.raises(ChildRunError, match='on_plan_change="respawn"') as raised:
        lab.begin(TASK.retry()).run(lab.wanted("double", [1]))
    assert raised.value.code == "plan_drift"


def test_a_changed_plan_starts_afresh_if_the_author_says_so(lab: HostLab) -> None:
    """Only what is unfinished: a completed child of the old plan stays."""
    put_double(lab)
    fail_once(lab, 1)
    wanted = lab.wanted("double", [1, 2])
    assert statuses(lab.begin(TASK).run(wanted)) == ["Failed", "Completed"]
    rename_state(lab, 20)
    again = lab.begin(TASK.retry()).run(wanted, on_plan_change="respawn")
    assert outputs(again) == [20, 4]
    assert lab.started(UUID(again[0]["child_run_id"])).continues is None


# ---------------------------------------------------------------------------------------------------------- only await


def spawned(lab: HostLab, numbers: list[int], task: AirflowTask = TASK) -> list[dict[str, Any]]:
    """Spawn without waiting, and return the handles."""
    put_double(lab)
    one = lab.begin(task)
    return one.handles(one.spawn(lab.wanted("double", numbers)))


AWAIT = AirflowTask("await")


def test_another_task_drives_and_awaits(lab: HostLab) -> None:
    handles = spawned(lab, [1, 2])
    assert [row.status for row in lab.children(lab.host_id(TASK))] == ["Pending", "Pending"]
    found = lab.begin(AWAIT).join(handles[::-1])
    assert outputs(found) == [4, 2]
    assert [result["key"] for result in found] == ["double/2", "double/1"]
    (recorded,) = lab.tries(AWAIT)
    assert recorded["keys"] == [
        {"key": handle["slot_id"], "generation": 1, "awaited": True} for handle in handles[::-1]
    ]


def test_an_await_takes_what_is_there(lab: HostLab) -> None:
    """A first try continues nothing, however the child ended."""
    handles = spawned(lab, [1, 2])
    fail_once(lab, 2)
    assert statuses(lab.begin(AWAIT).join(handles)) == ["Completed", "Failed"]
    other = AirflowTask("other")
    assert statuses(lab.begin(other).join(handles)) == ["Completed", "Failed"]
    assert asked(lab) == [1, 2]


def test_a_red_await_task_cleared_alone_continues_what_its_last_try_named(lab: HostLab) -> None:
    handles = spawned(lab, [1, 2])
    fail_once(lab, 2)
    lab.begin(AWAIT).join(handles)
    cleared = AWAIT.clear()
    assert outputs(lab.begin(cleared).join(handles)) == [2, 4]
    assert asked(lab) == [1, 2, 2]
    assert lab.generations(TASK, "double/2") == ["Failed", "Completed"]
    assert lab.tries(AWAIT)[1]["keys"][1]["generation"] == 2
    assert lab.names(lab.host_id(AWAIT)).count(CHILD_RUN_SPAWNED) == 1
    whole(lab)


def test_an_await_retry_continues_what_failed(lab: HostLab) -> None:
    handles = spawned(lab, [1])
    fail_once(lab, 1)
    lab.begin(AWAIT).join(handles)
    assert outputs(lab.begin(AWAIT.retry()).join(handles)) == [2]


def test_a_retry_of_an_await_takes_a_generation_that_its_last_try_did_not_see(lab: HostLab) -> None:
    """The spawn task's own retry had opened generation 2, which failed too: that is news, not to be continued."""
    handles = spawned(lab, [1])
    fail_once(lab, 1)
    lab.begin(AWAIT).join(handles)
    fail_once(lab, 1)
    lab.begin(TASK.retry()).run(lab.wanted("double", [1]))
    assert statuses(lab.begin(AWAIT.retry()).join(handles)) == ["Failed"]
    assert outputs(lab.begin(AWAIT.retry().retry()).join(handles)) == [2]


def test_the_spawning_task_adopts_the_generation_that_an_await_opened(lab: HostLab) -> None:
    handles = spawned(lab, [1])
    fail_once(lab, 1)
    lab.begin(AWAIT).join(handles)
    lab.begin(AWAIT.retry()).join(handles)
    assert outputs(lab.begin(TASK.retry()).run(lab.wanted("double", [1]))) == [2]
    assert asked(lab) == [1, 1]


def test_two_awaits_that_continue_the_same_child_at_once_share_one_generation(lab: HostLab) -> None:
    """Whoever comes second adopts what stands there."""
    handles = spawned(lab, [1])
    fail_once(lab, 1)
    other = AirflowTask("other")
    lab.begin(AWAIT).join(handles)
    lab.begin(other).join(handles)
    found: list[Any] = []
    slow = lab.begin(AWAIT.retry())
    slow.process.gate.on_commit = lambda number, commit: (
        found.append(lab.begin(other.retry()).join(handles)) if number == 2 and not found else None
    )
    assert outputs(slow.join(handles)) == [2]
    assert outputs(found[0]) == [2]
    assert lab.generations(TASK, "double/1") == ["Failed", "Completed"]
    whole(lab)


def test_two_tasks_await_the_same_children_at_once(lab: HostLab) -> None:
    """One drives, the other waits; both have the results, and the world was asked once."""
    handles = spawned(lab, [1, 2, 3])
    release, entered = hold_world(lab)
    one, other = lab.begin(AWAIT), lab.begin(AirflowTask("other"))
    first = Background(lambda: one.join(handles))
    wait_for(entered)
    second = Background(lambda: other.join(handles))
    eventually(lambda: lab.store.find_run(lab.host_id(AirflowTask("other"))) is not None)
    release.set()
    assert outputs(first.join()) == outputs(second.join()) == [2, 4, 6]
    assert asked(lab) == [1, 2, 3]


def test_one_handle_given_twice_is_awaited_once(lab: HostLab) -> None:
    (handle,) = spawned(lab, [1])
    fail_once(lab, 1)
    assert statuses(lab.begin(AWAIT).join([handle, handle])) == ["Failed", "Failed"]
    assert outputs(lab.begin(AWAIT.retry()).join([handle, handle])) == [2, 2]
    assert lab.generations(TASK, "double/1") == ["Failed", "Completed"]


def test_a_handle_from_another_dag_run_is_accepted(lab: HostLab) -> None:
    """It carries its root's id."""
    handles = spawned(lab, [1], AirflowTask(dag_run_id="yesterday"))
    assert outputs(lab.begin(AirflowTask("await", "today")).join(handles)) == [2]


def test_handles_that_lie_are_refused(lab: HostLab) -> None:
    (handle,) = spawned(lab, [1])
    unknown = {**handle, "child_run_id": str(UUID(int=9))}
    with pytest.raises(HostError, match="no child run 00000000-0000-0000-0000-000000000009 in this store") as missing:
        lab.begin(AWAIT).join([unknown])
    assert missing.value.code == "child_run_missing"
    with pytest.raises(HostError) as foreign:
        lab.begin(AWAIT).join([{**handle, "root_run_id": str(UUID(int=9))}])
    assert foreign.value.code == "child_run_foreign"
    assert lab.store.find_run(lab.host_id(AWAIT)) is None


def test_a_recreated_await_task_is_another_host(lab: HostLab) -> None:
    handles = spawned(lab, [1])
    fail_once(lab, 1)
    lab.begin(AWAIT).join(handles)
    assert statuses(lab.begin(AWAIT.recreate()).join(handles)) == ["Failed"]


def test_host_runs_are_found_by_their_coordinates(lab: HostLab) -> None:
    spawned(lab, [1])
    found = lab.store.find_runs(RunFilter(kind="task_instance", dag_id="report", task_id="spawn"))
    assert [row.run_id for row in found.rows] == [lab.host_id(TASK)]
