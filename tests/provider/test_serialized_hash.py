"""A DAG that uses operations has one serialized hash, whichever process parses it: else every parse were a new version."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.provider.conftest import ROOT

pytestmark = pytest.mark.provider

_DAG = """
from airflow.sdk import DAG
from airflow_childrun import Operation, SpawnChildRunOperator, operation

@operation(version="1")
def double(io, number: int) -> int:
    return 2 * number

graph = Operation("graph", version="2")

@graph.state(retry=2)
def first(io, number: int) -> int:
    return number

@graph.state(side_effects="ApplySideEffect", idempotency="number")
def second(first: int) -> int:
    return first

def name_of(element):
    return element

with DAG("hashed", schedule=None, default_args={"operation": graph, "retries": 5}):
    SpawnChildRunOperator(task_id="plain", operation=double, input=1)
    SpawnChildRunOperator(task_id="keyed", operation=double, inputs=[1], child_key=name_of)
    SpawnChildRunOperator.partial(task_id="mapped", operation=double).expand(input=[1, 2])
    SpawnChildRunOperator(task_id="by_default", input=1)
    SpawnChildRunOperator.partial(task_id="mapped_by_default").expand(input=[1, 2])

with DAG("stranger", schedule=None, default_args={"stranger": object()}):
    SpawnChildRunOperator(task_id="plain", operation=double, input=1)
"""

_HASH = """
import sys
from airflow.dag_processing.dagbag import DagBag
from airflow.models.serialized_dag import SerializedDagModel
from airflow.serialization.serialized_objects import DagSerialization
bag = DagBag(sys.argv[1])
assert not bag.import_errors, bag.import_errors
for name, dag in bag.dags.items():
    print("HASH", name, SerializedDagModel.hash(DagSerialization.to_dict(dag)))
"""


def hashes(folder: Path, seed: int) -> dict[str, str]:
    """Return the hash of each DAG that a process of its own comes to."""
    environment = {"AIRFLOW_HOME": str(folder), "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": str(seed)}
    done = subprocess.run(
        [sys.executable, "-c", _HASH, str(folder)],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    found = dict(line.split()[1:] for line in done.stdout.splitlines() if line.startswith("HASH "))
    assert len(found) == 2, done.stdout + done.stderr
    return found


def test_a_dag_with_operations_hashes_alike_in_two_processes(tmp_path: Path) -> None:
    """Plain, in ``.partial()`` and in ``default_args``; a thing whose text has its address does not, so the test can fail."""
    (tmp_path / "hashed.py").write_text(_DAG)
    one, other = hashes(tmp_path, 1), hashes(tmp_path, 2)
    assert one["hashed"] == other["hashed"]
    assert one["stranger"] != other["stranger"]
