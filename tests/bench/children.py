"""How fast 1,000 one-state children are spawned, driven and awaited by one task on PostgreSQL.

``python -m tests.bench.children``            in this process, as a task would: no Airflow around it
``python -m tests.bench.children --profile``  the same under cProfile
``python -m tests.bench.children --stand``    one DAG run on a real scheduler (starts and stops a stand)

Input and output of each child are 1 KiB.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import sys
import threading
import time
from uuid import UUID

from airflow_childrun.authoring.operation import operation
from airflow_childrun.authoring.registry import RegistryResolver
from airflow_childrun.clock import SystemEntropy
from airflow_childrun.hooks.coordinates import TaskPlace
from airflow_childrun.hooks.elements import SpawnOrder, wanted_children
from airflow_childrun.hooks.observer import TaskObserver
from airflow_childrun.hooks.results import results_of
from airflow_childrun.hooks.task import HostTask
from airflow_childrun.runtime.host_try import HostCoordinates, TryFacts
from airflow_childrun.runtime.house import House, Limits
from airflow_childrun.secret_policy import standard
from airflow_childrun.store.sql import migrate
from airflow_childrun.store.sql.store import SqlStore
from tests.postgres import start_embedded
from tests.stack.records import Records
from tests.stack.stand import Stand, started

SIZE = 1024


@operation(version="1")
def echo(text: str) -> str:
    """Return as much as was given."""
    return text[::-1]


def element(number: int) -> str:
    """Return 1 KiB that no other child has."""
    return f"{number:08}".ljust(SIZE, "x")


def measure(url: str, count: int, concurrency: int, *, profile: bool) -> None:
    """Spawn, drive and await in this process, and print seconds and rate."""
    migrate.upgrade(url)
    store = SqlStore(url)
    policy = standard(lambda: frozenset({"a-secret-of-airflow"}))
    facts = TryFacts(UUID(int=1), 1, 2, 0, 0)
    place = TaskPlace(HostCoordinates(str(SystemEntropy().new_id()), "bench", "run", "task"), facts, {}, None, {})
    observer = TaskObserver(store)
    limits = Limits(max_concurrency=concurrency)
    house = House(store=store, resolver=RegistryResolver(), policy=policy, limits=limits, observer=observer)
    task = HostTask(house, place, observer)
    profiles: list[cProfile.Profile] = []
    if profile:
        threading.setprofile(lambda *_: _profiled(profiles))
    began, began_cpu = time.monotonic(), time.process_time()
    wanted = wanted_children(SpawnOrder(echo, [element(number) for number in range(count)]), policy)
    rows = task.spawn(wanted, "auto", "fail")
    spawned = time.monotonic()
    ended = task.drive(rows)
    driven = time.monotonic()
    results = results_of(store, ended, [task.key_of(row) for row in ended], "bench", "values")
    read = time.monotonic()
    cpu = time.process_time() - began_cpu
    task.close()
    assert [result["output"] for result in results] == [element(number)[::-1] for number in range(count)]
    parts = f"spawn {spawned - began:.2f} s, drive {driven - spawned:.2f} s, results {read - driven:.2f} s, of the processor {cpu:.2f} s"
    print(f"{count} children, {concurrency} at a time: {read - began:.2f} s = {count / (read - began):.0f}/s ({parts})")
    for found in profiles:
        found.disable()
    if profiles:
        threading.setprofile(None)
        stats = pstats.Stats(profiles[0])
        for found in profiles[1:]:
            stats.add(found)
        stats.sort_stats("tottime").print_stats(45)
    store.close()


def _profiled(profiles: list[cProfile.Profile]) -> None:
    """Replace this thread's hook by a profile of its own."""
    mine = cProfile.Profile()
    profiles.append(mine)
    mine.enable()


def on_stand(stand: Stand, count: int) -> str:
    """Run the DAG ``stand_thousand`` and say how long it took.

    :raises AssertionError: if a result is missing or wrong
    """
    browser, run_id = stand.browser, f"thousand_{time.monotonic_ns()}"
    browser.trigger("stand_thousand", run_id, {"count": count})
    state = browser.wait_for_run("stand_thousand", run_id, 300)
    assert state == "success", browser.log("stand_thousand", run_id, "children", 1)
    assert browser.xcom("stand_thousand", run_id, "check") == count
    task_s = float(browser.task("stand_thousand", run_id, "children")["duration"])
    records = Records(stand.environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"].replace("+psycopg2:", "+psycopg:"))
    (host,) = records.hosts("stand_thousand", run_id)
    ends = [row.ended_at or 0 for row in records.children("stand_thousand", run_id)]
    records.store.close()
    assert len(ends) == count
    seconds = (max(ends) - host.created_at) / 1_000_000
    return (
        f"{count} children in one DAG run: {seconds:.2f} s from the first commit to the last end = {count / seconds:.0f}/s; "
        f"{task_s:.2f} s in the task, its start and the parsing of its file included = {count / task_s:.0f}/s"
    )


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--stand", action="store_true")
    parser.add_argument("--durable", action="store_true", help="a server that flushes to disk")
    arguments = parser.parse_args()
    server, stop = start_embedded(durable=arguments.durable)
    try:
        if arguments.stand:
            with started(server, say=lambda text: print(f"... {text}", file=sys.stderr)) as stand:
                for _ in range(3):
                    print(on_stand(stand, arguments.count), flush=True)
        else:
            measure(
                server.url(server.new_database()), arguments.count, arguments.concurrency, profile=arguments.profile
            )
    finally:
        print(f"load of this machine, of {os.cpu_count()} processors: {os.getloadavg()[0]:.1f}")
        stop()


if __name__ == "__main__":
    main()
