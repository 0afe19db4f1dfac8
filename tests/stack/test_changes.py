"""Code, plan and version of an operation change between two tries, and between spawn and await. Outcomes stand first."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable

import pytest

from tests.stack.changes import ChangingFile
from tests.stack.records import Records
from tests.stack.stand import Stand
from tests.stack.test_fate import Gate, gate, is_alive, wait_until

__all__ = ["gate"]
pytestmark = [pytest.mark.stack, pytest.mark.provider, pytest.mark.fault, pytest.mark.long]
Shut = Callable[[str], Gate]


def killed_inside(stand: Stand, shut: Shut, file: ChangingFile, run_id: str, change: Callable[[], None]) -> None:
    """Kill the first try inside the child's second call, the file being changed before the next try begins."""
    file.wait_until_known()
    held = shut(f"{run_id}/a/second")
    stand.browser.trigger(file.dag_id, run_id)
    pid = held.wait_for_call()
    change()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid), "it is gone")
    held.open()


def outputs(stand: Stand, dag_id: str, run_id: str, task_id: str) -> list[object]:
    """Return the outputs that a task returned."""
    return [result["output"] for result in stand.browser.xcom(dag_id, run_id, task_id)]


def test_handler_code_changed_between_tries_goes_on_with_the_new_code(stand: Stand, records: Records, gate: Shut):
    """The same generation; what is recorded is not asked again; what the new code returns is the output."""
    file = ChangingFile(stand, "changed_code")
    file.write("old")
    killed_inside(stand, gate, file, "code", lambda: file.write("new"))
    assert stand.browser.wait_for_run("changed_code", "code") == "success"
    assert outputs(stand, "changed_code", "code", "spawn") == ["a new"]
    assert records.statuses("changed_code", "code") == [(1, "Completed")]
    assert stand.witness.counts("code/") == Counter({"code/a/first": 1, "code/a/second": 2})
    assert records.findings("changed_code", "code") == []


def test_a_plan_changed_between_tries_is_named_and_loses_nothing(stand: Stand, records: Records, gate: Shut):
    """The retry fails for good and says what differs and what to do; with the old plan back, a clear goes on."""
    file = ChangingFile(stand, "changed_plan")
    file.write("old")
    killed_inside(stand, gate, file, "plan", lambda: file.write("new", state="start"))
    assert stand.browser.wait_for_run("changed_plan", "plan") == "failed"
    assert stand.browser.task("changed_plan", "plan", "spawn")["try_number"] == 2
    log = stand.browser.log("changed_plan", "plan", "spawn", 2)
    print(log)
    for wanted in ("plan_drift", "begin", "start", 'on_plan_change="respawn"'):
        assert wanted in log, f"{wanted!r} is missing in\n{log}"
    file.write("newer")
    stand.browser.clear("changed_plan", "plan", "spawn")
    stand.browser.wait_for_task("changed_plan", "plan", "spawn", "success", least_try=3)
    assert outputs(stand, "changed_plan", "plan", "spawn") == ["a newer"]
    assert stand.witness.counts("plan/")["plan/a/first"] == 1
    assert records.findings("changed_plan", "plan") == []


def test_a_plan_changed_between_tries_starts_afresh_if_the_author_says_so(stand: Stand, records: Records, gate: Shut):
    """The old generation is ended, the next one knows nothing of it."""
    file = ChangingFile(stand, "changed_plan_respawn", options='on_plan_change="respawn"')
    file.write("old")
    killed_inside(stand, gate, file, "afresh", lambda: file.write("new", state="start"))
    assert stand.browser.wait_for_run("changed_plan_respawn", "afresh") == "success"
    assert outputs(stand, "changed_plan_respawn", "afresh", "spawn") == ["a new"]
    assert [generation for generation, _ in records.statuses("changed_plan_respawn", "afresh")] == [1, 2]
    assert records.statuses("changed_plan_respawn", "afresh")[1] == (2, "Completed")
    assert stand.witness.counts("afresh/")["afresh/a/first"] == 2
    assert records.findings("changed_plan_respawn", "afresh") == []


def test_a_version_raised_between_tries_is_refused_by_the_retry_and_taken_by_a_clear(
    stand: Stand, records: Records, gate: Shut
):
    """A retry completes what the try before it began, and says so; a clear begins the new version afresh."""
    file = ChangingFile(stand, "changed_version")
    file.write("old")
    killed_inside(stand, gate, file, "raised", lambda: file.write("new", versions=("1", "2")))
    assert stand.browser.wait_for_run("changed_version", "raised") == "failed"
    log = stand.browser.log("changed_version", "raised", "spawn", 2)
    print(log)
    for wanted in ("child_run_conflict", "version", "clear the task"):
        assert wanted in log, f"{wanted!r} is missing in\n{log}"
    stand.browser.clear("changed_version", "raised", "spawn")
    stand.browser.wait_for_task("changed_version", "raised", "spawn", "success", least_try=3)
    assert outputs(stand, "changed_version", "raised", "spawn") == ["a new"]
    assert [row.op_version for row in records.children("changed_version", "raised")] == ["1", "2"]
    assert records.findings("changed_version", "raised") == []


@pytest.mark.parametrize(
    ("what", "change", "output"),
    [
        ("code", {"text": "new"}, "a new"),
        ("version", {"text": "new", "versions": ("1", "2")}, "a new 1"),
    ],
)
def test_what_changes_between_spawn_and_await(
    stand: Stand, records: Records, what: str, change: dict[str, object], output: str
):
    """New code drives the children that are there; they keep the version that they were spawned with."""
    file = ChangingFile(stand, f"apart_{what}", apart=True)
    file.write("old")
    file.wait_until_known()
    stand.browser.trigger(file.dag_id, f"apart_{what}")
    stand.browser.wait_for_task(file.dag_id, f"apart_{what}", "spawn", "success")
    file.write(**change)  # type: ignore[arg-type]
    file.open(f"apart_{what}")
    assert stand.browser.wait_for_run(file.dag_id, f"apart_{what}") == "success"
    assert outputs(stand, file.dag_id, f"apart_{what}", "await") == [output]
    assert records.statuses(file.dag_id, f"apart_{what}") == [(1, "Completed")]


def test_a_version_that_is_gone_when_the_await_comes_is_named_and_the_child_stays(stand: Stand, records: Records):
    """The await fails, lists what is known and where it looked; with the version back, a clear of it completes."""
    file = ChangingFile(stand, "apart_gone", apart=True)
    file.write("old")
    file.wait_until_known()
    stand.browser.trigger("apart_gone", "gone")
    stand.browser.wait_for_task("apart_gone", "gone", "spawn", "success")
    file.write("new", versions=("2",))
    file.open("gone")
    assert stand.browser.wait_for_run("apart_gone", "gone") == "failed"
    log = stand.browser.log("apart_gone", "gone", "await", 1)
    print(log)
    for wanted in ("operation_not_reachable", "changing 2", "operations_modules"):
        assert wanted in log, f"{wanted!r} is missing in\n{log}"
    assert records.statuses("apart_gone", "gone") == [(1, "Pending")]
    file.write("old", versions=("1", "2"))
    stand.browser.clear("apart_gone", "gone", "await")
    stand.browser.wait_for_task("apart_gone", "gone", "await", "success", least_try=2)
    assert records.statuses("apart_gone", "gone") == [(1, "Completed")]
