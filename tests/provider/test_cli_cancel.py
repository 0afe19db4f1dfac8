"""``childrun cancel`` on a real store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from airflow_childrun.authoring.operation import operation
from airflow_childrun.authoring.registry import RegistryResolver
from airflow_childrun.cli.main import main
from airflow_childrun.model.config import RunConfig
from airflow_childrun.model.manifest import build_manifest
from airflow_childrun.runtime.engine import ExecutionEngine
from airflow_childrun.runtime.house import House
from airflow_childrun.secret_policy import standard
from airflow_childrun.store.sql.address import parse_address
from airflow_childrun.store.sql.migrate import upgrade
from airflow_childrun.store.sql.store import SqlStore


@operation(version="1")
def waits_to_be_cancelled() -> None:
    """Nobody drives it."""


def test_a_run_is_cancelled_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"sqlite:///{tmp_path / 'childrun.db'}"
    upgrade(parse_address(url))
    store = SqlStore(parse_address(url))
    engine = ExecutionEngine(House(store, RegistryResolver(), standard()))
    run_id = engine.create(build_manifest("waits_to_be_cancelled", "1", run_config=RunConfig()))
    assert main(["cancel", str(run_id), "--url", url, "--json", "--reason", "not needed"]) == 0
    assert json.loads(capsys.readouterr().out) == {"run_id": str(run_id), "outcome": "cancelled"}
    row = store.find_run(run_id)
    assert row is not None
    assert row.status == "Cancelled"
    assert main(["cancel", str(run_id), "--url", url]) == 1
    assert "had ended before" in capsys.readouterr().out
    store.close()
