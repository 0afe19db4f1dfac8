"""Rule 4: past its grace, an unowned run with a posted close reads as Cancelled, and whoever touches it next writes so."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from airflow_childrun.authoring.operation import Operation, operation
from airflow_childrun.authoring.registry import RegistryResolver
from airflow_childrun.engine.inbox import CLOSE, request_body
from airflow_childrun.errors import OperationError
from airflow_childrun.model.config import RunConfig
from airflow_childrun.model.events import RunCompleted
from airflow_childrun.model.manifest import RunManifest, build_manifest
from airflow_childrun.model.plan import ExecutionPlan
from airflow_childrun.runtime.engine import ExecutionEngine
from airflow_childrun.runtime.house import House, Limits
from airflow_childrun.runtime.overdue import as_read, find_as_read, settle
from airflow_childrun.runtime.recover import sweep, task_state
from airflow_childrun.secret_policy import standard
from airflow_childrun.store.api import InboxPost, RunFilter, RunRow, Store
from airflow_childrun.store.codec import decode_events
from airflow_childrun.store.memory import MemoryStore
from airflow_childrun.store.sql.migrate import upgrade
from airflow_childrun.store.sql.store import SqlStore
from airflow_childrun.store.verify import verify_run
from airflow_childrun.testing.clock import ManualClock
from tests.engine.kit import Stage, spawn_call
from tests.host.kit import AirflowTask, HostLab

GRACE_US = 40_000_000
began = threading.Event()
cleaned: list[str] = []


@operation(version="1")
def overdue_plain(name: str) -> str:
    return name


owing = Operation("overdue_owing", version="1")


@owing.state
def work(io: Any, name: str) -> str:
    began.set()
    io.sleep(3600)
    return name


@owing.on_cancel
def put_away(io: Any, name: str) -> None:
    cleaned.append(name)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def engine(clock: ManualClock) -> Iterator[ExecutionEngine]:
    made = engine_on(MemoryStore(clock))
    yield made
    made.close()


def engine_on(store: Store, resolver: Any = None) -> ExecutionEngine:
    limits = Limits(poll_s=0.02, inbox_poll_s=0.02)
    return ExecutionEngine(House(store, resolver or RegistryResolver(), standard(), limits=limits))


def create(engine: ExecutionEngine, name: str = "overdue_plain") -> UUID:
    return engine.create(build_manifest(name, "1", input="x", run_config=RunConfig()))


def close(store: Store, run_id: UUID, grace_us: int = GRACE_US) -> None:
    store.post([InboxPost(run_id, uuid4(), CLOSE, request_body("its task was killed", grace_us))])


def row_of(store: Store, run_id: UUID) -> RunRow:
    row = store.find_run(run_id)
    assert row is not None
    return row


def given_up(engine: ExecutionEngine, run_id: UUID) -> None:
    """Let a process enter the run's state and leave it: nobody owns it then."""
    first = engine_on(engine.house.store)
    began.clear()
    first.supervisor.hand_over(run_id)
    assert began.wait(10)
    first.close()
    while not first.supervisor.is_idle():
        first.supervisor.wait_until_idle(0.05)
    assert row_of(engine.house.store, run_id).lease_session_id is None


def test_it_reads_as_cancelled_once_its_grace_is_over(engine: ExecutionEngine, clock: ManualClock) -> None:
    """Reading writes nothing; a filter by status counts it where it reads."""
    store, run_id = engine.house.store, create(engine)
    other = create(engine)
    close(store, run_id)
    before = row_of(store, run_id)
    assert as_read(store, [before]) == [before]
    clock.advance(GRACE_US)
    (seen,) = as_read(store, [row_of(store, run_id)])
    assert (seen.status, seen.is_terminal) == ("Cancelled", True)
    assert seen.final_snapshot_id == before.checkpoint_snapshot_id
    found = {
        status: [row.run_id for row in find_as_read(store, RunFilter(statuses=frozenset({status}))).rows]
        for status in ("Pending", "Cancelled")
    }
    assert found == {"Pending": [other], "Cancelled": [run_id]}
    assert row_of(store, run_id).head == before.head


