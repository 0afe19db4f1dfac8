"""What is compared with what, and the goal of each comparison."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from tests.bench.databases import Databases
from tests.bench.sides import ROOT, Found, in_turn, middle, started
from tests.bench.stand import thousand, twenty


@dataclass(frozen=True, slots=True)
class Goal:
    """A row of the table.

    :param against: what ours is divided by
    """

    what: str
    against: str
    bound: float
    at_least: bool = True

    def is_met(self, ratio: float) -> bool:
        """Whether a ratio is good enough."""
        return ratio >= self.bound if self.at_least else ratio <= self.bound

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.bound:g}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a row came to: both medians in the unit that is named, and their ratio; ``note`` says what else happened."""

    ours: float
    peer: float
    unit: str
    note: str = ""

    @property
    def ratio(self) -> float:
        """Ours by the peer's."""
        return self.ours / self.peer


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured.

    :param part: 1 = all of it
    """

    times: int
    part: float

    def of(self, count: int) -> int:
        """Return how many to measure in place of ``count``."""
        return max(1, round(count * self.part))


Outcomes = dict[str, Outcome]
Measure = Callable[[Databases, Scale], Outcomes]

GOALS: Mapping[str, Goal] = {
    "steps-postgresql": Goal("one run of 500 steps, PostgreSQL", "DBOS", 5),
    "steps-postgresql-raw": Goal("the same", "autocommit INSERTs of the same bytes", 0.5),
    "steps-sqlite": Goal("one run of 500 steps, SQLite", "DBOS", 5),
    "steps-sqlite-raw": Goal("the same", "autocommit INSERTs of the same bytes", 0.5),
    "children-postgresql": Goal("1,000 children, PostgreSQL", "DBOS", 8),
    "children-sqlite": Goal("1,000 children, SQLite", "DBOS", 8),
    "processes-2": Goal("2 processes driving 2,000 children, PostgreSQL", "one process", 1.2),
    "processes-16": Goal("16 processes driving 2,000 children, PostgreSQL", "one process", 0.8),
    "processes-16-even": Goal("the slowest of the 16", "the fastest", 0.5),
    "children-memory": Goal("1,000 children, memory store", "the original's 5,000/s (a landmark)", 0.25),
    "facts-memory": Goal("5,000 facts in one state, memory store", "the original's 40,000/s (a landmark)", 0.125),
    "fold": Goal("read and fold of 10,000 events, PostgreSQL", "eventsourcing's replay, SQLite", 3),
    "resume": Goal("resume with 100,000 events behind the checkpoint", "the same with 100", 2, at_least=False),
    "million": Goal("commit into a store of 1,000,000 events", "an empty store", 1.3, at_least=False),
    "airflow-inline": Goal("20 children in one DAG run", "TriggerDagRunOperator, mapped", 0.4, at_least=False),
    "airflow-dag-run": Goal('the same, dispatch="dag_run", 4 DAG runs', "the same", 1, at_least=False),
    "airflow-thousand": Goal("1,000 children in a DAG run, s more than two empty tasks", "4 s", 1, at_least=False),
    "memory": Goal("peak memory of a task with 1,000 children, MiB more than with none", "80 MiB", 1, at_least=False),
    "import": Goal("from airflow_childrun import operation", "40 ms", 1, at_least=False),
}


def _rates(count: int, ours: float, peer: float, unit: str) -> Outcome:
    return Outcome(count / ours, count / peer, unit)


def _dbos(bases: Databases, kind: str, what: str, count: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return DBOS's sides: as it is documented, and on SQLite with the journal that ours has."""
    variants = {"dbos": False, "dbos_wal": True} if kind == "sqlite" else {"dbos": False}
    return {
        name: (
            f"peers:dbos_{what}",
            {"url": bases.fresh(kind, ours=False), "count": count, "write_ahead": write_ahead},
        )
        for name, write_ahead in variants.items()
    }


def _against_dbos(found: Mapping[str, Sequence[Found]], count: int, unit: str) -> Outcome:
    outcome = _rates(count, middle(found["ours"]), middle(found["dbos"]), unit)
    if "dbos_wal" not in found:
        return outcome
    rate = count / middle(found["dbos_wal"])
    note = (
        f"on a file that was given a write-ahead log, which DBOS does not do: {rate:,.4g}, {outcome.ours / rate:.2g}x"
    )
    return replace(outcome, note=note)


def _steps(kind: str) -> Measure:
    def measure(bases: Databases, scale: Scale) -> Outcomes:
        count = scale.of(500)
        found = in_turn(
            scale.times,
            ours=("ours:steps", {"url": bases.fresh(kind, ours=True), "count": count}),
            **_dbos(bases, kind, "steps", count),
            raw=("peers:raw_inserts", {"url": bases.fresh(kind, ours=False), "count": count}),
        )
        return {
            f"steps-{kind}": _against_dbos(found, count, "steps/s"),
            f"steps-{kind}-raw": _rates(count, middle(found["ours"]), middle(found["raw"]), "steps/s"),
        }

    return measure


def _children(kind: str) -> Measure:
    def measure(bases: Databases, scale: Scale) -> Outcomes:
        count = scale.of(1000)
        found = in_turn(
            scale.times,
            ours=("ours:children", {"url": bases.fresh(kind, ours=True), "count": count}),
            **_dbos(bases, kind, "children", count),
        )
        return {f"children-{kind}": _against_dbos(found, count, "children/s")}

    return measure


