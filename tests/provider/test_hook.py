"""The hook: spawns, awaits and reads in one process, on SQLite."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from airflow_childrun import ChildRunHook, Operation, operation
from airflow_childrun.errors import ChildRunFailedError, HostError, InputError, NotFoundError, StateError
from airflow_childrun.hooks.elements import SpawnOrder
from airflow_childrun.hooks.results import check_size
from airflow_childrun.hooks.settings import DEFAULTS
from airflow_childrun.runtime.host import HostRun
from airflow_childrun.store.api import RunFilter
from tests.provider.kit import START, Ticket, sqlite_connection

pytestmark = pytest.mark.provider


@operation(name="hook_double", version="1")
def double(io: Any, number: int) -> int:
    """Return twice the number; refuse negative ones."""
    if number < 0:
        raise StateError(f"{number} is negative", code="negative")
    io.record_value("number", number)
    return number * 2


@operation(name="hook_place", version="1")
def place(io: Any) -> Any:
    """Return what Airflow says."""
    return io.airflow


@operation(name="hook_keyed", version="1")
def keyed(io: Any, row: dict[str, Any]) -> Any:
    """Return the row's amount."""
    return row["amount"]


@pytest.fixture(autouse=True)
def _store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    with sqlite_connection(monkeypatch, tmp_path):
        yield


def order(op: Operation, *elements: Any, **more: Any) -> SpawnOrder:
    return SpawnOrder(op, list(elements), **more)


def run(ticket: Ticket, wanted: SpawnOrder, conf: Any = None, **more: Any) -> list[dict[str, Any]]:
    return ChildRunHook().spawn_and_await(ticket.context(conf), wanted, **more)


def test_spawn_then_await_in_another_task() -> None:
    handles = ChildRunHook().spawn(Ticket().context(), order(double, 1, 2))
    assert [ChildRunHook().get_run(handle["child_run_id"]).status for handle in handles] == ["Pending", "Pending"]
    results = ChildRunHook().await_runs(Ticket("a").context(), handles)
    assert [result["output"] for result in results] == [2, 4]


def test_what_is_read_of_a_run() -> None:
    (result,) = run(Ticket(), order(double, 4))
    hook = ChildRunHook()
    run_id = result["child_run_id"]
    row = hook.get_run(run_id)
    assert (row.op_id, row.status, row.generation) == ("hook_double", "Completed", 1)
    assert hook.read_output(result) == 8
    assert hook.read_snapshot(run_id) == {"hook_double.main.main": 8}
    events = hook.read_events(run_id)
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert set(events[0]) == {"run_id", "seq", "ts_millis", "event"}
    assert next(iter(events[0]["event"]["Kernel"])) == "RunStarted"
    parent = row.parent_run_id
    assert parent is not None
    assert [child.run_id for child in hook.children_of(parent)] == [row.run_id]
    assert hook.find_run(UUID(int=1)) is None
    assert {found.run_id for found in hook.find_runs(RunFilter(op_id="hook_double")).rows} == {row.run_id}
    assert hook.verify(run_id) == []


def readers(hook: ChildRunHook) -> list[Callable[[Any], Any]]:
    return [hook.get_run, hook.read_events, hook.children_of, hook.read_snapshot]


@pytest.mark.parametrize("reader", range(4))
def test_reading_what_is_not_there_says_how_to_look(reader: int) -> None:
    """An unknown run has no history; that is not an empty one."""
    with pytest.raises(NotFoundError, match="see `childrun runs list`"):
        readers(ChildRunHook())[reader](UUID(int=1))


@pytest.mark.parametrize("reader", range(4))
def test_the_beginning_of_an_id_is_no_id_to_the_hook(reader: int) -> None:
    with pytest.raises(InputError, match="'d5471737' is no run id: it takes a whole UUID") as raised:
        readers(ChildRunHook())[reader]("d5471737")
    assert raised.value.code == "run_id_invalid"


def test_a_run_without_children_has_none() -> None:
    (result,) = run(Ticket(), order(double, 4))
    assert ChildRunHook().children_of(result["child_run_id"]) == []


@pytest.mark.parametrize("number", [0, -1, "4", 1.5])
def test_a_number_of_children_that_would_let_none_work_is_refused(number: Any) -> None:
    """With -1, a task would wait for ever."""
    with pytest.raises(InputError, match=f"max_concurrency is {number!r}; it takes an integer >= 1"):
        ChildRunHook(max_concurrency=number)


