"""The owner's pen: everything that a driven run writes goes through here, fenced by head and epoch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol
from uuid import UUID

from airflow_childrun.canonical import artifact_id
from airflow_childrun.clock import Entropy
from airflow_childrun.engine.history import RunHistory
from airflow_childrun.engine.ports import NO_EXTRAS, Extras, Journal
from airflow_childrun.errors import (
    Abandoned,
    Interrupt,
    LeaseLost,
    NoPlace,
    NotFoundError,
    StorageError,
    StoreInterrupt,
)
from airflow_childrun.model.events import Event
from airflow_childrun.runtime.committer import Committer
from airflow_childrun.runtime.earlier import Reads
from airflow_childrun.runtime.patience import Patience
from airflow_childrun.store.api import (
    Artifact,
    Commit,
    Committed,
    Conflict,
    NewEvent,
    ReleaseLease,
    RunStep,
    Store,
    TakeLease,
)
from airflow_childrun.store.codec import encode_event
from airflow_childrun.store.projection import moves_of


class Guard(Protocol):
    """Says whether the process may still act for its runs."""

    def require_safe(self) -> None:
        """Raise LeaseLost if it may not."""


class Pen(Journal, Protocol):
    """What an attempt writes with, and the history that it moves."""

    @property
    def history(self) -> RunHistory:
        """What the run's events mean."""


