"""Driving one run: load, decide, attempt, append, until it has ended or somebody else owns it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

from airflow_childrun.engine import attempt as attempts
from airflow_childrun.engine.context import read_snapshot
from airflow_childrun.engine.decide import EnterState, FinishRun, WaitUntil, close_orphan, decide, retry_policy_of
from airflow_childrun.engine.fact_io import FactIo, ReplayIo, Scene
from airflow_childrun.engine.history import RunHistory
from airflow_childrun.engine.live_io import LiveIo
from airflow_childrun.engine.ports import RunIdentity
from airflow_childrun.engine.prepare import SNAPSHOT
from airflow_childrun.model.config import RunConfig
from airflow_childrun.model.events import StateEntered
from airflow_childrun.model.plan import ExecutionPlan, StateNode
from airflow_childrun.runtime.histories import check_drift, load_history, read_manifest
from airflow_childrun.runtime.house import House
from airflow_childrun.runtime.journal import RunJournal
from airflow_childrun.runtime.nursery import RunNursery
from airflow_childrun.runtime.sessions import SessionGuard
from airflow_childrun.runtime.waiting import Hold, RunWaits, with_jitter
from airflow_childrun.store.api import RunRow, TakeLease
from airflow_childrun.transports.child_runs import ChildRunBinding, ChildRunTransport
from airflow_childrun.transports.registry import LiveIoEnv, Router, TransportRegistry

Ending = Literal["ended", "foreign", "stopped"]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the driver asks of the supervisor."""

    hand_over: Callable[[UUID], None]
    wait: Callable[[UUID, Hold], RunRow]
    wait_all: Callable[[Sequence[UUID], Hold], None]
    hold: Hold


