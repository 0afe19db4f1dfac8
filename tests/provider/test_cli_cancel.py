"""``childrun cancel``, ``purge`` and ``recover`` on a real store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from airflow_childrun._airflow import mask_secret
from airflow_childrun.authoring.operation import Operation, operation
from airflow_childrun.authoring.registry import RegistryResolver
from airflow_childrun.cli import recover
from airflow_childrun.cli.main import main
from airflow_childrun.errors import Interrupt
from airflow_childrun.model.config import RunConfig
from airflow_childrun.model.manifest import build_manifest
from airflow_childrun.runtime.closing import cancel_run
from airflow_childrun.runtime.engine import ExecutionEngine
from airflow_childrun.runtime.house import House
from airflow_childrun.runtime.recover import Sweep
from airflow_childrun.secret_policy import SecretPolicy, standard
from airflow_childrun.store.sql.address import parse_address
from airflow_childrun.store.sql.migrate import upgrade
from airflow_childrun.store.sql.store import SqlStore
from airflow_childrun.testing.clock import ManualClock
from tests.provider.kit import write_connection


@operation(version="1")
def waits_to_be_cancelled() -> None:
    """Nobody drives it."""


owes = Operation("owes_clean_up", version="1")


@owes.state
def work() -> None:
    """End as a process does that dies in the middle."""
    raise Interrupt("left open")


@owes.on_cancel
def tidy() -> None:
    """Have something to put away."""


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
    assert main(["purge", "--older-than", "1h", "--url", url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"trees": 0, "runs": 0, "dry_run": False}
    assert store.delete_tree(run_id, store.now_us() + 1) == 1
    store.close()


def test_a_cancel_that_leaves_clean_up_to_others_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody owns the run: no owner will end it, and what will is named."""
    url = f"sqlite:///{tmp_path / 'childrun.db'}"
    upgrade(parse_address(url))
    store = SqlStore(parse_address(url))
    engine = ExecutionEngine(House(store, RegistryResolver(), standard()))
    run_id = engine.create(build_manifest("owes_clean_up", "1", run_config=RunConfig()))
    engine.supervisor.hand_over(run_id)
    while not engine.supervisor.is_idle():
        engine.supervisor.wait_until_idle(0.1)
    engine.close()
    assert main(["cancel", str(run_id), "--url", url]) == 0
    said = capsys.readouterr().out
    assert "nobody drives it" in said
    assert "`childrun recover`" in said
    row = store.find_run(run_id)
    assert row is not None
    assert row.status == "Running"
    store.close()


def test_old_trees_are_purged_and_counted_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"sqlite:///{tmp_path / 'childrun.db'}"
    upgrade(parse_address(url))
    past = SqlStore(parse_address(url), clock=ManualClock(1_000_000))
    engine = ExecutionEngine(House(past, RegistryResolver(), standard()))
    run_id = engine.create(build_manifest("waits_to_be_cancelled", "1", run_config=RunConfig()))
    assert main(["purge", "--older-than", "1d", "--url", url]) == 0
    assert past.find_run(run_id) is not None, "a run that has not ended is never purged"
    assert cancel_run(engine.house, run_id, "old") == {run_id: "cancelled"}
    capsys.readouterr()
    assert main(["purge", "--older-than", "1d", "--dry-run", "--url", url]) == 0
    assert capsys.readouterr().out.strip() == "1 trees would be deleted"
    assert main(["purge", "--older-than", "1d", "--url", url]) == 0
    assert capsys.readouterr().out.strip() == "1 trees with 1 runs deleted"
    assert past.find_run(run_id) is None
    assert main(["purge", "--older-than", "soon", "--url", url]) == 2
    assert "such as 30d" in capsys.readouterr().err
    past.close()


def test_clean_up_that_recover_runs_records_no_secret_that_airflow_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a task: what its connections made secret in this process."""
    url = f"sqlite:///{tmp_path / 'childrun.db'}"
    upgrade(parse_address(url))
    policies: list[SecretPolicy] = []

    def swept(store: Any, settings: Any, policy: SecretPolicy, *rest: Any) -> Sweep:
        policies.append(policy)
        return Sweep()

    monkeypatch.setattr(recover, "recover", swept)
    write_connection(monkeypatch, password=url, extra={"deployment_id": "here"})
    assert main(["recover"]) == 0
    mask_secret("s3cret-of-a-clean-up")
    assert policies[0].find({"answer": ["s3cret-of-a-clean-up"]}) == "$.answer[0]"
