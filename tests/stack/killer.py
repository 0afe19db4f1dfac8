"""Kills the process of a task at chosen moments, and knows exactly what each kill met.

The process is stopped first, then looked at from outside, then killed: nothing moves between the look and the kill.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Literal

from airflow_childrun.model.events import FACT_RECORDED, DomainEvent, StateCompleted
from airflow_childrun.store.api import RunRow
from airflow_childrun.store.codec import decode_events
from tests.stack.records import Records
from tests.stack.stand import Stand
from tests.stack.witness import PAGES, Call

DAG_ID, TASK_ID = "stand_ingest", "ingest"
Aim = Literal["in a call", "before a checkpoint", "any moment"]
SETTLE_S = 0.06
"""How long a statement that PostgreSQL had already received may take to become visible."""


@dataclass
class Kill:
    """One kill and what it met.

    :param in_flight: calls that the witness had counted and whose answers were not recorded
    :param open_facts: children with facts that no checkpoint had taken in yet
    """

    aim: Aim
    try_number: int
    in_flight: list[str] = field(default_factory=list)
    open_facts: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"try {self.try_number:2} aimed {self.aim:19} in flight: {', '.join(self.in_flight) or '-'}; "
            f"facts before their checkpoint: {', '.join(self.open_facts) or '-'}"
        )


class Killer:
    """Kills the task ``ingest`` of one DAG run, again and again.

    :param chance: seeded; every choice comes from it
    """

    def __init__(self, stand: Stand, records: Records, run_id: str, chance: random.Random) -> None:
        self._stand = stand
        self._records = records
        self._run_id = run_id
        self._chance = chance
        self.kills: list[Kill] = []
        self._asked_before: Counter[str] = Counter()
        self._facts_before: Counter[str] = Counter()

    def kill(self, aim: Aim) -> Kill:
        """Wait for a moment of the wished kind in the next try, and kill its process there."""
        number = len(self.kills) + 1
        self._stand.browser.wait_for_task(DAG_ID, self._run_id, TASK_ID, "running", least_try=number, timeout_s=60)
        pid = {"in a call": self._in_call, "before a checkpoint": self._before_checkpoint, "any moment": self._any}[
            aim
        ]()
        kill = Kill(aim, number)
        time.sleep(SETTLE_S)
        kill.in_flight, kill.open_facts = self._in_flight(), [source for source, *_ in self._open()]
        self._asked_before = self._stand.witness.counts("orders/")
        self._facts_before = Counter({source: facts for source, facts, _ in self._open()})
        os.kill(pid, signal.SIGKILL)
        self._stand.witness.on_call = _answer_slowly
        self.kills.append(kill)
        return kill

    def _in_call(self) -> int:
        """Stop the process at its third to fifth call: by then a call of this try was recorded."""
        stopped, left = threading.Event(), self._chance.randint(3, 5)
        found: list[int] = []
        seen: list[Call] = []

        def on_call(call: Call) -> None:
            seen.append(call)
            if len(seen) < left:
                _answer_slowly(call)
            elif len(seen) == left:
                found.append(self._stop())
                stopped.set()

        self._stand.witness.on_call = on_call
        assert stopped.wait(60), "no further call came: the run was over too early"
        return found[0]

    def _before_checkpoint(self) -> int:
        """Stop the process while a child has facts that no checkpoint took in, and no call in flight."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            time.sleep(self._chance.uniform(0, 0.02))
            if not self._waits_for_checkpoint():
                continue
            pid = self._stop()
            time.sleep(SETTLE_S)
            if self._waits_for_checkpoint():
                return pid
            os.kill(pid, signal.SIGCONT)
        raise AssertionError("no fact waited for its checkpoint")

    def _any(self) -> int:
        """Stop the process some time after its first call."""
        called = threading.Event()

        def on_call(call: Call) -> None:
            called.set()
            _answer_slowly(call)

        self._stand.witness.on_call = on_call
        assert called.wait(60), "no further call came: the run was over too early"
        time.sleep(self._chance.uniform(0, 0.4))
        return self._stop()

    def _stop(self) -> int:
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            tasks = self._stand.tasks()
            if len(tasks) == 1:
                os.kill(tasks[0], signal.SIGSTOP)
                return tasks[0]
            time.sleep(0.002)
        raise AssertionError(f"not one task runs but {self._stand.tasks()}")

    def _in_flight(self) -> list[str]:
        """Return the calls of this try whose answers are not recorded."""
        asked = self._stand.witness.counts("orders/") - self._asked_before
        recorded = set()
        for row in self._records.children(DAG_ID, self._run_id):
            source = self._records.key(row).partition("/")[2]
            pages = (key for key in facts_of(self._records, row) if key.startswith("fetch/read_page#"))
            recorded |= {f"orders/{source}/{int(key.rpartition('#')[2]) + 1}" for key in pages}
        return sorted(key for key in asked if key not in recorded)

    def _open(self) -> list[tuple[str, int, bool]]:
        """Return the children with facts before their checkpoint: source, number of facts in all, whether in a call."""
        calling = {key.split("/")[1] for key in self._in_flight()}
        found = []
        for row in self._records.children(DAG_ID, self._run_id):
            source = self._records.key(row).partition("/")[2]
            fresh, facts = 0, 0
            for _, event in decode_events(self._records.store.read_events(row.run_id)):
                if isinstance(event, StateCompleted):
                    fresh = 0
                elif isinstance(event, DomainEvent) and event.name == FACT_RECORDED:
                    fresh += 1
                    facts += 1
            if fresh:
                found.append((source, facts, source in calling))
        return found

    def _waits_for_checkpoint(self) -> bool:
        """Whether a child recorded a fact in this try that no checkpoint took in, and is in no call."""
        return any(not calls and facts > self._facts_before[source] for source, facts, calls in self._open())


