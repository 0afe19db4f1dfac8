"""The texts of the errors that users meet: what is wrong, where, and what to do; read as a user would."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_childrun import ChildRunHook, Operation, operation
from airflow_childrun.authoring.registry import REGISTRY
from airflow_childrun.errors import ChildRunError
from airflow_childrun.hooks.elements import SpawnOrder
from airflow_childrun.ids import child_run_id
from tests.provider.kit import Ticket, sqlite_connection, write_connection

pytestmark = pytest.mark.provider

HUSH = "hunter2-hunter2"


@operation(name="text_bill", version="1")
def bill(io: Any, row: dict[str, int]) -> int:
    """Return the row's amount."""
    return row["amount"]


@operation(name="text_pair", version="2")
def pair(io: Any, name: str, count: int) -> None:
    """Do nothing."""


@pytest.fixture
def file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Give a store."""
    with sqlite_connection(monkeypatch, tmp_path) as path:
        yield path


@pytest.fixture
def empty_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Give a connection to a file that is not there."""
    with sqlite_connection(monkeypatch, tmp_path, migrated=False) as path:
        yield path


def told(work: Callable[[], Any]) -> tuple[str, str, bool]:
    """Return code, text and whether to try again, of the error that work ends in."""
    with pytest.raises(ChildRunError) as raised:
        work()
    error = raised.value
    assert str(error) == f"[{error.code}] {error.info.message}"
    assert HUSH not in str(error)
    return error.code, error.info.message, error.retryable


def run(ticket: Ticket, *elements: Any, op: Operation = bill, **more: Any) -> list[dict[str, Any]]:
    order = SpawnOrder(op, list(elements), **{"child_key": "id", **more})
    return ChildRunHook().spawn_and_await(ticket.context(), order)


def change(file: Path, statement: str, *values: Any) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute(statement, values)
    connection.close()


def test_no_connection_names_the_command() -> None:
    assert told(lambda: ChildRunHook("billing").get_conn()) == (
        "connection_missing",
        (
            "there is no connection 'billing': an administrator makes it, and the tables, with `childrun init --conn-id "
            "billing`"
        ),
        False,
    )
    assert told(lambda: ChildRunHook().get_conn())[1].endswith("with `childrun init`")


def test_a_connection_of_another_type_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    write_connection(monkeypatch, "other_db", conn_type="postgres", password=HUSH)
    code, text, _ = told(lambda: ChildRunHook("other_db").get_conn())
    assert code == "connection_invalid"
    assert text == "connection 'other_db' is of type 'postgres', not 'childrun': `childrun init` makes one"


def test_a_connection_without_deployment_id_says_why_it_needs_one(monkeypatch: pytest.MonkeyPatch) -> None:
    write_connection(monkeypatch, password=f"postgresql://user:{HUSH}@db/x")
    code, text, _ = told(lambda: ChildRunHook().get_conn())
    assert code == "deployment_id_missing"
    assert "run `childrun init" in text


def test_an_unreachable_store_says_where_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"postgresql+psycopg://user:{HUSH}@127.0.0.1:1/x"
    write_connection(monkeypatch, password=url, extra={"deployment_id": "here"})
    code, text, retryable = told(lambda: ChildRunHook().get_conn())
    assert (code, retryable) == ("store_unavailable", True)
    for part in ("cannot reach the store (connection 'childrun_default'", "127.0.0.1:1", "`childrun check"):
        assert part in text


def test_a_missing_file_says_who_makes_it(empty_file: Path) -> None:
    code, text, _ = told(lambda: ChildRunHook().get_conn())
    assert code == "store_schema"
    assert text.startswith(f"there is no file '{empty_file}' on this machine: `childrun migrate` makes it.")
    assert "(connection 'childrun_default'" in text


def test_missing_tables_are_named_with_the_command(empty_file: Path) -> None:
    empty_file.touch()
    code, text, retryable = told(lambda: ChildRunHook().get_conn())
    assert (code, retryable) == ("store_schema", False)
    for part in ("has no store: ", "childrun_event", "childrun_run", "missing; run `childrun migrate`"):
        assert part in text


