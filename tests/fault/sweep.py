"""The failpoint sweep: ``python -m tests.fault.sweep --url URL --seconds 60 --seed 1 [--faults 2] [--all]``.

A process passes numbered places: before and after every statement, commit, verb of the store, handler, outside call and
request to Airflow.
For each number a process is forked from this warm one, killed by SIGKILL at that place, and followed by another one that
goes on to the end. Then all is looked at: the same ends, no fact lost or doubled, chains, rows, replay, calls.

The numbers come in an order that the seed gives; ``--seconds`` bounds how many. A line on stdout tells in JSON what came
out; the exit status is 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from uuid import UUID, uuid5

from airflow_childrun.engine.facts import fact_of
from airflow_childrun.model.config import RunConfig
from airflow_childrun.model.events import DomainEvent
from airflow_childrun.model.manifest import build_manifest, manifest_id
from airflow_childrun.runtime.ends import end_of
from airflow_childrun.runtime.engine import ExecutionEngine
from airflow_childrun.runtime.generations import DAG_RUN_OPERATION
from airflow_childrun.runtime.host import HostRun
from airflow_childrun.runtime.host_tree import WantedChild
from airflow_childrun.runtime.host_try import HostCoordinates, TryFacts
from airflow_childrun.runtime.house import House
from airflow_childrun.runtime.supervisor import Supervisor
from airflow_childrun.store.api import Owner, RunFilter, RunRow, Store
from airflow_childrun.store.codec import decode_events
from airflow_childrun.store.sql.migrate import upgrade
from airflow_childrun.store.sql.store import SqlStore
from airflow_childrun.store.verify import verify_tree
from tests.fault.sweep_stage import (
    MAY_COME_TWICE,
    Places,
    Watched,
    Witness,
    house_of,
    read_witness,
    recorded_names,
    world,
)

NAMESPACE = UUID("6d2f6c1a-6a0f-4b53-9a53-1f3a4f7f9a11")
LIFE_S = 60
LEAST = 5
"""So many processes are killed however slow the machine is."""
ASKS_AIRFLOW = "Airflow's"
KINDS = "runs,host,airflow"
EMPTY_SNAPSHOT = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


@dataclass(frozen=True)
class Play:
    """One play of a tree: where it is stored, and what keeps its plays apart.

    :param kind: ``runs`` (an engine drives a tree), ``host`` (a task instance spawns and drives), or ``airflow`` (Airflow's
        task runner runs operators, which defer, have DAG runs drive children, and have DAG runs as children)
    """

    url: str
    folder: Path
    kind: str
    name: str
    slots: int

    @property
    def run_id(self) -> UUID:
        return uuid5(NAMESPACE, f"{os.getenv('CHILDRUN_SWEEP', '')}{self.kind} {self.name}")

    @property
    def calls(self) -> Path:
        return self.folder / f"{self.kind} {self.name}"

    @property
    def coordinates(self) -> HostCoordinates:
        return HostCoordinates("sweep", "sweep", str(self.run_id), "spawn", -1)

    def act(self, store: SqlStore, process: int, places: Places) -> None:
        """Drive the tree to its end, as process number ``process`` (1-based)."""
        world[:] = [Witness(self.calls, places)]
        if self.kind == "airflow":
            self._run_tasks(store, places, process)
            return
        house = house_of(store, places, Owner("sweep", str(self.run_id), process), self.slots)
        (self._drive_runs if self.kind == "runs" else self._drive_host)(house, process)

    def _drive_runs(self, house: House, process: int) -> None:
        engine = ExecutionEngine(house)
        if house.find_run(self.run_id) is None:
            engine.create(build_manifest("sweep_top", "1", input=None, run_config=RunConfig()), run_id=self.run_id)
        engine.resume(self.run_id)

    def _drive_host(self, house: House, process: int) -> None:
        facts = TryFacts(UUID(int=process), process, 99, 0, 3_600_000_000)
        host = HostRun(house, self.coordinates, facts, {})
        wanted = []
        for name, value in (("sweep_left", "left"), ("sweep_right", "right"), ("sweep_leaf", "leaf")):
            made = build_manifest(name, "1", input=value, run_config=RunConfig())
            wanted.append(WantedChild(f"{name}/{value}", made, manifest_id(made), {}, EMPTY_SNAPSHOT))
        supervisor = Supervisor(house)
        ids = [slot.run_id for slot in host.spawn(wanted, "auto", "fail").slots]
        for run_id in ids:
            supervisor.hand_over(run_id)
        for run_id in ids:
            supervisor.wait(run_id)
        while not supervisor.is_idle():
            supervisor.wait_until_idle(0.1)

    def _run_tasks(self, store: SqlStore, places: Places, process: int) -> None:
        stage = airflow_stage()
        airflow = stage.Airflow(self.known, self.url, places)
        stage.work(airflow, str(self.run_id), cast("Store", Watched(store, places)), process, self.slots)

    def told(self) -> list[list[Any]]:
        """Return what Airflow was told, if it had a part in the play."""
        if self.kind != "airflow":
            return []
        stage = airflow_stage()
        return list(stage.told(stage.Airflow(self.known, self.url, Places()), str(self.run_id)))

    @property
    def known(self) -> Path:
        """What Airflow knows."""
        return self.folder / f"{self.kind} {self.name}.db"

    def rows(self, store: Store) -> list[RunRow]:
        """Return every run of the tree."""
        top = store.find_run(self.run_id if self.kind == "runs" else self.coordinates.run_id(1))
        if top is None:
            return []
        return list(store.find_runs(RunFilter(root_run_id=top.root_run_id), limit=1000).rows)


@dataclass
class Ends:
    """How a tree ended, without what differs from play to play."""

    runs: list[list[Any]] = field(default_factory=list)
    facts: list[list[str]] = field(default_factory=list)

    @classmethod
    def of(cls, store: Store, rows: list[RunRow]) -> Ends:
        ends = cls()
        for row in rows:
            if row.kind == "operation":
                answer = end_of(store, row, compact=True)
                # The snapshot of a child that is a DAG run holds that one's id, which follows from its own.
                snapshot = None if row.op_id == DAG_RUN_OPERATION else row.final_snapshot_id
                ends.runs.append([row.op_id, row.status, snapshot, row.generation, answer["output"]])
            ends.facts += [[row.op_id, key.replace(str(row.run_id), "")] for key in facts_of(store, row)]
        ends.runs.sort(key=str)
        ends.facts.sort()
        return ends


def airflow_stage() -> Any:
    """Return the stage in Airflow, whose home must be known before its first import."""
    from tests.fault import sweep_airflow

    return sweep_airflow


def facts_of(store: Store, row: RunRow) -> list[str]:
    """Return the keys of a run's facts; a doubled one stands twice."""
    found = []
    for stored, event in decode_events(store.read_events(row.run_id)):
        fact = fact_of(event, (0, stored.seq), None) if isinstance(event, DomainEvent) else None
        if fact is not None:
            found.append(fact.key)
    return found


