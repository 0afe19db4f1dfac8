"""A worker of the soak: drives whatever nobody drives, until it is killed."""

from __future__ import annotations

import logging
import os
import random
import time
import uuid
from pathlib import Path
from typing import Any

from airflow_childrun.authoring.operation import Operation, operation
from airflow_childrun.authoring.registry import RegistryResolver
from airflow_childrun.errors import ChildRunError, StorageError
from airflow_childrun.model.config import Duration, Fixed, RetryPolicy
from airflow_childrun.runtime.house import House, Limits
from airflow_childrun.runtime.supervisor import Supervisor
from airflow_childrun.secret_policy import standard
from airflow_childrun.store.api import Owner, RunFilter
from airflow_childrun.store.sql.store import SqlStore

TTL_S = 3.0
QUICK = RetryPolicy(max_attempts=5, backoff=Fixed(delay=Duration(nanos=50_000_000)))
UNFINISHED: Any = frozenset({"Pending", "Running"})

journal: list[tuple[int, int]] = []
"""Number of this worker, and the file in which the outside world writes down its calls."""


def ask(name: str, token: str, seconds: float) -> str:
    """Be the outside world: remember the call, take a while, answer."""
    number, file = journal[0]
    os.write(file, f"{number} {time.time_ns() // 1000} {token} {name}\n".encode())
    time.sleep(seconds)
    return f"{name} done"


def once(io: Any, name: str, seconds: float = 0.02) -> str:
    return str(io.step(ask, name, io.idempotency_token(name), seconds, key=name, retry=QUICK))


@operation(version="1")
def soak_leaf(io: Any, name: str) -> str:
    return once(io, f"leaf {name}")


soak_top = Operation("soak_top", version="1")


@soak_top.state
def gather(io: Any, name: str) -> str:
    io.sleep(0.05)
    return once(io, f"gather {name}", 0.1)


@soak_top.state
def spread(io: Any, name: str, gather: str) -> list[Any]:
    return [result.output for result in io.map(soak_leaf, [f"{name} a", f"{name} b"], key=str)]


@soak_top.state
def finish(io: Any, name: str, gather: str, spread: list[Any]) -> list[Any]:
    return [gather, spread, once(io, f"finish {name}")]


def expected_output(name: str) -> list[Any]:
    """Return what a topmost run gives, whatever happens."""
    return [f"gather {name} done", [f"leaf {name} a done", f"leaf {name} b done"], f"finish {name} done"]


class MarkedEntropy:
    """Ids that say which worker made them: who wrote an event is seen in its commit's id."""

    def __init__(self, number: int) -> None:
        self._mark = number.to_bytes(4, "big")

    def random_bytes(self, size: int) -> bytes:
        return os.urandom(size)

    def new_id(self) -> uuid.UUID:
        return uuid.UUID(bytes=self._mark + os.urandom(12), version=4)


def worker_of(commit_id: uuid.UUID) -> int:
    """Return the number of the worker that made an id."""
    return int.from_bytes(commit_id.bytes[:4], "big")


def work(url: str, folder: Path, slot: int, number: int) -> None:
    """Drive runs that nobody drives until none is left."""
    handler = logging.FileHandler(folder / f"worker-{number}.log")
    handler.setFormatter(logging.Formatter("%(created).3f %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    journal[:] = [(number, os.open(folder / "calls", os.O_APPEND | os.O_CREAT | os.O_WRONLY))]
    house = House(
        SqlStore(url),
        RegistryResolver(),
        standard(),
        limits=Limits(max_concurrency=8, session_ttl_s=TTL_S, poll_s=0.2, inbox_poll_s=1.0),
        owner=Owner(f"worker {number}", f"slot {slot}", number),
        entropy=MarkedEntropy(number),
    )
    supervisor = Supervisor(house)
    while True:
        try:
            if not _one_round(house, supervisor):
                break
        except StorageError as error:
            logging.getLogger("soak").info("the store is away: %s", error)
            time.sleep(0.2)
        except ChildRunError:
            logging.getLogger("soak").exception("a round failed")
    supervisor.close()


def _one_round(house: House, supervisor: Supervisor) -> bool:
    """Take some runs; return False if all have ended."""
    left = house.store.find_runs(RunFilter(op_id="soak_top", statuses=UNFINISHED), limit=1).rows
    if not left:
        return False
    free = list(house.store.find_runs(RunFilter(op_id="soak_top", statuses=UNFINISHED, unowned=True), limit=60).rows)
    for row in random.sample(free, min(len(free), 12)):
        supervisor.hand_over(row.run_id)
    until = time.monotonic() + 1.0
    while not supervisor.is_idle() and time.monotonic() < until:
        supervisor.wait_until_idle(0.1)
    if not free:
        time.sleep(0.1)
    return True
