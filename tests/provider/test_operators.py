"""The operators: what a DAG file may say, and what runs under ``dag.test`` in a real Airflow on SQLite."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG

from airflow_childrun import AwaitChildRunOperator, Operation, SpawnChildRunOperator
from airflow_childrun.decorators.durable import durable_task, seen_by_airflow
from airflow_childrun.errors import InputError, OperationError
from airflow_childrun.model.config import RetryPolicy, RunConfig
from tests.provider.conftest import AirflowHome

pytestmark = pytest.mark.provider

DAGS = Path(__file__).parent / "dags"


# ------------------------------------------------------------------------------------------------- refused at parse time


@pytest.fixture(scope="module")
def op() -> Operation:
    """Give an operation."""
    return Operation("parsed", version="1")


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"inputs": "abc"}, "inputs_not_a_list", "would make one child per letter: give a list, or input= for one child"),
    ({"inputs": {"a": 1}}, "inputs_not_a_list", "inputs is an object: give a list of elements, or input="),
    ({"input": 1, "inputs": [1]}, "input_and_inputs", "give input= for one child or inputs= for several, not both"),
    ({"op_id": "x"}, "operation_twice", "give operation= or op_id= and op_version=, not both"),
    ({"operation": None}, "operation_missing", "give operation=, or op_id= and op_version="),
    ({"operation": None, "op_id": "x"}, "operation_missing", "give operation=, or op_id= and op_version="),
    ({"operation": len}, "operation_invalid", "operation is of type builtin_function_or_method: decorate the function"),
    ({"on_clear": "again"}, "argument_invalid", "on_clear is 'again'; it takes auto, resume_failed, reuse, respawn"),
    ({"on_plan_change": "x"}, "argument_invalid", "on_plan_change is 'x'; it takes fail, respawn"),
    ({"results": "x"}, "argument_invalid", "results is 'x'; it takes values, references"),
    ({"failure_mode": "x"}, "argument_invalid", "failure_mode is 'x'; it takes raise, return"),
    ({"child_key": 5}, "child_key_invalid", "child_key is of type int: give a field's name, or a function"),
    ({"max_concurrency": -1}, "argument_invalid", "max_concurrency is -1; it takes an integer >= 1"),
    ({"child_timeout": 0}, "span_invalid", "child_timeout is 0; give seconds above 0"),
    ({"child_retry_policy": -1}, "input_invalid", "child_retry_policy is -1; give a number of further attempts"),
    ({"child_retry_policy": {"mode": "again"}}, "input_invalid", "child_retry_policy does not fit: mode: "),
    ({"await_timeout": "1h"}, "span_invalid", "await_timeout is '1h'; give seconds above 0"),
    ({"run_config": {"retry": 1}}, "input_invalid", "run_config does not fit: retry: Extra inputs are not permitted"),
    ({"run_config": {"skip_tags": 5}}, "input_invalid", "run_config does not fit: skip_tags: "),
]


@pytest.mark.parametrize(("arguments", "code", "told"), REFUSED, ids=[str(row[0]) for row in REFUSED])
def test_what_cannot_work_is_refused_at_parse_time(
    op: Operation, arguments: dict[str, Any], code: str, told: str
) -> None:
    with pytest.raises(InputError) as raised:
        SpawnChildRunOperator(**{"task_id": "t", "operation": op, **arguments})
    assert raised.value.code == code
    assert told in str(raised.value)


def test_templates_pass_where_their_value_is_not_known_yet(op: Operation) -> None:
    """Both kinds of Jinja's marks."""
    for text in ("{{ params.rows }}", "{% if params.rows %}[1]{% endif %}"):
        made = SpawnChildRunOperator(task_id="t", operation=op, inputs=text, on_clear=text)
        assert (made.inputs, made.on_clear) == (text, text)


def test_template_fields_are_what_the_documentation_says() -> None:
    spawn = ("input", "inputs", "op_config", "initial_context", "on_clear")
    assert set(spawn) <= set(SpawnChildRunOperator.template_fields)
    assert set(AwaitChildRunOperator.template_fields) == {"child_runs"}


def test_a_run_config_may_be_written_as_a_dictionary(op: Operation) -> None:
    """Unknown fields are errors, and what is left out has its default."""
    written = SpawnChildRunOperator(task_id="t", operation=op, run_config={"retry_policy": {"max_attempts": 3}})
    assert written.run_config == RunConfig(retry_policy=RetryPolicy(max_attempts=3))


