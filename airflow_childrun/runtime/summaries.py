"""Proving that the summaries of a run tell what its events mean."""

from __future__ import annotations

from uuid import UUID

from airflow_childrun.canonical import decode_stored
from airflow_childrun.engine.facts import KnownKeys
from airflow_childrun.engine.history import RunHistory
from airflow_childrun.engine.summary import is_summary_of
from airflow_childrun.errors import ChildRunError, UnavailableError
from airflow_childrun.model.events import Event, StateCompleted
from airflow_childrun.runtime.histories import load_history
from airflow_childrun.store.api import RunRow, Store
from airflow_childrun.store.verify import Finding


def verify_summaries(store: Store, row: RunRow) -> list[Finding]:
    """Fold a run's events once more, and compare each summary with what they meant when it was written.

    :raises UnavailableError: if the store cannot be reached
    """
    watched = _Watched(store, row.run_id, row.root_run_id)
    try:
        load_history(store, row.run_id, watched.see)
    except UnavailableError:
        raise
    except ChildRunError as error:
        watched.findings.append(Finding("event_malformed", row.run_id, None, str(error)))
    return watched.findings


class _Watched:
    """What is seen while a history is folded."""

    def __init__(self, store: Store, run_id: UUID, root_run_id: UUID) -> None:
        self._store = store
        self._run_id = run_id
        self._root = root_run_id
        self.findings: list[Finding] = []

    def see(self, history: RunHistory, event: Event) -> None:
        """Look at a summary before its event is taken in."""
        if not isinstance(event, StateCompleted) or event.summary is None or history.run_id != self._run_id:
            return
        seq = history.head + 1
        if event.summary.seq != seq:
            if history.summary != event.summary:
                self._found(seq, f"event {seq} names the summary of event {event.summary.seq}, which is not the newest")
            return
        body = self._read(event.summary.id)
        if body is not None and not (is_summary_of(body, history) and self._lists_keys(body, history)):
            self._found(seq, f"the summary of event {seq} is not what the events before it mean")

    def _lists_keys(self, body: bytes, history: RunHistory) -> bool:
        lists = tuple(self._read(id_) or b"" for id_ in decode_stored(body).get("keys", ()))
        keys = KnownKeys(lists)
        return all(keys.may_have(key) for key in history.facts.all_keys())

    def _read(self, artifact_id: str) -> bytes | None:
        return self._store.get_artifacts(self._root, [artifact_id]).get(artifact_id)

    def _found(self, seq: int, what: str) -> None:
        remedy = "restore the run from a backup, or start it afresh"
        self.findings.append(Finding("summary_mismatch", self._run_id, seq, f"{what}; {remedy}"))
