"""``max_concurrency`` across real processes on PostgreSQL: a witness counts, one process is killed, no place leaks."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from airflow_childrun.authoring.operation import operation
from airflow_childrun.authoring.registry import RegistryResolver
from airflow_childrun.model.config import RunConfig
from airflow_childrun.model.manifest import build_manifest
from airflow_childrun.runtime.engine import ExecutionEngine
from airflow_childrun.runtime.house import House, Limits
from airflow_childrun.secret_policy import standard
from airflow_childrun.store.api import Owner, RunRow
from airflow_childrun.store.sql.migrate import upgrade
from airflow_childrun.store.sql.store import SqlStore
from airflow_childrun.store.verify import verify_tree

pytestmark = pytest.mark.fault
MOST, CHILDREN = 3, 40
TTL_S = 3.0
LONGEST_S = 90
CLEAN = multiprocessing.get_context("forkserver")
CLEAN.set_forkserver_preload([__name__])


def tell(witness: str, what: str) -> None:
    """Write a line that no other process's line can come into."""
    file = os.open(witness, os.O_APPEND | os.O_CREAT | os.O_WRONLY)
    os.write(file, f"{what}\n".encode())
    os.close(file)


def work(witness: str, number: int) -> int:
    """Be the outside world: slow until the second process is there, so that not all is done before."""
    tell(witness, f"{os.getpid()} {number} begins")
    time.sleep(0.05 if second_of(witness).exists() else 1)
    tell(witness, f"{os.getpid()} {number} ends")
    return number


@operation(version="1")
def placed_child(io: Any, witness: str, number: int) -> int:
    return int(io.step(work, witness, number))


@operation(version="1")
def placed(io: Any, witness: str) -> int:
    inputs = [{"witness": witness, "number": number} for number in range(CHILDREN)]
    return sum(result.output for result in io.map(placed_child, inputs, key="number", max_concurrency=MOST))


def engine_on(url: str, name: str) -> ExecutionEngine:
    limits = Limits(poll_s=0.1, inbox_poll_s=0.2, session_ttl_s=TTL_S)
    return ExecutionEngine(House(SqlStore(url), RegistryResolver(), standard(), limits=limits, owner=Owner(name)))


def drive_parent(url: str, run_id: UUID, name: str) -> None:
    engine = engine_on(url, name)
    engine.resume(run_id)
    engine.close()


def drive_children(url: str, run_id: UUID, name: str, witness: str) -> None:
    engine = engine_on(url, name)
    for row in engine.house.store.children_of(run_id):
        engine.supervisor.hand_over(row.run_id)
    second_of(witness).touch()
    while not engine.supervisor.is_idle():
        engine.supervisor.wait_until_idle(0.2)
    engine.close()


def begin(what: Any, *args: Any) -> Any:
    process = CLEAN.Process(target=what, args=args)
    process.start()
    return process


def until(check: Any) -> None:
    late = time.monotonic() + LONGEST_S
    while not check():
        assert time.monotonic() < late, "it did not come about"
        time.sleep(0.02)


def test_places_are_never_overbooked_nor_lost(postgres_url: str, tmp_path: Path) -> None:
    """Two processes share them; one is killed with places in its hands, which others have as soon as its session is over."""
    upgrade(postgres_url)
    creator = engine_on(postgres_url, "creator")
    store, witness = creator.house.store, str(tmp_path / "witness")
    Path(witness).touch()
    run_id = creator.create(build_manifest("placed", "1", input=witness, run_config=RunConfig()))

    def children() -> list[RunRow]:
        return store.children_of(run_id)

    first = begin(drive_parent, postgres_url, run_id, "first")
    until(lambda: len(children()) == CHILDREN)
    second = begin(drive_children, postgres_url, run_id, "second", witness)
    until(second_of(witness).exists)
    assert len(workers(witness)) < CHILDREN
    first.kill()
    first.join(LONGEST_S)
    tell(witness, f"{first.pid} - killed")
    begin(drive_parent, postgres_url, run_id, "heir").join(LONGEST_S)
    second.join(LONGEST_S)
    row = store.find_run(run_id)
    assert row is not None
    assert row.status == "Completed"
    assert most_at_work(Path(witness)) == MOST
    assert len(set(workers(witness))) > 1
    assert verify_tree(store, run_id) == []
    store.close()


def second_of(witness: str) -> Path:
    """Return the file that says that the second process has every child before it."""
    return Path(f"{witness}.second")


def workers(witness: str) -> list[str]:
    """Return which process has made each of the calls that are over."""
    return [line.split()[0] for line in Path(witness).read_text().splitlines() if line.endswith(" ends")]


def most_at_work(witness: Path) -> int:
    """Return how many calls were under way at the same time; those of a killed process end with it."""
    at_work: set[tuple[str, str]] = set()
    most = 0
    for line in witness.read_text().splitlines():
        pid, number, what = line.split()
        if what == "begins":
            at_work.add((pid, number))
        elif what == "ends":
            at_work.discard((pid, number))
        else:
            at_work = {(owner, child) for owner, child in at_work if owner != pid}
        most = max(most, len(at_work))
    return most