def retries_of(dag: DAG) -> dict[str, Any]:
    return {task.task_id: task.retries for task in dag.tasks}


def every_task(op: Operation, **arguments: Any) -> None:
    SpawnChildRunOperator(task_id="spawn", operation=op, input=1, **arguments)
    SpawnChildRunOperator.partial(task_id="mapped", operation=op, **arguments).expand(input=[1])
    AwaitChildRunOperator(task_id="await", child_runs=[], **arguments)
    AwaitChildRunOperator.partial(task_id="mapped_await", **arguments).expand(child_runs=[{}])


def test_retries_default_to_two_and_authors_win(op: Operation) -> None:
    """Plain and mapped; Airflow's own default of 0 would make one lost worker final."""
    for given, default_args, expected in (({}, {}, 2), ({}, {"retries": 0}, 0), ({"retries": 5}, {"retries": 0}, 5)):
        with DAG("d", schedule=None, default_args=default_args) as dag:
            every_task(op, **given)
        assert set(retries_of(dag).values()) == {expected}, (given, default_args)


def test_other_default_args_reach_the_operators(op: Operation) -> None:
    with DAG(
        "d",
        schedule=None,
        default_args={"childrun_conn_id": "mine", "results": "references", "retry_delay": timedelta(1)},
    ) as dag:
        SpawnChildRunOperator(task_id="spawn", operation=op, input=1)
    task: Any = dag.get_task("spawn")
    assert (task.childrun_conn_id, task.results, task.retry_delay) == ("mine", "references", timedelta(1))


# --------------------------------------------------------------------------------------------------------- under dag.test

_STAGE = """
import contextlib, json, os, sys, tempfile
answers = os.fdopen(os.dup(1), "w")
from airflow.dag_processing.dagbag import DagBag
from airflow.models.xcom import XComModel
from airflow.utils.session import create_session
bag = DagBag(os.environ["AIRFLOW__CORE__DAGS_FOLDER"])
assert not bag.import_errors, bag.import_errors
for line in sys.stdin:
    asked = json.loads(line)
    with tempfile.TemporaryFile("w+") as log:
        os.dup2(log.fileno(), 1), os.dup2(log.fileno(), 2)
        run = bag.dags[asked["dag_id"]].test(run_conf=asked.get("conf"))
        tasks, xcoms = {}, {}
        with create_session() as session:
            for ti in run.get_task_instances(session=session):
                tasks[f"{ti.task_id}/{ti.map_index}"] = [ti.state, ti.try_number]
            for row in session.query(XComModel).filter_by(run_id=run.run_id, dag_id=run.dag_id, key="return_value"):
                xcoms[f"{row.task_id}/{row.map_index}"] = XComModel.deserialize_value(row)
        sys.stdout.flush()
        log.seek(0)
        answers.write("RESULT " + json.dumps({"tasks": tasks, "xcoms": xcoms, "log": log.read(), "run_id": run.run_id}) + "\\n")
        answers.flush()
"""


@dataclass
class Played:
    """A DAG run that is over."""

    run_id: str
    tasks: dict[str, list[Any]]
    xcoms: dict[str, Any]
    log: str

    def state(self, task_id: str, map_index: int = -1) -> str:
        state: str = self.tasks[f"{task_id}/{map_index}"][0]
        return state

    def xcom(self, task_id: str, map_index: int = -1) -> Any:
        return self.xcoms.get(f"{task_id}/{map_index}")

    def outputs(self, task_id: str, map_index: int = -1) -> list[Any]:
        return [result["output"] for result in self.xcom(task_id, map_index)]


@dataclass
class Stage:
    """An Airflow home with our DAG files, and one process that runs them with ``dag.test``."""

    home: AirflowHome
    marks: Path
    play: Callable[[str], Played]
    played: dict[str, Played] = field(default_factory=dict)

    def run(self, dag_id: str) -> Played:
        """Return the one run of a DAG in this session, run now if need be."""
        if dag_id not in self.played:
            self.played[dag_id] = self.play(dag_id)
        return self.played[dag_id]

    def count(self, mark: str) -> int:
        """Return how often an operation did something."""
        path = self.marks / mark
        return path.stat().st_size if path.exists() else 0


