"""Driving one run: load, decide, attempt, append, until it has ended or somebody else owns it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, TypeVar
from uuid import UUID

from airflow_childrun.engine import attempt as attempts
from airflow_childrun.engine.context import read_snapshot
from airflow_childrun.engine.decide import EnterState, FinishRun, WaitUntil, close_orphan, decide, retry_policy_of
from airflow_childrun.engine.history import RunHistory
from airflow_childrun.engine.inbox import EndRequest
from airflow_childrun.engine.ports import RunIdentity
from airflow_childrun.engine.prepare import SNAPSHOT
from airflow_childrun.engine.summary import summarised
from airflow_childrun.errors import ChildRunError, DeadlineInterrupt, NoPlace, StoreInterrupt
from airflow_childrun.model.config import RunConfig
from airflow_childrun.model.events import DEADLINE_OVER, StateCompleted, StateEntered
from airflow_childrun.model.plan import ExecutionPlan, StateNode
from airflow_childrun.runtime.closing import consumed_event, withdraw_posts
from airflow_childrun.runtime.cradle import Newborn, Resolved
from airflow_childrun.runtime.earlier import Reads
from airflow_childrun.runtime.ending import RUN_CANCELLED, Ender
from airflow_childrun.runtime.histories import Shortcut, check_drift, load_run, read_manifest
from airflow_childrun.runtime.house import House
from airflow_childrun.runtime.journal import Pen, RunJournal
from airflow_childrun.runtime.mail import CancelRequested, Mailbox, RunGuard
from airflow_childrun.runtime.overdue import settle
from airflow_childrun.runtime.run_io import Surroundings, make_io
from airflow_childrun.runtime.sessions import SessionGuard
from airflow_childrun.runtime.timed import TimedAttempts, time_over
from airflow_childrun.runtime.waiting import Hold, with_jitter
from airflow_childrun.store.api import Artifact, Cap, RunRow, RunStatus, TakeLease
from airflow_childrun.transports.registry import LiveIoEnv

Ending = Literal["ended", "foreign", "stopped"]
T = TypeVar("T")


class RunDriver:
    """Drives one run in the calling thread, which holds a slot."""

    def __init__(self, house: House, row: RunRow, around: Surroundings, newborn: Newborn | None = None) -> None:
        self._house = house
        self._row = row
        self._newborn = newborn
        self._reads: Reads = newborn or house.store
        self._around = around
        self._snapshot: tuple[str, bytes] | None = None
        self.journal: RunJournal | None = None
        self._found_ended: RunStatus | None = None
        self.on_open: Callable[[RunJournal, Mailbox], None] = _ignore
        self._mailbox = Mailbox(house, row)
        self._timed = TimedAttempts(house, row.run_id)

    def drive(self) -> Ending:
        """Drive the run to its end.

        :raises Interrupt: if the attempt had to be left open
        :raises ChildRunError: if the run cannot be driven at all; nothing was written then
        """
        row, house = self._row, self._house
        if row.is_terminal:
            self._found_ended = row.status
            return "ended"
        session_id = house.patience.attempt(house.keeper.session_id)
        if (row.lease_expires_at is not None and row.lease_session_id != session_id) or not house.keeper.is_safe:
            return "foreign"
        history = self._load()
        if history.finished is not None:
            # It ended after its row was read: whoever took the lease now would move a terminal run.
            self._found_ended = history.finished.status
            return "ended"
        manifest, plan = self._resolve(history)
        cap = self._cap(history)
        if not self._around.may_begin(row.run_id, cap):
            raise NoPlace(f"run {row.run_id} waits for its turn")
        self.journal = journal = self._open_journal(history, session_id, cap)
        self._around.hold.mailbox = self._mailbox
        self.on_open(journal, self._mailbox)
        # Asked before the children are driven on: one may end at once.
        lapsed = row.lease_session_id is not None and not self._was_waiting(history)
        self._hand_over_children(history)
        journal.stage(close_orphan(history, lapsed=lapsed, limit=house.limits.recovery_limit))
        if journal.history.finished is not None:
            journal.waive_cap()
            # Too many processes died over it. Nothing that came for it meanwhile may end it a second time.
            self._ender(journal).finish_unwell("its parent failed")
            return "ended"
        try:
            if history.end_request is not None:
                raise CancelRequested(EndRequest(effective_at=0, **history.end_request))
            return self._go_on(journal, plan, manifest.run_config)
        except CancelRequested as asked:
            return self._end_cancelled(journal, plan, manifest.run_config, asked.request)
        except DeadlineInterrupt:
            journal.waive_cap()
            self._ender(journal).finish_timed_out()
            return "ended"

    def _load(self) -> RunHistory:
        begun = self._newborn.history() if self._newborn is not None else None
        if begun is not None:
            return begun
        shortcut = Shortcut(self._house.limits.summary_after, self._patiently)
        return self._house.patience.attempt(lambda: load_run(self._reads, self._row, shortcut))

    def _resolve(self, history: RunHistory) -> Resolved:
        """Return the run's manifest and its plan, which is still the one that the run began with."""
        if self._newborn is not None and self._newborn.resolved is not None:
            return self._newborn.resolved
        patience, root = self._house.patience, self._row.root_run_id
        manifest = patience.attempt(lambda: read_manifest(self._reads, root, history.start))
        plan = self._house.resolver.resolve(manifest)
        patience.attempt(lambda: check_drift(self._reads, root, history, plan))
        return manifest, plan

    @property
    def may_be_tried_again(self) -> bool:
        """Whether the run has failed and its parent is to look at it, since another attempt may follow.

        So it is, whatever its policy, which no row tells, where it had failed before it was handed over: its parent may
        have taken it for one that is driven since.
        """
        if self.journal is None:
            return self._found_ended == "Failed"
        history = self.journal.history
        if history.finished is None or history.finished.status != "Failed":
            return False
        return history.start.child_retry_policy is not None

    def outlast_handlers(self) -> None:
        """Wait until no handler of the run is at work in this process: only then may its lease be given back."""
        self._timed.outlast()

    def _cap(self, history: RunHistory) -> Cap | None:
        """Return how many of the run's siblings may work, or None."""
        row, most = self._row, history.start.max_concurrency
        if most is None or row.parent_run_id is None:
            return None
        return Cap(row.parent_run_id, row.op_id, most)

    def _open_journal(self, history: RunHistory, session_id: UUID, cap: Cap | None) -> RunJournal:
        house = self._house
        journal = RunJournal(
            history,
            self._row.root_run_id,
            epoch=self._row.head.epoch,
            lease=TakeLease(session_id, cap),
            store=house.store,
            reads=self._reads,
            committer=house.committer,
            patience=house.patience,
            entropy=house.entropy,
            guard=RunGuard(SessionGuard(house.keeper, session_id), self._mailbox),
        )
        journal.on_inbox = self._mailbox.note
        journal.on_created = house.cradle.keep
        return journal

    def _hand_over_children(self, history: RunHistory) -> None:
        """After a crash, a recorded spawn whose child is not terminal is driven again.

        A generation that begins withdraws what the run which it continues asked of its children.
        """
        if not history.children:
            return
        ids = [child.child_run_id for child in history.children]
        rows = self._house.patience.attempt(lambda: self._house.store.get_runs(ids))
        rows |= self._house.patience.attempt(lambda: settle(self._house, rows.values()))
        going = [row for row in rows.values() if not row.is_terminal]
        if history.segment > 0 and not history.last_attempt:
            posts = withdraw_posts(self._house, going)
            self._house.patience.attempt(lambda: self._house.store.post(posts))
        for row in going:
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
            self._mailbox.check()
            decision = decide(journal.history, plan, config, self._house.now_us())
            match decision:
                case EnterState(node, entered):
                    self._timed.wait_for_left(self._around.hold)
                    if self._enter(journal, node, entered, config) == "stopped":
                        return "stopped"
                case WaitUntil(at):
                    journal.flush()
                    self._around.hold.wait_until(at)
                case FinishRun(event):
                    journal.stage([event])
                    if event.status != "Completed":
                        self._ender(journal).finish_unwell("its parent failed")
                        return "ended"
                case _:
                    # No handler is at work any more: the next run begins, and its first commit joins this last one.
                    self._around.hold.release()
                    journal.flush(release=True)
                    return "ended"

    def _enter(
        self, journal: RunJournal, node: StateNode, entered: StateEntered, config: RunConfig
    ) -> Literal["stopped"] | None:
        if node.meta.timeout_us is not None:
            deadline_at = journal.history.deadlines.get(node.id) or self._house.now_us() + node.meta.timeout_us
            entered = entered.model_copy(update={"deadline_at": deadline_at})
        # Read before the entry is durable: a snapshot that is missing or broken must not look like a crash of the state.
        base = read_snapshot(self._read_snapshot(journal, entered.base_snapshot_id))
        journal.stage([entered])
        if attempts.is_skipped(node, config):
            self._complete(journal, attempts.completed(node, entered.base_snapshot_id, skipped=True))
            return None
        journal.flush()
        outcome = self._attempt(journal, node, entered, base, config)
        if self._house.failpoints.stops_after_handler(journal.history.run_id):
            return "stopped"
        if isinstance(outcome, attempts.Success):
            snapshot = journal.artifact(SNAPSHOT, outcome.snapshot)
            self._snapshot = (snapshot.id, snapshot.body)
            self._complete(journal, attempts.completed(node, snapshot.id), snapshot)
        else:
            self._fail(journal, node, entered, config, outcome)
        return None

    def _complete(self, journal: RunJournal, event: StateCompleted, *artifacts: Artifact) -> None:
        """Close the attempt; behind a long stretch of events, with a summary of all before."""
        event, summary = summarised(journal.history, event, self._house.limits.summary_after)
        journal.stage([event], [*artifacts, *(journal.artifact(kind, body) for kind, body in summary)])

    def _patiently(self, work: Callable[[], T]) -> T:
        """Read for a handler: no error of the store may look like one of the world."""
        try:
            return self._house.patience.attempt(work)
        except ChildRunError as error:
            raise StoreInterrupt(str(error), error) from error

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
        self, journal: RunJournal, node: StateNode, entered: StateEntered, base: dict[str, Any], config: RunConfig
    ) -> attempts.Outcome:
        house = self._house
        env = LiveIoEnv(self._identity(journal.history), node.id, entered.attempt)

        def work(pen: Pen, hold: Hold) -> attempts.Outcome:
            io = make_io(house, pen, env, config, replace(self._around, hold=hold))
            recorder = attempts.EventRecorder(pen, config, house.policy)
            with house.observer.handler(self._row, node, entered.attempt):
                return attempts.run_handler(node, base, io, recorder, house.policy)

        ends = [at for at in (entered.deadline_at, self._mailbox.deadline_at) if at is not None]
        if not ends:
            return work(journal, self._around.hold)
        outcome = self._timed.attempt(journal, self._around.hold, min(ends), work)
        if outcome is not None:
            return outcome
        if entered.deadline_at == min(ends):
            return time_over(node.id, node.meta.timeout_us)
        raise DeadlineInterrupt(DEADLINE_OVER)

    def _end_cancelled(
        self, journal: RunJournal, plan: ExecutionPlan, config: RunConfig, request: EndRequest
    ) -> Ending:
        """End the children, run the clean-up, end the run."""
        self._mailbox.ignore()
        journal.waive_cap()
        ender = self._ender(journal)
        ender.end_children(f"its parent was asked to end: {request.reason}")
        ender.close_attempt(RUN_CANCELLED, f"the run was asked to end: {request.reason}", real=False)
        clean_up = plan.on_cancel
        history = journal.history
        if clean_up is not None and history.last_entered is not None and clean_up.id not in history.completed:
            if history.inbox_consumed < request.n:
                journal.stage([consumed_event(request)])
            number = history.last_attempt.get(clean_up.id, -1) + 1
            entered = StateEntered(state_id=clean_up.id, attempt=number, base_snapshot_id=history.checkpoint_id)
            self._enter(journal, clean_up, entered, config)
        ender.finish_cancelled(request)
        return "ended"

    def _ender(self, journal: RunJournal) -> Ender:
        around = self._around
        return Ender(self._house, journal, around.ring, lambda run_ids: around.wait_all(run_ids, around.hold))

    def _identity(self, history: RunHistory) -> RunIdentity:
        row, start = self._row, history.start
        return RunIdentity(
            history.run_id, history.chain_id, row.root_run_id, row.depth, start.airflow, start.deadline_at
        )

    def _read_snapshot(self, journal: RunJournal, snapshot_id: str) -> bytes:
        """Return the base of an attempt: as it was written a moment ago, or from the store."""
        if self._snapshot is not None and self._snapshot[0] == snapshot_id:
            return self._snapshot[1]
        return journal.read_artifact(snapshot_id)


def _ignore(journal: RunJournal, mailbox: Mailbox) -> None:
    """Nobody wants to know."""
