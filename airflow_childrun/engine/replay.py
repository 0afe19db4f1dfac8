"""Replay: the handlers of a finished stretch of history, run again over recorded facts alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

from airflow_childrun.canonical import artifact_id
from airflow_childrun.engine.attempt import Failed, SilentRecorder, is_skipped, run_handler
from airflow_childrun.engine.context import read_snapshot
from airflow_childrun.engine.fact_io import ReplayIo, Scene
from airflow_childrun.engine.history import Completion, RunHistory
from airflow_childrun.engine.ports import NO_EXTRAS, Binding, Extras, RunIdentity
from airflow_childrun.errors import NondeterminismError
from airflow_childrun.model.config import RunConfig
from airflow_childrun.model.events import Event
from airflow_childrun.model.plan import ExecutionPlan
from airflow_childrun.secret_policy import SecretPolicy
from airflow_childrun.store.api import Artifact


class ReadOnlyJournal:
    """A journal that reads and never writes."""

    def __init__(self, read_artifact: Callable[[str], bytes], root_run_id: UUID) -> None:
        self._read = read_artifact
        self._root = root_run_id

    def append(self, events: Sequence[Event], extras: Extras = NO_EXTRAS) -> None:  # noqa: ARG002
        """Refuse: replay writes nothing."""
        raise NondeterminismError("replay tried to record something new")

    def read_artifact(self, artifact_id: str) -> bytes:
        """Return an artifact of the run's tree."""
        return self._read(artifact_id)

    def artifact(self, kind: str, body: bytes) -> Artifact:
        """Make an artifact that nobody stores."""
        return Artifact(self._root, artifact_id(body), kind, body)

    def before_call(self) -> None:
        """Replay acts on nothing."""


class Replayer:
    """Runs the handlers of a history again, in order of completion, and compares every snapshot.

    :param binding: how the live transports bind requests; replay never performs one
    """

    def __init__(
        self,
        identity: RunIdentity,
        plan: ExecutionPlan,
        config: RunConfig,
        policy: SecretPolicy,
        binding: Binding,
    ) -> None:
        self._identity = identity
        self._plan = plan
        self._config = config
        self._policy = policy
        self._binding = binding

    def replay(self, history: RunHistory, read_artifact: Callable[[str], bytes]) -> str:
        """Return the id of the snapshot that replay ends with.

        :raises NondeterminismError: naming the state where code and history part, what was recorded and what came
        """
        snapshot_id = history.start.initial_snapshot_id
        context = read_snapshot(read_artifact(snapshot_id))
        for done in sorted(history.completed.values(), key=lambda completion: completion.at):
            if done.at[0] != history.segment or self._was_skipped(done, history):
                continue
            snapshot_id, context = self._again(done, history, context, read_artifact)
        return snapshot_id

    def _was_skipped(self, done: Completion, history: RunHistory) -> bool:
        """Whether a state completed without its handler; a V1 event does not say so, the tags do."""
        node = self._plan.state(done.state_id)
        return done.skipped or (history.is_v1 and node is not None and is_skipped(node, self._config))

    def _again(
        self, done: Completion, history: RunHistory, base: dict[str, Any], read_artifact: Callable[[str], bytes]
    ) -> tuple[str, dict[str, Any]]:
        node = self._plan.state(done.state_id)
        if node is None:
            raise self._parted(done, "the plan has no such state any more", None)
        journal = ReadOnlyJournal(read_artifact, self._identity.root_run_id)
        scene = Scene(self._identity, node.id, history.facts.as_of(done.at), journal, self._policy)
        io = ReplayIo(scene, self._binding, retryable=self._config.replay_missing_fact_retryable)
        outcome = run_handler(node, base, io, SilentRecorder(self._config, self._policy, journal), self._policy)
        if isinstance(outcome, Failed):
            raise self._parted(done, f"its handler raised {outcome.info.code}: {outcome.info.message}", None)
        came = artifact_id(outcome.snapshot)
        if came != done.snapshot_id:
            raise self._parted(done, "its handler wrote another context", came)
        return came, read_snapshot(outcome.snapshot)

    def _parted(self, done: Completion, what: str, came: str | None) -> NondeterminismError:
        return NondeterminismError(
            f"replay of run {self._identity.run_id} parts from its history in {done.state_id} "
            f"(completed at event {done.at[1]}): {what}",
            details={"state_id": done.state_id, "seq": done.at[1], "recorded": done.snapshot_id, "came": came},
        )
