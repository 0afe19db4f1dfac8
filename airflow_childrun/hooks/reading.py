"""Reading runs through the hook."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from airflow_childrun.canonical import decode_stored
from airflow_childrun.errors import InputError, NotFoundError
from airflow_childrun.hooks.results import check_ends, read_handle
from airflow_childrun.model.events import event_to_json
from airflow_childrun.runtime.ends import end_of
from airflow_childrun.runtime.generations import newest_of
from airflow_childrun.runtime.overdue import as_read, find_as_read
from airflow_childrun.store.api import RunFilter, RunPage, RunRow, Store
from airflow_childrun.store.codec import decode_events
from airflow_childrun.store.verify import Finding, verify_run


class RunReader:
    """What a hook reads of the runs in its store."""

    def get_conn(self) -> Store:
        """Return the store."""
        raise NotImplementedError

    def find_run(self, run_id: str | UUID) -> RunRow | None:
        """Return a run's row, or None; one that is over though nobody has written so reads as Cancelled.

        :param run_id: a whole id; the same for every method that takes one
        :raises InputError: code ``run_id_invalid``
        """
        store = self.get_conn()
        row = store.find_run(_uuid(run_id))
        return None if row is None else as_read(store, [row])[0]

    def get_run(self, run_id: str | UUID) -> RunRow:
        """Return a run's row.

        :raises NotFoundError: code ``run_not_found``
        """
        row = self.find_run(run_id)
        if row is None:
            raise NotFoundError(f"there is no run {run_id}; see `childrun runs list`", code="run_not_found")
        return row

    def find_runs(
        self, where: RunFilter, cursor: str | None = None, limit: int = 100, *, newest_first: bool = False
    ) -> RunPage:
        """Return a page of runs, the oldest first or the newest; a cursor goes on in the same order.

        Where statuses are asked for, it may be shorter than ``limit`` though more follow.
        """
        return find_as_read(self.get_conn(), where, cursor, limit, newest_first=newest_first)

    def children_of(self, run_id: str | UUID) -> list[RunRow]:
        """Return the runs that a run spawned, every generation of them.

        :raises NotFoundError: code ``run_not_found``
        """
        store = self.get_conn()
        return as_read(store, store.children_of(_uuid(run_id))) or self._none_of(run_id)

    def read_events(self, run_id: str | UUID) -> list[dict[str, Any]]:
        """Return a run's events in V1's envelope: ``{run_id, seq, ts_millis, event}``.

        :raises NotFoundError: code ``run_not_found``
        """
        stored = decode_events(self.get_conn().read_events(_uuid(run_id)) or self._none_of(run_id))
        return [
            {
                "run_id": str(row.run_id),
                "seq": row.seq,
                "ts_millis": row.recorded_at // 1000,
                "event": event_to_json(event),
            }
            for row, event in stored
        ]

    def read_snapshot(self, run_id: str | UUID) -> Any:
        """Return a run's last snapshot: the final one, or that of its last checkpoint.

        :raises NotFoundError: codes ``run_not_found``, ``artifact_not_found``
        """
        store = self.get_conn()
        row = self.get_run(run_id)
        snapshot_id = row.final_snapshot_id or row.checkpoint_snapshot_id
        found = store.get_artifacts(row.root_run_id, [snapshot_id])
        if snapshot_id not in found:
            raise NotFoundError(
                f"the snapshot {snapshot_id} of run {row.run_id} is missing; run `childrun verify {row.run_id}` and restore "
                "it from a backup",
                code="artifact_not_found",
            )
        return decode_stored(found[snapshot_id])

    def read_output(self, handle: Mapping[str, Any]) -> Any:
        """Return what a child's operation returned: of the generation that a result names, or the newest of its slot.

        :raises ChildRunFailedError: if it did not complete
        """
        read = read_handle(handle)
        store = self.get_conn()
        slot_id = UUID(read["slot_id"])
        row = self.get_run(read["child_run_id"]) if "generation" in read else newest_of(store, [slot_id])[slot_id]
        (row,) = as_read(store, [row])
        # One that only reads as Cancelled has no end yet that could be read.
        answer = end_of(store, row, compact=True) if row.status in ("Completed", "Failed") else {}
        check_ends([{**read, "key": read.get("key", row.op_id), "status": row.status, "error": answer.get("cause")}])
        return answer["output"]

    def verify(self, run_id: str | UUID) -> list[Finding]:
        """Check a run's chain, artifacts and row; an empty list means that all is well."""
        return verify_run(self.get_conn(), _uuid(run_id))

    def _none_of(self, run_id: str | UUID) -> list[Any]:
        """Return nothing for a run that has nothing.

        :raises NotFoundError: if there is no such run
        """
        self.get_run(run_id)
        return []


def _uuid(run_id: str | UUID) -> UUID:
    """Read a run's id.

    :raises InputError: code ``run_id_invalid``
    """
    try:
        return UUID(str(run_id))
    except ValueError:
        raise InputError(f"{run_id!r} is no run id: it takes a whole UUID", code="run_id_invalid") from None
