"""A task's own patience: it ends, and its children are left as they are."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_childrun.authoring.operation import operation
from airflow_childrun.authoring.registry import RegistryResolver
from airflow_childrun.clock import SystemClock
from airflow_childrun.errors import HostError
from airflow_childrun.hooks.deferral import AwaitPolicy
from airflow_childrun.hooks.driving import Driving
from airflow_childrun.hooks.observer import TaskObserver
from airflow_childrun.model.manifest import build_manifest
from airflow_childrun.runtime.engine import ExecutionEngine
from airflow_childrun.runtime.house import House
from airflow_childrun.secret_policy import standard
from airflow_childrun.store.memory import MemoryStore

pytestmark = pytest.mark.provider


@operation(version="1")
def outlasts_its_task(io: Any) -> None:
    io.sleep(3600)


def test_an_await_timeout_ends_the_wait_and_no_child() -> None:
    """Whether this process drives the child or another one does; nobody is asked to end."""
    store = MemoryStore(SystemClock())

    def house() -> House:
        return House(store, RegistryResolver(), standard())

    engine = ExecutionEngine(house())
    run_id = engine.create(
        build_manifest("outlasts_its_task", "1", input=None, run_config=outlasts_its_task.run_config)
    )
    tasks = [Driving(house(), TaskObserver(store)) for _ in range(2)]
    for task in tasks:
        with pytest.raises(HostError) as raised:
            task.drive([store.get_runs([run_id])[run_id]], AwaitPolicy(give_up_at=SystemClock().now_us() + 300_000))
        assert (raised.value.code, raised.value.retryable) == ("await_timed_out", True)
    for task in tasks:
        task.close()
    row = store.get_runs([run_id])[run_id]
    assert not row.is_terminal
    assert store.read_inbox(run_id) == []