def _memory_store(row: str, task: str, count: int, landmark: float) -> Measure:
    def measure(bases: Databases, scale: Scale) -> Outcomes:
        found = in_turn(scale.times, ours=(f"ours:{task}", {"url": "memory", "count": count}))
        return {row: Outcome(count / middle(found["ours"]), landmark, "/s")}

    return measure


@dataclass(frozen=True, slots=True)
class Together:
    """Medians of processes that share the work: children a second by their number; of most, the slowest by the fastest."""

    rates: dict[int, float]
    even: float


def together(bases: Databases, scale: Scale, total: int, numbers: Sequence[int]) -> Together:
    """Start all processes of a measurement at once, each with a parent and its share of the children.

    From their start to the end of the slowest one is what counts.

    :raises RuntimeError: if two of them waited for each other for ever, until PostgreSQL ended one's transaction
    """
    seconds: dict[int, list[float]] = {number: [] for number in numbers}
    evenness: list[float] = []
    url = bases.fresh("postgresql", ours=True)
    with ExitStack() as stack:
        groups = {
            number: [
                stack.enter_context(started("ours:children", url=url, count=total // number)) for _ in range(number)
            ]
            for number in seconds
        }
        for _ in range(scale.times):
            for number, sides in groups.items():
                began = time.perf_counter()
                for side in sides:
                    side.begin()
                each = [side.result()["seconds"] for side in sides]
                seconds[number].append(time.perf_counter() - began)
                if number == max(groups):
                    evenness.append(min(each) / max(each))
    if found := bases.deadlocks(url):
        raise RuntimeError(f"{found} deadlocks")
    return Together({number: total / median(found) for number, found in seconds.items()}, median(evenness))


def _processes(bases: Databases, scale: Scale) -> Outcomes:
    found = together(bases, scale, scale.of(2000), (1, 2, 16))
    return {
        "processes-2": Outcome(found.rates[2], found.rates[1], "children/s"),
        "processes-16": Outcome(found.rates[16], found.rates[1], "children/s"),
        "processes-16-even": Outcome(found.even, 1, "of the rate"),
    }


def _fold(bases: Databases, scale: Scale) -> Outcomes:
    count = scale.of(10_000)
    found = in_turn(
        scale.times,
        ours=("histories:fold", {"url": bases.fresh("postgresql", ours=True), "count": count}),
        peer=("peers:aggregate_replay", {"path": bases.path(), "count": count}),
    )
    return {"fold": _rates(count, middle(found["ours"]), middle(found["peer"]), "events/s")}


def _resume(bases: Databases, scale: Scale) -> Outcomes:
    found = in_turn(
        scale.times,
        many=("histories:resume", {"url": bases.fresh("postgresql", ours=True), "facts": scale.of(100_000)}),
        few=("histories:resume", {"url": bases.fresh("postgresql", ours=True), "facts": 100}),
    )
    return {"resume": Outcome(middle(found["many"]) * 1000, middle(found["few"]) * 1000, "ms")}


def _million(bases: Databases, scale: Scale) -> Outcomes:
    full, empty = (bases.fresh("postgresql", ours=True) for _ in range(2))
    bases.fill(full, scale.of(1_000_000))
    count = 200
    found = in_turn(
        scale.times,
        full=("ours:commits", {"url": full, "count": count}),
        empty=("ours:commits", {"url": empty, "count": count}),
    )
    full_us, empty_us = (middle(found[name]) * 1e6 / count for name in ("full", "empty"))
    return {"million": Outcome(full_us, empty_us, "us a commit")}


def _airflow_twenty(bases: Databases, scale: Scale) -> Outcomes:
    found = twenty(bases.airflow(), scale.times)
    return {
        "airflow-inline": Outcome(found.inline, found.peer, "s", found.note),
        "airflow-dag-run": Outcome(found.dag_run, found.peer, "s", found.note),
    }


def _airflow_thousand(bases: Databases, scale: Scale) -> Outcomes:
    found = thousand(bases.airflow(), scale.times, scale.of(1000))
    note = f"{found.seconds:.1f} s and {found.empty:.1f} s"
    return {
        "airflow-thousand": Outcome(found.seconds - found.empty, 4, "s", note),
        "memory": Outcome(found.mib, 80, "MiB"),
    }


_IMPORT = """
import airflow.sdk, time
began = time.perf_counter()
from airflow_childrun import operation
print((time.perf_counter() - began) * 1000)
"""


def _import(bases: Databases, scale: Scale) -> Outcomes:
    command = [sys.executable, "-c", _IMPORT]
    found = [
        float(subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout.split()[-1])
        for _ in range(scale.times + 1)
    ]
    return {"import": Outcome(median(found[1:]), 40, "ms")}  # the first one compiled


MEASURES: Sequence[tuple[tuple[str, ...], Measure]] = (
    (("import",), _import),  # before an Airflow runs beside it
    (("steps-postgresql", "steps-postgresql-raw"), _steps("postgresql")),
    (("steps-sqlite", "steps-sqlite-raw"), _steps("sqlite")),
    (("children-postgresql",), _children("postgresql")),
    (("children-sqlite",), _children("sqlite")),
    (("processes-2", "processes-16", "processes-16-even"), _processes),
    (("children-memory",), _memory_store("children-memory", "children", 1000, 5_000)),
    (("facts-memory",), _memory_store("facts-memory", "steps", 5000, 40_000)),
    (("fold",), _fold),
    (("resume",), _resume),
    (("million",), _million),
    (("airflow-inline", "airflow-dag-run"), _airflow_twenty),
    (("airflow-thousand", "memory"), _airflow_thousand),
)
