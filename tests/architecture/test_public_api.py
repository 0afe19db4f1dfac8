"""What users may import from the root is a decision, not an accident."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import airflow_childrun
from airflow_childrun.authoring.author_io import Io

ROOT = Path(__file__).parents[2]

# Adding a name is a minor release, removing or renaming one a major release.
PUBLIC = [
    "AwaitChildRunOperator",
    "ChildRunHook",
    "Operation",
    "RunFilter",
    "SpawnChildRunOperator",
    "SpawnOrder",
    "__version__",
    "childrun_maintenance_dag",
    "childrun_runner_dag",
    "operation",
]

# What DAG files and handlers write. An argument that is not here may come and go; to take one away that is, is a major release.
_AWAIT = """results failure_mode max_concurrency await_timeout deferrable poll_interval end_from_trigger childrun_conn_id retries"""
ARGUMENTS = {
    "SpawnChildRunOperator": f"""
        operation op_id op_version input inputs child_key op_config initial_context run_config on_clear on_plan_change
        wait_for_completion child_timeout child_retry_policy parent_close_policy dispatch runner_dag_id batch_size on_runner_lost
        dag_id result_task_id result_key airflow_api_conn_id {_AWAIT}""",
    "AwaitChildRunOperator": f"child_runs {_AWAIT}",
    "ChildRunHook": "childrun_conn_id max_concurrency",
    "ChildRunHook.spawn": "context order on_clear on_plan_change",
    "ChildRunHook.await_runs": "context handles results failure_mode",
    "ChildRunHook.spawn_and_await": "context order on_clear on_plan_change results failure_mode",
    "ChildRunHook.get_run": "run_id",
    "ChildRunHook.read_output": "handle",
    "ChildRunHook.read_events": "run_id",
    "ChildRunHook.read_snapshot": "run_id",
    "ChildRunHook.find_runs": "where cursor limit",
    "ChildRunHook.children_of": "run_id",
    "ChildRunHook.verify": "run_id",
    "ChildRunHook.test_connection": "",
    "SpawnOrder": "operation elements single child_key op_config initial_context run_config child_timeout",
    "RunFilter": "op_id statuses kind dag_id dag_run_id task_id parent_run_id root_run_id",
    "operation": "version name retry timeout run_config",
    "Operation": "name version build run_config",
    "Operation.state": "after tags retry side_effects idempotency timeout",
    "Operation.on_cancel": "function",
    "Operation.input_schema": "",
    "childrun_runner_dag": """
        dag_id operations pool queue executor priority_weight max_active_runs childrun_conn_id max_concurrency retries
        retry_delay executor_config""",
    "childrun_maintenance_dag": "dag_id schedule older_than orphaned_after childrun_conn_id",
    "Io.step": "function key retry allow_keys",
    "Io.spawn": "operation input key config run_config timeout child_retry_policy",
    "Io.await_child": "child timeout",
    "Io.map": "operation inputs key config run_config timeout child_retry_policy max_concurrency",
    "Io.sleep": "span key",
    "Io.call": "namespace request fact_key",
    "Io.record_value": "key value",
    "Io.get_recorded_fact": "key",
    "Io.emit": "name payload",
    "Io.now_millis": "",
    "Io.random_bytes": "size",
    "Io.idempotency_token": "key",
}


def test_the_root_exports_exactly_these_names() -> None:
    """A name enters or leaves the public API only together with the list above."""
    assert sorted(airflow_childrun.__all__) == PUBLIC
    assert set(PUBLIC) <= set(dir(airflow_childrun))


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_can_be_imported(name: str) -> None:
    """Each name resolves to something that says what it is."""
    thing = getattr(airflow_childrun, name)
    assert isinstance(thing, str) or thing.__doc__


@pytest.mark.parametrize("name", ARGUMENTS)
def test_no_argument_of_the_public_api_disappears(name: str) -> None:
    """A DAG file that was written for this major version goes on to parse."""
    owner, _, method = name.partition(".")
    thing = Io if owner == "Io" else getattr(airflow_childrun, owner)
    assert set(ARGUMENTS[name].split()) <= arguments_of(getattr(thing, method) if method else thing)


def arguments_of(thing: Any) -> set[str]:
    """Return the arguments of a function, or of a class and those of ours that it inherits from."""
    classes = [each for each in getattr(thing, "__mro__", ()) if each.__module__.startswith("airflow_childrun")]
    makers = [vars(each)["__init__"] for each in classes if "__init__" in vars(each)] or [thing]
    return {name for maker in makers for name in inspect.signature(inspect.unwrap(maker)).parameters}


def test_an_unknown_name_is_an_attribute_error() -> None:
    """The lazy root behaves as a module does: ``hasattr`` and ``from ... import`` work on it."""
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = airflow_childrun.Nothing  # type: ignore[attr-defined, unused-ignore]


def test_the_changelog_speaks_of_this_version() -> None:
    """The newest section is Unreleased or this version, and says what became of the wire format."""
    changelog = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## \[(.+?)\]", changelog, re.MULTILINE)
    assert airflow_childrun.__version__ in versions[:2]
    for section in re.split(r"^## ", changelog, flags=re.MULTILINE)[1:]:
        assert "### Wire format" in section, section.splitlines()[0]
