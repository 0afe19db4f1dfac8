"""Bytes that are not what was written: whatever is damaged, no run goes on to another result, and ``verify`` finds it.

Each case damages one column of one row (or deletes the row) in a copy of a SQLite file that holds a parent in the middle
of its work with a child that has ended, and a finished tree. Then the first is resumed (it awaits the child) and the
second is awaited and replayed.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from airflow_childrun.authoring.operation import Operation, operation
from airflow_childrun.authoring.registry import RegistryResolver
from airflow_childrun.clock import SystemClock, SystemEntropy
from airflow_childrun.engine.inbox import CANCEL, request_body
from airflow_childrun.errors import ChildRunError, Interrupt, NotFoundError
from airflow_childrun.model.config import RunConfig
from airflow_childrun.model.manifest import build_manifest
from airflow_childrun.runtime.ends import end_of
from airflow_childrun.runtime.engine import ExecutionEngine
from airflow_childrun.runtime.house import House, Limits
from airflow_childrun.secret_policy import standard
from airflow_childrun.store.api import InboxPost
from airflow_childrun.store.memory import MemoryStore
from airflow_childrun.store.sql.migrate import upgrade
from airflow_childrun.store.sql.store import SqlStore
from airflow_childrun.store.verify import verify_tree

pytestmark = pytest.mark.fault
SEED = int(os.environ.get("CHILDRUN_SEED", "1"))
CASES = int(os.environ.get("CHILDRUN_CORRUPTIONS", "160"))

stops: list[str] = []
"""Names at which a handler leaves its attempt open, as a crash does."""


def double(number: int) -> int:
    return 2 * number


def perhaps_stop(name: str) -> None:
    if name in stops:
        raise Interrupt(name)


@operation(version="1")
def corruptible_child(io: Any, number: int) -> int:
    return int(io.step(double, number)) + 1


corruptible = Operation("corruptible", version="1")


@corruptible.state
def begin(io: Any, number: int) -> int:
    return int(io.step(double, number))


@corruptible.state
def spread(io: Any, begin: int) -> int:
    child = io.spawn(corruptible_child, begin)
    other = io.spawn(corruptible_child, begin + 1)
    io.await_child(other)
    perhaps_stop("before the await")
    return int(io.await_child(child).output)


@corruptible.state
def end(io: Any, spread: int) -> int:
    return int(io.step(double, spread))


# The columns of which no result depends and which no event tells, and what may take their place.
UNPROVED = {
    "childrun_run": {
        "epoch",
        "inbox_seq",
        "updated_at",
        "lease_session_id",
        "last_commit_id",
        "last_commit_epoch",
        "last_commit_at",
        "dag_id",
        "dag_run_id",
        "task_id",
        "map_index",
    },
    "childrun_event": {"commit_id", "epoch"},
    "childrun_artifact": {"kind"},
    "childrun_fact": set(),
}
DAMAGES = ("flip", "truncate", "zero", "swap", "delete")


@dataclass(frozen=True)
class Case:
    table: str
    row: int
    column: str
    damage: str

    def __str__(self) -> str:
        return f"{self.damage} {self.table}.{self.column} of row {self.row}"


@dataclass(frozen=True)
class Stage:
    """The file that is copied and damaged."""

    file: Path
    running: UUID
    done: UUID
    expected: dict[str, Any]


def engine_on(file: Path) -> ExecutionEngine:
    store = SqlStore(f"sqlite:///{file}")
    return ExecutionEngine(House(store, RegistryResolver(), standard(), limits=Limits(poll_s=0.02, inbox_poll_s=0.1)))


def manifest() -> Any:
    return build_manifest("corruptible", "1", input=5, run_config=RunConfig())


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    file = tmp_path_factory.mktemp("corruption") / "whole.db"
    upgrade(f"sqlite:///{file}")
    engine = engine_on(file)
    entropy = SystemEntropy()
    done, running = entropy.new_id(), entropy.new_id()
    assert engine.start(manifest(), run_id=done).phase == "Completed"
    stops.append("before the await")
    engine.create(manifest(), run_id=running)
    engine.supervisor.hand_over(running)
    while not engine.supervisor.is_idle():
        engine.supervisor.wait_until_idle(0.1)
    stops.clear()
    store = engine.house.store
    assert [child.status for child in store.children_of(running)] == ["Completed", "Completed"]
    row = engine.house.find_run(done)
    assert row is not None
    expected = end_of(store, row, compact=True)
    engine.close()
    store.close()
    return Stage(file, running, done, expected)


def cases(file: Path) -> Iterator[Case]:
    """Yield every case there is."""
    with sqlite3.connect(file) as database:
        for table, unproved in UNPROVED.items():
            columns = [found[1] for found in database.execute(f"PRAGMA table_info({table})")]
            for (row,) in database.execute(f"SELECT rowid FROM {table}"):
                yield Case(table, row, "*", "delete")
                for column in columns:
                    if column not in unproved:
                        yield from (Case(table, row, column, damage) for damage in DAMAGES[:-1])
    database.close()


def inflict(file: Path, case: Case, chance: random.Random) -> bool:
    """Damage a file; return whether anything changed."""
    database = sqlite3.connect(file, isolation_level=None)
    try:
        before = list(database.execute(f"SELECT * FROM {case.table} ORDER BY rowid"))
        try:
            _inflict(database, case, chance)
        except sqlite3.IntegrityError:
            return False  # the database itself refuses two rows under one key
        return before != list(database.execute(f"SELECT * FROM {case.table} ORDER BY rowid"))
    finally:
        database.close()


def _inflict(database: sqlite3.Connection, case: Case, chance: random.Random) -> None:
    table, column = case.table, case.column
    if case.damage == "delete":
        database.execute(f"DELETE FROM {table} WHERE rowid = ?", (case.row,))
        return
    (value,) = database.execute(f"SELECT {column} FROM {table} WHERE rowid = ?", (case.row,)).fetchone()
    if case.damage == "swap":
        others = database.execute(f"SELECT rowid, {column} FROM {table} WHERE rowid <> ?", (case.row,)).fetchall()
        other, new = chance.choice(others)
        if column not in {"run_id", "seq", "id"}:
            database.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (value, other))
    else:
        new = _damaged(value, case.damage, chance)
    database.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (new, case.row))


def _damaged(value: Any, damage: str, chance: random.Random) -> Any:
    if isinstance(value, int):
        return {"flip": value ^ (1 << chance.randrange(40)), "truncate": value // 1000, "zero": 0}[damage]
    if value is None:
        return None
    body = bytearray(value.encode() if isinstance(value, str) else value)
    if not body:
        return value
    if damage == "flip":
        # In text, a bit that leaves it text: the most dangerous kind.
        body[chance.randrange(len(body))] ^= 1
    elif damage == "truncate":
        body = body[: chance.randrange(len(body))]
    else:
        body = bytearray(len(body))
    return body.decode("utf-8", "replace") if isinstance(value, str) else bytes(body)


class Looking:
    """What became of a damaged file."""

    def __init__(self, stage: Stage, file: Path) -> None:
        self._stage = stage
        self._file = file
        self.refusals: list[ChildRunError] = []

    def all(self) -> None:
        engine = engine_on(self._file)
        try:
            for attempt in (self._resume, self._await, self._replay):
                try:
                    attempt(engine)
                except ChildRunError as error:
                    self.refusals.append(error)
        finally:
            engine.close()
            engine.house.store.close()

    def _resume(self, engine: ExecutionEngine) -> None:
        result = engine.resume(self._stage.running)
        assert result.phase == "Completed"
        assert result.final_snapshot_id == self._stage.expected["final_snapshot_id"]

    def _await(self, engine: ExecutionEngine) -> None:
        row = engine.house.find_run(self._stage.done)
        if row is None:
            raise NotFoundError(f"there is no run {self._stage.done}; look for it with `childrun verify`")
        if not row.is_terminal:
            engine.resume(row.run_id)  # what awaits a run that has not ended drives it
        assert end_of(engine.house.store, row, compact=True) == self._stage.expected

    def _replay(self, engine: ExecutionEngine) -> None:
        assert engine.replay(self._stage.done) == self._stage.expected["final_snapshot_id"]

    def findings(self) -> list[str]:
        store = SqlStore(f"sqlite:///{self._file}")
        try:
            found = [f for root in (self._stage.running, self._stage.done) for f in verify_tree(store, root)]
        finally:
            store.close()
        return [f"{finding.code}: {finding.message}" for finding in found]


def test_no_damage_leads_to_another_result_and_verify_finds_all(stage: Stage, tmp_path: Path) -> None:
    """A typed error that names the run and says what to do, or the right result; never another one."""
    chance = random.Random(SEED)
    every = list(cases(stage.file))
    assert len(every) > 1000
    wrong: list[str] = []
    for case in chance.sample(every, CASES) if len(every) > CASES else every:
        file = tmp_path / "damaged.db"
        for part in tmp_path.glob("damaged.db*"):
            part.unlink()
        shutil.copy(stage.file, file)
        if not inflict(file, case, chance):
            continue
        looking = Looking(stage, file)
        if not looking.findings():
            wrong.append(f"{case}: verify finds nothing")
        try:
            looking.all()
        except Exception as error:
            wrong.append(f"{case}: {type(error).__name__}: {str(error)[:300]}")
        wrong += [f"{case}: unhelpful: {error}" for error in looking.refusals if "childrun" not in str(error)]
    assert not wrong, "\n".join(wrong)


def test_a_sound_file_is_refused_nowhere(stage: Stage, tmp_path: Path) -> None:
    """What the other test expects of damage does not come by itself."""
    file = tmp_path / "sound.db"
    shutil.copy(stage.file, file)
    looking = Looking(stage, file)
    assert looking.findings() == []
    looking.all()
    assert looking.refusals == []
    assert looking.findings() == []


# ------------------------------------------------------------------------------------- one damage each, on the reference


@pytest.fixture
def in_memory() -> Iterator[tuple[ExecutionEngine, MemoryStore, UUID]]:
    """Give a parent that stopped before it awaited a child which has ended."""
    store = MemoryStore(SystemClock())
    engine = ExecutionEngine(House(store, RegistryResolver(), standard(), limits=Limits(poll_s=0.02)))
    run_id = engine.create(manifest())
    stops.append("before the await")
    engine.supervisor.hand_over(run_id)
    while not engine.supervisor.is_idle():
        engine.supervisor.wait_until_idle(0.1)
    stops.clear()
    yield engine, store, run_id
    engine.close()


def refusal_of(engine: ExecutionEngine, run_id: UUID) -> ChildRunError:
    with pytest.raises(ChildRunError) as caught:
        engine.resume(run_id)
    assert str(run_id) in str(caught.value) or "childrun verify" in str(caught.value)
    return caught.value


def test_a_changed_event_that_is_still_an_event_stops_the_run(in_memory: Any) -> None:
    """Another answer under a recorded key, in bytes that any reader takes for an event."""
    engine, store, run_id = in_memory
    events = store._events[run_id]
    seq, body = next((one.seq, one.body) for one in events if b"fact_recorded" in one.body)
    other = store._artifacts[run_id]
    payload = next(key for key, found in other.items() if found.body == b"22")
    changed = re.sub(rb'"payload_id":"[0-9a-f]+"', b'"payload_id":"' + payload.encode() + b'"', body)
    assert changed != body
    events[seq - 1] = events[seq - 1]._replace(body=changed)
    error = refusal_of(engine, run_id)
    assert error.code == "event_chain_broken"
    assert error.info.details == {"run_id": str(run_id), "seq": seq}


def test_a_changed_row_stops_the_run(in_memory: Any) -> None:
    """A row that names another version than the first event does; nothing is written over it."""
    engine, store, run_id = in_memory
    stored, events = store._runs[run_id], list(store._events[run_id])
    store._runs[run_id] = stored._replace(row=stored.row._replace(op_version="2"))
    assert refusal_of(engine, run_id).code == "run_row_mismatch"
    assert store._events[run_id] == events


def test_a_changed_end_is_handed_out_to_nobody(in_memory: Any) -> None:
    """A child that completed by its events, and failed by its row."""
    engine, store, run_id = in_memory
    for child in store.children_of(run_id):
        stored = store._runs[child.run_id]
        store._runs[child.run_id] = stored._replace(row=stored.row._replace(status="Failed"))
    assert refusal_of(engine, run_id).code == "run_row_mismatch"


def test_a_child_that_vanished_is_no_answer(in_memory: Any) -> None:
    """The parent's stream tells of the child; its row is gone."""
    engine, store, run_id = in_memory
    for child in store.children_of(run_id):
        del store._runs[child.run_id]
    assert refusal_of(engine, run_id).code == "run_row_mismatch"


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM childrun_inbox",
        "UPDATE childrun_inbox SET n = 7",
        "UPDATE childrun_inbox SET body = X'7B22'",
        "UPDATE childrun_inbox SET run_id = X'00'",
        "UPDATE childrun_run SET inbox_seq = 0",
    ],
)
def test_a_request_that_was_lost_or_damaged_is_found(stage: Stage, tmp_path: Path, damage: str) -> None:
    """Of what stands in an inbox, nothing else is certified."""
    file = tmp_path / "damaged.db"
    shutil.copy(stage.file, file)
    store = SqlStore(f"sqlite:///{file}")
    store.post([InboxPost(stage.running, SystemEntropy().new_id(), CANCEL, request_body("enough"))])
    assert verify_tree(store, stage.running) == []
    store.close()
    database = sqlite3.connect(file, isolation_level=None)
    database.execute(damage)
    database.close()
    store = SqlStore(f"sqlite:///{file}")
    found = verify_tree(store, stage.running)
    store.close()
    assert [(finding.code, finding.run_id) for finding in found] == [("inbox_mismatch", stage.running)]
    assert "`childrun cancel`" in found[0].message