def test_whoever_touches_it_writes_so_and_only_once(engine: ExecutionEngine, clock: ManualClock) -> None:
    store, run_id = engine.house.store, create(engine)
    close(store, run_id)
    assert settle(engine.house, [row_of(store, run_id)]) == {}
    clock.advance(GRACE_US)
    assert settle(engine.house, [row_of(store, run_id)])[run_id].status == "Cancelled"
    assert settle(engine.house, [row_of(store, run_id)]) == {}
    assert engine.resume(run_id).phase == "Cancelled"
    ends = [event for _, event in decode_events(store.read_events(run_id)) if isinstance(event, RunCompleted)]
    assert len(ends) == 1
    assert verify_run(store, run_id) == []


def test_driving_one_runs_no_handler_of_it(engine: ExecutionEngine, clock: ManualClock) -> None:
    store, run_id = engine.house.store, create(engine)
    close(store, run_id)
    clock.advance(GRACE_US)
    assert engine.resume(run_id).phase == "Cancelled"
    assert "StateEntered" not in str([event for _, event in decode_events(store.read_events(run_id))])


def test_one_that_owes_clean_up_reads_as_it_is(engine: ExecutionEngine, clock: ManualClock) -> None:
    """It is not over: its clean-up has to run first, and a sweep runs it."""
    store, run_id = engine.house.store, create(engine, "overdue_owing")
    given_up(engine, run_id)
    close(store, run_id)
    clock.advance(GRACE_US)
    assert as_read(store, [row_of(store, run_id)])[0].status == "Running"
    cleaned.clear()
    found = sweep(engine.house, lambda _at, _last: "unknown")
    assert (found.ended, found.left, cleaned) == ([run_id], {}, ["x"])
    assert row_of(store, run_id).status == "Cancelled"
    assert sweep(engine.house, lambda _at, _last: "unknown").ended == []


class Ignorant:
    """Knows one operation only."""

    def resolve(self, manifest: RunManifest) -> ExecutionPlan:
        if manifest.op_id == "overdue_owing":
            raise OperationError("nobody told me of overdue_owing", code="operation_not_reachable")
        return RegistryResolver().resolve(manifest)


def test_a_sweep_names_the_operations_that_it_cannot_reach(engine: ExecutionEngine, clock: ManualClock) -> None:
    """Their clean-up stays owed, the inbox does not grow, and nobody else is kept waiting."""
    store, run_id, plain = engine.house.store, create(engine, "overdue_owing"), create(engine)
    given_up(engine, run_id)
    for each in (run_id, plain):
        close(store, each)
    clock.advance(GRACE_US)
    ignorant = engine_on(store, Ignorant()).house
    for _ in range(3):
        found = sweep(ignorant, lambda _at, _last: "unknown")
        assert found.unreachable == {"overdue_owing 1"}
        assert "nobody told me" in found.left[run_id]
    assert row_of(store, plain).status == "Cancelled"
    assert row_of(store, run_id).head.inbox_seq == 1


def test_a_run_that_is_damaged_keeps_no_sweep_from_the_others(engine: ExecutionEngine, clock: ManualClock) -> None:
    store: Any = engine.house.store
    broken, sound = create(engine), create(engine)
    for each in (broken, sound):
        close(store, each)
    clock.advance(GRACE_US)
    store._events[broken] = []
    found = sweep(engine.house, lambda _at, _last: "unknown")
    assert found.ended == [sound]
    assert list(found.left) == [broken]


def test_a_retry_that_comes_too_late_continues_what_was_closed(clock: ManualClock) -> None:
    """Past its grace the child has ended: the retry writes so and opens its next generation, which withdraws nothing."""
    lab = HostLab(clock)
    lab.put("op", lambda s: s.ask("k"))
    task = AirflowTask()
    one = lab.begin(task)
    (row,) = one.spawn(lab.wanted("op", ["a"]))
    assert one.host._host.close([row.run_id], "its task was killed", GRACE_US)
    clock.advance(GRACE_US)
    two = lab.begin(task.retry())
    two.run(lab.wanted("op", ["a"]))
    assert lab.generations(task, "op/a") == ["Cancelled", "Completed"]
    assert lab.world.counts == {"k": 1}
    lab.close()


