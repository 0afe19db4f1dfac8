"""Children that DAG runs drive: which DAG run has which, what a crash or a lost DAG run costs, and who closes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from uuid import UUID

import pytest

from airflow_childrun.errors import ChildRunError, ErrorInfo, HostError
from airflow_childrun.hooks import driving
from airflow_childrun.hooks.dispatching import Dispatch, check_runner, read_dispatch
from airflow_childrun.hooks.observer import TaskObserver
from airflow_childrun.hooks.results import handle_of
from airflow_childrun.hooks.runner import RunnerTask, read_conf
from airflow_childrun.model.events import CHILD_RUNS_DISPATCHED
from airflow_childrun.runtime.recover import Sweep, sweep
from airflow_childrun.store.api import RunRow
from tests.engine.kit import Background, Process, Stage, eventually
from tests.host.kit import AirflowTask, HostLab, Try, returning

TASK = AirflowTask()
BY_TWO = Dispatch("runner", 2)


@dataclass
class Airflow:
    """Airflow's DAG runs of one runner DAG; a test says when they do something."""

    states: dict[str, str] = field(default_factory=dict)
    confs: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    errors: dict[str, ErrorInfo] = field(default_factory=dict)
    asked: int = 0
    on_trigger: Callable[[str], None] = lambda _: None

    def trigger(self, dag_id: str, run_id: str, conf: Mapping[str, Any]) -> bool:
        assert dag_id == "runner"
        if run_id in self.states:
            return False
        self.on_trigger(run_id)
        self.states[run_id], self.confs[run_id] = "queued", conf
        return True

    def state(self, dag_id: str, run_id: str) -> str | None:
        return self.states.get(run_id)

    def count_active(self, dag_id: str, run_ids: Sequence[str]) -> int:
        self.asked += 1
        return sum(self.states.get(run_id) in ("queued", "running") for run_id in run_ids)

    def error_of(self, dag_id: str, run_id: str) -> ErrorInfo | None:
        return self.errors.get(run_id)


@dataclass
class Cluster:
    """A store, tries of tasks, and an Airflow that runs what they dispatch."""

    lab: HostLab
    airflow: Airflow

    def begin(self, task: AirflowTask = TASK) -> Try:
        return self.lab.begin(task, self.airflow)

    def spawn(self, task: AirflowTask, items: Sequence[str], dispatch: Dispatch = BY_TWO) -> tuple[Try, list[RunRow]]:
        one = self.begin(task)
        return one, one.host.spawn(self.lab.wanted("work", items), "auto", "fail", dispatch)

    def runner(self, run_id: str, number: int = 1) -> tuple[RunnerTask, Process]:
        """Begin a try of a runner's task."""
        process = self.lab.process(owner="")
        facts = replace(TASK.facts, ti_id=UUID(int=number << 80), try_number=number)
        place = replace(AirflowTask("drive", run_id).place, facts=facts)
        return RunnerTask(process.house, place, TaskObserver(process.house.store)), process

    def run(self, run_id: str) -> list[str]:
        """Do what a DAG run does, and return how its children ended."""
        task, _ = self.runner(run_id)
        ended = task.drive(task.find(read_conf(self.airflow.confs[run_id])))
        task.close()
        self.airflow.states[run_id] = "success"
        return [row.status for row in ended]

    def run_all(self) -> None:
        for run_id in [run_id for run_id, state in self.airflow.states.items() if state == "queued"]:
            self.run(run_id)

    def batches(self, task: AirflowTask = TASK) -> list[dict[str, Any]]:
        """Return what a task recorded."""
        found = self.lab.domain(self.lab.host_id(task), CHILD_RUNS_DISPATCHED)
        return [batch for payload in found for batch in payload["batches"]]

    def statuses(self, rows: Sequence[RunRow]) -> list[str]:
        found = self.lab.store.get_runs(row.run_id for row in rows)
        return [found[row.run_id].status for row in rows]

    def inboxes(self, rows: Sequence[RunRow]) -> list[list[str]]:
        return [[entry.kind for entry in self.lab.store.read_inbox(row.run_id)] for row in rows]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setattr(driving, "LOOK_EVERY_S", 0.0)
    lab = HostLab()

    def work(stage: Stage) -> Any:
        return stage.ask("ask", stage.input)

    lab.put("work", returning(work))
    yield Cluster(lab, Airflow())
    lab.close()


