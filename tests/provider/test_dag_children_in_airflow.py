"""DAG runs as children under ``dag.test``: Airflow's own answers, and a hand in place of the scheduler."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Self

import pytest
import sqlalchemy

from tests.provider.conftest import AirflowHome

pytestmark = [pytest.mark.provider, pytest.mark.slow]

DAGS = '''
from airflow.sdk import DAG, task

from airflow_childrun import SpawnChildRunOperator
from airflow_childrun import _airflow

with DAG("nightly", schedule=None):

    @task
    def nothing():
        """Never run: nobody schedules this DAG here."""

    nothing()

with DAG("weekly", schedule=None):
    nothing()

with DAG("orders", schedule=None):
    SpawnChildRunOperator(task_id="weekly", dag_id="weekly", deferrable=True, retries=0)
    children = SpawnChildRunOperator(task_id="nightly", dag_id="nightly", input={"day": "monday"}, retries=0)

    @task
    def ask_twice(results):
        """Ask for one DAG run twice, and for one that is not there."""
        conf = {"childrun_parent": {"nonce": "n"}}
        asked = [_airflow.trigger_dag_run("nightly", "twice", conf) for _ in range(2)]
        print("ANSWERS", asked, _airflow.dag_run_conf("nightly", "twice") == conf, _airflow.dag_run_conf("nightly", "no"))
        print("STATES", _airflow.task_states("nightly", "twice"), results["status"])

    ask_twice(children.output)
'''


class Hand:
    """Ends DAG runs: those of ``nightly`` as soon as they are there, those of ``weekly`` once a task has left."""

    def __init__(self, home: AirflowHome) -> None:
        self._engine = sqlalchemy.create_engine(home.environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"])
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._engine.dispose()

    def _work(self) -> None:
        end = sqlalchemy.text(
            "UPDATE dag_run SET state = 'success' WHERE state = 'queued' AND (dag_id = 'nightly' OR dag_id = 'weekly' "
            "AND EXISTS (SELECT 1 FROM task_instance WHERE next_method = 'execute_complete'))"
        )
        while not self._over.wait(0.5):
            with self._engine.begin() as connection:
                connection.execute(end)


def test_airflow_answers_as_the_stand_in_of_the_other_tests_does(airflow_home: AirflowHome, tmp_path: Path) -> None:
    """DAG runs are triggered and their ends noticed, by a task that waits and by a trigger, which has the same channel.

    A second request for a run says that it exists, and its conf tells whose.
    """
    done = airflow_home.childrun("init")
    assert done.status == 0, done.text
    (tmp_path / "orders.py").write_text(DAGS)
    environment = {
        "AIRFLOW__CORE__DAGS_FOLDER": str(tmp_path),
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
    }
    with Hand(airflow_home):
        done = airflow_home.airflow("dags", "test", "orders", **environment)
    assert done.status == 0, done.text
    assert "of DAG nightly was triggered" in done.text
    assert "1 of them for DAG runs" in done.text
    assert "back from the triggerer: the DAG runs are over" in done.text
    assert "ANSWERS [True, False] True {}" in done.text
    assert "STATES {'nothing': 'None'} Completed" in done.text
