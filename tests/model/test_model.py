"""A state machine drives runs, tasks and processes through everything that happens to them, against a model in a dict."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, ClassVar, cast

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import make_url

from airflow_childrun.store.api import Store
from airflow_childrun.store.memory import MemoryStore
from airflow_childrun.store.sql.address import parse_address
from airflow_childrun.store.sql.migrate import upgrade
from airflow_childrun.store.sql.store import SqlStore
from tests.host.kit import AirflowTask
from tests.model.world import World
from tests.simulation.baton import Baton
from tests.simulation.machines import StoreClock
from tests.simulation.programs import STAGE, Author, Expected, Program


class Lives(RuleBasedStateMachine):
    """Runs, tasks, processes, and what happens to them."""

    make_store: ClassVar[Callable[[Baton], Store]]

    @initialize(seed=st.integers(0, 2**32))
    def begin(self, seed: int) -> None:
        self.world = World(seed, type(self).make_store)
        self.roots: dict[Any, tuple[str, Program]] = {}
        self.tasks: dict[str, tuple[AirflowTask, dict[str, Program]]] = {}
        self.disturbed = False

    def _program(self, seed: int, label: str) -> Program:
        return Author(Random(seed), 3, timeouts=False).program(label)

    # -- runs

    @precondition(lambda self: len(self.roots) < 3)
    @rule(seed=st.integers(0, 2**32), op=st.sampled_from(["sim_node", "sim_tidy"]), key=st.sampled_from("xy"))
    def start_a_run(self, seed: int, op: str, key: str) -> None:
        program = self._program(seed, f"r{len(self.roots)}")
        run_id = self.world.create(op, program)
        self.roots[run_id] = (op, program)
        self.world.drive(key, [run_id])

    @precondition(lambda self: self.roots)
    @rule(key=st.sampled_from("xyz"))
    def take_over_or_join(self, key: str) -> None:
        """Let the same task come back with a higher try (the same key), or another one help."""
        self.world.drive(key, list(self.roots))

    # -- tasks

    @precondition(lambda self: len(self.tasks) < 2)
    @rule(seed=st.integers(0, 2**32), count=st.integers(1, 3))
    def first_try(self, seed: int, count: int) -> None:
        name = f"task{len(self.tasks)}"
        children = {f"k{at}": self._program(seed + at, f"{name}.{at}") for at in range(count)}
        self.tasks[name] = (AirflowTask(task_id=name), children)
        self.world.attempt(*self.tasks[name], "auto")

    @precondition(lambda self: self.tasks)
    @rule(
        pick=st.integers(0, 1),
        how=st.sampled_from(["retry", "clear", "same"]),
        mode=st.sampled_from(["auto", "resume_failed", "reuse", "respawn"]),
    )
    def another_try(self, pick: int, how: str, mode: Any) -> None:
        """Whether or not the one before still lives: it is fenced off."""
        name = list(self.tasks)[pick % len(self.tasks)]
        task, children = self.tasks[name]
        task = task if how == "same" else getattr(task, how)()
        self.tasks[name] = (task, children)
        self.world.attempt(task, children, mode)

    # -- what happens to processes

    @rule(count=st.integers(1, 60))
    def go_on(self, count: int) -> None:
        self.world.steps(lambda: False, count)

    @rule()
    def go_on_for_long(self) -> None:
        self.world.steps(lambda: False, 600)

    @rule(pick=st.integers(0, 10))
    def crash(self, pick: int) -> None:
        living = [
            machine for machine in self.world.setting.machines if not machine.is_done and not machine.process.dead
        ]
        if living:
            living[pick % len(living)].process.die()
            self.world.steps(lambda: False, 1)

    @rule(pick=st.integers(0, 10), seconds=st.sampled_from([1, 25, 31, 100]))
    def pause(self, pick: int, seconds: int) -> None:
        """Let a process stand still, longer than its session if need be, and wake up as if nothing had been."""
        living = [
            machine for machine in self.world.setting.machines if not machine.is_done and not machine.process.dead
        ]
        if living:
            living[pick % len(living)].process.paused_until_us = self.world.baton.now_us + seconds * 1_000_000

    @rule(seconds=st.sampled_from([1, 29, 31, 200]))
    def time_passes(self, seconds: int) -> None:
        self.world.baton.now_us += seconds * 1_000_000

    # -- requests

    @rule(
        pick=st.integers(0, 20),
        kind=st.sampled_from(["cancel", "close", "withdraw", "withdraw"]),
        grace=st.sampled_from([0, 40_000_000]),
    )
    def ask(self, pick: int, kind: str, grace: int) -> None:
        rows = [row for row in self.world.rows() if row.kind == "operation"]
        if rows:
            self.disturbed |= kind != "withdraw"
            self.world.ask(rows[pick % len(rows)].run_id, kind, grace)

    @rule(state=st.sampled_from(["active", "active", "over"]))
    def sweep(self, state: Any) -> None:
        """Sweep up: while the tasks are active nothing may come of it but the ends that were asked for."""
        self.disturbed |= state == "over"
        self.world.sweep(state)

    @rule(idle_s=st.sampled_from([0, 0, 20]))
    def purge(self, idle_s: int) -> None:
        """Delete what is over, under the feet of processes that may just be about to look at it."""
        for run_id in self.world.purge(idle_s):
            self.roots.pop(run_id, None)

    # -- what holds

    @invariant()
    def the_store_is_as_the_model_has_it(self) -> None:
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self) -> None:
        """Drive everything to its end: nobody waits for ever, and what was not disturbed gives what it should."""
        if not hasattr(self, "world"):
            return
        world = self.world
        try:
            self._finish()
        finally:
            STAGE.world = None
            close = getattr(world.store, "close", None)
            if close is not None:
                close()

    def _finish(self) -> None:
        world = self.world
        for machine in world.setting.machines:
            machine.process.paused_until_us = 0
        for _ in range(5):
            world.steps(lambda: False, 200_000)
            assert not world.baton.threads, "somebody waits for ever"
            world.check()
            open_runs = [row.run_id for row in world.rows() if row.kind == "operation" and not row.is_terminal]
            if not open_runs:
                break
            world.drive("last", open_runs)
        rows = {row.run_id: row for row in world.rows()}
        assert all(row.is_terminal for row in rows.values() if row.kind == "operation")
        if self.disturbed:
            return
        for run_id, (op, program) in self.roots.items():
            assert rows[run_id].status == Expected().run(op, program)[0]


def in_memory(baton: Baton) -> Store:
    return MemoryStore(StoreClock(baton))


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Crashes by the dozen are no news."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def check_lives(make_store: Callable[[Baton], Store], examples: int, steps: int = 20) -> None:
    machine = type("Playing", (Lives,), {"make_store": staticmethod(make_store)})
    limits = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
        phases=[Phase.generate],  # a schedule of thousands of steps does not shrink
    )
    run_state_machine_as_test(machine, settings=limits)


@pytest.fixture
def sqlite_stores() -> Iterator[Callable[[Baton], Store]]:
    """Make each example a copy of one empty SQLite file."""
    home = Path(tempfile.mkdtemp(prefix="childrun-model-"))
    upgrade(parse_address(f"sqlite:///{home / 'empty.db'}"))
    made: list[SqlStore] = []

    def make(baton: Baton) -> Store:
        copy = home / f"{len(made)}.db"
        shutil.copy(home / "empty.db", copy)
        made.append(SqlStore(parse_address(f"sqlite:///{copy}"), clock=StoreClock(baton)))
        return made[-1]

    yield make
    for store in made:
        store.close()
    shutil.rmtree(home)


class TimedStore:
    """A store on PostgreSQL whose clock is the simulation's: it is set before every call that comes later than the last."""

    def __init__(self, store: SqlStore, clock: psycopg.Connection[Any], baton: Baton) -> None:
        self._store = store
        self._clock = clock
        self._baton = baton
        self._set_us = 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        def call(*given: Any, **named: Any) -> Any:
            if self._set_us != self._baton.now_us:
                self._set_us = self._baton.now_us
                self._clock.execute("UPDATE simulated.clock SET us = %s", [self._set_us])
            return method(*given, **named)

        return call