@pytest.fixture(scope="module")
def stage(new_airflow_home: Callable[..., AirflowHome], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Give a home whose DAGs can be run, about a second each."""
    marks, shared = tmp_path_factory.mktemp("marks"), tmp_path_factory.mktemp("shared")
    home = new_airflow_home(
        CHILDRUN_TEST_MARKS=str(marks),
        AIRFLOW__CHILDRUN__OPERATIONS_MODULES="shared_operations",
        AIRFLOW__LOGGING__LOGGING_LEVEL="INFO",
    )
    home.environment["PYTHONPATH"] += f":{shared}"
    for name in ("every_way.py", "same_name.py", "durable.py"):
        shutil.copy(DAGS / name, home.path / "dags")
    shutil.copy(DAGS / "shared_operations.py", shared)
    for done in (home.airflow("db", "migrate"), home.childrun("init")):
        assert done.status == 0, done.text
    process = subprocess.Popen(
        [sys.executable, "-c", _STAGE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=home.path,
        env={**os.environ, **home.environment},
    )
    assert process.stdin
    assert process.stdout
    commands, answers = process.stdin, process.stdout

    def play(dag_id: str) -> Played:
        commands.write(json.dumps({"dag_id": dag_id}) + "\n")
        commands.flush()
        for line in answers:
            if line.startswith("RESULT "):
                return Played(**json.loads(line.removeprefix("RESULT ")))
        pytest.fail("the stage died")

    with process:
        yield Stage(home, marks, play)
        commands.close()
        assert process.wait(30) == 0


def test_plain_spawns_wait_and_return_results(stage: Stage) -> None:
    """One result for ``input``, a list in order for ``inputs``; equal elements are children of their own."""
    run = stage.run("plain")
    one = run.xcom("one")
    assert (one["output"], one["status"], one["key"]) == (42, "Completed", "double")
    assert run.outputs("many") == [6, 2, 6]
    assert len({result["child_run_id"] for result in run.xcom("many")}) == 3
    assert run.outputs("objects") == ["ann in plain", "bo in plain"]
    assert [result["key"] for result in run.xcom("objects")] == ["lookup/1", "lookup/2"]


def test_a_result_says_all_that_a_handle_says(stage: Stage) -> None:
    assert set(stage.run("plain").xcom("one")) == {
        "child_run_id",
        "slot_id",
        "root_run_id",
        "key",
        "operation",
        "version",
        "childrun_conn_id",
        "status",
        "generation",
        "final_snapshot_id",
        "error",
        "output",
    }


def test_an_empty_list_succeeds_with_an_empty_list(stage: Stage) -> None:
    run = stage.run("plain")
    assert (run.state("nothing"), run.xcom("nothing")) == ("success", [])


def test_an_operation_may_be_named(stage: Stage) -> None:
    assert stage.run("plain").xcom("named")["output"] == 8


def test_lists_come_from_other_tasks(stage: Stage) -> None:
    run = stage.run("xcom_args")
    assert run.xcom("show") == ["ann in xcom_args", "bo in xcom_args"]


def test_expand_maps_input_and_inputs(stage: Stage) -> None:
    run = stage.run("xcom_args")
    assert [run.xcom("mapped", index)["output"] for index in (0, 1)] == [2, 4]
    assert run.xcom("show_mapped") == [2, 4]
    assert [run.outputs("mapped_lists", index) for index in (0, 1, 2)] == [[2], [4, 6], []]


def test_children_are_spawned_in_one_task_and_awaited_in_others(stage: Stage) -> None:
    """By a list, by one handle, and mapped over the handles; driven once."""
    run = stage.run("apart")
    assert run.outputs("awaited") == [10, 12]
    assert run.xcom("awaited_one")["output"] == 14
    assert [run.xcom("awaited_each", index)["output"] for index in (0, 1)] == [10, 12]
    assert "status" not in run.xcom("spawned")[0]
    assert [stage.count(f"double-{number}") for number in (5, 6, 7)] == [1, 1, 1]


def test_a_mapped_await_downstream_of_a_mapped_spawn_counts(stage: Stage) -> None:
    run = stage.run("apart")
    assert [run.xcom("awaited_mapped", index)["output"] for index in (0, 1)] == [16, 18]


def test_children_that_nobody_would_await_are_not_spawned(stage: Stage) -> None:
    run = stage.run("refused")
    assert run.tasks["alone/-1"] == ["failed", 1]
    assert "no AwaitChildRunOperator stands downstream: its children would never run" in run.log
    assert run.state("after") == "upstream_failed"
    assert stage.count("double-77") == 0


def test_a_failure_that_no_retry_mends_fails_the_task_at_once(stage: Stage) -> None:
    """Two retries were left: AirflowFailException forgoes them. Every failed child is named with its cause."""
    run = stage.run("refused")
    assert run.tasks["raising/-1"] == ["failed", 1]
    assert "2 of 3 child runs did not complete" in run.log
    for told in ("[odd] 3 is odd", "[odd] 5 is odd", "None of these errors goes away by trying again"):
        assert told in run.log


def test_failures_may_be_returned(stage: Stage) -> None:
    run = stage.run("refused")
    good, bad = run.xcom("returning")
    assert run.state("returning") == "success"
    assert (good["status"], good["output"], good["error"]) == ("Completed", 2, None)
    assert (bad["status"], bad["output"]) == ("Failed", None)
    assert (bad["error"]["code"], bad["error"]["message"], bad["error"]["retryable"]) == ("odd", "3 is odd", False)


def test_a_retry_goes_on_where_the_try_before_stopped(stage: Stage) -> None:
    """The default of two retries; the step before the failure was recorded, and is not repeated."""
    run = stage.run("retried")
    assert run.tasks["flaky/-1"] == ["success", 2]
    assert run.xcom("flaky")["output"] == "at last"
    assert run.xcom("flaky")["generation"] == 2
    assert (stage.count("flaky-before"), stage.count("flaky")) == (1, 2)


def test_results_may_be_references(stage: Stage) -> None:
    """Their values stay in the store, where the hook reads them."""
    run = stage.run("plain")
    assert run.xcom("read") == [600_000, 600_001]
    assert all("output" not in result for result in run.xcom("referred"))


def test_results_over_the_limit_name_the_switch(stage: Stage) -> None:
    """Nothing is lost: the children have completed."""
    run = stage.run("refused")
    assert run.tasks["too_large/-1"] == ["failed", 1]
    assert 'Set results="references" on this task' in run.log.replace('\\"', '"')
    assert "more than the 1048576 allowed" in run.log


def test_native_templates_give_lists(stage: Stage) -> None:
    assert stage.run("templated").outputs("native") == [2, 4]


def test_text_templates_are_refused_with_what_to_do(stage: Stage) -> None:
    run = stage.run("templated_text")
    assert run.tasks["text/-1"] == ["failed", 1]
    assert "A template gives text too: pass the output of the task that makes the list" in run.log


def test_a_task_may_use_the_hook_itself(stage: Stage) -> None:
    assert stage.run("plain").xcom("by_hand") == [2, 4]


def test_an_unknown_operation_lists_the_known_ones(stage: Stage) -> None:
    run = stage.run("refused")
    assert run.tasks["unknown/-1"] == ["failed", 1]
    assert "operation 'no_such' version '1' is not known in this process (known: " in run.log
    assert "double 1" in run.log


def test_modules_that_the_configuration_lists_are_searched(stage: Stage) -> None:
    assert stage.run("plain").xcom("shared")["output"] == 15


def test_an_unfit_element_is_named(stage: Stage) -> None:
    run = stage.run("refused")
    assert run.tasks["unfit/-1"] == ["failed", 1]
    assert "element 1 of inputs: the input of double 1, field 'number', does not fit int" in run.log
    assert "two" not in run.log.split("element 1 of inputs")[1].splitlines()[0]


def test_two_files_with_one_operation_name_each_run_their_own(stage: Stage) -> None:
    """``double`` of the other file multiplies by a thousand, given as it is and by name."""
    run = stage.run("same_name")
    assert run.xcom("other")["output"] == 2000
    assert run.xcom("other_named")["output"] == 3000
    assert stage.run("plain").xcom("one")["output"] == 42


def test_a_durable_task_returns_what_its_function_returns_and_repeats_no_step(stage: Stage) -> None:
    """Its first try fails after the step; the second one knows the answer."""
    run = stage.run("durable")
    assert run.xcom("report") == 30
    assert [run.xcom("mapped", index) for index in (0, 1)] == [20, 20]
    assert run.xcom("alone") == "nothing taken"
    for region in ("west", "north", "south"):
        assert (stage.count(f"durable-{region}"), stage.count(f"durable-{region}-tries")) == (1, 2)


def test_a_durable_task_needs_io() -> None:
    with pytest.raises(OperationError, match="has no parameter io"):
        durable_task(lambda region: region)
    with pytest.raises(OperationError) as raised:
        seen_by_airflow(durably, "1")("west")
    assert raised.value.code == "operation_called"


def durably(io: Any, region: str) -> str:
    """Do nothing much."""
    return str(io.step(str, region))
