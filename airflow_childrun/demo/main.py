"""``childrun demo``: a run is killed half way and finishes all the same, in a throwaway Airflow."""

from __future__ import annotations

import argparse
import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn

import airflow_childrun
from airflow_childrun.cli.screen import PIPE_WIDTH
from airflow_childrun.demo.airflow_home import AirflowHome, DemoError
from airflow_childrun.demo.billing import BillingServer, Call
from airflow_childrun.demo.killer import kill_between_calls
from airflow_childrun.demo.report import Report, read_report
from airflow_childrun.errors import ChildRunError
from airflow_childrun.hooks.connection import open_store, settings_from_url
from airflow_childrun.store.api import RunFilter, Store

DAG_ID, TASK_ID, DAG_RUN_ID = "monthly_invoices", "invoices", "demo"
CUSTOMERS, CALLS_EACH = 12, 2
LATENCY_S = 0.12
TASK_S = 90.0
_RUNNING = RunFilter(kind="operation", statuses=frozenset({"Running"}))
_TASK = f"/dags/{DAG_ID}/dagRuns/{DAG_RUN_ID}/taskInstances/{TASK_ID}"


def run_demo(arguments: argparse.Namespace) -> int:
    """Run the demo; exit 1 if anything is not as promised."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PIPE_WIDTH)
    # With the default a SIGTERM would leave Airflow's processes behind.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    demo = Demo(console, keep=arguments.keep)
    try:
        demo.run()
    except (ChildRunError, OSError, subprocess.SubprocessError) as error:
        about = error.info.message if isinstance(error, DemoError) else f"{type(error).__name__}: {error}"
        console.print(f"\n[red]The demo failed:[/] {escape(about)}", soft_wrap=True)
        if not arguments.keep:
            console.print("`childrun demo --keep` leaves Airflow's home and logs behind, to be looked at")
        return 1
    finally:
        signal.signal(signal.SIGTERM, before)
        if arguments.keep:
            console.print(f"\nAirflow's home is kept: {demo.airflow.path}")
    return 0


class Demo:
    """One performance.

    :param keep: leave Airflow's home behind
    """

    def __init__(self, console: Console, *, keep: bool) -> None:
        self._console = console
        self._began = time.monotonic()
        self._calls: queue.SimpleQueue[Call] = queue.SimpleQueue()
        self._pid: int | None = None
        self._frozen = False
        self._killed_at: Call | None = None
        self.billing = BillingServer(LATENCY_S, self._on_call)
        self.airflow = AirflowHome(
            [examples_folder() / "monthly_invoices.py"],
            # One child at a time, so that there is a moment between two calls at all.
            {"childrun": {"max_concurrency": 1}},
            {"billing": self.billing.url},
            keep=keep,
        )

    def run(self) -> None:
        """Perform.

        :raises DemoError: if anything is not as promised
        """
        say = self._console.print
        say(f"airflow-childrun {airflow_childrun.__version__}, in a throwaway Airflow in {self.airflow.path}\n")
        with ExitStack() as stack:
            stack.enter_context(self.billing)
            stack.enter_context(self.airflow)
            with self._phase("Making Airflow's database and the store"):
                self.airflow.prepare()
            with self._phase("Starting its scheduler and API server"):
                self.airflow.start()
                store = open_store(settings_from_url(self.airflow.store_url, None))
            say(f"\nDAG {DAG_ID}: {CUSTOMERS} customers, a child run for each with {CALLS_EACH} calls\n")
            self.airflow.trigger(DAG_ID, DAG_RUN_ID)
            self._work(store)
            report = read_report(self.airflow, store, _TASK, self.billing)
            self._tell(report)
        self._check(report)

    # ------------------------------------------------------------------------------------------------------ performing

    def _work(self, store: Store) -> None:
        """Watch the two tries of the task, and kill the first one half way."""
        self._watch_try(1, store)
        if self._killed_at is None:
            raise DemoError(f"the process could not be killed between two calls.\n{self.airflow.task_log()}")
        at = f"{self._killed_at.about}'s invoice is made and recorded, but not sent"
        self._console.print(f"  [bold red]SIGKILL[/] for process {self._pid}: {at}")
        self._watch_try(2, store)

    def _watch_try(self, number: int, store: Store) -> None:
        with self._console.status(f"waiting for try {number} of the task ..."):
            pid = self._wait_for_try(number)
        self._pid = pid if number == 1 else self._pid
        columns = (TextColumn("  {task.description}"), BarColumn(24), TextColumn("{task.completed:.0f} calls made"))
        with Progress(*columns, console=self._console, auto_refresh=self._console.is_terminal) as progress:
            total = CUSTOMERS * CALLS_EACH
            made = len(self.billing.calls) - self._calls.qsize()
            bar = progress.add_task(f"try {number}, process {pid:<8}", total=total, completed=made)
            self._watch(progress, bar, store)

    def _wait_for_try(self, number: int) -> int:
        """Wait until Airflow has started a try of the task, and return its process."""
        found: dict[str, Any] = {}

        def started() -> bool:
            found.update(self.airflow.get(_TASK))
            return bool(found["try_number"] == number and found["pid"] and found["state"] in ("running", "success"))

        self.airflow.wait_for(f"try {number} of task {TASK_ID}", started, TASK_S)
        return int(found["pid"])

    def _watch(self, progress: Progress, bar: TaskID, store: Store) -> None:
        """Follow the calls until the process was killed, or the task has ended."""

        def over() -> bool:
            with suppress(queue.Empty):
                while True:
                    call = self._calls.get_nowait()
                    progress.advance(bar)
                    if self._frozen and self._kill(call, store):
                        return True
            return self.airflow.get(_TASK)["state"] in ("success", "failed", "upstream_failed")

        self.airflow.wait_for(f"task {TASK_ID} to end", over, TASK_S)

    def _on_call(self, call: Call) -> None:
        """In the server's thread: freeze the process that waits for this answer, if it is to die after it."""
        if call.verb == "create" and call.number > CUSTOMERS and self._pid and not self._killed_at:
            os.kill(self._pid, signal.SIGSTOP)
            self._frozen = True
        self._calls.put(call)

    def _kill(self, call: Call, store: Store) -> bool:
        """Let the process record the answer of the call, and kill it before it makes another one."""
        self._frozen = False

        def recorded() -> bool:
            return any(len(store.get_facts(row.run_id)) == 1 for row in store.find_runs(_RUNNING).rows)

        def past() -> bool:
            return len(self.billing.calls) > call.number

        if self._pid and kill_between_calls(self._pid, self.billing.port, recorded, past):
            self._killed_at = call
        return self._killed_at is not None

    # --------------------------------------------------------------------------------------------------------- telling

    @contextmanager
    def _phase(self, what: str) -> Iterator[None]:
        began = time.monotonic()
        with self._console.status(f"{what} ..."):
            yield
        self._console.print(f"  {what:<52}{time.monotonic() - began:5.1f} s")

    def _tell(self, report: Report) -> None:
        say = self._console.print
        killed_at = self._killed_at.number if self._killed_at else 0
        say()
        say(report.tree(lambda call: 1 if call.number <= killed_at else 2))
        say()
        say(f"  {report.cents / 100:,.2f} billed; {report.events} events in {report.runs} histories verified")
        say(f"  {time.monotonic() - self._began:.0f} seconds in all\n")
        customers = len(report.children)
        say(f"[bold]{customers} customers, {report.calls} calls made, {report.repeated} calls repeated[/]")

    def _check(self, report: Report) -> None:
        """Compare what happened with what was promised.

        :raises DemoError: naming what differs
        """
        killed_at = self._killed_at.number if self._killed_at else 0
        before = [child for child in report.children if all(call.number <= killed_at for call in child.calls)]
        promised = {
            "tries of the task, as Airflow recorded them": (report.tries, ["failed", "success"]),
            "customers": (len(report.children), CUSTOMERS),
            "child runs completed": (
                sum(child.result["status"] == "Completed" for child in report.children),
                CUSTOMERS,
            ),
            "child runs finished by try 1": (report.count("finished by try 1"), len(before)),
            "child runs resumed half way": (report.count("resumed by try 2"), 1),
            "calls that the billing server counted": (report.calls, CUSTOMERS * CALLS_EACH),
            "calls that were repeated": (report.repeated, 0),
            "findings in the histories": (report.findings, []),
        }
        wrong = [f"{what}: {found}, not {wanted}" for what, (found, wanted) in promised.items() if found != wanted]
        if wrong:
            raise DemoError("\n".join(wrong))


def examples_folder() -> Path:
    """Return where the examples are: inside the installed package, or beside it in a checkout.

    :raises DemoError: if they are nowhere
    """
    package = Path(airflow_childrun.__file__).parent
    for folder in (package / "_examples", package.parent / "dags_examples"):
        if folder.is_dir():
            return folder
    raise DemoError(f"the examples are neither in {package / '_examples'} nor in {package.parent / 'dags_examples'}")