def test_the_command_reaches_the_store_that_is_meant(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of a connection that is not the default one, the command names it."""
    file = tmp_path / "billing.db"
    write_connection(monkeypatch, "billing", password=f"sqlite:///{file}", extra={"deployment_id": "here"})
    assert "`childrun migrate --conn-id billing` makes it" in told(lambda: ChildRunHook("billing").get_conn())[1]
    file.touch()
    assert "missing; run `childrun migrate --conn-id billing`" in told(lambda: ChildRunHook("billing").get_conn())[1]


def test_a_schema_of_another_major_version_says_which(file: Path) -> None:
    change(file, "UPDATE alembic_version_childrun SET version_num = 'v2_0001'")
    code, text, _ = told(lambda: ChildRunHook().get_conn())
    assert code == "store_schema"
    assert text.startswith(
        "the store has version v2_0001, this release works with major version 1; install the release"
    )


def test_test_connection_answers_with_the_same_texts(empty_file: Path) -> None:
    """As Airflow's connection form shows it: no traceback."""
    ok, text = ChildRunHook().test_connection()
    assert not ok
    assert "`childrun migrate` makes it" in text


def test_an_unknown_operation_lists_the_known_and_where_it_looked() -> None:
    code, text, retryable = told(lambda: REGISTRY.find("text_bil", "1"))
    assert (code, retryable) == ("operation_not_reachable", False)
    assert text.startswith("operation 'text_bil' version '1' is not known in this process (known: ")
    for part in ("text_bill 1", "text_pair 2", "own DAG file", "`airflow_childrun.operations`", "operations_modules"):
        assert part in text


def test_a_module_that_cannot_be_imported_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__CHILDRUN__OPERATIONS_MODULES", "no.such.module")
    code, text, _ = told(lambda: run(Ticket(), {"id": 1, "amount": 1}))
    assert code == "operations_module_broken"
    assert text.startswith(
        "[childrun] operations_modules names the module 'no.such.module', which cannot be imported: "
    )


def test_an_option_that_does_not_fit_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__CHILDRUN__MAX_CONCURRENCY", "many")
    code, text, _ = told(lambda: run(Ticket(), {"id": 1, "amount": 1}))
    assert code == "config_invalid"
    assert text == "[childrun] max_concurrency = 'many' in Airflow's configuration: it takes an integer >= 1"


UNFIT: list[tuple[list[Any], dict[str, Any], str]] = [
    (
        [{"id": 1, "amount": 1}, {"id": 2, "amount": HUSH}],
        {},
        (
            "element 1 of inputs: the input of text_bill 1, field 'row', does not fit dict[str, int]: amount: Input should be a "
            "valid integer, unable to parse string as an integer"
        ),
    ),
    (
        [HUSH],
        {"single": True, "child_key": None},
        "the input of text_bill 1, field 'row', does not fit dict[str, int]: value: Input should be an object",
    ),
    (
        [{"name": "a", "count": HUSH}],
        {"op": pair, "child_key": "name"},
        (
            "element 0 of inputs: the input of text_pair 2 does not fit: count: Input should be a valid integer, unable to parse "
            "string as an integer"
        ),
    ),
    (
        [{"name": "a"}],
        {"op": pair, "child_key": "name"},
        "element 0 of inputs: the input of text_pair 2 does not fit: count: Field required",
    ),
    (
        [{"name": "a", "count": 1, "cuont": HUSH}],
        {"op": pair, "child_key": "name"},
        "element 0 of inputs: the input of text_pair 2: it has no field cuont; its fields are name, count",
    ),
]


@pytest.mark.parametrize(("elements", "more", "text"), UNFIT, ids=["item", "single", "field", "missing", "unknown"])
def test_an_input_that_does_not_fit(file: Path, elements: list[Any], more: dict[str, Any], text: str) -> None:
    """Element, operation, field, the value's place and the expected type; never the value."""
    assert told(lambda: run(Ticket(), *elements, **more)) == ("input_invalid", text, False)


def test_a_conflict_says_in_what_the_requests_differ(file: Path) -> None:
    """Each part that differs, and for the input the place; never the values."""
    run(Ticket(), {"id": 1, "amount": 1})
    changed = SpawnOrder(bill, [{"id": 1, "amount": 2}], child_key="id", op_config={"rate": HUSH})
    assert told(lambda: ChildRunHook().spawn_and_await(Ticket().retry().context(), changed)) == (
        "child_run_conflict",
        (
            "a retry completes what the try before it began, but its request differs for one child: text_bill/1 (op_config, "
            "input at $.amount). Bring the former request back, or clear the task"
        ),
        False,
    )


def test_a_changed_list_names_the_elements(file: Path) -> None:
    run(Ticket(), {"id": 1, "amount": 1})
    assert told(lambda: run(Ticket().retry(), {"id": 1, "amount": 1}, {"id": 2, "amount": 2})) == (
        "host_list_changed",
        (
            "a retry completes the list of the try before it, but one element is not in it: text_bill/2 (element 1). Make the "
            "source of the list repeatable, or clear the task to take the new list"
        ),
        False,
    )


def test_a_stale_attempt_says_that_it_did_nothing(file: Path) -> None:
    run(Ticket().retry(), {"id": 1, "amount": 1})
    assert told(lambda: run(Ticket(), {"id": 1, "amount": 1})) == (
        "stale_attempt",
        (
            "d.t manual__1 try 1 is not the newest try any more: another one has begun since. It stops here and has changed "
            "nothing"
        ),
        False,
    )


def test_a_corrupt_artifact_is_named_with_what_to_do(file: Path) -> None:
    """Whoever reads it: the hook, a result, a retry."""
    (result,) = run(Ticket(), {"id": 1, "amount": 1})
    run_id = result["child_run_id"]
    change(file, "UPDATE childrun_artifact SET body = ? WHERE kind = 'ContextSnapshot'", b"{}0")
    readers: list[Callable[[], Any]] = [
        lambda: ChildRunHook().read_snapshot(run_id),
        lambda: ChildRunHook().read_output(result),
        lambda: run(Ticket().retry(), {"id": 1, "amount": 1}),
    ]
    for reader in readers:
        code, text, retryable = told(reader)
        assert (code, retryable) == ("artifact_content_address_mismatch", False)
        assert result["final_snapshot_id"] in text
        assert "run `childrun verify" in text


def test_a_missing_artifact_is_named_with_what_to_do(file: Path) -> None:
    (result,) = run(Ticket(), {"id": 1, "amount": 1})
    run_id = result["child_run_id"]
    change(file, "DELETE FROM childrun_artifact WHERE kind = 'ContextSnapshot'")
    readers: list[Callable[[], Any]] = [
        lambda: ChildRunHook().read_snapshot(run_id),
        lambda: ChildRunHook().read_output(result),
    ]
    for reader in readers:
        code, text, _ = told(reader)
        assert code == "artifact_not_found"
        assert f"run `childrun verify {run_id}`" in text
        assert "from a backup" in text


def test_a_handle_of_another_store_asks_the_right_question(file: Path) -> None:
    (result,) = run(Ticket(), {"id": 1, "amount": 1})
    host = ChildRunHook().get_run(result["child_run_id"]).parent_run_id
    assert host is not None
    elsewhere = {**result, "child_run_id": str(child_run_id(host, "other"))}
    code, text, _ = told(lambda: ChildRunHook().await_runs(Ticket("a").context(), [elsewhere]))
    assert code == "child_run_missing"
    assert "was it purged, or does its task use another connection?" in text


def test_a_failed_child_tells_key_state_code_and_advice(file: Path) -> None:
    """The text of a red task."""
    code, text, retryable = told(lambda: run(Ticket(), {"id": 7}))
    assert (code, retryable) == ("child_run_failed", True)
    assert text.startswith(
        "1 of 1 child runs did not complete:\n  text_bill/7: Failed [handler_raised] KeyError: 'amount'\n"
    )
    assert "A retry or a clear of this task goes on from their last checkpoints" in text
