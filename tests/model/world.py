"""A small world for the model test: a store whose commits are noted, simulated processes, tries of Airflow tasks."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any
from uuid import UUID

from airflow_childrun.canonical import artifact_id, decode_stored
from airflow_childrun.engine.context import snapshot_bytes
from airflow_childrun.engine.fact_io import token
from airflow_childrun.engine.inbox import CANCEL, CLOSE, WITHDRAW, request_body
from airflow_childrun.errors import ChildRunError, Interrupt
from airflow_childrun.model.events import CHILD_RUN_SPAWNED, DomainEvent, RunCompleted
from airflow_childrun.model.manifest import build_manifest, manifest_id
from airflow_childrun.runtime.closing import cancel_run
from airflow_childrun.runtime.engine import ExecutionEngine
from airflow_childrun.runtime.histories import load_history
from airflow_childrun.runtime.host import HostRun
from airflow_childrun.runtime.host_tree import WantedChild
from airflow_childrun.runtime.host_try import OnClear
from airflow_childrun.runtime.house import Limits
from airflow_childrun.runtime.recover import TaskState, sweep
from airflow_childrun.store.api import Commit, Committed, Conflict, InboxPost, RunFilter, RunRow, Store
from airflow_childrun.store.codec import decode_events
from airflow_childrun.store.verify import verify_tree
from tests.host.kit import AirflowTask
from tests.simulation.baton import Baton
from tests.simulation.machines import POLICY, Faults, Machine, SeededEntropy, Setting
from tests.simulation.programs import OPERATIONS, STAGE, Program, answer

LIMITS = Limits(max_concurrency=2, recovery_limit=1000, session_ttl_s=30.0, poll_s=7.0, inbox_poll_s=9.0)


class NotedStore:
    """The store, and what its commits say: which chain a run belongs to, which calls are recorded."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.chain: dict[UUID, UUID] = {}
        self.recorded: dict[str, UUID] = {}

    def commit(self, commits: Sequence[Commit]) -> list[Committed | Conflict]:
        """Note what happened."""
        answers = self._store.commit(commits)
        for commit, given in zip(commits, answers, strict=True):
            if isinstance(given, Committed):
                for step in commit.steps:
                    self._note(step.run_id, [decode_stored(event.body) for event in step.events])
        return answers

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def _note(self, run_id: UUID, bodies: list[Any]) -> None:
        for body in bodies:
            started = body.get("Kernel", {}).get("RunStarted")
            if started is not None:
                before = started.get("continues")
                self.chain[run_id] = self.chain[UUID(before["run_id"])] if before else run_id
            domain = body.get("Domain", {})
            if domain.get("name") == "fact_recorded":
                self.recorded[str(token(self.chain[run_id], domain["payload"]["key"], 0))] = run_id


