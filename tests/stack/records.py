"""What the store of a stand holds, read beside Airflow as an administrator would."""

from __future__ import annotations

from typing import Any, Self

from airflow_childrun.canonical import decode_stored
from airflow_childrun.model.events import event_to_json
from airflow_childrun.store.api import RunFilter, RunRow
from airflow_childrun.store.codec import decode_events
from airflow_childrun.store.sql.store import SqlStore
from airflow_childrun.store.verify import verify_run
from tests.stack.stand import Stand


class Records:
    """The child runs of one stand.

    :param url: SQLAlchemy URL of the metadata database, of a login that may read everything
    """

    def __init__(self, url: str) -> None:
        self.store = SqlStore(url, schema="childrun")

    @classmethod
    def of(cls, stand: Stand) -> Self:
        """Return what a stand's store holds."""
        return cls(stand.environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"].replace("+psycopg2:", "+psycopg:"))

    def hosts(self, dag_id: str, run_id: str | None, task_id: str | None = None) -> list[RunRow]:
        """Return the host runs of a DAG run's tasks, or of all DAG runs of a DAG, oldest first."""
        page = self.store.find_runs(RunFilter(dag_id=dag_id, dag_run_id=run_id, task_id=task_id), None, 500)
        return sorted(page.rows, key=lambda row: row.created_at)

    def children(self, dag_id: str, run_id: str | None, task_id: str | None = None) -> list[RunRow]:
        """Return every generation of every child, oldest first."""
        rows = [row for host in self.hosts(dag_id, run_id, task_id) for row in self.store.children_of(host.run_id)]
        return sorted(rows, key=lambda row: (row.created_at, row.generation))

    def newest(self, dag_id: str, run_id: str) -> dict[str, RunRow]:
        """Return the newest generation of each child, by its key."""
        found: dict[str, RunRow] = {}
        for row in sorted(self.children(dag_id, run_id), key=lambda row: row.generation):
            found[self.key(row)] = row
        return found

    def key(self, row: RunRow) -> str:
        """Return the key under which a child was spawned."""
        return str(self.events(row)[0]["Kernel"]["RunStarted"]["parent"]["fact_key"])

    def input(self, row: RunRow) -> str:
        """Return the input with which a child was spawned."""
        (body,) = self.store.get_artifacts(row.root_run_id, [row.manifest_id]).values()
        return str(decode_stored(body)["input_params"]["input"])

    def statuses(self, dag_id: str, run_id: str) -> list[tuple[int, str]]:
        """Return generation and status of every child, sorted."""
        return sorted((row.generation, row.status) for row in self.children(dag_id, run_id))

    def events(self, row: RunRow) -> list[dict[str, Any]]:
        """Return a run's events in V1's shape."""
        return [event_to_json(event) for _, event in decode_events(self.store.read_events(row.run_id))]

    def tries(self, row: RunRow) -> list[str]:
        """Return the kinds of the tries that a host run saw."""
        found = [event["Domain"] for event in self.events(row) if "Domain" in event]
        return [event["payload"]["kind"] for event in found if event["name"] == "host_try"]

    def findings(self, dag_id: str, run_id: str | None) -> list[Any]:
        """Return what ``verify`` finds in a DAG run's trees, or in those of a whole DAG; nothing, if all is well."""
        rows = self.hosts(dag_id, run_id) + self.children(dag_id, run_id)
        return [finding for row in rows for finding in verify_run(self.store, row.run_id)]
