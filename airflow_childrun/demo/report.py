"""What happened in the demo, from three witnesses: Airflow, the store, and the server that was called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

from rich.markup import escape
from rich.tree import Tree

from airflow_childrun.cli.reading import all_runs
from airflow_childrun.demo.airflow_home import AirflowHome
from airflow_childrun.demo.billing import BillingServer, Call
from airflow_childrun.model.events import HOST_TRY, DomainEvent
from airflow_childrun.store.api import RunRow, Store
from airflow_childrun.store.codec import decode_events
from airflow_childrun.store.verify import Finding, verify_run

Fate = Literal["finished by try 1", "resumed by try 2", "begun by try 2"]
_COLOURS: dict[Fate, str] = {"finished by try 1": "green", "resumed by try 2": "yellow", "begun by try 2": "cyan"}


@dataclass(frozen=True)
class Child:
    """A child run, in the words of each witness.

    :param result: what Airflow's XCom holds of it
    :param fate: which try did what, as its history says
    :param calls: what the billing server was asked for on its behalf
    """

    name: str
    result: dict[str, Any]
    fate: Fate
    calls: list[Call]


@dataclass(frozen=True)
class Report:
    """What happened.

    :param tries: how each try of the task ended, as Airflow recorded it
    :param calls: counted by the billing server, as is ``repeated``
    :param findings: what is wrong with the histories
    """

    task: str
    tries: list[str]
    children: list[Child]
    calls: int
    repeated: int
    runs: int
    events: int
    findings: list[Finding]

    def count(self, fate: Fate) -> int:
        """Return how many child runs had this fate."""
        return sum(child.fate == fate for child in self.children)

    @property
    def cents(self) -> int:
        """What was billed in all."""
        return sum(child.result["output"]["cents"] for child in self.children)

    def tree(self, try_of: Callable[[Call], int]) -> Tree:
        """Draw the task and its children.

        :param try_of: which try of the task made a call
        """
        tree = Tree(f"[bold]{escape(self.task)}[/]", guide_style="dim")
        for child in self.children:
            amount = f"{child.result['output']['cents'] / 100:>9,.2f}"
            calls = ", ".join(f"{call.verb} in try {try_of(call)}" for call in child.calls)
            colour = _COLOURS[child.fate]
            tree.add(f"{child.name:<8} {child.result['status']} {amount}  {calls:<32}  [{colour}]{child.fate}[/]")
        return tree


def read_report(airflow: AirflowHome, store: Store, task: str, billing: BillingServer) -> Report:
    """Ask the witnesses.

    :param task: path of the task instance in Airflow's REST API
    """
    rows = {row.run_id: row for row in all_runs(store)}
    (host,) = (row for row in rows.values() if row.kind == "task_instance")
    second_try_at = [
        stored.recorded_at
        for stored, event in decode_events(store.read_events(host.run_id))
        if isinstance(event, DomainEvent) and event.name == HOST_TRY
    ][-1]
    children = []
    for result in airflow.get(f"{task}/xcomEntries/return_value")["value"]:
        name = result["key"].rpartition("/")[2]
        fate = _fate_of(store, rows[UUID(result["child_run_id"])], second_try_at)
        children.append(Child(name, result, fate, billing.calls_about(name)))
    tries = airflow.get(f"{task}/tries")["task_instances"]
    at = host.airflow
    return Report(
        task=f"{at.dag_id}.{at.task_id}" if at else "",
        tries=[each["state"] for each in sorted(tries, key=lambda each: each["try_number"])],
        children=children,
        calls=len(billing.calls),
        repeated=billing.repeated,
        runs=len(rows),
        events=sum(row.head.seq for row in rows.values()),
        findings=[finding for run_id in rows for finding in verify_run(store, run_id)],
    )


def _fate_of(store: Store, row: RunRow, second_try_at: int) -> Fate:
    """Say which try did what: by when the child's facts were recorded."""
    facts = {entry.seq for entry in store.get_facts(row.run_id)}
    times = [event.recorded_at for event in store.read_events(row.run_id) if event.seq in facts]
    if all(at < second_try_at for at in times):
        return "finished by try 1"
    return "begun by try 2" if all(at > second_try_at for at in times) else "resumed by try 2"
