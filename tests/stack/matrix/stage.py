"""The stage: what a cell can do to its DAG run, and what it can see of it. Many cells play on one stand at once."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy

from airflow_childrun.authoring.registry import RegistryResolver
from airflow_childrun.runtime.closing import cancel_run
from airflow_childrun.runtime.house import House
from airflow_childrun.runtime.overdue import as_read
from airflow_childrun.secret_policy import standard
from airflow_childrun.store.api import RunRow
from tests.stack.records import Records
from tests.stack.stand import Stand
from tests.stack.witness import Call

WAIT_S = 240.0
LOOK_EVERY_S = 0.5
BUSY = ("scheduled", "queued", "running", "restarting", "up_for_retry", "deferred", "up_for_reschedule", None)
TASKS = sqlalchemy.text(
    "SELECT task_id, map_index, state, try_number FROM task_instance WHERE dag_id = :dag AND run_id = :run"
)
STATE = sqlalchemy.text("SELECT state FROM dag_run WHERE dag_id = :dag AND run_id = :run")
ALL_TASKS = sqlalchemy.text("SELECT task_id, state, try_number FROM task_instance WHERE dag_id = :dag")
ALL_STATES = sqlalchemy.text("SELECT state FROM dag_run WHERE dag_id = :dag")
OVER = ("success", "failed")
FEW = 3


@dataclass(frozen=True)
class Seen:
    """What can be seen of a cell when it is over.

    :param task: state of the task that something was done to
    :param children: by item, the statuses of its child's generations, oldest first, and ``first+second`` calls
    :param results: the items whose outputs the task returned, in order; ``-`` = nothing
    """

    task: str
    children: dict[str, str] = field(default_factory=dict)
    results: str = "-"

    @property
    def count(self) -> int:
        """How many child runs there are, every generation counted."""
        return sum(len(told.split()) - 1 for told in self.children.values())

    @property
    def calls(self) -> int:
        """How many calls the witness counted."""
        return sum(int(part) for told in self.children.values() for part in told.split()[-1].split("+"))

    def __str__(self) -> str:
        alike: dict[str, list[str]] = {}
        for item, text in sorted(self.children.items()):
            alike.setdefault(text, []).append(item)
        told = "; ".join(f"{_many(items)}: {text}" for text, items in alike.items())
        return f"{self.task} [{self.results}] {told}"


def _many(items: list[str]) -> str:
    """Name items; of many the first, the last and how many."""
    return ", ".join(items) if len(items) <= FEW else f"{items[0]} to {items[-1]}, {len(items)} of them"


class Doors:
    """Holds the witness's answers to chosen calls until they are opened."""

    def __init__(self, stand: Stand) -> None:
        self._shut: dict[str, threading.Event] = {}
        stand.witness.on_call = self._hold

    def shut(self, key: str) -> None:
        """Hold the answers to a call."""
        self._shut[key] = threading.Event()

    def open(self, prefix: str) -> None:
        """Let through what is held under a prefix, now and later."""
        for key, event in list(self._shut.items()):
            if key.startswith(prefix):
                event.set()

    def _hold(self, call: Call) -> None:
        event = self._shut.get(call.key)
        if event is not None:
            event.wait(WAIT_S)