class RunDriver:
    """Drives one run in the calling thread, which holds a slot."""

    def __init__(self, house: House, row: RunRow, around: Surroundings) -> None:
        self._house = house
        self._row = row
        self._around = around
        self._snapshot: tuple[str, bytes] | None = None
        self.journal: RunJournal | None = None
        self.on_open: Callable[[RunJournal], None] = _ignore

    def drive(self) -> Ending:
        """Drive the run to its end.

        :raises Interrupt: if the attempt had to be left open
        :raises ChildRunError: if the run cannot be driven at all; nothing was written then
        """
        row, house = self._row, self._house
        if row.is_terminal:
            return "ended"
        session_id = house.patience.attempt(house.keeper.session_id)
        if (row.lease_expires_at is not None and row.lease_session_id != session_id) or not house.keeper.is_safe:
            return "foreign"
        history = house.patience.attempt(lambda: load_history(house.store, row.run_id))
        manifest = house.patience.attempt(lambda: read_manifest(house.store, row.root_run_id, history.start))
        plan = house.resolver.resolve(manifest)
        house.patience.attempt(lambda: check_drift(house.store, row.root_run_id, history, plan))
        self.journal = journal = self._open_journal(history, session_id)
        self.on_open(journal)
        # Asked before the children are driven on: one may end at once.
        lapsed = row.lease_session_id is not None and not self._was_waiting(history)
        self._hand_over_children(history)
        journal.stage(close_orphan(history, lapsed=lapsed, limit=house.limits.recovery_limit))
        return self._go_on(journal, plan, manifest.run_config)

    def _open_journal(self, history: RunHistory, session_id: UUID) -> RunJournal:
        house = self._house
        return RunJournal(
            history,
            self._row.root_run_id,
            epoch=self._row.head.epoch,
            lease=TakeLease(session_id),
            store=house.store,
            committer=house.committer,
            patience=house.patience,
            entropy=house.entropy,
            guard=SessionGuard(house.keeper, session_id),
        )

    def _hand_over_children(self, history: RunHistory) -> None:
        """After a crash, a recorded spawn whose child is not terminal is driven again."""
        if not history.children:
            return
        ids = [child.child_run_id for child in history.children]
        rows = self._house.patience.attempt(lambda: self._house.store.get_runs(ids))
        for row in rows.values():
            if not row.is_terminal:
                self._around.hand_over(row.run_id)

    def _was_waiting(self, history: RunHistory) -> bool:
        """Whether the last owner only waited: for a time, or for a child that has not ended."""
        now = self._house.now_us()
        if history.is_waiting or any(wait.until > now for wait in history.waits.values()):
            return True
        ids = [child.child_run_id for child in history.children]
        rows = self._house.patience.attempt(lambda: self._house.store.get_runs(ids)) if ids else {}
        return any(not row.is_terminal for row in rows.values())

    def _go_on(self, journal: RunJournal, plan: ExecutionPlan, config: RunConfig) -> Ending:
        while True:
            decision = decide(journal.history, plan, config, self._house.now_us())
            match decision:
                case EnterState(node, entered):
                    if self._enter(journal, node, entered, config) == "stopped":
                        return "stopped"
                case WaitUntil(at):
                    journal.flush()
                    self._around.hold.wait_until(at)
                case FinishRun(event):
                    journal.stage([event])
                case _:
                    journal.flush(release=True)
                    return "ended"

    def _enter(
        self, journal: RunJournal, node: StateNode, entered: StateEntered, config: RunConfig
    ) -> Literal["stopped"] | None:
        journal.stage([entered])
        if attempts.is_skipped(node, config):
            journal.stage([attempts.completed(node, entered.base_snapshot_id, skipped=True)])
            return None
        journal.flush()
        outcome = self._attempt(journal, node, entered, config)
        if self._house.failpoints.stops_after_handler(journal.history.run_id):
            return "stopped"
        if isinstance(outcome, attempts.Success):
            snapshot = journal.artifact(SNAPSHOT, outcome.snapshot)
            self._snapshot = (snapshot.id, snapshot.body)
            journal.stage([attempts.completed(node, snapshot.id)], [snapshot])
        else:
            self._fail(journal, node, entered, config, outcome)
        return None

    def _fail(
        self, journal: RunJournal, node: StateNode, entered: StateEntered, config: RunConfig, outcome: attempts.Failed
    ) -> None:
        policy = retry_policy_of(node, config)
        failures = journal.history.failures.get(node.id, 0)
        will_retry = outcome.info.retryable and failures + 1 < policy.attempts
        delay = with_jitter(policy.delay_us(failures), policy.jitter_percent, self._house.entropy)
        retry_at = self._house.now_us() + delay if will_retry and delay else None
        self._house.observer.state_failed(
            self._row, node, entered.attempt, outcome.info, outcome.raised, will_retry=will_retry
        )
        journal.stage([attempts.failed(node, outcome.info, retry_at)])

    def _attempt(
        self, journal: RunJournal, node: StateNode, entered: StateEntered, config: RunConfig
    ) -> attempts.Outcome:
        house = self._house
        base = read_snapshot(self._read_snapshot(journal, entered.base_snapshot_id))
        io = self._io(journal, node, entered, config)
        recorder = attempts.EventRecorder(journal, config, house.policy)
        with house.observer.handler(self._row, node, entered.attempt):
            return attempts.run_handler(node, base, io, recorder, house.policy)

    def _io(self, journal: RunJournal, node: StateNode, entered: StateEntered, config: RunConfig) -> FactIo:
        identity = self._identity(journal.history)
        replay = config.io_mode == "Replay"
        router = self._router(LiveIoEnv(identity, node.id, entered.attempt), journal, replay=replay)
        scene = Scene(identity, node.id, journal.history.facts, journal, self._house.policy)
        if replay:
            return ReplayIo(scene, router, retryable=config.replay_missing_fact_retryable)
        return LiveIo(scene, router, self._house.sources, RunWaits(self._house, journal, self._around.hold))

    def _router(self, env: LiveIoEnv, journal: RunJournal, *, replay: bool) -> Router:
        around = self._around
        nursery = RunNursery(
            self._house,
            journal.history,
            around.hand_over,
            lambda run_id: around.wait(run_id, around.hold),
            lambda run_ids: around.wait_all(run_ids, around.hold),
        )
        registry = TransportRegistry(self._house.transports.all().values())
        registry.register(_ChildRuns(self._house, journal, nursery))
        return Router(registry, env, replay=replay)

    def _identity(self, history: RunHistory) -> RunIdentity:
        return RunIdentity(
            history.run_id, history.chain_id, self._row.root_run_id, self._row.depth, history.start.airflow
        )

    def _read_snapshot(self, journal: RunJournal, snapshot_id: str) -> bytes:
        """Return the base of an attempt: as it was written a moment ago, or from the store."""
        if self._snapshot is not None and self._snapshot[0] == snapshot_id:
            return self._snapshot[1]
        return journal.read_artifact(snapshot_id)


def _ignore(journal: RunJournal) -> None:
    """Nobody wants to know."""


class _ChildRuns:
    """The factory of the child-run transport, an ordinary member of the registry."""

    def __init__(self, house: House, journal: RunJournal, nursery: RunNursery) -> None:
        self._house = house
        self._journal = journal
        self._nursery = nursery

    def namespace_group(self) -> str:
        """Return ``machine.child_run``."""
        return "machine.child_run"

    def binding(self, env: LiveIoEnv) -> ChildRunBinding:
        """Return how replay binds requests to recorded answers."""
        return ChildRunBinding(env.identity, self._house.policy)

    def make(self, env: LiveIoEnv) -> Any:
        """Make the transport of one attempt."""
        return ChildRunTransport(
            env,
            journal=self._journal,
            nursery=self._nursery,
            resolver=self._house.resolver,
            policy=self._house.policy,
            max_depth=self._house.limits.max_depth,
        )