def test_what_drives_a_child_is_recorded_before_it_is_triggered(cluster: Cluster) -> None:
    """Five children, two to a DAG run: at the first trigger all three batches stand in the task's stream."""
    seen: list[int] = []
    cluster.airflow.on_trigger = lambda _: seen.append(len(cluster.batches()))
    one, rows = cluster.spawn(TASK, "abcde")
    assert seen == [3, 3, 3]
    assert [len(batch["run_ids"]) for batch in cluster.batches()] == [2, 2, 1]
    assert list(cluster.airflow.states) == [f"childrun__{rows[index].run_id}" for index in (0, 2, 4)]
    assert cluster.statuses(rows) == ["Pending"] * 5
    awaiting = Background(one.host.drive, rows)
    cluster.run_all()
    assert [row.status for row in awaiting.join()] == ["Completed"] * 5
    assert sorted(request for _, request in cluster.lab.world.calls) == list("abcde")


def test_a_crash_between_spawn_and_trigger_neither_loses_nor_doubles_a_dispatch(cluster: Cluster) -> None:
    """The process dies after the first of three triggers: the retry makes the other two, under the recorded ids."""

    def die(_: str) -> None:
        if cluster.airflow.states:
            raise RuntimeError("the process dies")

    cluster.airflow.on_trigger = die
    with pytest.raises(RuntimeError):
        cluster.spawn(TASK, "abcde")
    assert len(cluster.airflow.states) == 1
    cluster.airflow.on_trigger = lambda _: None
    one, rows = cluster.spawn(TASK.retry(), "abcde")
    assert list(cluster.airflow.states) == [f"childrun__{rows[index].run_id}" for index in (0, 2, 4)]
    assert len(cluster.batches()) == 3
    awaiting = Background(one.host.drive, rows)
    cluster.run_all()
    assert [row.generation for row in awaiting.join()] == [1] * 5
    assert len(cluster.lab.world.calls) == 5


def test_a_lost_answer_to_a_trigger_is_no_second_dag_run(cluster: Cluster) -> None:
    """Airflow made the DAG run, the answer was lost: the retry adopts it."""

    def lose(run_id: str) -> None:
        cluster.airflow.states[run_id] = "queued"
        raise HostError("no answer", code="airflow_unavailable", retryable=True)

    cluster.airflow.on_trigger = lose
    with pytest.raises(HostError):
        cluster.spawn(TASK, "ab")
    cluster.airflow.on_trigger = lambda _: pytest.fail("triggered again")
    cluster.spawn(TASK.retry(), "ab")
    assert len(cluster.airflow.states) == 1


@pytest.mark.parametrize("fate", ["success", "failed", None])
def test_a_dag_run_that_is_over_or_gone_is_followed_by_another(cluster: Cluster, fate: str | None) -> None:
    """Its children are dispatched anew, all of them under one new id; those that had ended are left alone."""
    one, rows = cluster.spawn(TASK, "ab")
    (lost,) = cluster.airflow.states
    task, _ = cluster.runner(lost)
    task.drive(task.find([rows[0].run_id]))
    task.close()
    if fate is None:
        del cluster.airflow.states[lost]
    else:
        cluster.airflow.states[lost] = fate
    awaiting = Background(one.host.drive, rows)
    eventually(lambda: f"{lost}__2" in cluster.airflow.states)
    assert [batch["number"] for batch in cluster.batches()] == [1, 2]
    assert cluster.run(f"{lost}__2") == ["Completed", "Completed"]
    awaiting.join()
    assert sorted(request for _, request in cluster.lab.world.calls) == ["a", "b"]


def test_a_dag_run_that_waits_in_its_queue_is_left_alone(cluster: Cluster) -> None:
    one, rows = cluster.spawn(TASK, "ab")
    awaiting = Background(one.host.drive, rows)
    asked = cluster.airflow.asked
    eventually(lambda: cluster.airflow.asked > asked + 5)
    assert len(cluster.airflow.states) == 1
    cluster.run_all()
    awaiting.join()


def test_the_author_may_want_to_fail_instead(cluster: Cluster) -> None:
    """``on_runner_lost="fail"``: the error names DAG run and cause; a retry of the task dispatches anew."""
    fails = Dispatch("runner", 2, "fail")
    one, rows = cluster.spawn(TASK, "abcd", fails)
    lost, other = cluster.airflow.states
    cluster.airflow.states[lost] = "failed"
    awaiting = Background(one.host.drive, rows)
    cluster.run(other)
    with pytest.raises(HostError, match=f"DAG run {lost} of DAG runner ended .failed. before 2 of its 2") as raised:
        awaiting.join()
    assert (raised.value.code, raised.value.retryable) == ("runner_lost", True)
    _, rows = cluster.spawn(TASK.retry(), "abcd", fails)
    assert set(cluster.airflow.states) == {lost, other, f"{lost}__2"}


