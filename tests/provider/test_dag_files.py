"""DAG files with operations: parsed, serialized the same in every process, imported without side effects."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.provider.conftest import AirflowHome

pytestmark = pytest.mark.provider

DAGS = Path(__file__).parent / "dags"

_SERIALIZE = """
import json, os, sys
from airflow.dag_processing.dagbag import DagBag
from airflow.models.serialized_dag import SerializedDagModel
from airflow.serialization.serialized_objects import DagSerialization
found = {}
for parse in range(2):
    bag = DagBag(os.environ["AIRFLOW__CORE__DAGS_FOLDER"])
    assert not bag.import_errors, bag.import_errors
    for dag_id, dag in bag.dags.items():
        data = DagSerialization.to_dict(dag)
        found.setdefault(dag_id, []).append([SerializedDagModel.hash(data), json.dumps(data, sort_keys=True, default=str)])
print("RESULT " + json.dumps(found))
"""


@pytest.fixture(scope="module")
def serialized(new_airflow_home: Callable[..., AirflowHome]) -> list[dict[str, list[list[str]]]]:
    """Give hash and text of each DAG, twice in each of two processes with different hash seeds."""
    home = new_airflow_home()
    for name in ("stable.py", "every_way.py", "same_name.py"):
        shutil.copy(DAGS / name, home.path / "dags")
    answers = []
    for seed in ("1", "2"):
        done = home.python(_SERIALIZE, PYTHONHASHSEED=seed)
        lines = [line for line in done.out.splitlines() if line.startswith("RESULT ")]
        assert lines, done.text
        answers.append(json.loads(lines[0].removeprefix("RESULT ")))
    return answers


STABLE = ["stable_plain", "stable_partial", "stable_defaults", "plain", "xcom_args", "same_name"]


@pytest.mark.parametrize("dag_id", STABLE)
def test_a_dag_has_one_hash_in_every_process_and_parse(serialized: list[dict[str, Any]], dag_id: str) -> None:
    """Otherwise Airflow makes a new DAG version at every parse."""
    hashes = {digest for process in serialized for digest, _ in process[dag_id]}
    assert len(hashes) == 1


def test_what_is_serialized_holds_no_address_and_no_source(serialized: list[dict[str, Any]]) -> None:
    for parses in serialized[0].values():
        for _, text in parses:
            assert " at 0x" not in text
            assert "def " not in text, text[text.index("def ") - 200 :][:400]
    assert "Operation('stable', version='1')" in serialized[0]["stable_partial"][0][1]


def test_defaults_are_serialized_as_airflow_will_use_them(serialized: list[dict[str, Any]]) -> None:
    """The scheduler, which never makes our operators, has to know of the two retries; also of mapped ones."""
    for dag_id in ("stable_plain", "stable_partial"):
        data = json.loads(serialized[0][dag_id][0][1])
        for task in data["dag"]["tasks"]:
            inner = task["__var"]
            retries = inner.get("retries", inner.get("partial_kwargs", {}).get("retries"))
            assert retries == 2, inner["task_id"]
