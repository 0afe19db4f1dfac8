"""The maintenance DAG and its commands, in a real Airflow on SQLite: what they end, what they delete, what they leave."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

from tests.provider.conftest import AirflowHome

pytestmark = [pytest.mark.provider, pytest.mark.slow]
DAGS = Path(__file__).parent / "dags"

_PLAY = """
import json, os, sys
from airflow.dag_processing.dagbag import DagBag
from airflow.models.xcom import XComModel
from airflow.utils.session import create_session
bag = DagBag(os.environ["AIRFLOW__CORE__DAGS_FOLDER"])
assert not bag.import_errors, bag.import_errors
for dag_id in sys.argv[1:]:
    run = bag.dags[dag_id].test()
    with create_session() as session:
        rows = session.query(XComModel).filter_by(run_id=run.run_id, dag_id=dag_id, key="return_value")
        xcoms = {row.task_id: XComModel.deserialize_value(row) for row in rows}
    print("RESULT " + json.dumps({"state": str(run.state), "run_id": run.run_id, "xcoms": xcoms}))
"""


def play(home: AirflowHome, *dag_ids: str) -> list[dict[str, Any]]:
    """Run DAGs one after the other with ``dag.test``."""
    done = home.python(_PLAY, *dag_ids)
    found = [json.loads(line.removeprefix("RESULT ")) for line in done.out.splitlines() if line.startswith("RESULT ")]
    assert len(found) == len(dag_ids), done.text
    return found


@pytest.fixture(scope="module")
def home(new_airflow_home: Callable[..., AirflowHome]) -> AirflowHome:
    made = new_airflow_home()
    shutil.copy(DAGS / "maintenance.py", made.path / "dags")
    for done in (made.airflow("db", "migrate"), made.childrun("init")):
        assert done.status == 0, done.text
    return made


def execute(file: Path, statement: str, **values: Any) -> None:
    engine = sqlalchemy.create_engine(f"sqlite:///{file}")
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text(statement), values)
    engine.dispose()


def test_maintenance_ends_what_nobody_goes_on_with_and_deletes_what_airflow_forgot(home: AirflowHome) -> None:
    """Children of a green task whose DAG run goes on are left alone; those of a DAG run that is over are ended.

    Of two trees as old as each other the one is deleted whose DAG run is gone, and only that one.
    """
    kept, left, first = play(home, "swept_while_open", "left_behind", "childrun_maintenance")
    assert kept["xcoms"]["recover"] == {"ended": 0, "in_grace": 0, "awaited": 2, "left": 0, "unreachable": []}
    assert [result["output"] for result in kept["xcoms"]["await"]] == [2, 4]
    assert (kept["state"], left["state"], first["state"]) == ("success", "failed", "success")
    assert first["xcoms"]["recover"] == {"ended": 2, "in_grace": 0, "awaited": 0, "left": 0, "unreachable": []}
    assert first["xcoms"]["purge"] == {"old": 0, "orphaned": 0}

    execute(home.path / "airflow.db", "DELETE FROM dag_run WHERE run_id = :run_id", run_id=left["run_id"])
    with home.console() as childrun:
        counted = childrun("purge", "--orphaned", "--dry-run")
        assert (counted.status, counted.out.strip()) == (0, "1 trees would be deleted")
        young = json.loads(childrun("purge", "--orphaned", "--older-than", "1h", "--json").out)
        assert young == {"trees": 0, "runs": 0, "dry_run": False}
        assert childrun("purge").status == 2
        assert "say which trees" in childrun("purge").err
        assert "not with --url" in childrun("purge", "--orphaned", "--url", "sqlite:///nowhere.db").err

    execute(home.path / "childrun.db", "UPDATE childrun_run SET updated_at = updated_at - 172800000000")
    (second,) = play(home, "childrun_maintenance")
    assert second["xcoms"]["purge"] == {"old": 0, "orphaned": 1}
    with home.console() as childrun:
        rows = [json.loads(line) for line in childrun("runs", "list", "--json").out.splitlines()]
        assert {row["airflow"]["dag_id"] for row in rows if row["airflow"]} == {"swept_while_open"}
        assert sum(row["kind"] == "operation" for row in rows) == 2
        assert "0 ended" in childrun("recover").out