def test_the_output_of_a_handle_is_that_of_its_newest_generation() -> None:
    """A result names its own generation; a handle the slot."""
    (first,) = run(Ticket(), order(double, 4))
    (second,) = run(Ticket().clear(), order(double, 4))
    assert (first["generation"], second["generation"]) == (1, 2)
    assert first["child_run_id"] != second["child_run_id"]
    assert first["slot_id"] == second["slot_id"]
    hook = ChildRunHook()
    handle = {key: value for key, value in first.items() if key != "generation"}
    assert hook.read_output(first) == hook.read_output(handle) == 8


def test_the_output_of_a_failed_child_is_its_error() -> None:
    (result,) = run(Ticket(), order(double, -1), failure_mode="return")
    with pytest.raises(ChildRunFailedError, match=r"\[negative\] -1 is negative"):
        ChildRunHook().read_output(result)


def test_children_are_told_where_they_run() -> None:
    (result,) = run(Ticket(), order(place, None, single=True))
    assert result["key"] == "hook_place"
    assert result["output"]["dag_id"] == "d"
    assert result["output"]["run_id"] == "manual__1"
    assert result["output"]["logical_date"] == START.isoformat()


def test_the_conf_of_a_run_wins_over_the_operator() -> None:
    """A reprocessing backfill says how to clear."""
    run(Ticket(), order(double, 1))
    (kept,) = run(Ticket().clear(), order(double, 1), conf={"childrun": {"on_clear": "reuse"}}, on_clear="respawn")
    assert kept["generation"] == 1
    with pytest.raises(HostError, match="on_clear is 'sometimes'; it takes auto, resume_failed, reuse, respawn"):
        run(Ticket().clear().clear(), order(double, 1), conf={"childrun": {"on_clear": "sometimes"}})


def test_equal_elements_are_children_of_their_own_whatever_their_order() -> None:
    """The default key is what an element is, and which occurrence of it."""
    first = run(Ticket(), order(double, 1, 2, 1))
    again = run(Ticket().clear(), order(double, 1, 1, 2), on_clear="reuse")
    assert len({result["slot_id"] for result in first}) == 3
    assert {result["child_run_id"] for result in again} == {result["child_run_id"] for result in first}
    assert [result["output"] for result in again] == [2, 2, 4]


def test_objects_are_known_by_their_child_key() -> None:
    """A changed amount is the same customer: started afresh by a clear, refused by a retry."""
    before = run(Ticket(), order(keyed, {"id": 7, "amount": 1}, child_key="id"))
    with pytest.raises(HostError, match=r"hook_keyed/7 \(input at \$\.amount\)") as raised:
        run(Ticket().retry(), order(keyed, {"id": 7, "amount": 2}, child_key="id"))
    assert raised.value.code == "child_run_conflict"
    (after,) = run(Ticket().clear(), order(keyed, {"id": 7, "amount": 2}, child_key=lambda row: row["id"]))
    assert (after["slot_id"], after["output"]) == (before[0]["slot_id"], 2)


BAD_KEYS: list[tuple[list[Any], Any, str, str]] = [
    ([{"id": 1}], None, "child_key_required", 'child_key="id"'),
    ([{"id": 1}, {"id": 1}], "id", "child_key_duplicate", "2 elements of inputs have the key '1'"),
    ([{"id": 1}, {"nr": 1}], "id", "child_key_missing", "element 1 has no field 'id'"),
    ([{"id": None}], "id", "child_key_missing", "element 0 has no field 'id' to be named by, or None in it"),
    ([{"id": {"a": 1}}], "id", "child_key_invalid", "the key of element 0 is an object: give text or a number"),
    ([{"id": [1]}], "id", "child_key_invalid", "the key of element 0 is a list: give text or a number"),
    ([{"id": 1}], lambda row: row.get("nr"), "child_key_invalid", "the key of element 0 is None"),
    ([{"id": "a\u001fb"}], "id", "child_key_invalid", "the child_key of element 0 cannot be stored"),
    ([{"id": "AKIAIOSFODNN7EXAMPLE"}], "id", "child_key_invalid", "element 0 looks like a secret"),
]


