"""A task whose children wait for something that others can look at leaves its worker, however near the next look is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from airflow_childrun.authoring.steps import StepCall
from airflow_childrun.engine.ports import IoCall
from airflow_childrun.errors import StateError
from airflow_childrun.hooks.deferral import AwaitPolicy, Deferral
from airflow_childrun.model.config import ChildRetryPolicy, Duration, Fixed, RetryPolicy
from airflow_childrun.model.events import WAIT_OPENED
from tests.engine.kit import Background, Stage, eventually
from tests.host.kit import AirflowTask, HostLab
from tests.host.test_parking import HOUR, SECOND, advance, go_on, lab, leave, naps, recovered

__all__ = ["lab"]

LOOKS = RetryPolicy(max_attempts=9, backoff=Fixed(delay=Duration(secs=5)))


class Outside:
    """What children look for: by name, whether it has come; how often each was looked for."""

    def __init__(self, lab: HostLab) -> None:
        self.come: set[str] = set()
        self.looks: dict[str, int] = {}
        lab.put("looks", self._handler)

    def _handler(self, stage: Stage) -> None:
        name = stage.input

        def look() -> str:
            self.looks[name] = self.looks.get(name, 0) + 1
            if name not in self.come:
                raise StateError("not there yet", code="not_yet", retryable=True)
            return "there"

        watch = {"dag_id": "d", "dag_run_id": name}
        stage.io.call(IoCall("look", [], "end", local=StepCall(look, (), {}, "look", "end", LOOKS, watch)))


@pytest.mark.parametrize("lives_on", [False, True], ids=["the process leaves", "the process lives on"])
def test_whoever_comes_back_looks_at_once(lab: HostLab, lives_on: bool) -> None:
    """The clock stands still, so the look is not due; one wait each is on record, and nothing counts as a crash."""
    outside = Outside(lab)
    task = AirflowTask()
    one = lab.begin(task)
    rows = one.spawn(lab.wanted("looks", ["a", "b"]))
    parked = leave(lab, one, rows, lives_on=lives_on)
    assert {(run.dag_id, run.dag_run_id, run.calls) for run in parked.dag_runs} == {
        ("d", "a", "last"),
        ("d", "b", "last"),
    }
    assert (set(parked.inboxes), parked.wake_at) == ({row.run_id for row in rows}, None)
    outside.come |= {"a", "b"}
    assert [row.status for row in go_on(lab, task)] == ["Completed"] * 2
    assert outside.looks == {"a": 2, "b": 2}
    assert [len(lab.domain(row.run_id, WAIT_OPENED)) for row in rows] == [1, 1]
    assert [recovered(lab, row) for row in rows] == [["released"], ["released"]]
    assert [entry["kind"] for entry in lab.tries(task)] == ["first", "same"]


def test_a_look_before_its_time_counts_as_none(lab: HostLab) -> None:
    """However often the task comes back in vain; the next look that is due opens the second wait."""
    outside = Outside(lab)
    task = AirflowTask()
    one = lab.begin(task)
    (row,) = one.spawn(lab.wanted("looks", ["a"]))
    leave(lab, one, [row])
    for _ in range(12):
        again = lab.begin(task)
        leave(lab, again, again.host.come_back())
    assert [wait["try"] for wait in lab.domain(row.run_id, WAIT_OPENED)] == [1]
    advance(lab, 5 * SECOND)
    again = lab.begin(task)
    leave(lab, again, again.host.come_back())
    assert [wait["try"] for wait in lab.domain(row.run_id, WAIT_OPENED)] == [1, 2]
    outside.come.add("a")
    assert [ended.status for ended in go_on(lab, task)] == ["Completed"]


def test_a_worker_that_stays_looks_when_its_time_has_come(lab: HostLab) -> None:
    outside = Outside(lab)
    one = lab.begin(AirflowTask())
    rows = one.spawn(lab.wanted("looks", ["a"]))
    driving_it = Background(lambda: one.host.drive(rows))
    eventually(lambda: outside.looks.get("a") == 1 and lab.row(rows[0].run_id).wake_at is not None)
    outside.come.add("a")
    advance(lab, 5 * SECOND)
    assert [row.status for row in driving_it.join()] == ["Completed"]
    assert outside.looks == {"a": 2}
    one.host.close()


@pytest.mark.parametrize(("nap", "stays"), [(59 * SECOND, True), (HOUR, False)])
def test_another_child_that_goes_on_soon_keeps_the_worker(lab: HostLab, nap: int, stays: bool) -> None:
    """One that sleeps for long does not, and is when the task is back at the latest."""
    Outside(lab)
    naps(lab, nap)
    one = lab.begin(AirflowTask())
    rows = one.spawn([*lab.wanted("looks", ["a"]), *lab.wanted("naps", ["b"])])
    driving_it = Background(lambda: one.host.drive(rows, AwaitPolicy(deferrable=True, poll_interval_s=0.01)))
    if stays:
        eventually(lambda: all(lab.row(row.run_id).wake_at is not None for row in rows))
        assert one.host._supervisor.park({}, 60, lives_on=False) is None
        one.host.close()
        return
    with pytest.raises(Deferral) as raised:
        driving_it.join()
    assert raised.value.parked.wake_at == lab.clock.now_us() + HOUR
    one.host.close()


def test_a_deadline_is_when_the_task_is_back_at_the_latest(lab: HostLab) -> None:
    Outside(lab)
    one = lab.begin(AirflowTask())
    (wanted,) = lab.wanted("looks", ["a"])
    rows = one.spawn([replace(wanted, timeout_us=HOUR)])
    assert leave(lab, one, rows).wake_at == lab.clock.now_us() + HOUR


def test_which_ends_the_task_is_to_be_told_of_at_once(lab: HostLab) -> None:
    """A failure that is tried again; any end of a child's child; else that of the last: for whoever awaits."""
    Outside(lab)
    lab.put("parent", lambda s: s.join(s.spawn("looks", "c", "deep"), "w"))
    spawner, awaiter = AirflowTask(), AirflowTask("await")
    one = lab.begin(spawner)
    again: Any = ChildRetryPolicy(max_attempts=2)
    (frail,) = (replace(child, child_retry_policy=again) for child in lab.wanted("looks", ["frail"]))
    rows = one.spawn([frail, *lab.wanted("looks", ["last"]), *lab.wanted("parent", ["p"])])
    parked = leave(lab, one, rows)
    told = {"frail": "failure", "last": "last", "deep": "any"}
    assert {run.dag_run_id: run.calls for run in parked.dag_runs} == told
    other = lab.begin(awaiter)
    parked = leave(lab, other, other.host.attach(one.handles(rows)))
    assert {run.dag_run_id: run.calls for run in parked.dag_runs} == told