# ---------------------------------------------------------------------------------------- processes, forked and killed


def forked(work: Callable[[], Any]) -> tuple[int, Any]:
    """Run ``work`` in a forked process; return by which signal that was killed (0 = none), and what it returned."""
    read, write = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        signal.alarm(LIFE_S)
        try:
            answer = json.dumps(work())
        except BaseException:
            answer = json.dumps({"problems": [traceback.format_exc()]})
        with os.fdopen(write, "w") as out:
            out.write(answer)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as heard:
        answer = heard.read()
    _, status = os.waitpid(pid, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, json.loads(answer) if answer else None


def count_places(play: Play) -> dict[str, Any]:
    """Play once without a fault; return how many places there are, and how it ended."""

    def whole() -> dict[str, Any]:
        store, places = SqlStore(play.url), Places()
        play.act(store, 1, places)
        reader = SqlStore(play.url)
        ends = Ends.of(reader, play.rows(reader))
        return {"places": places.passed, "runs": ends.runs, "facts": ends.facts, "told": play.told(), "problems": []}

    killed, answer = forked(whole)
    if killed or answer["problems"]:
        raise RuntimeError(f"the play without a fault failed: {killed or answer['problems'][0]}")
    found: dict[str, Any] = answer
    if any(status != "Completed" for _, status, *_ in found["runs"]):
        raise RuntimeError(f"the play without a fault ended badly: {found['runs']}")
    return found


def die_at(play: Play, process: int, place: int) -> bool:
    """Play until the process is killed at a place; return whether it was."""
    killed, answer = forked(lambda: play.act(SqlStore(play.url), process, Places(place)))
    if killed not in (0, signal.SIGKILL) or (answer is not None):
        raise RuntimeError(f"process {process} of {play} ended by signal {killed}: {answer}")
    return killed == signal.SIGKILL


def go_on(play: Play, process: int, clean: dict[str, Any]) -> list[str]:
    """Play to the end, and say what is wrong then."""

    def rest() -> dict[str, Any]:
        store = SqlStore(play.url)
        recorded = recorded_names([key for row in play.rows(store) for key in facts_of(store, row)])
        before = len(read_witness(play.calls))
        play.act(SqlStore(play.url), process, Places())
        return {"problems": list(_problems(play, SqlStore(play.url), clean, recorded, before))}

    killed, answer = forked(rest)
    return [f"killed by signal {killed}"] if answer is None else list(answer["problems"])


def _problems(play: Play, store: SqlStore, clean: dict[str, Any], recorded: set[str], before: int) -> Iterator[str]:
    """Say what differs from a play without a fault."""
    rows = play.rows(store)
    ends = Ends.of(store, rows)
    if ends.runs != clean["runs"]:
        yield f"other ends: {ends.runs}"
    if ends.facts != clean["facts"]:
        difference = Counter(map(str, ends.facts))
        difference.subtract(Counter(map(str, clean["facts"])))
        yield f"facts lost or doubled: { {key: count for key, count in difference.items() if count} }"
    if (told := play.told()) != clean["told"]:
        yield f"Airflow was told otherwise: {told}"
    for finding in verify_tree(store, rows[0].root_run_id):
        yield f"{finding.code}: {finding.message}"
    engine = ExecutionEngine(house_of(SqlStore(play.url), Places(), Owner("looks"), 1))
    for row in rows:
        if row.lease_session_id is not None:
            yield f"{row.op_id} {row.run_id} is still owned"
        if row.kind == "operation" and engine.replay(row.run_id) != row.final_snapshot_id:
            yield f"replay of {row.op_id} {row.run_id} ends otherwise"
    calls = read_witness(play.calls)
    again = {name for name, _ in calls[before:]} & recorded
    if again:
        yield f"recorded calls were repeated: {again}"
    if len(set(calls)) != len({name for name, _ in calls}):
        yield "a repeated call carried another token"
    # One call may be in flight in each slot, one more may have been answered and not recorded.
    repeated = [name for name, count in Counter(name for name, _ in calls).items() if count > 1]
    if len(set(repeated) - MAY_COME_TWICE) > play.slots * 2:
        yield f"more calls than were in flight came again: {repeated}"


# --------------------------------------------------------------------------------------------------------- the sweep


@dataclass
class Figures:
    """What a sweep found."""

    places: int = 0
    swept: int = 0
    kills: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)
    places_by_name: Counter[str] = field(default_factory=Counter)


