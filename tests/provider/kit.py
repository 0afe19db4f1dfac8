"""A hook in this process, on a store of its own: contexts as Airflow hands them to tasks, without a metadata database."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from airflow_childrun.hooks import connection as module
from airflow_childrun.store.sql.migrate import upgrade

START = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Ticket:
    """A try of a task instance, as Airflow's context tells it."""

    task_id: str = "t"
    run_id: str = "manual__1"
    number: int = 1
    try_number: int = 1
    max_tries: int = 2
    clear_number: int = 0

    def retry(self) -> Ticket:
        return replace(self, number=self.number + 1, try_number=self.try_number + 1)

    def clear(self) -> Ticket:
        number = self.try_number
        later: dict[str, Any] = {
            "try_number": number + 1,
            "max_tries": number + 2,
            "clear_number": self.clear_number + 1,
        }
        return replace(self, number=self.number + 1, **later)

    def context(self, conf: Any = None) -> dict[str, Any]:
        ti = SimpleNamespace(
            id=UUID(int=self.number),
            dag_id="d",
            task_id=self.task_id,
            run_id=self.run_id,
            map_index=-1,
            try_number=self.try_number,
            max_tries=self.max_tries,
        )
        start = START + timedelta(hours=self.clear_number)
        dag_run = SimpleNamespace(clear_number=self.clear_number, start_date=start, conf=conf, logical_date=START)
        dag = SimpleNamespace(fileloc=None)
        return {"ti": ti, "dag_run": dag_run, "task": SimpleNamespace(dag=dag, retry_delay=timedelta(0))}


def write_connection(monkeypatch: pytest.MonkeyPatch, conn_id: str = "childrun_default", **fields: Any) -> None:
    """Let Airflow know a connection, by its environment."""
    monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps({"conn_type": "childrun", **fields}))


@contextmanager
def sqlite_connection(monkeypatch: pytest.MonkeyPatch, path: Path, *, migrated: bool = True) -> Iterator[Path]:
    """Give the default connection a SQLite file."""
    file = path / "childrun.db"
    if migrated:
        upgrade(f"sqlite:///{file}")
    write_connection(monkeypatch, password=f"sqlite:///{file}", extra={"deployment_id": "here"})
    yield file
    for store in module._open.values():
        store.close()
    module._open.clear()