def test_what_is_below_a_run_that_is_ended_from_outside_is_asked_to_end(clock: ManualClock) -> None:
    """In the same commit: respawned, or ended by a sweep, it leaves nobody behind that waits for ever."""
    lab = HostLab(clock)
    lab.put("leaf", lambda s: s.io.sleep("nap", 3_600_000_000))

    def parent(stage: Stage) -> None:
        plain = spawn_call("leaf", "k")
        stage.io.call(plain._replace(request={**plain.request, "parent_close_policy": "cancel"}))
        began.set()
        stage.io.sleep("nap", 3_600_000_000)

    lab.put("parent", parent)
    task = AirflowTask()
    one = lab.begin(task)
    rows = one.spawn(lab.wanted("parent", ["a", "b"]))
    for row in rows:
        began.clear()
        one.host._supervisor.hand_over(row.run_id)
        assert began.wait(10)
    one.host.close()
    while not one.host._supervisor.is_idle():
        one.host._supervisor.wait_until_idle(0.05)
    first, second = (lab.children(row.run_id)[0].run_id for row in rows)
    close(lab.store, rows[1].run_id, 0)
    assert settle(lab.process(owner="recover").house, [lab.row(rows[1].run_id)])
    assert as_read(lab.store, [lab.row(second)])[0].status == "Cancelled"
    lab.begin(task.clear()).spawn(lab.wanted("parent", ["a"]), "respawn")
    assert lab.row(rows[0].run_id).status == "Cancelled"
    assert as_read(lab.store, [lab.row(first)])[0].status == "Cancelled"
    lab.close()


@pytest.mark.parametrize(
    ("state", "is_open", "wanted"),
    [
        ("success", True, "active"),
        ("success", False, "over"),
        ("skipped", True, "active"),
        ("failed", True, "over"),
        ("upstream_failed", True, "over"),
        ("removed", True, "over"),
        ("up_for_retry", True, "active"),
        ("running", True, "active"),
        ("running", False, "over"),
        (None, True, "active"),
    ],
)
def test_what_a_state_of_airflows_means_for_the_children(state: str | None, is_open: bool, wanted: str) -> None:
    """A green task that did not wait leaves its children to another task: it is over only with its DAG run."""
    assert task_state(state, dag_run_is_open=is_open) == wanted


def test_a_sweep_leaves_the_runs_of_another_airflow_alone(clock: ManualClock) -> None:
    """Several may share a store: what this one does not know is not gone."""
    lab = HostLab(clock)
    lab.put("op", lambda s: s.ask("k"))
    (row,) = lab.begin(AirflowTask()).spawn(lab.wanted("op", ["a"]))
    house = lab.process(owner="recover").house
    found = sweep(house, lambda _at, _last: "over", "another deployment")
    assert "another Airflow" in found.left[row.run_id]
    assert not lab.row(row.run_id).is_terminal
    assert sweep(house, lambda _at, _last: "over", "here").ended == [row.run_id]
    lab.close()


# -------------------------------------------------------------------------------------------------- any number at once


def _sweep_alone(url: str, answers: Any) -> None:
    found = sweep(engine_on(SqlStore(url)).house, lambda _at, _last: "unknown")
    answers.put((len(found.ended), len(found.left)))


@pytest.mark.fault
@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
def test_any_number_of_sweeps_at_once_end_each_run_once(
    backend: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Four processes sweep up forty runs: each is ended by one of them, none is reported as left, every history is sound."""
    url = f"sqlite:///{tmp_path / 'store.db'}" if backend == "sqlite" else request.getfixturevalue("postgres_url")
    upgrade(url)
    store = SqlStore(url)
    engine = engine_on(store)
    run_ids = [create(engine) for _ in range(40)]
    for run_id in run_ids:
        close(store, run_id, 0)
    store.close()
    context = multiprocessing.get_context("spawn")
    answers: Any = context.Queue()
    sweepers = [context.Process(target=_sweep_alone, args=(url, answers)) for _ in range(4)]
    for sweeper in sweepers:
        sweeper.start()
    found = [answers.get(timeout=120) for _ in sweepers]
    for sweeper in sweepers:
        sweeper.join(30)
        assert sweeper.exitcode == os.EX_OK
    assert [left for _, left in found] == [0] * 4
    for run_id in run_ids:
        row = row_of(store, run_id)
        assert (row.status, row.lease_session_id) == ("Cancelled", None)
        ends = [event for _, event in decode_events(store.read_events(run_id)) if isinstance(event, RunCompleted)]
        assert len(ends) == 1
        assert verify_run(store, run_id) == []
    engine.close()
    store.close()