def _order(places: list[str], chance: random.Random) -> list[int]:
    """Return the numbers of all places by chance, those at requests to Airflow first, one of each kind before another.

    The statements between them are what the other kinds of play are made of as well.
    """
    numbers = list(range(1, len(places) + 1))
    chance.shuffle(numbers)
    met: Counter[str] = Counter()
    rank = {}
    for number in numbers:
        name = places[number - 1]
        met[name] += 1
        rank[number] = met[name] if ASKS_AIRFLOW in name else len(places)
    return sorted(numbers, key=lambda number: rank[number])


def sweep(url: str, kind: str, seed: int, *, seconds: float, faults: int = 1, most: int | None = None) -> Figures:
    """Kill at as many places as there is time for, each in a play of its own."""
    figures, began, chance = Figures(), time.monotonic(), random.Random(f"{seed} {kind} {faults}")
    with tempfile.TemporaryDirectory(prefix="childrun-sweep-") as folder:
        slots = chance.choice([1, 1, 4])
        os.environ["CHILDRUN_SWEEP"] = f"{os.urandom(8).hex()} "
        if kind == "airflow":
            # Imported before the forks, which then need not.
            os.environ.update(AIRFLOW_HOME=folder, AIRFLOW__CORE__LOAD_EXAMPLES="False")
            airflow_stage()
            began = time.monotonic()
        clean = count_places(Play(url, Path(folder), kind, f"whole {faults}", slots))
        figures.places = len(clean["places"])
        for place in _order(clean["places"], chance)[:most]:
            if time.monotonic() - began > seconds and figures.kills >= LEAST:
                break
            play = Play(url, Path(folder), kind, f"{place} {faults}", slots)
            places = [place, *[chance.randint(1, figures.places) for _ in range(faults - 1)]]
            figures.kills += sum([die_at(play, number, at) for number, at in enumerate(places, 1)])
            found = go_on(play, faults + 1, clean)
            figures.swept += 1
            figures.places_by_name[clean["places"][place - 1]] += 1
            figures.problems += [f"{kind}, {slots} slots, killed at {places}: {problem}" for problem in found]
    figures.seconds = round(time.monotonic() - began, 1)
    return figures


def main() -> None:
    """Sweep, print the figures, exit 1 if anything was lost."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60.0, help="for all kinds of play together")
    parser.add_argument("--faults", type=int, default=1, help="how many processes are killed, one after the other")
    parser.add_argument("--kinds", default=KINDS)
    given = parser.parse_args()
    logging.disable(logging.ERROR)  # the tracebacks of failures that the plays are made of
    upgrade(given.url)
    kinds = given.kinds.split(",")
    out: dict[str, Any] = {"seed": given.seed, "faults": given.faults, "problems": []}
    for kind in kinds:
        figures = sweep(given.url, kind, given.seed, seconds=given.seconds / len(kinds), faults=given.faults)
        out[kind] = {
            "places": figures.places,
            "swept": figures.swept,
            "kills": figures.kills,
            "seconds": figures.seconds,
        }
        out["problems"] += figures.problems
    print(json.dumps(out))
    sys.exit(1 if out["problems"] else 0)


if __name__ == "__main__":
    main()
