"""What the sweep plays: a tree of runs, a world that keeps a list of its calls, and numbered places to die at."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from sqlalchemy import Connection, Engine, event

from airflow_childrun.authoring.operation import Operation, operation
from airflow_childrun.authoring.registry import RegistryResolver
from airflow_childrun.errors import OtherIoError
from airflow_childrun.model.config import Duration, Fixed, RetryPolicy
from airflow_childrun.runtime.house import House, Limits, LoggingObserver
from airflow_childrun.secret_policy import standard
from airflow_childrun.store.api import Owner, Store
from airflow_childrun.store.sql.store import SqlStore

QUICK = RetryPolicy(max_attempts=3, backoff=Fixed(delay=Duration(nanos=5_000_000)))
UNSTEADY = "unsteady"


class Places:
    """The failpoints of a process, numbered as they are passed; at one of them it is killed.

    :param at: which one; 0 = none
    """

    def __init__(self, at: int = 0) -> None:
        self._lock = threading.Lock()
        self._at = at
        self.passed: list[str] = []

    def here(self, name: str) -> None:
        """Pass a failpoint, or be killed at it."""
        with self._lock:
            self.passed.append(name)
            if len(self.passed) == self._at:
                os.kill(os.getpid(), signal.SIGKILL)
                signal.pause()


class Witness:
    """The outside world: a file that lists every call, one line each, whatever becomes of the caller."""

    def __init__(self, path: Path, places: Places) -> None:
        self._file = os.open(path, os.O_APPEND | os.O_CREAT | os.O_RDWR)
        self._path = path
        self._places = places

    def call(self, name: str, token: str) -> int:
        """Be called; return how often this call came before."""
        self._places.here(f"before the call {name}")
        before = sum(known == name for known, _ in read_witness(self._path))
        os.write(self._file, f"{name} {token}\n".encode())
        self._places.here(f"after the call {name}")
        return before


def read_witness(path: Path) -> list[tuple[str, str]]:
    """Return name and token of every call so far."""
    if not path.exists():
        return []
    return [cast("tuple[str, str]", tuple(line.rpartition(" ")[::2])) for line in path.read_text().splitlines()]


class Watched:
    """A store whose verbs have a failpoint before and after."""

    def __init__(self, store: SqlStore, places: Places) -> None:
        self._store = store
        self._places = places
        _watch_statements(store.database.engine(), places)
        dialect: Any = store.database.dialect
        # Hot statements go past SQLAlchemy, whose events would tell of them.
        for name in ("fetch", "lock", "make_alone", "write_rows", "write_and_commit", "commit"):
            setattr(dialect, name, self._around(name, getattr(dialect, name)))

    def __getattr__(self, name: str) -> Any:
        return self._around(name, getattr(self._store, name))

    def _around(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            self._places.here(f"before {name}")
            answer = method(*given, **named)
            self._places.here(f"after {name}")
            return answer

        return call


def _watch_statements(engine: Engine, places: Places) -> None:
    def before(connection: Connection, cursor: Any, statement: str, *rest: Any) -> None:
        places.here(f"before {_short(statement)}")

    def after(connection: Connection, cursor: Any, statement: str, *rest: Any) -> None:
        places.here(f"after {_short(statement)}")

    def traced(connection: Any, record: object) -> None:
        connection.set_trace_callback(lambda statement: places.here(f"before {_short(statement)}"))

    event.listen(engine, "before_cursor_execute", before)
    event.listen(engine, "after_cursor_execute", after)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", traced)  # a lone commit's statements go past SQLAlchemy


def _short(statement: str) -> str:
    words = statement.split()
    table = next((word for word in words if "childrun_" in word), "").partition(".")[0]
    return f"{words[0]} {table}"


class WatchingObserver(LoggingObserver):
    """Has a failpoint before and after every handler."""

    def __init__(self, places: Places) -> None:
        self._places = places

    @contextmanager
    def handler(self, row: Any, node: Any, attempt: int) -> Iterator[None]:
        self._places.here(f"before the handler {node.id}")
        yield
        self._places.here(f"after the handler {node.id}")


def house_of(store: SqlStore, places: Places, owner: Owner, slots: int) -> House:
    """Put a process together in which every place has a number."""
    watched = cast("Store", Watched(store, places))
    return House(
        watched,
        RegistryResolver(),
        standard(),
        limits=Limits(max_concurrency=slots, poll_s=0.02, inbox_poll_s=0.2),
        owner=owner,
        observer=WatchingObserver(places),
    )


# --------------------------------------------------------------------------------------------------- the operations

world: list[Witness] = []
"""The world of this process, if it has one: operations find it here, as they would find a client library."""


def ask(name: str, token: str) -> str:
    """Do something outside, once."""
    world[0].call(name, token)
    return f"{name} done"


def ask_twice(name: str, token: str) -> str:
    """Do something outside that works at the second try."""
    if world[0].call(name, token) == 0:
        raise ConnectionError(name)
    return f"{name} done"


def ask_in_vain(name: str, token: str) -> str:
    """Do something outside that never works."""
    world[0].call(name, token)
    raise LookupError(name)


def once(io: Any, name: str, how: Callable[..., str] = ask, **more: Any) -> str:
    return str(io.step(how, name, io.idempotency_token(name), key=name, **more))


@operation(version="1")
def sweep_leaf(io: Any, name: str) -> str:
    return once(io, f"leaf {name}")


@operation(version="1")
def sweep_right(io: Any, name: str) -> str:
    before = once(io, f"{name} before the sleep")
    io.sleep(0.01)
    child = io.spawn(sweep_leaf, f"of {name}")
    return f"{before}, {io.await_child(child, sweep_leaf).output}"


sweep_left = Operation("sweep_left", version="1")


@sweep_left.state(retry=QUICK)
def first(io: Any, name: str) -> str:
    done = once(io, f"{name} first")
    if world[0].call(UNSTEADY, "-") == 0:
        raise ConnectionError(name)
    return done


@sweep_left.state
def second(io: Any, name: str, first: str) -> str:
    return f"{first}, {once(io, f'{name} second')}"


sweep_top = Operation("sweep_top", version="1")


@sweep_top.state
def gather(io: Any) -> list[str]:
    found = [once(io, "gather"), once(io, "flaky", ask_twice, retry=QUICK)]
    try:
        once(io, "refused", ask_in_vain)
    except OtherIoError as error:
        found.append(error.code)
    return found


@sweep_top.state
def spread(io: Any, gather: list[str]) -> list[Any]:
    children = [io.spawn(sweep_left, "left", key="left"), io.spawn(sweep_right, "right", key="right")]
    mapped = [result.output for result in io.map(sweep_leaf, ["a", "b"], key=str)]
    return [*mapped, *[io.await_child(child).output for child in children]]


@sweep_top.state
def finish(io: Any, gather: list[str], spread: list[Any]) -> dict[str, Any]:
    io.sleep(0.01)
    return {"gathered": gather, "spread": spread, "end": once(io, "finish")}


MAY_COME_TWICE = frozenset({"flaky", UNSTEADY})
"""Calls that fail at first by themselves."""


def recorded_names(facts: Sequence[str]) -> set[str]:
    """Return the names of the calls that these fact keys answer."""
    return {key.rpartition("/")[2] for key in facts}
