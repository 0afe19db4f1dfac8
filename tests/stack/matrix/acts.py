"""How cells are played: bring a child into its state, then do what a person or fate does."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

from tests.stack.matrix.stage import Stage
from tests.stack.stand import parent_of
from tests.stack.test_fate import is_alive

Act = Callable[[Stage, str], None]
GRACE_S = 120
LATE_S = GRACE_S + 5
SEE_S = 3
"""When Airflow has seen what was done to a task that no process runs."""
"""When the grace is over that a drained task gave its children."""


def reach(stage: Stage, state: str) -> None:
    """Start the DAG run, and bring child ``a`` into a state while ``b``, beside it, is held inside its second call."""
    stage.shut("b")
    if state in ("running", "cancelled"):
        stage.shut("a")
    if state == "failed":
        stage.refuse("a")
    stage.trigger()
    stage.wait(lambda: stage.called("b"), "b calls")
    if state in ("succeeded", "failed"):
        status = "Completed" if state == "succeeded" else "Failed"
        stage.wait(lambda: stage.has_status("a", status), f"a is {status}")
    elif state == "never started":
        stage.wait(lambda: stage.has_status("a", "Pending"), "a is pending")
    else:
        stage.wait(lambda: stage.called("a"), "a calls")
    if state == "cancelled":
        stage.cancel("a")
        stage.open("a")
        stage.wait(lambda: stage.has_status("a", "Cancelled"), "a is cancelled")
    stage.accept()


def play(stage: Stage, state: str, act: Act, target: str) -> None:
    """Bring the children into their states, act on the task, and let everything through once its process is gone."""
    reach(stage, state)
    pid = stage.pid()
    act(stage, target)
    stage.wait(lambda: not is_alive(pid), f"process {pid} leaves")
    stage.open()


def time_passes(_stage: Stage, _target: str) -> None:
    """Do nothing: the try ends by itself, at its ``await_timeout`` or ``execution_timeout``."""


def clear(stage: Stage, target: str) -> None:
    """Clear the task."""
    stage.clear(target)


def clear_with_downstream(stage: Stage, target: str) -> None:
    """Clear the task and what comes after."""
    stage.clear(target, include_downstream=True)


def mark_failed(stage: Stage, target: str) -> None:
    """Mark the task failed."""
    stage.stand.browser.mark(stage.dag_id, stage.run_id, target, "failed")


def mark_success(stage: Stage, target: str) -> None:
    """Mark the task a success."""
    stage.stand.browser.mark(stage.dag_id, stage.run_id, target, "success")


def sigkill(stage: Stage, _target: str) -> None:
    """Kill the process of the task."""
    os.kill(stage.pid(), signal.SIGKILL)


def clear_run(stage: Stage, _target: str) -> None:
    """Clear the whole DAG run."""
    stage.stand.browser.clear_run(stage.dag_id, stage.run_id)


def delete_run(stage: Stage, _target: str) -> None:
    """Mark the DAG run failed, since Airflow deletes none that runs; delete it, and start it again under its id."""
    pid = stage.pid()
    stage.stand.browser.mark_run(stage.dag_id, stage.run_id, "failed")
    stage.stand.browser.delete_run(stage.dag_id, stage.run_id)
    stage.wait(lambda: not is_alive(pid), f"process {pid} leaves")
    stage.trigger()


def drain(stage: Stage, _target: str) -> None:
    """Tell the worker to leave, and let its retry come only after the grace."""
    stage.stand.browser.pause(stage.dag_id, paused=True)
    pid = stage.pid()
    os.kill(parent_of(pid), signal.SIGTERM)
    stage.wait(lambda: not is_alive(pid), f"process {pid} leaves")
    time.sleep(LATE_S)
    stage.stand.browser.pause(stage.dag_id, paused=False)


def kill_triggerer(stage: Stage, _target: str) -> None:
    """Kill the triggerer with everything that it started, and start another one."""
    stage.stand.kill("triggerer")
    stage.stand.start("triggerer")


def delete_deferred(stage: Stage, _target: str) -> None:
    """Mark the DAG run failed, delete it, and start it again under its id."""
    stage.stand.browser.mark_run(stage.dag_id, stage.run_id, "failed")
    stage.stand.browser.delete_run(stage.dag_id, stage.run_id)
    stage.trigger()


# ------------------------------------------------------------------------------------------------ cells of their own


def deferred(act: Act) -> Callable[[Stage], None]:
    """Return: act on a task that has left its worker, since all its children sleep."""

    def run(stage: Stage) -> None:
        stage.trigger()
        stage.wait_for_task("spawn", "deferred")
        act(stage, "spawn")
        time.sleep(SEE_S)

    return run


def over(stage: Stage, least_try: int = 1, task_id: str = "spawn") -> None:
    """Wait until the DAG run is over, a task in a certain try at least."""
    stage.wait(
        lambda: stage.is_over() and stage.tasks()[task_id][1] >= least_try, f"over, {task_id} in try {least_try}"
    )


def clear_green(policy: str) -> Callable[[Stage], None]:
    """Return: run to the end, then clear the green task with an ``on_clear``."""

    def run(stage: Stage) -> None:
        stage.trigger(policy=policy)
        over(stage)
        stage.clear("spawn")
        over(stage, 2)

    return run


def clear_red(stage: Stage) -> None:
    """Let one child fail, and its await with it; then let it succeed, and clear the await alone."""
    stage.refuse("a")
    stage.trigger()
    over(stage, 1, "await")
    stage.accept()
    stage.clear("await")
    over(stage, 2, "await")


def clear_spawn_alone(then_await: bool) -> Callable[[Stage], None]:
    """Return: a green pair; the spawn is cleared without its await, which may be cleared afterwards."""

    def run(stage: Stage) -> None:
        stage.trigger()
        over(stage)
        stage.clear("spawn")
        over(stage, 2)
        if then_await:
            stage.clear("await")
            over(stage, 2, "await")

    return run


def clear_one_of_twenty(stage: Stage) -> None:
    """Clear one of 20 mapped spawns."""
    stage.trigger()
    stage.wait(lambda: len(stage.tasks()) == 20 and stage.is_over(), "20 mapped are over")
    stage.clear(task_ids=[["spawn", 7]])
    stage.wait(lambda: stage.is_over() and stage.tasks()["spawn[7]"][1] == 2, "number 7 ran again")


def relist(items: str, *, by: str) -> Callable[[Stage], None]:
    """Return: the list is another one in the next try (by a retry, or by a clear of the green task)."""

    def run(stage: Stage) -> None:
        stage.write_list("ab")
        if by == "retry":
            stage.refuse("b")
            stage.shut("a")
        stage.trigger()
        if by == "retry":
            stage.wait(lambda: stage.has_status("b", "Failed") and stage.called("a"), "b fails, a calls")
        else:
            over(stage)
        stage.write_list(items)
        stage.accept()
        if by == "clear":
            stage.clear("spawn")
        stage.open()
        over(stage, 2)

    return run


def delete_green(stage: Stage) -> None:
    """Delete a DAG run once it is over: Airflow refuses that while it runs."""
    over(stage)
    stage.stand.browser.delete_run(stage.dag_id, stage.run_id)


def made_again_by_hand(stage: Stage) -> None:
    """Delete a green run, and trigger it again under its id."""
    stage.trigger()
    delete_green(stage)
    stage.trigger()
    stage.wait(lambda: stage.called("a", times=2), "a calls again")
    over(stage)


def made_again_by_the_scheduler(stage: Stage) -> None:
    """Delete a green scheduled run; the scheduler finds its interval missing and makes it again."""
    browser = stage.stand.browser
    browser.pause(stage.dag_id, paused=False)
    stage.wait(lambda: browser.run_ids(stage.dag_id), "the scheduler made a run")
    stage.run_id = browser.run_ids(stage.dag_id)[0]
    delete_green(stage)
    stage.wait(lambda: stage.called("a", times=2), "a calls again")
    over(stage)


def made_again_by_a_backfill(stage: Stage) -> None:
    """Delete a green backfill run; a second backfill makes it again."""
    day = "2026-02-01T00:00:00Z"
    stage.run_id = "backfill__2026-02-01T00:00:00+00:00"
    body: dict[str, Any] = {"dag_id": stage.dag_id, "from_date": day, "to_date": day}
    browser = stage.stand.browser
    browser.pause(stage.dag_id, paused=False)
    backfill = browser.post("/backfills", body)
    stage.wait(stage.tasks, "the backfill made a run")
    delete_green(stage)
    browser.put(f"/backfills/{backfill['id']}/cancel")
    browser.post("/backfills", body)
    stage.wait(lambda: stage.called("a", times=2), "a calls again")
    over(stage)
