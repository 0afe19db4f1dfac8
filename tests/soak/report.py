"""What is looked at after the soak: every run, every event, every call of the outside world, every worker's log."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airflow_childrun.engine.decide import RECOVERY_LIMIT_EXCEEDED
from airflow_childrun.engine.facts import fact_of
from airflow_childrun.model.events import DomainEvent
from airflow_childrun.runtime.ends import end_of
from airflow_childrun.runtime.generations import all_runs
from airflow_childrun.store.api import RunFilter, RunRow, StoredEvent
from airflow_childrun.store.codec import decode_events
from airflow_childrun.store.sql.store import SqlStore
from airflow_childrun.store.verify import verify_run
from tests.soak.worker import expected_output, worker_of

CHILDREN = 2
AWAKE_US = 500_000
"""How long after it woke up a zombie may still finish the call that it was about to make when it was stopped."""


@dataclass
class Report:
    """The figures of a soak; ``losses`` must be empty."""

    runs: int = 0
    events: int = 0
    calls: int = 0
    calls_repeated: int = 0
    takeovers: int = 0
    stuck: int = 0
    lost: int = 0
    doubled: int = 0
    given_up: int = 0
    late_writes: int = 0
    late_calls: int = 0
    refused: int = 0
    losses: list[str] = field(default_factory=list)

    def figures(self) -> dict[str, int]:
        """Return all but the texts."""
        return {name: value for name, value in vars(self).items() if isinstance(value, int)}


def look(url: str, folder: Path, names: dict[str, str], woken: dict[int, list[int]]) -> Report:
    """Look at everything.

    :param names: run id -> name of each topmost run
    :param woken: worker -> when it was woken up (microseconds UTC)
    """
    report, store = Report(), SqlStore(url)
    rows = list(all_runs(store, RunFilter()))
    report.runs = len(rows)
    recorded: dict[str, int] = {}
    for row in rows:
        _look_at_run(report, store, row, names, recorded)
    children = Counter(row.parent_run_id for row in rows if row.op_id == "soak_leaf")
    known = {str(row.run_id): children[row.run_id] for row in rows}
    for run_id in names:
        if known.get(run_id) != CHILDREN:
            report.lost += 1
            report.losses.append(f"run {run_id} is lost, or one of its children")
    _look_at_calls(report, folder, recorded, woken)
    for log in folder.glob("worker-*.log"):
        report.refused += len(re.findall(r"this process leaves it alone", log.read_text()))
    store.close()
    return report


def _look_at_run(report: Report, store: SqlStore, row: RunRow, names: dict[str, str], recorded: dict[str, int]) -> None:
    if not row.is_terminal:
        report.stuck += 1
        report.losses.append(f"{row.op_id} {row.run_id} is {row.status} at event {row.head.seq}")
        return
    if row.status != "Completed":
        report.given_up += row.error_code == RECOVERY_LIMIT_EXCEEDED
        report.losses.append(f"{row.op_id} {row.run_id} ended as {row.status} [{row.error_code}]")
        return
    name = names.get(str(row.run_id))
    if name is not None and end_of(store, row, compact=True)["output"] != expected_output(name):
        report.losses.append(f"{row.op_id} {row.run_id} has another output")
    report.losses += [f"{finding.code}: {finding.message}" for finding in verify_run(store, row.run_id)]
    stored = store.read_events(row.run_id)
    report.events += len(stored)
    _look_at_owners(report, row, stored)
    facts: Counter[str] = Counter()
    for one, event in decode_events(stored):
        fact: Any = fact_of(event, (0, one.seq), None) if isinstance(event, DomainEvent) else None
        if fact is not None:
            facts[fact.key] += 1
            recorded[fact.key.rpartition("/")[2]] = one.recorded_at
    twice = [key for key, count in facts.items() if count > 1]
    report.doubled += len(twice)
    report.losses += [f"the fact {key} of {row.run_id} stands twice" for key in twice]


def _look_at_owners(report: Report, row: RunRow, stored: list[StoredEvent]) -> None:
    """Look whether every epoch had one writer, and none wrote after another one had begun."""
    writers: dict[int, set[int]] = defaultdict(set)
    epochs = [one.epoch for one in stored]
    for one in stored[1:]:
        writers[one.epoch].add(worker_of(one.commit_id))
    report.takeovers += max(0, len(set(epochs[1:])) - 1)
    late = epochs != sorted(epochs) or any(len(who) > 1 for who in writers.values())
    report.late_writes += late
    if late:
        report.losses.append(f"run {row.run_id}: somebody wrote after another one had taken over: {dict(writers)}")


def _look_at_calls(report: Report, folder: Path, recorded: dict[str, int], woken: dict[int, list[int]]) -> None:
    """Look whether a call came after its answer was recorded, or with another token."""
    tokens: dict[str, set[str]] = defaultdict(set)
    counts: Counter[str] = Counter()
    for line in (folder / "calls").read_text().splitlines():
        number, at, token, name = line.split(" ", 3)
        counts[name] += 1
        tokens[name].add(token)
        if name not in recorded:
            report.losses.append(f"the answer to the call {name} is not recorded")
        elif int(at) > recorded[name]:
            zombie = any(0 <= int(at) - moment < AWAKE_US for moment in woken.get(int(number), ()))
            report.late_calls += zombie
            if not zombie:
                report.losses.append(f"worker {number} made the call {name} again after it was recorded")
    report.calls = counts.total()
    report.calls_repeated = counts.total() - len(counts)
    report.losses += [f"the call {name} came with several tokens" for name, found in tokens.items() if len(found) > 1]
    report.losses += [f"the fact {name} has no call" for name in set(recorded) - set(counts) if name.startswith("leaf")]