class World:
    """What the rules act on."""

    def __init__(self, seed: int, make_store: Any) -> None:
        self.random = Random(seed)
        self.baton = Baton(self.random, 0.3)
        self.store = NotedStore(make_store(self.baton))
        self.setting = Setting(self.baton, self.store, Faults(), LIMITS, [])
        self.entropy = SeededEntropy(self.random)
        self.seen: dict[UUID, list[str]] = {}
        self.ended: dict[UUID, tuple[str, int]] = {}
        self.broken: dict[str, int] = {}
        self.calls: list[str] = []
        self.complaints: list[str] = []
        STAGE.world = self

    # -- the outside

    def touch(self, label: str, given: str, failures: int) -> int:
        """Answer; whoever owns the run makes no call whose answer is recorded."""
        run_id = self.store.recorded.get(given)
        row = self.store.find_run(run_id) if run_id is not None else None
        process = self.baton.me().process
        owner = next(machine.house.keeper for machine in self.setting.machines if machine.process is process)
        if row is not None and owner.owns(row.lease_session_id):
            self.complaints.append(f"{label} was recorded already")
        self.calls.append(given)
        self.baton.point(f"world {label}")
        if self.calls.count(given) <= failures:
            raise ConnectionError(label)
        return answer(label)

    def breaks(self, label: str, times: int) -> bool:
        """Whether a handler is to raise now."""
        self.broken[label] = self.broken.get(label, 0) + 1
        return self.broken[label] <= times

    # -- what rules do

    def machine(self, key: str, work: Any) -> Machine:
        """Begin a process that does some work; what it raises is its own business."""
        setting = self.setting
        machine = Machine(setting, f"p{len(setting.machines)}", key, len(setting.machines) + 1)
        setting.machines.append(machine)

        def main() -> None:
            try:
                work(machine)
            except (ChildRunError, Interrupt) as error:
                self.baton.note(f"{type(error).__name__}: {error}")
            machine.is_done = True

        self.baton.start(machine.process, "main", main)
        return machine

    def create(self, op: str, program: Program) -> UUID:
        """Create a run without parent."""
        made: list[UUID] = []
        manifest = build_manifest(op, "1", input=program, run_config=OPERATIONS[op].run_config)
        self.machine("creator", lambda machine: made.append(ExecutionEngine(machine.house).create(manifest)))
        self.steps(lambda: bool(made))
        return made[0]

    def drive(self, key: str, run_ids: Sequence[UUID]) -> None:
        """Begin a process that drives runs, and leaves when they have ended."""

        def work(machine: Machine) -> None:
            engine = ExecutionEngine(machine.house)
            for run_id in run_ids:
                engine.supervisor.hand_over(run_id)
            try:
                for run_id in run_ids:
                    engine.supervisor.wait(run_id)
                _settle(engine)
            finally:
                if not machine.process.dead:
                    engine.close()

        self.machine(key, work)

    def attempt(self, task: AirflowTask, children: dict[str, Program], on_clear: OnClear) -> None:
        """Begin a try of a task, that spawns its children and drives them."""

        def work(machine: Machine) -> None:
            engine = ExecutionEngine(machine.house)
            try:
                host = HostRun(machine.house, task.coordinates, task.facts, {"dag_id": "report"})
                opened = host.spawn([_wanted(key, program) for key, program in children.items()], on_clear, "fail")
                for slot in opened.slots:
                    engine.supervisor.hand_over(slot.run_id)
                for slot in opened.slots:
                    engine.supervisor.wait(slot.run_id)
                _settle(engine)
                host.note_return()
            finally:
                # Also where the spawn was refused: it may have opened a session.
                if not machine.process.dead:
                    engine.close()

        self.machine("", work)

    def ask(self, run_id: UUID, kind: str, grace_us: int) -> None:
        """Post a request, or cancel a whole tree."""
        if kind == CANCEL:
            self.machine("user", lambda machine: cancel_run(machine.house, run_id, "not wanted"))
            return
        body = request_body("closed", grace_us) if kind == CLOSE else b"{}"
        assert kind in (CLOSE, WITHDRAW)
        self.store.post([InboxPost(run_id, self.entropy.new_id(), kind, body)])

    def steps(self, is_over: Any, most: int = 3_000) -> None:
        """Let the threads run until something holds, or for a while."""
        until = self.baton.steps + most
        self.baton.run(lambda: not self.baton.threads or self.baton.steps >= until or is_over())
        if self.baton.escaped:
            thread, raised = self.baton.escaped[0]
            raise AssertionError(f"{thread}: {raised!r}") from raised

    def rows(self) -> list[RunRow]:
        """Return every run."""
        return list(self.store.find_runs(RunFilter(), limit=10_000).rows)

    def sweep(self, state: TaskState) -> None:
        """Sweep up what nobody owns, Airflow saying the same of every task."""
        self.machine("recover", lambda machine: sweep(machine.house, lambda _at, _last: state))

    def purge(self, idle_s: int) -> set[UUID]:
        """Delete idle trees, and forget them; return the runs that are gone."""
        since = self.baton.now_us - idle_s * 1_000_000
        before = {row.run_id: row for row in self.rows()}
        gone: set[UUID] = set()
        for root in self.store.find_idle_trees(since):
            tree = {run_id for run_id, row in before.items() if row.root_run_id == root}
            count = self.store.delete_tree(root, since)
            assert count == len(tree), f"{count} of {len(tree)} runs were deleted"
            gone |= tree
        for run_id in gone:
            row = before[run_id]
            assert row.kind == "task_instance" or row.is_terminal, f"{run_id} was purged though it is {row.status}"
            assert row.updated_at < since, f"{run_id} was purged though it moved at {row.updated_at}"
            self.seen.pop(run_id, None)
            self.ended.pop(run_id, None)
        self.store.recorded = {given: run_id for given, run_id in self.store.recorded.items() if run_id not in gone}
        return gone

    # -- what holds after every rule

    def check(self) -> None:
        """Compare the store with the model, and with itself."""
        assert not self.complaints, self.complaints[0]
        rows = self.rows()
        lost = self.seen.keys() - {row.run_id for row in rows}
        assert not lost, f"purged, or lost, though nobody asked for it: {lost}"
        for row in rows:
            self._check_run(row)
        self._check_links(rows)
        for root in {row.root_run_id for row in rows}:
            findings = verify_tree(self.store, root)
            assert not findings, findings[0]
        slots = [(row.slot_id, row.generation) for row in rows]
        assert len(slots) == len(set(slots))

    def _check_run(self, row: RunRow) -> None:
        stored = self.store.read_events(row.run_id)
        hashes = [event.hash for event in stored]
        assert [event.seq for event in stored] == list(range(1, len(stored) + 1))
        known = self.seen.get(row.run_id, [])
        assert hashes[: len(known)] == known, f"{row.run_id}: what was recorded has changed"
        self.seen[row.run_id] = hashes
        ends = [event for _, event in decode_events(stored) if isinstance(event, RunCompleted)]
        assert len(ends) == (1 if row.is_terminal else 0)
        finished = load_history(self.store, row.run_id).finished
        assert (finished.status if finished else None) == (row.status if row.is_terminal else None)
        if row.is_terminal:
            assert row.lease_session_id is None
            end = self.ended.setdefault(row.run_id, (row.status, row.head.epoch))
            assert end == (row.status, row.head.epoch), f"{row.run_id} moved after its end"

    def _check_links(self, rows: Sequence[RunRow]) -> None:
        """Check that every child is named by its parent, and every named child exists."""
        by_id = {row.run_id: row for row in rows}
        named: set[tuple[UUID, UUID]] = set()
        for row in rows:
            for _, event in decode_events(self.store.read_events(row.run_id)):
                if isinstance(event, DomainEvent) and event.name == CHILD_RUN_SPAWNED:
                    named.add((row.run_id, UUID(event.payload["child_run_id"])))
        assert all(child in by_id and by_id[child].parent_run_id == parent for parent, child in named)
        assert all((row.parent_run_id, row.run_id) in named for row in rows if row.parent_run_id is not None)


def _settle(engine: ExecutionEngine) -> None:
    """Wait for what nobody awaited: a task ends when all that it drove has."""
    while not engine.supervisor.is_idle():
        engine.supervisor.wait_until_idle(5.0)


def _wanted(key: str, program: Program) -> WantedChild:
    op = "sim_node"
    made = build_manifest(op, "1", input=program, run_config=OPERATIONS[op].run_config)
    return WantedChild(key, made, manifest_id(made), None, artifact_id(snapshot_bytes({}, POLICY)))
