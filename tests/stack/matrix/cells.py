"""The table: what is done to a child in which state, and what must come of it. Written before anything is run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tests.stack.matrix import acts, months
from tests.stack.matrix.acts import Act
from tests.stack.matrix.stage import MonthStage, Seen, Stage

STATES = ("running", "succeeded", "failed", "cancelled", "never started")
TASKS = {"spawn": "the task that spawns and waits", "await": "the await behind a spawn that does not wait"}


@dataclass(frozen=True)
class Cell:
    """One scenario.

    :param act: how it is played
    :param target: the task that something is done to
    :param idle: whether it keeps no worker for most of its time
    :param quick: whether it is in the subset that runs everywhere
    :param stage: what it is played on
    """

    name: str
    dag_id: str
    act: Callable[[Any], None]
    expected: Seen
    target: str = "spawn"
    idle: bool = False
    quick: bool = False
    stage: type[Stage] = Stage


@dataclass(frozen=True)
class Row:
    """What is done to the task while ``b`` is inside its second call, and what must come of it.

    :param a: by the state in which ``a`` is then: statuses of its generations, and its calls
    :param dag: which variant of the DAG
    """

    name: str
    act: Act
    task: str
    results: str
    b: str
    a: Mapping[str, str]
    dag: str = ""


def row(*told: str) -> dict[str, str]:
    """Return what must come of ``a``, by state."""
    return dict(zip(STATES, told, strict=True))


# It just resumes: what completed is kept, what ended otherwise goes on in its second generation, what ran goes on, and
# of all calls only those that were in flight when the process left are made again.
RESUMED = row("Completed 1+2", "Completed 1+1", "Failed Completed 1+1", "Cancelled Completed 1+1", "Completed 1+1")
LEFT = row("Running 1+1", "Completed 1+1", "Failed 1+1", "Cancelled 1+1", "Pending 0+0")
LATE = row(
    "Cancelled Completed 1+2",
    "Completed 1+1",
    "Failed Completed 1+1",
    "Cancelled Completed 1+1",
    "Cancelled Completed 1+1",
)
ANEW = row(
    "Cancelled Completed 2+2",
    "Completed Completed 2+2",
    "Failed Completed 2+2",
    "Cancelled Completed 2+2",
    "Cancelled Completed 1+1",
)

ROWS = (
    Row("retry", acts.time_passes, "success", "ba", "Completed 1+2", RESUMED, dag="_hasty"),
    Row("clear", acts.clear, "success", "ba", "Completed 1+2", RESUMED),
    Row("clear with downstream", acts.clear_with_downstream, "success", "ba", "Completed 1+2", RESUMED, dag="_tail"),
    Row("mark failed", acts.mark_failed, "failed", "-", "Running 1+1", LEFT),
    Row("mark success", acts.mark_success, "success", "-", "Running 1+1", LEFT),
    Row("SIGKILL", acts.sigkill, "success", "ba", "Completed 1+2", RESUMED),
    Row("execution_timeout", acts.time_passes, "success", "ba", "Completed 1+2", RESUMED, dag="_brief"),
    Row("DAG run cleared", acts.clear_run, "success", "ba", "Completed 1+2", RESUMED),
    Row("DAG run deleted, made again", acts.delete_run, "success", "ba", "Cancelled Completed 2+2", ANEW),
)
DRAINED = Row("drain, retry after the grace", acts.drain, "success", "ba", "Cancelled Completed 1+2", LATE)

QUICK = {
    ("spawn", "SIGKILL", "running"),
    ("await", "mark failed", "failed"),
    ("spawn", "DAG run deleted, made again", "succeeded"),
}

IMPOSSIBLE = {
    "a person retries": "Airflow has no button for it: a retry follows a failed try. Here the try fails by its await_timeout; "
    "the tries that end by SIGKILL and by execution_timeout are retried, too",
    "clear of a task that is waiting for its own children on another state than the five": "a child that waits "
    "(io.sleep) is running; one whose owner died is running until its lease is over",
    "SIGKILL, execution_timeout or drain of a spawn that does not wait, beside a held child": "it drives nothing: it is over "
    "before any child starts. Half way through its spawns: tests/stack/test_fate.py",
    "a DAG run that runs is deleted": "Airflow refuses it (409): it is marked failed first, and then deleted",
    "kill of the triggerer, trigger timeout, beside a child that succeeded, failed, was cancelled or never started": "a "
    "task is deferred only while all of its children that have not ended sleep; those that have ended do not change that",
    "SIGKILL, drain of a deferred task": "it has no process",
}


def _grid() -> Iterator[Cell]:
    for state in STATES:
        yield _cell(DRAINED, state, "spawn", f"matrix_drained_{state.replace(' ', '_')}")
    for target in TASKS:
        for each in ROWS:
            for state in STATES:
                dag_id = f"matrix_{target}{each.dag}{'_narrow' if state == 'never started' else ''}"
                yield _cell(each, state, target, dag_id)


def _cell(each: Row, state: str, target: str, dag_id: str) -> Cell:
    def act(stage: Stage) -> None:
        acts.play(stage, state, each.act, target)

    expected = Seen(each.task, {"a": each.a[state], "b": each.b}, each.results)
    return Cell(
        f"{target}, {each.name}, {state}",
        dag_id,
        act,
        expected,
        target,
        idle=each is DRAINED,
        quick=(target, each.name, state) in QUICK,
    )


def _both(told: str) -> dict[str, str]:
    return {"a": told, "b": told}


TWICE = _both("Completed Completed 2+2")
ONCE = _both("Completed 1+1")
MAPPED = {f"m{n}": "Completed Completed 2+2" if n == 7 else "Completed 1+1" for n in range(20)}

OTHERS = (
    # A green run cleared: `auto` and `respawn` run everything again, the others nothing.
    Cell("green cleared, auto", "matrix_spawn", acts.clear_green("auto"), Seen("success", TWICE, "ba")),
    Cell(
        "green cleared, resume_failed", "matrix_spawn", acts.clear_green("resume_failed"), Seen("success", ONCE, "ba")
    ),
    Cell("green cleared, reuse", "matrix_spawn", acts.clear_green("reuse"), Seen("success", ONCE, "ba"), quick=True),
    Cell("green cleared, respawn", "matrix_spawn", acts.clear_green("respawn"), Seen("success", TWICE, "ba")),
    # The red await alone goes on with what failed; the green spawn is left alone.
    Cell(
        "only the red await cleared",
        "matrix_await_once",
        acts.clear_red,
        Seen("success", {"a": "Failed Completed 1+1", "b": "Completed 1+1"}, "ba"),
        "await",
    ),
    # A spawn that does not wait, cleared without its await: what it opens anew is driven by nobody until the await is cleared.
    Cell(
        "green spawn cleared without its await",
        "matrix_await",
        acts.clear_spawn_alone(then_await=False),
        Seen("success", _both("Completed Pending 1+1"), "handles"),
    ),
    Cell(
        "green spawn cleared, then its await",
        "matrix_await",
        acts.clear_spawn_alone(then_await=True),
        Seen("success", TWICE, "ba"),
        "await",
    ),
    Cell("one of 20 mapped cleared", "matrix_mapped", acts.clear_one_of_twenty, Seen("success", MAPPED), "spawn[7]"),
    # Another list in the next try: a retry completes the list of the try before, in its order, and takes no other; a clear
    # takes the new one.
    Cell(
        "list reordered, retry",
        "matrix_spawn",
        acts.relist("ba", by="retry"),
        Seen("success", {"a": "Completed 1+1", "b": "Failed Completed 1+1"}, "ab"),
    ),
    Cell(
        "list shortened, retry",
        "matrix_spawn",
        acts.relist("a", by="retry"),
        Seen("success", {"a": "Completed 1+1", "b": "Failed Completed 1+1"}, "ab"),
    ),
    Cell(
        "list extended, retry",
        "matrix_spawn",
        acts.relist("abc", by="retry"),
        Seen("failed", {"a": "Completed 1+1", "b": "Failed 1+1"}),
    ),
    Cell("list reordered, clear", "matrix_spawn", acts.relist("ba", by="clear"), Seen("success", TWICE, "ba")),
    Cell(
        "list shortened, clear",
        "matrix_spawn",
        acts.relist("a", by="clear"),
        Seen("success", {"a": "Completed Completed 2+2", "b": "Completed 1+1"}, "a"),
    ),
    Cell(
        "list extended, clear",
        "matrix_spawn",
        acts.relist("abc", by="clear"),
        Seen("success", {**TWICE, "c": "Completed 1+1"}, "abc"),
        quick=True,
    ),
    # A DAG run made again under its id is another one: its children are new.
    Cell("green run made again by hand", "matrix_spawn", acts.made_again_by_hand, Seen("success", TWICE, "ba")),
    Cell(
        "green run made again by the scheduler",
        "matrix_daily",
        acts.made_again_by_the_scheduler,
        Seen("success", TWICE, "ba"),
    ),
    Cell(
        "green run made again by a backfill",
        "matrix_backfill",
        acts.made_again_by_a_backfill,
        Seen("success", TWICE, "ba"),
    ),
)

SLEPT = _both("Completed 1+1")
ASLEEP = _both("Running 1+0")

# The task has left its worker: all its children sleep for longer than a minute, and the triggerer brings it back.
DEFERRED = tuple(
    Cell(f"deferred, {name}", f"matrix_deferred{dag}", acts.deferred(act), Seen(task, children, results), idle=True)
    for name, dag, act, task, children, results in (
        ("undisturbed", "", acts.time_passes, "success", SLEPT, "ba"),
        ("kill of the triggerer", "", acts.kill_triggerer, "success", SLEPT, "ba"),
        ("trigger timeout", "_hasty", acts.time_passes, "success", SLEPT, "ba"),
        ("execution_timeout", "_brief", acts.time_passes, "success", SLEPT, "ba"),
        ("clear", "", acts.clear, "success", SLEPT, "ba"),
        ("DAG run cleared", "", acts.clear_run, "success", SLEPT, "ba"),
        ("mark failed", "", acts.mark_failed, "failed", ASLEEP, "-"),
        ("mark success", "", acts.mark_success, "success", ASLEEP, "-"),
        ("DAG run deleted, made again", "", acts.delete_deferred, "success", _both("Cancelled Completed 2+1"), "ba"),
    )
)

# Thirty days, each with a DAG run and a child of its own. Who reprocesses a run re-attaches to what it has.
MONTHS = tuple(
    Cell(name, dag_id, act, Seen("success", children), stage=MonthStage)
    for name, dag_id, act, children in (
        (
            "30 days, again: none, failed, completed under reuse",
            "matrix_month",
            months.each_reprocess_behaviour,
            {day: "Failed Completed 1+1" if day in months.REFUSED else "Completed 1+1" for day in months.DAYS},
        ),
        (
            "30 days, again: completed",
            "matrix_month_again",
            months.completed_again,
            dict.fromkeys(months.DAYS, "Completed Completed 2+2"),
        ),
        (
            "30 days of the schedule, again in reverse",
            "matrix_month_scheduled",
            months.scheduled_again_in_reverse,
            dict.fromkeys(months.DAYS, "Completed Completed 2+2"),
        ),
    )
)

CELLS: tuple[Cell, ...] = (*_grid(), *DEFERRED, *MONTHS, *OTHERS)
