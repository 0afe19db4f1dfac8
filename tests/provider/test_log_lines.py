"""What a task's log says of its children, read as whoever is called at night reads it."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from airflow_childrun import ChildRunHook, operation
from airflow_childrun.errors import ChildRunError, StateError
from airflow_childrun.hooks.elements import SpawnOrder
from tests.provider.conftest import ROOT
from tests.provider.kit import Ticket, sqlite_connection

pytestmark = pytest.mark.provider

LOGGER = "airflow.task.childrun"


ODD = {"refused": True}


@operation(name="log_half", version="1")
def half(io: Any, number: int) -> int:
    """Halve even numbers; refuse odd ones while they are refused."""
    if number % 2 and ODD["refused"]:
        raise StateError(f"{number} is odd", code="odd")
    return number // 2


@pytest.fixture(autouse=True)
def file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Give a store."""
    with sqlite_connection(monkeypatch, tmp_path) as path:
        yield path


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Any:
    """Give a function that runs a try and returns the lines of its log."""
    caplog.set_level(logging.INFO, LOGGER)

    def run(ticket: Ticket, *elements: Any, **more: Any) -> list[str]:
        caplog.clear()
        told: list[str] = []
        try:
            ChildRunHook().spawn_and_await(ticket.context(), SpawnOrder(half, list(elements)), **more)
        except ChildRunError as error:
            told = [str(error)]
        return [record.getMessage() for record in caplog.records if record.name == LOGGER] + told

    return run


def test_a_first_try_says_how_many_and_how_far(said: Any) -> None:
    assert said(Ticket(), 2, 4) == ["child runs: 2 in this task (first try): 2 spawned", "child runs: 2 of 2 ended"]


def test_no_children_are_no_riddle(said: Any) -> None:
    assert said(Ticket()) == ["child runs: 0 in this task (first try): nothing to do"]


def test_a_failure_names_the_child_by_its_input_and_a_retry_says_what_it_goes_on_with(
    said: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that is a digest stands beside what it is the digest of."""
    began, failed, ended, error = said(Ticket(), 2, 3)
    assert began == "child runs: 2 in this task (first try): 2 spawned"
    assert re.fullmatch(
        r"child log_half/\w{16}#0 \(3\): state main failed in attempt 1 \[odd\] 3 is odd; no further attempt is allowed",
        failed,
    )
    assert ended == "child runs: 2 of 2 ended, 1 of them failed or cancelled"
    assert re.search(
        r"1 of 2 child runs did not complete:\n  log_half/\w{16}#0 \(3\): Failed \[odd\] 3 is odd\n", error
    )
    monkeypatch.setitem(ODD, "refused", False)
    assert said(Ticket().retry(), 2, 3) == [
        "child runs: 2 in this task (retry): 1 spawned or continued now, 1 completed before",
        "child runs: 2 of 2 ended",
    ]


def test_a_clear_says_what_it_repeats(said: Any) -> None:
    """Whoever cleared a red task whose children had all completed sees that their calls are made again."""
    said(Ticket(), 2, 4)
    first, warning, _ = said(Ticket().clear(), 2, 4)
    assert first == "child runs: 2 in this task (cleared): 2 spawned or continued now"
    assert warning == (
        "2 of these children had completed, and run again from their beginning, every call included: clear with "
        'on_clear="reuse" where that must not be'
    )


def test_a_clear_that_ran_nothing_says_so(said: Any) -> None:
    said(Ticket(), 2, 4)
    _, warning, _ = said(Ticket().clear(), 2, 4, on_clear="reuse")
    assert warning.startswith("this clear ran nothing: all 2 children had completed")


def test_the_lines_of_a_child_say_which_child_and_what_it_works_on() -> None:
    """Bound to the thread: the key, and beside a digest the input; a key that people chose stands alone."""
    seen: dict[int, dict[str, Any]] = {}

    @operation(name="log_bound", version="1")
    def bound(io: Any, number: int) -> None:
        seen[number] = structlog.contextvars.get_contextvars()

    ChildRunHook().spawn_and_await(Ticket().context(), SpawnOrder(bound, [10]))
    ChildRunHook().spawn_and_await(Ticket("other").context(), SpawnOrder(bound, [20], child_key=str))
    assert re.fullmatch(r"log_bound/\w{16}#0", seen[10]["child_key"])
    assert (seen[10]["child_input"], seen[10]["state"]) == ("10", "main")
    assert (seen[20]["child_key"], "child_input" in seen[20]) == ("log_bound/20", False)
    assert all(len(bindings["child_run_id"]) == 36 for bindings in seen.values())


_AS_IN_A_TASK = """
import io, logging
from airflow.sdk.log import configure_logging
out = io.BytesIO()
configure_logging(json_output=True, output=out, sending_to_supervisor=True)
from airflow_childrun import ChildRunHook, operation
from airflow_childrun.hooks.elements import SpawnOrder
from tests.provider.kit import Ticket

def step(text):
    logging.getLogger("somebodys.module").warning("step %s", text)

@operation(version="1")
def says(io, text: str) -> None:
    logging.getLogger("somebodys.module").info("handler %s", text)
    io.step(step, text)

ChildRunHook().spawn_and_await(Ticket().context(), SpawnOrder(says, ["one", "two"], child_key=str))
print(out.getvalue().decode())
"""


def test_what_handlers_and_steps_log_is_told_apart_in_airflows_log(file: Path, tmp_path: Path) -> None:
    """Through the logging that Airflow sets up in a task's process: each line names its child and state."""
    done = subprocess.run(
        [sys.executable, "-c", _AS_IN_A_TASK],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "AIRFLOW_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)},
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if "somebodys.module" in line]
    assert {(line["event"], line["child_key"], line["state"]) for line in lines} == {
        (f"{who} {child}", f"says/{child}", "main") for who in ("handler", "step") for child in ("one", "two")
    }
    assert len({line["child_run_id"] for line in lines}) == 2