class RunJournal:
    """Appends to one run's stream and keeps its history abreast.

    Events can be staged, to become durable with the next append: what belongs together is one commit.
    """

    def __init__(
        self,
        history: RunHistory,
        root_run_id: UUID,
        *,
        epoch: int,
        lease: TakeLease | None,
        store: Store,
        reads: Reads,
        committer: Committer,
        patience: Patience,
        entropy: Entropy,
        guard: Guard,
    ) -> None:
        self.history = history
        self.root_run_id = root_run_id
        self._epoch = epoch
        self._lease: TakeLease | ReleaseLease | None = lease
        self.session_id = lease.session_id if lease else None
        self._head = history.head
        self._store = store
        self._reads = reads
        self._committer = committer
        self._patience = patience
        self._entropy = entropy
        self._guard = guard
        self._staged: list[Event] = []
        self._encoded: list[NewEvent] = []
        self._staged_artifacts: list[Artifact] = []
        self._ended: Interrupt | None = None
        self.has_written = False
        self.on_inbox: Callable[[int], object] = _ignore
        self.on_created: Callable[[Commit, Committed], object] = _ignore

    def stage(self, events: Sequence[Event], artifacts: Sequence[Artifact] = ()) -> None:
        """Count events as happened; they become durable with the next append or flush.

        :raises CanonicalError: if one of them cannot be stored; none is counted then
        """
        encoded = [encode_event(event) for event in events]
        for event in events:
            self.history.apply(self.history.head + 1, event)
        self._staged += events
        self._encoded += encoded
        self._staged_artifacts += artifacts

    def append(self, events: Sequence[Event], extras: Extras = NO_EXTRAS) -> None:
        """Make events durable, with what is staged before them.

        :raises LeaseLost: if somebody else drives the run
        :raises StoreInterrupt: if the store stays unavailable, or refuses
        :raises Abandoned: if this process gave the run up
        """
        self._require_alive()
        self.stage(events)
        self.flush(extras)

    def flush(self, extras: Extras = NO_EXTRAS, *, release: bool = False) -> None:
        """Make what is staged durable; with ``release`` the run has no owner afterwards."""
        self._require_alive()
        lease = ReleaseLease() if release and self._lease is None else self._lease
        if not self._staged and not extras.steps and lease is None:
            return
        commit = self._commit(lease, extras)
        answer = self._submit(commit)
        head = answer.heads[self.history.run_id]
        if extras.steps:
            self.on_created(commit, answer)
        self.has_written = True
        self.on_inbox(head.inbox_seq)
        self._head, self._epoch, self._lease = head.seq, head.epoch, None
        self._drop_staged()

    def release(self) -> None:
        """Give the lease back, leaving the attempt as it is."""
        if self._lease is None:
            self._drop_staged()
            self.flush(release=True)

    def let_go(self) -> None:
        """Leave the run without owner, wherever its stream stands, unless somebody else drives it.

        The epoch rises first: a commit of ours whose outcome is unknown may otherwise still happen afterwards.

        :raises StoreInterrupt: if the store stays unavailable
        """
        run_id = self.history.run_id
        row = self._patience.attempt(lambda: self._store.find_run(run_id))
        if row is None or row.is_terminal or row.lease_session_id not in (None, self.session_id):
            return
        head = row.head
        for lease in (TakeLease(self.session_id), ReleaseLease()):
            commit = Commit(self._entropy.new_id(), (RunStep(run_id, head.seq, head.epoch, lease=lease),))
            answer = self._patience.attempt(lambda: self._committer.submit(commit))  # noqa: B023
            if isinstance(answer, Conflict):
                return
            head = answer.heads[run_id]

    def waive_cap(self) -> None:
        """Take the lease whoever else works: the run is only to be ended."""
        if isinstance(self._lease, TakeLease):
            self._lease = TakeLease(self._lease.session_id)

    def kill(self) -> None:
        """Refuse every later write: the io of this attempt is dead."""
        self._ended = self._ended or Abandoned("this process gave the run up")

    def revive(self) -> None:
        """Let the driver write its last word after the handler has ended."""
        self._ended = None

    def read_artifact(self, artifact_id: str) -> bytes:
        """Return an artifact of the run's tree.

        :raises StoreInterrupt: if it is missing or not what it was
        """
        try:
            found = self._patience.attempt(lambda: self._reads.get_artifacts(self.root_run_id, [artifact_id]))
            if artifact_id not in found:
                raise NotFoundError(
                    f"artifact {artifact_id} of run {self.history.run_id} is missing; run `childrun verify`",
                    code="artifact_not_found",
                )
        except StorageError as error:
            raise StoreInterrupt(str(error), error) from error
        return found[artifact_id]

    def artifact(self, kind: str, body: bytes) -> Artifact:
        """Make an artifact of the run's tree."""
        return Artifact(self.root_run_id, artifact_id(body), kind, body)

    def before_call(self) -> None:
        """Raise an Interrupt if the run may not act on the world any more."""
        self._require_alive()
        self._guard.require_safe()

    def _require_alive(self) -> None:
        """Raise once more what ended this journal: a handler may have swallowed it."""
        if self._ended is not None:
            raise self._ended

    def _submit(self, commit: Commit) -> Committed:
        """Submit a commit; whatever stands in its way ends this journal, for what is staged has lost its artifacts."""
        try:
            answer = self._patience.attempt(lambda: self._committer.submit(commit))
            if isinstance(answer, Conflict):
                if answer.reason == "cap":
                    raise NoPlace(f"run {answer.run_id} waits for its turn")
                raise LeaseLost(f"run {answer.run_id} was moved by somebody else ({answer.reason})")
        except StorageError as error:
            self._ended = StoreInterrupt(str(error), error)
            raise self._ended from error
        except Interrupt as interrupt:
            self._ended = interrupt
            raise
        return answer

    def _drop_staged(self) -> None:
        self._staged, self._encoded, self._staged_artifacts = [], [], []

    def _commit(self, lease: TakeLease | ReleaseLease | None, extras: Extras) -> Commit:
        step = RunStep(
            self.history.run_id,
            self._head,
            self._epoch,
            tuple(self._encoded),
            moves_of(self._staged),
            lease=lease,
        )
        artifacts = (*self._staged_artifacts, *extras.artifacts)
        return Commit(self._entropy.new_id(), (step, *extras.steps), artifacts, extras.posts)


def _ignore(*news: object) -> None:
    """Nobody wants to know."""
