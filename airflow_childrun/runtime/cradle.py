"""Runs that this process has created a moment ago: what it wrote, it need not read back before it drives them.

Whoever drives one first takes its lease at the head that was written here: if anybody moved the run meanwhile, that
commit is refused, and the run is read.
"""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from airflow_childrun.runtime.scheduler import Scheduler
from airflow_childrun.store.api import Artifact, Commit, Committed, FactEntry, RunRow, RunStep, Store, StoredEvent
from airflow_childrun.store.decision import created_row

MOST = 4000
"""How many runs are remembered; the others are read like any run."""


class Newborn:
    """One run as it was written: answers the reads of whoever drives it first."""

    def __init__(self, row: RunRow, event: StoredEvent, artifacts: Iterable[Artifact], store: Store) -> None:
        self.row = row
        self._event = event
        self._artifacts = {artifact.id: artifact.body for artifact in artifacts}
        self._store = store

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
    """The newborn runs of a process; each is taken out once."""

    def __init__(self, store: Store, scheduler: Scheduler) -> None:
        self._store = store
        self._monitor = scheduler.monitor()
        self._newborn: dict[UUID, Newborn] = {}

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
                    self._newborn[step.run_id] = Newborn(row, event, own, self._store)

    def take(self, run_id: UUID) -> Newborn | None:
        """Return a newborn run and forget it."""
        with self._monitor:
            return self._newborn.pop(run_id, None)


def _first_event(step: RunStep, commit: Commit, answer: Committed) -> StoredEvent:
    head = answer.heads[step.run_id]
    body = step.events[0].body
    return StoredEvent(step.run_id, 1, answer.recorded_at, body, head.hash, commit.commit_id, head.epoch)
