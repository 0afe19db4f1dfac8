"""Runs that this process has created a moment ago: what it wrote, it need not read back before it drives them.

Whoever drives one first takes its lease at the head that was written here: if anybody moved the run meanwhile, that
commit is refused, and the run is read.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from uuid import UUID

from airflow_childrun.engine.history import RunHistory, begin
from airflow_childrun.engine.prepare import PlanResolver
from airflow_childrun.model.manifest import RunManifest, manifest_id
from airflow_childrun.model.plan import ExecutionPlan
from airflow_childrun.runtime.scheduler import Scheduler
from airflow_childrun.store.api import Artifact, Commit, Committed, FactEntry, RunRow, RunStep, Store, StoredEvent
from airflow_childrun.store.codec import decode_event
from airflow_childrun.store.decision import created_row

Resolved = tuple[RunManifest, ExecutionPlan]

MOST = 4000
"""How many runs are remembered; the others are read like any run."""


class Newborn:
    """One run as it was written: answers the reads of whoever drives it first.

    :param resolved: the manifest that it was made of, and the plan that this process found for it
    """

    def __init__(
        self,
        row: RunRow,
        event: StoredEvent,
        artifacts: Iterable[Artifact],
        store: Store,
        resolved: Resolved | None = None,
    ) -> None:
        self.row = row
        self.resolved = resolved
        self._event = event
        self._artifacts = {artifact.id: artifact.body for artifact in artifacts}
        self._store = store

    def history(self) -> RunHistory | None:
        """Return what the run's only event means, or None if it continues another run.

        No store has had the event in the meantime: there is nothing to be checked.
        """
        history = begin(self.row.run_id, None)
        history.apply(1, decode_event(self._event))
        return history if history.start.continues is None else None

    def read_events(
        self, run_id: UUID, from_seq: int = 1, to_seq: int | None = None, limit: int | None = None
    ) -> list[StoredEvent]:
        """Return the run's only event, or what the store has of another run."""
        if run_id == self.row.run_id:
            return [self._event]
        return self._store.read_events(run_id, from_seq, to_seq, limit)

    def get_artifacts(self, root_run_id: UUID, ids: Iterable[str]) -> dict[str, bytes]:
        """Return bodies that were written with the run, the others from the store."""
        wanted = list(ids)
        known = {id_: self._artifacts[id_] for id_ in wanted if id_ in self._artifacts}
        rest = [id_ for id_ in wanted if id_ not in known]
        return known | self._store.get_artifacts(root_run_id, rest) if rest else known

    def get_facts(self, run_id: UUID, key_digests: Iterable[str] | None = None) -> list[FactEntry]:
        """Return what the store has: a newborn has no facts."""
        return self._store.get_facts(run_id, key_digests)

    def find_run(self, run_id: UUID) -> RunRow | None:
        """Return what the store has: others may have moved it."""
        return self._store.find_run(run_id)


class Cradle:
    """The newborn runs of a process; each is taken out once. Whoever makes runs resolves their plans here."""

    def __init__(self, store: Store, scheduler: Scheduler, resolver: PlanResolver) -> None:
        self._store = store
        self._resolver = resolver
        self._monitor = scheduler.monitor()
        self._newborn: dict[UUID, Newborn] = {}
        self._resolved: OrderedDict[str, Resolved] = OrderedDict()

    def resolve(self, manifest: RunManifest) -> ExecutionPlan:
        """Return a manifest's plan, and remember it until a run of it has come into being."""
        plan = self._resolver.resolve(manifest)
        with self._monitor:
            self._resolved[manifest_id(manifest)] = manifest, plan
            if len(self._resolved) > MOST:
                self._resolved.popitem(last=False)
        return plan

    def keep(self, commit: Commit, answer: Committed) -> None:
        """Remember the runs that a commit has created."""
        by_id = {artifact.id: artifact for artifact in commit.artifacts}
        with self._monitor:
            for step in commit.steps:
                row = created_row(step, answer)
                if row is not None and len(self._newborn) < MOST:
                    ids = {row.manifest_id, row.initial_snapshot_id}
                    own = [by_id[id_] for id_ in ids if id_ in by_id]
                    event = _first_event(step, commit, answer)
                    resolved = self._resolved.pop(row.manifest_id, None)
                    self._newborn[step.run_id] = Newborn(row, event, own, self._store, resolved)

    def take(self, run_id: UUID) -> Newborn | None:
        """Return a newborn run and forget it."""
        with self._monitor:
            return self._newborn.pop(run_id, None)


def _first_event(step: RunStep, commit: Commit, answer: Committed) -> StoredEvent:
    head = answer.heads[step.run_id]
    body = step.events[0].body
    return StoredEvent(step.run_id, 1, answer.recorded_at, body, head.hash, commit.commit_id, head.epoch)