@pytest.mark.parametrize(("elements", "key", "code", "told"), BAD_KEYS, ids=[row[2] for row in BAD_KEYS])
def test_keys_that_will_not_do_are_refused_before_anything_is_stored(
    elements: list[Any], key: Any, code: str, told: str
) -> None:
    with pytest.raises(InputError) as raised:
        run(Ticket(), order(keyed, *elements, child_key=key))
    assert raised.value.code == code
    assert told in str(raised.value)
    assert "AKIA" not in str(raised.value)
    assert ChildRunHook().find_runs(RunFilter()).rows == ()


def test_results_over_the_limit_keep_the_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__CHILDRUN__XCOM_MAX_BYTES", "100")
    with pytest.raises(HostError, match='results="references"') as raised:
        run(Ticket(), order(double, 1))
    assert (raised.value.code, raised.value.retryable) == ("xcom_too_large", False)
    monkeypatch.delenv("AIRFLOW__CHILDRUN__XCOM_MAX_BYTES")
    before = len(ChildRunHook().find_runs(RunFilter()).rows)
    for later in (Ticket().clear(), Ticket().clear().retry()):
        assert run(later, order(double, 1))[0]["output"] == 2
    assert len(ChildRunHook().find_runs(RunFilter()).rows) == before


def test_a_thousand_children_fit_into_one_task() -> None:
    """One process drives them all; what they return comes back in order, and is small enough for XCom."""
    results = run(Ticket(), order(double, *range(1000)))
    assert [result["output"] for result in results] == [2 * number for number in range(1000)]
    assert {result["status"] for result in results} == {"Completed"}


def test_too_many_references_do_not_ask_for_references(monkeypatch: pytest.MonkeyPatch) -> None:
    """The switch that would help is named; 2,000 references fit into what is allowed by default."""
    few = ChildRunHook().spawn_and_await(Ticket().context(), order(double, 1), results="references")
    check_size(few * 2000, DEFAULTS.xcom_max_bytes, "references")
    with pytest.raises(HostError, match=r"references already: raise \[childrun\] xcom_max_bytes") as raised:
        check_size(few * 3000, DEFAULTS.xcom_max_bytes, "references")
    assert raised.value.code == "xcom_too_large"


@pytest.mark.parametrize(
    "handle", ["x", 5, {}, {"child_run_id": "1", "slot_id": "2", "root_run_id": "3"}, None], ids=str
)
def test_what_is_no_handle_is_told_apart(handle: Any) -> None:
    with pytest.raises(HostError) as raised:
        ChildRunHook().await_runs(Ticket().context(), [handle])
    assert raised.value.code == "handle_invalid"


@pytest.mark.parametrize("handles", [None, 5, "abc", b"x"], ids=str)
def test_what_is_no_list_of_handles_is_told_apart(handles: Any) -> None:
    """As XCom gives it when the spawning task returned nothing, or was skipped."""
    with pytest.raises(HostError, match=r"child_runs is (None: the task that spawns|of type \w+: pass)") as raised:
        ChildRunHook().await_runs(Ticket().context(), handles)
    assert (raised.value.code, raised.value.retryable) == ("handle_invalid", False)


def test_test_connection_says_yes() -> None:
    assert ChildRunHook().test_connection()[0] is True


def test_failures_are_listed_ten_at_most_and_counted() -> None:
    with pytest.raises(ChildRunFailedError) as raised:
        run(Ticket(), order(double, *range(-12, 3)))
    text = str(raised.value)
    assert text.startswith("[child_run_failed] 12 of 15 child runs did not complete:")
    assert "and 2 more" in text
    assert text.count("is negative") == 10
    assert not raised.value.retryable


def test_a_spawn_that_is_refused_leaves_no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ending an open child needs a lease, hence a session; whatever stops the spawn after that, the session is over."""
    ChildRunHook().spawn(Ticket().context(), order(double, 1))
    opened: list[UUID] = []

    def refuse(host: HostRun, openings: Any, cut: Any = None) -> int:
        opened.append(host._house.keeper.session_id())
        raise HostError("another try has begun", code="stale_attempt")

    monkeypatch.setattr(HostRun, "_commit_openings", refuse)
    with pytest.raises(HostError):
        ChildRunHook().spawn(Ticket().clear().context(), order(double, 1), on_clear="respawn")
    store = ChildRunHook().get_conn()
    assert [store.renew_session(session_id, 1) for session_id in opened] == [None]
