"""What the fixture ``childrun`` shows of a run is what happened."""

from __future__ import annotations

import datetime as dt
import threading
from decimal import Decimal
from typing import Any

import pytest

from airflow_childrun.authoring.operation import Operation, operation
from airflow_childrun.errors import InputError
from airflow_childrun.model.config import RunConfig
from airflow_childrun.testing.operations import OperationTester
from airflow_childrun.testing.virtual_time import StuckError


def ask(number: int) -> int:
    """Stand for a call."""
    return number * 10


@operation(version="1", name="tested_price")
def price(io: Any, item: str, config: dict[str, Any]) -> Decimal:
    """Ask for a price in a namespace, and add what a step says."""
    net = io.call("prices.net", {"item": item}, "net")
    io.emit("asked", {"item": item})
    return Decimal(net) + int(io.step(ask, config["extra"]))


def test_a_namespace_is_faked_by_its_group(childrun: OperationTester) -> None:
    """The longest name wins; the request is what the handler asked; unfaked steps are really called."""
    childrun.fake("prices", "1.50")
    childrun.fake("prices.net", lambda request: f"{len(request['item'])}.25")
    run = childrun.run(price, "apple", config={"extra": 1})
    assert run.output == Decimal("15.25")
    assert run.facts == {"net": "5.25", "main/ask#0": 10}
    assert run.emitted == [("asked", {"item": "apple"})]
    assert [(call.name, call.args) for call in childrun.calls] == [("prices.net", ({"item": "apple"},)), ("ask", (1,))]


def test_what_is_not_faked_in_a_namespace_is_an_error_of_the_run(childrun: OperationTester) -> None:
    run = childrun.run(price, "apple", config={"extra": 1})
    assert run.status == "Failed"
    assert run.error is not None
    assert run.error.code == "io_unknown_namespace"


def test_an_input_that_does_not_fit_is_refused_before_anything_runs(childrun: OperationTester) -> None:
    with pytest.raises(InputError, match="input"):
        childrun.run(price, 3, config={"extra": 1})
    assert childrun.calls == []


@operation(version="1", name="tested_nap", retry=2)
def nap(io: Any) -> int:
    """Sleep for a week, then fail twice."""
    began = io.now_millis()
    io.sleep(7 * 86_400)
    if io.airflow is None:
        raise ValueError("not in Airflow")
    return int(io.now_millis() - began)


def test_a_week_passes_at_once(childrun: OperationTester) -> None:
    """The recorded time tells that a week is over; io.airflow is what the test says."""
    childrun.airflow = {"dag_id": "d", "run_id": "r"}
    assert childrun.run(nap).output == 7 * 86_400_000


def test_a_failure_names_state_and_attempts(childrun: OperationTester) -> None:
    run = childrun.run(nap)
    assert run.states == {"main": 3}
    assert run.error is not None
    assert (run.error.code, run.error.state_id) == ("handler_raised", "tested_nap.main.main")


two = Operation("tested_two", version="1")


@two.state
def first(io: Any, days: list[dt.date]) -> int:
    """Count."""
    return len(days)


@two.state(tags=["optional"])
def second(first: int, days: list[dt.date]) -> str:
    """Use what the first returned."""
    return f"{first} days from {days[0]:%d.%m.}"


def test_graphs_run_with_typed_input(childrun: OperationTester) -> None:
    assert childrun.run(two, [dt.date(2026, 1, 2)]).output == "1 days from 02.01."
    assert childrun.run(two, ["2026-01-02"], run_config=RunConfig(skip_tags=("optional",))).output is None


@operation(version="1", name="tested_sum")
def add(io: Any, numbers: list[int]) -> int:
    """Add what children return."""
    return sum(result.output for result in io.map(one, numbers, key=str))


@operation(version="1", name="tested_one")
def one(io: Any, number: int) -> int:
    """Ask, after a while."""
    io.sleep(number)
    return int(io.step(ask, number))


def test_children_are_found_by_the_end_of_their_key(childrun: OperationTester) -> None:
    """They work side by side: their calls come in the order of their sleeps."""
    run = childrun.run(add, [3, 1, 2])
    assert run.output == 60
    assert [call.args for call in childrun.calls] == [(1,), (2,), (3,)]
    assert run.child("3").output == 30
    assert run.steps == []
    with pytest.raises(LookupError, match="tested_one/3"):
        run.child("4")


@pytest.mark.parametrize("how", ["crash", "abandon", "in_flight"])
def test_a_run_is_crashed_and_resumed(childrun: OperationTester, how: Any) -> None:
    """A recorded call is not repeated, one in flight is; what the fake of it answers is the answer that was lost."""
    childrun.fake(ask, answers=[1, 2])
    crashed = childrun.crash(add, [1, 2], at="ask#0", how=how)
    assert crashed.status == "Running"
    assert len(childrun.calls) == 1
    run = childrun.resume(crashed)
    assert run.output == 3
    assert len(childrun.calls) == (3 if how == "in_flight" else 2)


def test_an_io_that_does_not_exist_is_answered_with_those_that_do(childrun: OperationTester) -> None:
    with pytest.raises(
        LookupError, match=r"there is no IO 'send'; there are: 1 sleep 'main/sleep#0', 2 step 'main/ask#0'"
    ):
        childrun.crash(one, 1, at="send")
    with pytest.raises(LookupError, match="no IO 0"):
        childrun.crash(one, 1, at=0)


def test_a_fake_that_is_asked_too_often_says_so(childrun: OperationTester) -> None:
    childrun.fake(ask, answers=[1])
    error = childrun.run(add, [1, 2]).child("2").error
    assert error is not None
    assert "the fake of 'ask' has 1 answers" in error.message


@operation(version="1", name="tested_stuck")
def stuck(io: Any) -> None:
    """Wait for nobody."""
    threading.Event().wait()


@operation(version="1", name="tested_thread")
def threaded(io: Any) -> list[str]:
    """Use io where it must not be used."""
    raised: list[str] = []

    def work() -> None:
        try:
            io.step(ask, 1)
        except BaseException as error:
            raised.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return raised


def test_a_handler_that_waits_for_ever_fails_the_test() -> None:
    with pytest.raises(StuckError, match=r"has not come back for 0\.2 s"):
        OperationTester(patience_s=0.2).run(stuck)


def test_io_in_a_thread_of_the_handlers_own_is_refused(childrun: OperationTester) -> None:
    (text,) = childrun.run(threaded).output
    assert "belongs to the handler's own thread" in text
