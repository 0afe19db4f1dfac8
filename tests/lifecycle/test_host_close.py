"""What becomes of a task's children when the task is told to stop, fails for good, or never comes back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from airflow_childrun.errors import ChildRunError
from airflow_childrun.runtime.recover import sweep
from airflow_childrun.store.api import RunRow
from tests.engine.kit import Stage
from tests.host.kit import AirflowTask, HostLab, Try


@pytest.fixture
def lab() -> Iterator[HostLab]:
    made = HostLab()
    yield made
    made.close()


def rows_of(lab: HostLab, rows: list[RunRow]) -> list[RunRow]:
    found = lab.store.get_runs(row.run_id for row in rows)
    return [found[row.run_id] for row in rows]


def kinds(lab: HostLab, row: RunRow) -> list[str]:
    return [entry.kind for entry in lab.store.read_inbox(row.run_id)]


def begun(lab: HostLab, task: AirflowTask, started: threading.Event) -> tuple[Try, list[RunRow]]:
    """Begin a try whose child hangs in a durable sleep."""
    one = lab.begin(task)
    rows = one.spawn(lab.wanted("sleeps", ["a"]))
    threading.Thread(target=lambda: _ignore_abandoned(one, rows), daemon=True).start()
    assert started.wait(10)
    return one, rows


def _ignore_abandoned(one: Try, rows: list[RunRow]) -> None:
    try:
        one.host.drive(rows)
    except BaseException:
        return


@pytest.fixture
def started(lab: HostLab) -> threading.Event:
    event = threading.Event()

    def sleeps(stage: Stage) -> None:
        event.set()
        stage.io.sleep("nap", 3_600_000_000)

    lab.put("sleeps", sleeps)
    return event


def test_a_task_that_was_told_to_leave_looks_at_its_children_no_more(lab: HostLab, started: threading.Event) -> None:
    """The thread that waited for them ends: where the process lives on, it would ask the store for ever, without a pause."""
    one = lab.begin(AirflowTask())
    rows = one.spawn(lab.wanted("sleeps", ["a"]))
    waiting = threading.Thread(target=lambda: _ignore_abandoned(one, rows), daemon=True)
    waiting.start()
    assert started.wait(10)
    one.host.leave(3.0)
    waiting.join(10)
    assert not waiting.is_alive()


def test_a_child_to_be_abandoned_outlives_the_task_whoever_drives_it(lab: HostLab, started: threading.Event) -> None:
    """As DAG runs as children do, which this task drives itself, and tasks do that come back from the triggerer."""
    (wanted,) = lab.wanted("sleeps", ["a"])
    one = lab.begin(AirflowTask())
    rows = one.spawn([replace(wanted, parent_close_policy="abandon")])
    threading.Thread(target=lambda: _ignore_abandoned(one, rows), daemon=True).start()
    assert started.wait(10)
    one.host.leave(within_s=10)
    one.host.fail_for_good()
    assert kinds(lab, rows[0]) == []
    assert not rows_of(lab, rows)[0].is_terminal


def test_a_task_that_cannot_drive_what_another_one_spawned_leaves_it_as_it_is(
    lab: HostLab, started: threading.Event
) -> None:
    """A task of another DAG file, which does not know the operation, must not end the children of those who do."""
    one = lab.begin(AirflowTask())
    rows = one.spawn(lab.wanted("sleeps", ["a"]))
    stranger = lab.begin(AirflowTask("await"))
    taken = stranger.host.attach(one.handles(rows))
    del lab.shelf.ops["sleeps", "1"]
    with pytest.raises(ChildRunError):
        stranger.host.drive(taken)
    stranger.host.fail_for_good()
    assert kinds(lab, rows[0]) == []
    assert not rows_of(lab, rows)[0].is_terminal


def test_a_kill_asks_the_children_to_end_and_a_retry_takes_it_back(lab: HostLab, started: threading.Event) -> None:
    task = AirflowTask()
    one, rows = begun(lab, task, started)
    one.host.leave(within_s=10)
    assert kinds(lab, rows[0]) == ["close"]
    assert not rows_of(lab, rows)[0].is_terminal
    two = lab.begin(task.retry())
    two.spawn(lab.wanted("sleeps", ["a"]))
    assert kinds(lab, rows[0]) == ["close", "withdraw"]
    assert sweep(two.process.house, lambda _at, _last: "active").ended == []


def test_a_dag_run_made_again_ends_the_grace_that_the_old_one_gave(lab: HostLab, started: threading.Event) -> None:
    """Its DAG run was marked failed, deleted and made again: nobody can take the request back, so nothing waits for that."""
    task = AirflowTask()
    one = lab.begin(task)
    rows = one.spawn(lab.wanted("sleeps", ["a"]))
    one.host.leave(within_s=10)
    assert not rows_of(lab, rows)[0].is_terminal
    lab.begin(task.recreate()).spawn(lab.wanted("sleeps", ["b"]))
    assert kinds(lab, rows[0]) == ["close", "close"]
    assert rows_of(lab, rows)[0].status == "Cancelled"
    assert not started.is_set()


def test_a_zombie_closes_nothing(lab: HostLab, started: threading.Event) -> None:
    task = AirflowTask()
    one, rows = begun(lab, task, started)
    lab.begin(task.retry()).spawn(lab.wanted("sleeps", ["a"]))
    one.host.leave(within_s=10)
    assert kinds(lab, rows[0]) == []


def test_a_task_that_fails_for_good_ends_what_nobody_owns(lab: HostLab, started: threading.Event) -> None:
    one = lab.begin(AirflowTask())
    rows = one.spawn(lab.wanted("sleeps", ["a", "b"]))
    one.host._rows_driven = rows
    one.host.fail_for_good()
    assert {row.status for row in rows_of(lab, rows)} == {"Cancelled"}
    assert not started.is_set()


def test_the_sweep_follows_what_airflow_says_of_the_task(lab: HostLab, started: threading.Event) -> None:
    one = lab.begin(AirflowTask())
    rows = one.spawn(lab.wanted("sleeps", ["a"]))
    house = lab.begin(AirflowTask(task_id="another")).process.house
    assert sweep(house, lambda _at, _last: "active").awaited == [rows[0].run_id]
    assert list(sweep(house, lambda _at, _last: "unknown").left) == [rows[0].run_id]
    assert not rows_of(lab, rows)[0].is_terminal
    assert sweep(house, lambda _at, _last: "over").ended == [rows[0].run_id]
    assert rows_of(lab, rows)[0].status == "Cancelled"
    again = sweep(house, lambda _at, _last: "over")
    assert (again.ended, again.left) == ([], {})
    assert not started.is_set()