def facts_of(records: Records, row: RunRow) -> list[str]:
    """Return the keys of a run's facts."""
    events = [event for _, event in decode_events(records.store.read_events(row.run_id))]
    return [
        str(event.payload["key"]) for event in events if isinstance(event, DomainEvent) and event.name == FACT_RECORDED
    ]


def _answer_slowly(_: Call) -> None:
    """Take as long as an API does."""
    time.sleep(0.03)


def outcome(records: Records, run_id: str) -> dict[str, tuple[str, str | None]]:
    """Return status and final snapshot id of each source's child."""
    newest = records.newest(DAG_ID, run_id)
    return {key.partition("/")[2]: (row.status, row.final_snapshot_id) for key, row in newest.items()}


def excess(stand: Stand, sources: list[str], kills: list[Kill]) -> dict[str, tuple[int, int]]:
    """Return the pages that were asked for never, or more often than once plus once per kill that met them in flight.

    :returns: key -> (asked, allowed)
    """
    asked = stand.witness.counts("orders/")
    met = Counter(key for kill in kills for key in kill.in_flight)
    wanted = {f"orders/{source}/{page}" for source in sources for page in range(1, PAGES + 1)}
    return {key: (asked[key], 1 + met[key]) for key in wanted | asked.keys() if not 1 <= asked[key] <= 1 + met[key]}


def rows_written(stand: Stand) -> list[tuple[object, ...]]:
    """Return what the children wrote into the table, and empty it."""
    with closing(sqlite3.connect(stand.home / "warehouse.db")) as connection, connection:
        rows = connection.execute("SELECT source, id, day, amount FROM orders ORDER BY source, id").fetchall()
        connection.execute("DELETE FROM orders")
    return rows


def play(
    stand: Stand, records: Records, seed: int, aims: Sequence[Aim], count: int, say: Callable[[str], None] = print
) -> list[Kill]:
    """Ingest some sources with a kill per aim, and check that against an undisturbed run.

    :raises AssertionError: if a snapshot or a row differs, or a recorded call was made again
    """
    run_id, calm_id, sources = f"kill{seed}", f"calm{seed}", [f"s{number}" for number in range(count)]
    chance = random.Random(seed)
    order = chance.sample(aims, len(aims))
    say(f"seed {seed}: {len(order)} kills, {count} sources of {PAGES} pages")
    stand.witness.forget()
    stand.witness.on_call = _answer_slowly
    # The API refuses the first request for every seventh page; what it refuses is no call made.
    stand.witness.refuse_first = lambda key: key.startswith("orders/") and sum(map(ord, key)) % 7 == 0
    killer = Killer(stand, records, run_id, chance)
    began = time.monotonic()
    stand.browser.trigger(DAG_ID, run_id, {"sources": sources})
    for aim in order:
        kill = killer.kill(aim)
        say(f"{time.monotonic() - began:6.1f} s  {kill}")
    assert stand.browser.wait_for_run(DAG_ID, run_id, 120) == "success"
    calls = stand.witness.counts("orders/")
    flying = sum(len(kill.in_flight) for kill in killer.kills)
    say(
        f"{time.monotonic() - began:6.1f} s  success: {calls.total()} calls for {count * PAGES} pages, {flying} in flight at kills"
    )
    assert excess(stand, sources, killer.kills) == {}
    assert stand.browser.task(DAG_ID, run_id, TASK_ID)["try_number"] == len(order) + 1
    assert records.findings(DAG_ID, run_id) == []
    rows = rows_written(stand)
    stand.browser.trigger(DAG_ID, calm_id, {"sources": sources})
    assert stand.browser.wait_for_run(DAG_ID, calm_id, 120) == "success"
    assert rows == rows_written(stand)
    assert outcome(records, run_id) == outcome(records, calm_id)
    return killer.kills
