"""The owner's pen: everything that a driven run writes goes through here, fenced by head and epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol
from uuid import UUID

from airflow_childrun.canonical import artifact_id
from airflow_childrun.clock import Entropy
from airflow_childrun.engine.history import RunHistory
from airflow_childrun.engine.ports import NO_EXTRAS, Extras
from airflow_childrun.errors import Abandoned, LeaseLost, NotFoundError
from airflow_childrun.model.events import Event
from airflow_childrun.runtime.committer import Committer
from airflow_childrun.runtime.patience import Patience
from airflow_childrun.store.api import Artifact, Commit, Conflict, ReleaseLease, RunStep, Store, TakeLease
from airflow_childrun.store.codec import encode_event
from airflow_childrun.store.projection import moves_of


class Guard(Protocol):
    """Says whether the process may still act for its runs."""

    def require_safe(self) -> None:
        """Raise LeaseLost if it may not."""


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
        committer: Committer,
        patience: Patience,
        entropy: Entropy,
        guard: Guard,
    ) -> None:
        self.history = history
        self.root_run_id = root_run_id
        self._epoch = epoch
        self._lease: TakeLease | ReleaseLease | None = lease
        self._head = history.head
        self._store = store
        self._committer = committer
        self._patience = patience
        self._entropy = entropy
        self._guard = guard
        self._staged: list[Event] = []
        self._staged_artifacts: list[Artifact] = []
        self._dead = False
        self.has_written = False

    def stage(self, events: Sequence[Event], artifacts: Sequence[Artifact] = ()) -> None:
        """Count events as happened; they become durable with the next append or flush."""
        for event in events:
            self.history.apply(self.history.head + 1, event)
        self._staged += events
        self._staged_artifacts += artifacts

    def append(self, events: Sequence[Event], extras: Extras = NO_EXTRAS) -> None:
        """Make events durable, with what is staged before them.

        :raises LeaseLost: if somebody else drives the run
        :raises StoreInterrupt: if the store stays unavailable
        :raises Abandoned: if this process gave the run up
        """
        self.stage(events)
        self.flush(extras)

    def flush(self, extras: Extras = NO_EXTRAS, *, release: bool = False) -> None:
        """Make what is staged durable; with ``release`` the run has no owner afterwards."""
        if self._dead:
            raise Abandoned("this process gave the run up")
        lease = ReleaseLease() if release and self._lease is None else self._lease
        if not self._staged and not extras.steps and lease is None:
            return
        commit = self._commit(lease, extras)
        answer = self._patience.attempt(lambda: self._committer.submit(commit))
        run_id = self.history.run_id
        if isinstance(answer, Conflict):
            self._dead = True
            raise LeaseLost(f"run {answer.run_id} was moved by somebody else ({answer.reason})")
        self.has_written = True
        head = answer.heads[run_id]
        self._head, self._epoch, self._lease = head.seq, head.epoch, None
        self._staged, self._staged_artifacts = [], []

    def release(self) -> None:
        """Give the lease back, leaving the attempt as it is."""
        if self._lease is None:
            self._staged, self._staged_artifacts = [], []
            self.flush(release=True)

    def kill(self) -> None:
        """Refuse every later write: the io of this attempt is dead."""
        self._dead = True

    def revive(self) -> None:
        """Let the driver write its last word after the handler has ended."""
        self._dead = False

    def read_artifact(self, artifact_id: str) -> bytes:
        """Return an artifact of the run's tree.

        :raises NotFoundError: code ``artifact_not_found``
        """
        found = self._patience.attempt(lambda: self._store.get_artifacts(self.root_run_id, [artifact_id]))
        if artifact_id not in found:
            raise NotFoundError(
                f"artifact {artifact_id} of run {self.history.run_id} is missing; run `childrun verify`",
                code="artifact_not_found",
            )
        return found[artifact_id]

    def artifact(self, kind: str, body: bytes) -> Artifact:
        """Make an artifact of the run's tree."""
        return Artifact(self.root_run_id, artifact_id(body), kind, body)

    def before_call(self) -> None:
        """Raise an Interrupt if the run may not act on the world any more."""
        if self._dead:
            raise Abandoned("this process gave the run up")
        self._guard.require_safe()

    def _commit(self, lease: TakeLease | ReleaseLease | None, extras: Extras) -> Commit:
        step = RunStep(
            self.history.run_id,
            self._head,
            self._epoch,
            tuple(encode_event(event) for event in self._staged),
            moves_of(self._staged),
            lease=lease,
        )
        artifacts = (*self._staged_artifacts, *extras.artifacts)
        return Commit(self._entropy.new_id(), (step, *extras.steps), artifacts, extras.posts)
