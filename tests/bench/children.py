"""How fast 1,000 one-state children are spawned, driven and awaited by one task on PostgreSQL.

``python -m tests.bench.children``            in this process, as a task would: no Airflow around it
``python -m tests.bench.children --profile``  the same under cProfile

Input and output of each child are 1 KiB. The server flushes nothing to its disk, unless it is told ``--durable``. One DAG
run on a real scheduler: ``python -m tests.bench airflow-thousand``.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
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


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--durable", action="store_true", help="a server that flushes to disk")
    arguments = parser.parse_args()
    server, stop = start_embedded(durable=arguments.durable)
    try:
        measure(server.url(server.new_database()), arguments.count, arguments.concurrency, profile=arguments.profile)
    finally:
        print(f"load of this machine, of {os.cpu_count()} processors: {os.getloadavg()[0]:.1f}")
        stop()


if __name__ == "__main__":
    main()
