"""``childrun demo`` does what it says, notices when it does not, and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from airflow_childrun.demo.airflow_home import AirflowHome, DemoError
from airflow_childrun.demo.billing import BillingServer
from airflow_childrun.demo.killer import kill_between_calls
from airflow_childrun.demo.main import Demo, examples_folder
from airflow_childrun.demo.report import Child, Report
from tests.provider.conftest import ROOT

pytestmark = pytest.mark.provider

_CALLER = """
import sys, urllib.request
url, record, calls = sys.argv[1], sys.argv[2], int(sys.argv[3])
for number in range(calls):
    body = ('{"customer": "c%d", "month": "2026-01"}' % number).encode()
    urllib.request.urlopen(urllib.request.Request(url + "/invoices", data=body)).read()
    with open(record, "a") as file:
        file.write("recorded\\n")
"""


def run_demo(tmp: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command with its throwaway folders in ``tmp``."""
    return subprocess.run(
        [sys.executable, "-m", "airflow_childrun.cli.main", "demo", *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=240,
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp)},
    )


@pytest.mark.slow
@pytest.mark.stack
@pytest.mark.fault
def test_the_demo_keeps_its_promise_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """A process killed between two calls costs no call: 24 for 12 customers, as the server counted."""
    done = run_demo(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().splitlines()[-1] == "12 customers, 24 calls made, 0 calls repeated"
    assert "create in try 1, send in try 2    resumed by try 2" in " ".join(done.stdout.split(" "))
    assert done.stdout.count("Completed") == 12
    assert "SIGKILL for process" in done.stdout
    assert list(tmp_path.glob("childrun-demo-*")) == []
    assert [process for process in psutil.process_iter(["environ"]) if _belongs_to(process, tmp_path)] == []


def _belongs_to(process: psutil.Process, folder: Path) -> bool:
    home = (process.info["environ"] or {}).get("AIRFLOW_HOME", "")
    return bool(home.startswith(str(folder)) and process.status() != psutil.STATUS_ZOMBIE)


def test_a_process_is_killed_after_an_answer_is_recorded_and_before_the_next_call(tmp_path: Path) -> None:
    """Whatever was called is recorded, and nothing else was called."""
    record = tmp_path / "record"
    record.touch()

    def recorded() -> int:
        return len(record.read_text().splitlines())

    with BillingServer(latency_s=0.02) as server:
        command = [sys.executable, "-c", _CALLER, server.url, str(record), "200"]
        with subprocess.Popen(command) as process:
            while len(server.calls) < 3:
                time.sleep(0.001)
            done = False
            while not done:
                wanted = len(server.calls)
                is_recorded: Callable[[], bool] = partial(lambda count: recorded() >= count, wanted)
                is_past: Callable[[], bool] = partial(lambda count: len(server.calls) > count, wanted)
                done = kill_between_calls(process.pid, server.port, is_recorded, is_past)
                assert process.poll() is None or done
        assert process.returncode == -9
        assert len(server.calls) == recorded() < 200


def test_the_server_counts_what_is_asked_for_twice() -> None:
    """The witness does not believe in tokens: the same request is a repetition."""
    with BillingServer() as server:
        for body in ('{"customer": "a", "month": "2026-01"}', '{"customer": "a", "month": "2026-01"}'):
            subprocess.run(
                [sys.executable, "-c", _ONE_CALL, server.url, body], check=True, timeout=30, capture_output=True
            )
    assert len(server.calls) == 2
    assert server.repeated == 1


_ONE_CALL = """
import sys, urllib.request
urllib.request.urlopen(urllib.request.Request(sys.argv[1] + "/invoices", data=sys.argv[2].encode())).read()
"""


@pytest.fixture
def kept_promise() -> Report:
    """Give a report as it should be; no kill has happened, so all children belong to try 2 but one."""
    result = {"status": "Completed", "output": {"cents": 1}}
    children = [Child(f"c{number}", result, "begun by try 2", []) for number in range(12)]
    children[0] = Child("c0", result, "resumed by try 2", [])
    return Report("d.t", ["failed", "success"], children, 24, 0, 13, 100, [])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"repeated": 1}, "calls that were repeated: 1, not 0"),
        ({"calls": 25}, "calls that the billing server counted: 25, not 24"),
        ({"tries": ["success"]}, "tries of the task"),
    ],
)
def test_the_demo_fails_if_a_promise_is_broken(kept_promise: Report, change: dict[str, object], complaint: str) -> None:
    """Nothing is printed as a success that was not one."""
    demo = Demo(Console(quiet=True), keep=False)
    with demo.billing, demo.airflow, pytest.raises(DemoError, match=complaint):
        demo._check(Report(**{**vars(kept_promise), **change}))


def test_what_cannot_be_prepared_is_said_and_cleaned_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken configuration ends in one error with the end of the log, and without a folder left."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with (
        pytest.raises(DemoError, match="the databases could not be made"),
        AirflowHome([], {"database": {"sql_alchemy_conn": "sqlite:////nowhere/at/all.db"}}) as airflow,
    ):
        airflow.prepare()
    assert list(tmp_path.iterdir()) == []


def test_the_examples_are_found() -> None:
    """In a checkout they stand beside the package."""
    assert (examples_folder() / "monthly_invoices.py").is_file()