class Stage:
    """One cell's DAG run, and the hands and eyes of who plays it."""

    def __init__(self, stand: Stand, records: Records, doors: Doors, dag_id: str, run_id: str) -> None:
        self.stand = stand
        self.records = records
        self.doors = doors
        self.dag_id = dag_id
        self.run_id = run_id

    # ---------------------------------------------------------------------------------------------------------- hands

    def shut(self, item: str) -> None:
        """Hold the answer to an item's second call."""
        self.doors.shut(self._call(item, "second"))

    def open(self, item: str = "") -> None:
        """Let an item's calls through, or all."""
        self.doors.open(f"{self._calls}{item}")

    def refuse(self, *items: str) -> None:
        """Let the children of these items fail."""
        for item in items:
            self._flag(item).touch()

    def accept(self) -> None:
        """Let none fail any more."""
        for path in (self.stand.home / "flags").glob(f"{self.run_id}_*"):
            path.unlink(missing_ok=True)

    def write_list(self, items: Iterable[str]) -> None:
        """Write the list that the DAG run's template reads."""
        (self.stand.home / "lists" / self.run_id).write_text(json.dumps(list(items)))

    def trigger(self, **conf: Any) -> None:
        """Start the DAG run."""
        self.stand.browser.trigger(self.dag_id, self.run_id, conf)

    def clear(self, *task_ids: str, **options: Any) -> None:
        """Clear tasks."""
        self.stand.browser.clear(self.dag_id, self.run_id, *task_ids, **options)

    def cancel(self, item: str) -> None:
        """Cancel an item's child, as ``childrun cancel`` does."""
        house = House(self.records.store, RegistryResolver(), standard())
        cancel_run(house, self.rows()[item][-1].run_id, "the matrix wishes so")

    # ----------------------------------------------------------------------------------------------------------- eyes

    def tasks(self) -> dict[str, tuple[str | None, int]]:
        """Return state and try number of each task; a mapped one has its index in brackets."""
        with self.records.store.database.engine().connect() as connection:
            rows = connection.execute(TASKS, {"dag": self.dag_id, "run": self.run_id}).all()
        return {name if index < 0 else f"{name}[{index}]": (state, tries) for name, index, state, tries in rows}

    def rows(self) -> dict[str, list[RunRow]]:
        """Return the rows of every generation by item, oldest first, as they are to be read."""
        found: dict[str, list[RunRow]] = {}
        for row in as_read(self.records.store, self.children()):
            found.setdefault(self.records.input(row), []).append(row)
        return found

    def children(self) -> list[RunRow]:
        """Return the rows of every generation, oldest first, as they stand in the store."""
        return self.records.children(self.dag_id, self.run_id)

    def findings(self) -> list[Any]:
        """Return what ``verify`` finds."""
        return self.records.findings(self.dag_id, self.run_id)

    def pid(self, item: str = "b") -> int:
        """Return the process that made an item's last call."""
        return self.stand.witness.seen(f"{self._calls}{item}/")[-1].pid

    def look(self, task_id: str) -> Seen:
        """Look at everything that counts."""
        counts = self.stand.witness.counts(self._calls)
        rows = self.rows()
        children = {
            item: " ".join(
                [
                    *(row.status for row in rows.get(item, ())),
                    f"{counts[self._call(item, 'first')]}+{counts[self._call(item, 'second')]}",
                ]
            )
            for item in sorted({*rows, *(key.split("/")[-2] for key in counts)})
        }
        state = self.tasks().get(task_id, ("gone", 0))[0]
        return Seen(str(state), children, self._results(task_id))

    def is_over(self) -> bool:
        """Whether no task of the run will move by itself, and the scheduler has seen that.

        What is cleared before it has is forgotten: the scheduler ends the DAG run with the cleared task in it.
        """
        with self.records.store.database.engine().connect() as connection:
            state = connection.execute(STATE, {"dag": self.dag_id, "run": self.run_id}).scalar()
        return state in OVER and all(state not in BUSY for state, _ in self.tasks().values())

    def called(self, item: str, call: str = "second", times: int = 1) -> bool:
        """Whether an item's child made a call so often."""
        return self.stand.witness.counts(self._calls)[self._call(item, call)] >= times

    def has_status(self, item: str, status: str) -> bool:
        """Whether the newest generation of an item's child has a status."""
        rows = self.rows().get(item, [])
        return bool(rows) and rows[-1].status == status

    def wait(self, done: Callable[[], object], what: str, timeout_s: float = WAIT_S) -> None:
        """Wait for something.

        :raises TimeoutError: naming what did not come, and how the tasks stand
        """
        deadline = time.monotonic() + timeout_s
        while not done():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what}: not after {timeout_s:.0f} s; tasks: {self.tasks()}")
            time.sleep(LOOK_EVERY_S)

    def wait_for_task(self, task_id: str, *states: str, least_try: int = 1) -> None:
        """Wait until a task is in one of some states, in a certain try at least."""

        def is_there() -> bool:
            state, tries = self.tasks().get(task_id, (None, 0))
            return state in states and tries >= least_try

        self.wait(is_there, f"{task_id} {' or '.join(states)}, try {least_try}")

    def _call(self, item: str, call: str) -> str:
        return f"{self._calls}{item}/{call}"

    @property
    def _calls(self) -> str:
        return f"cell/{self.run_id}/"

    def _flag(self, item: str) -> Path:
        return self.stand.home / "flags" / f"{self.run_id}_{item}"

    def _results(self, task_id: str) -> str:
        if "[" in task_id:
            return "-"
        try:
            found = self.stand.browser.xcom(self.dag_id, self.run_id, task_id)
        except AssertionError:
            return "-"
        if not isinstance(found, list):
            return "-"
        return "".join(result["output"] for result in found) if all("output" in each for each in found) else "handles"


class MonthStage(Stage):
    """All DAG runs of one DAG, each with one child, whose item is its day."""

    def __init__(self, stand: Stand, records: Records, doors: Doors, dag_id: str, _run_id: str) -> None:
        super().__init__(stand, records, doors, dag_id, dag_id)

    def tasks(self) -> dict[str, tuple[str | None, int]]:
        """Return of each task the states that it has in any run, and its highest try number."""
        found: dict[str, list[tuple[str | None, int]]] = {}
        with self.records.store.database.engine().connect() as connection:
            for name, state, tries in connection.execute(ALL_TASKS, {"dag": self.dag_id}):
                found.setdefault(name, []).append((state, tries))
        return {
            name: (" ".join(sorted({str(state) for state, _ in each})), max(tries for _, tries in each))
            for name, each in found.items()
        }

    def children(self) -> list[RunRow]:
        """Return the rows of every generation of every run, oldest first."""
        return self.records.children(self.dag_id, None)

    def findings(self) -> list[Any]:
        """Return what ``verify`` finds in any of the runs."""
        return self.records.findings(self.dag_id, None)

    def states(self) -> list[str]:
        """Return the states of all DAG runs."""
        with self.records.store.database.engine().connect() as connection:
            return list(connection.execute(ALL_STATES, {"dag": self.dag_id}).scalars())

    def is_over(self) -> bool:
        """Whether no run will move by itself."""
        states = self.states()
        return bool(states) and all(state in OVER for state in states)