CLOCK = """
CREATE TABLE simulated.clock (us bigint NOT NULL);
INSERT INTO simulated.clock VALUES (0);
CREATE FUNCTION simulated.clock_timestamp() RETURNS timestamptz LANGUAGE sql
AS 'SELECT timestamptz ''epoch'' + us * interval ''1 microsecond'' FROM simulated.clock'
"""
TABLES = ("run", "event", "fact", "artifact", "inbox", "session")


@pytest.fixture
def postgres_stores(postgres_url: str) -> Iterator[Callable[[Baton], Store]]:
    """Empty the tables for each example; the server asks a function of ours for the time."""
    plain = make_url(postgres_url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain, autocommit=True) as clock:
        clock.execute("CREATE SCHEMA simulated")
        # Named last, the server's own functions are found last.
        path = {"options": "-csearch_path=simulated,pg_catalog"}
        url = make_url(postgres_url).update_query_dict(path)
        upgrade(url)
        for statement in CLOCK.split(";"):
            clock.execute(statement)
        store = SqlStore(url)

        def make(baton: Baton) -> Store:
            clock.execute("TRUNCATE " + ", ".join(f"simulated.childrun_{name}" for name in TABLES))
            timed = cast("Store", TimedStore(store, clock, baton))
            assert timed.now_us() == baton.now_us, "the server knows another time"
            return timed

        yield make
        store.close()


def test_lives_in_memory() -> None:
    check_lives(in_memory, 60)


def test_lives_on_sqlite(sqlite_stores: Callable[[Baton], Store]) -> None:
    check_lives(sqlite_stores, 12)


def test_lives_on_postgresql(postgres_stores: Callable[[Baton], Store]) -> None:
    check_lives(postgres_stores, 8)


@pytest.mark.soak
def test_very_many_lives_in_memory() -> None:
    check_lives(in_memory, 3_000, 40)


@pytest.mark.soak
def test_many_lives_on_sqlite(sqlite_stores: Callable[[Baton], Store]) -> None:
    check_lives(sqlite_stores, 200, 30)


@pytest.mark.soak
def test_many_lives_on_postgresql(postgres_stores: Callable[[Baton], Store]) -> None:
    check_lives(postgres_stores, 200, 30)