def test_what_no_further_dag_run_could_mend_fails_at_once(cluster: Cluster) -> None:
    """The runner said that it does not know the operation: that is the cause, and final."""
    one, rows = cluster.spawn(TASK, "ab")
    (lost,) = cluster.airflow.states
    cluster.airflow.errors[lost] = ErrorInfo("operation_not_reachable", message="it is not known there")
    cluster.airflow.states[lost] = "failed"
    with pytest.raises(HostError, match=r"\[operation_not_reachable\] it is not known there") as raised:
        one.host.drive(rows)
    assert not raised.value.retryable
    assert len(cluster.airflow.states) == 1


def test_dag_runs_that_end_again_and_again_end_in_an_error(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four DAG runs in one try, and no fifth."""
    trigger = cluster.airflow.trigger

    def fail(dag_id: str, run_id: str, conf: Mapping[str, Any]) -> bool:
        made = trigger(dag_id, run_id, conf)
        cluster.airflow.states[run_id] = "failed"
        return made

    monkeypatch.setattr(cluster.airflow, "trigger", fail)
    one, rows = cluster.spawn(TASK, "ab")
    with pytest.raises(HostError) as raised:
        one.host.drive(rows)
    assert raised.value.code == "runner_lost"
    assert len(cluster.airflow.states) == 4


def test_airflow_that_cannot_be_asked_for_a_while_costs_nothing(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, rows = cluster.spawn(TASK, "ab")
    count_active = cluster.airflow.count_active
    refused: list[int] = []

    def refuse(dag_id: str, run_ids: Sequence[str]) -> int:
        if len(refused) < 3:
            refused.append(1)
            raise HostError("no answer", code="airflow_unavailable", retryable=True)
        return count_active(dag_id, run_ids)

    monkeypatch.setattr(cluster.airflow, "count_active", refuse)
    awaiting = Background(one.host.drive, rows)
    eventually(lambda: len(refused) == 3)
    cluster.run_all()
    awaiting.join()
    assert len(cluster.airflow.states) == 1


def test_a_later_try_of_a_runners_task_takes_over_at_once(cluster: Cluster) -> None:
    """The first try's process hangs in a call and its session lives: the second does not wait for it."""
    _, rows = cluster.spawn(TASK, "a")
    (run_id,) = cluster.airflow.states
    hanging: list[Any] = []

    def hang(request: Any) -> Any:
        hanging.append(request)
        eventually(lambda: len(hanging) == 2)
        return {"echo": request}

    def answer(request: Any) -> Any:
        hanging.append(request)
        return {"echo": request}

    cluster.lab.world.scripts["ask"] = [hang, answer]
    first, process = cluster.runner(run_id)
    dead = Background(first.drive, first.find([rows[0].run_id]))
    eventually(lambda: len(hanging) == 1)
    process.gate.dead = True
    second, _ = cluster.runner(run_id, 2)
    assert [row.status for row in second.drive(second.find([rows[0].run_id]))] == ["Completed"]
    second.close()
    assert dead is not None


def test_a_runner_that_is_told_to_stop_closes_nothing(cluster: Cluster) -> None:
    """Its children are left to the next try; neither its end nor that of a task which only awaits is theirs."""
    one, rows = cluster.spawn(TASK, "ab")
    (run_id,) = cluster.airflow.states
    runner, _ = cluster.runner(run_id)
    runner.find([row.run_id for row in rows])
    runner.leave(within_s=10)
    joining = cluster.begin(AirflowTask("await"))
    handles = [handle_of(row, row.op_id, "childrun_default", "runner") for row in rows]
    joining.host._rows_driven = []
    joining.host.attach(handles)
    joining.host.leave(within_s=10)
    joining.host.fail_for_good()
    assert cluster.inboxes(rows) == [[], []]
    one.host.leave(within_s=10)
    assert cluster.inboxes(rows) == [["close"], ["close"]]


def test_an_abandoned_child_outlives_the_task_that_spawned_it(cluster: Cluster) -> None:
    """Policy ``abandon``, recorded at the spawn, beside one of policy ``cancel``."""
    one = cluster.begin()
    stays, ends = cluster.lab.wanted("work", "ab")
    rows = one.host.spawn([replace(stays, parent_close_policy="abandon"), ends], "auto", "fail", BY_TWO)
    one.host.fail_for_good()
    assert cluster.inboxes(rows) == [[], ["close"]]
    assert cluster.statuses(rows) == ["Pending", "Cancelled"]


def test_a_failed_child_that_is_awaited_again_is_dispatched_again(cluster: Cluster) -> None:
    """The awaiting task's clear opens the next generation, and has the same runner DAG drive it."""
    cluster.lab.world.scripts["ask"] = [OSError("down")]
    _, rows = cluster.spawn(TASK, "ab", Dispatch("runner", 2))
    cluster.run_all()
    assert sorted(cluster.statuses(rows)) == ["Completed", "Failed"]
    handles = [handle_of(row, row.op_id, "childrun_default", "runner") for row in rows]
    task = AirflowTask("await")
    cluster.begin(task).host.attach(handles)
    again = cluster.begin(task.clear())
    opened = again.host.attach(handles)
    assert sorted(row.generation for row in opened) == [1, 2]
    (new,) = (row for row in opened if row.generation == 2)
    assert f"childrun__{new.run_id}" in cluster.airflow.states
    assert cluster.batches(task)[0]["run_ids"] == [str(new.run_id)]
    awaiting = Background(again.host.drive, opened)
    cluster.run_all()
    assert [row.status for row in awaiting.join()] == ["Completed", "Completed"]


def swept(cluster: Cluster, state: Literal["active", "over"]) -> Sweep:
    """Sweep as ``childrun recover`` does, with an Airflow that says this of every task."""
    house = cluster.lab.process(owner="").house
    return sweep(house, lambda _at, _last: state, dag_runs=cluster.airflow)


def test_the_sweep_leaves_to_a_dag_run_what_it_drives(cluster: Cluster) -> None:
    """A task that did not wait is over, its children are in the runner's queue: they are awaited, whatever their policy."""
    _, rows = cluster.spawn(TASK, "ab")
    found = swept(cluster, "over")
    assert (sorted(found.awaited), found.ended) == (sorted(row.run_id for row in rows), [])
    cluster.airflow.states.clear()
    assert sorted(swept(cluster, "over").ended) == sorted(row.run_id for row in rows)


def test_the_sweep_dispatches_anew_what_was_to_outlive_its_task(cluster: Cluster) -> None:
    """Policy ``abandon``, DAG run failed: another one is made, once, however often the sweep comes."""
    one = cluster.begin()
    wanted = [replace(child, parent_close_policy="abandon") for child in cluster.lab.wanted("work", "ab")]
    rows = one.host.spawn(wanted, "auto", "fail", BY_TWO)
    (lost,) = cluster.airflow.states
    cluster.airflow.states[lost] = "failed"
    assert swept(cluster, "over").dispatched[:1] in ([rows[0].run_id], [rows[1].run_id])
    again = swept(cluster, "over")
    assert (again.dispatched, again.left, len(again.awaited)) == ([], {}, 2)
    assert set(cluster.airflow.states) == {lost, f"{lost}__2"}
    assert cluster.run(f"{lost}__2") == ["Completed", "Completed"]


def test_no_commit_cuts_a_batch_in_two(cluster: Cluster) -> None:
    """450 children, 150 to a DAG run: three DAG runs, though commits hold 200 runs at most."""
    cluster.spawn(TASK, [f"{number:03}" for number in range(450)], Dispatch("runner", 150))
    assert [len(batch["run_ids"]) for batch in cluster.batches()] == [150, 150, 150]


def test_a_child_of_another_store_is_refused(cluster: Cluster) -> None:
    task, _ = cluster.runner("by hand")
    with pytest.raises(HostError) as raised:
        task.find([UUID(int=7)])
    assert raised.value.code == "child_run_missing"


@pytest.mark.parametrize("conf", [{}, {"childrun": {}}, {"childrun": {"run_ids": "x"}}, {"childrun": {"run_ids": [1]}}])
def test_a_runner_triggered_by_hand_is_told_what_its_conf_must_be(conf: dict[str, Any]) -> None:
    with pytest.raises(HostError, match="run_ids") as raised:
        read_conf(conf)
    assert raised.value.code == "runner_conf_invalid"


@pytest.mark.parametrize(
    ("given", "policy", "dag_id", "code"),
    [
        (("dag_runs", None, 1, "redispatch"), "cancel", None, "argument_invalid"),
        (("inline", None, 1, "never"), "cancel", None, "argument_invalid"),
        (("inline", "runner", 1, "redispatch"), "cancel", None, "argument_invalid"),
        (("inline", None, 1, "redispatch"), "abandon", None, "inline_abandon"),
        (("dag_run", None, 1, "redispatch"), "cancel", None, "runner_dag_missing"),
        (("dag_run", "runner", 0, "redispatch"), "cancel", None, "argument_invalid"),
        (("dag_run", "runner", 1, "redispatch"), "kill", None, "argument_invalid"),
        (("dag_run", "runner", 1, "redispatch"), "abandon", "another", "argument_invalid"),
    ],
)
def test_contradicting_arguments_are_refused_at_parse(
    given: tuple[Any, ...], policy: str, dag_id: str | None, code: str
) -> None:
    with pytest.raises(ChildRunError) as raised:
        check_runner(read_dispatch(*given), policy, dag_id)
    assert raised.value.code == code
