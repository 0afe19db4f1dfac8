"""Two tasks and their children, each in a process: ``python -m tests.fault.lost_ownership URL FOLDER spawn|await``.

The first spawns and drives; the second, another task, awaits the same children by their handles. Each prints its results.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any
from uuid import UUID

from airflow_childrun.authoring.operation import operation
from airflow_childrun.authoring.registry import RegistryResolver
from airflow_childrun.hooks.coordinates import TaskPlace
from airflow_childrun.hooks.elements import SpawnOrder, wanted_children
from airflow_childrun.hooks.observer import TaskObserver
from airflow_childrun.hooks.results import check_ends, handle_of, results_of
from airflow_childrun.hooks.task import HostTask
from airflow_childrun.runtime.host_try import HostCoordinates, TryFacts
from airflow_childrun.runtime.house import House, Limits
from airflow_childrun.secret_policy import standard
from airflow_childrun.store.sql.address import parse_address
from airflow_childrun.store.sql.store import SqlStore

TTL_S = 1.5
ITEMS = ["a", "b", "c"]
STEPS = 12
FOLDER = Path(sys.argv[2]) if len(sys.argv) > 3 else Path()


def call(name: str, token: str) -> str:
    """Be the outside world: write the call down, and take a while."""
    with (FOLDER / "calls").open("a") as file:
        file.write(f"{os.getpid()} {name} {token}\n")
    time.sleep(0.15)
    return f"{name} done"


@operation(version="1")
def owned(io: Any, item: str) -> int:
    """Call many times."""
    for number in range(STEPS):
        io.step(call, f"{item}{number}", io.idempotency_token(f"{number}"), key=f"{number}")
    return STEPS


def main() -> None:
    """Be one of the two tasks."""
    url, _, role = sys.argv[1:]
    logging.basicConfig(stream=sys.stderr, level=logging.INFO)
    house = House(
        SqlStore(parse_address(url)),
        RegistryResolver(),
        standard(),
        limits=Limits(session_ttl_s=TTL_S, poll_s=0.1, inbox_poll_s=0.5),
    )
    number = 1 if role == "spawn" else 2
    place = TaskPlace(
        HostCoordinates("here", "report", "manual__1", role, -1),
        TryFacts(UUID(int=number), 1, 2, 0, 3_600_000_000),
        {"dag_id": "report", "run_id": "manual__1"},
        None,
        {},
    )
    task = HostTask(house, place, TaskObserver(house.store))
    handles = FOLDER / "handles"
    if role == "spawn":
        rows = task.spawn(wanted_children(SpawnOrder(owned, ITEMS), standard()), "auto", "fail")
        handles.write_text(json.dumps([handle_of(row, task.key_of(row), "childrun_default") for row in rows]))
    else:
        rows = task.attach(json.loads(handles.read_text()))
    ended = task.in_background(lambda: task.drive(rows))
    found = results_of(task.store, ended, [task.key_of(row) for row in ended], "childrun_default", "values")
    check_ends(found)
    task.close()
    print(json.dumps([[result["status"], result["generation"], result["output"]] for result in found]))


if __name__ == "__main__":
    main()
