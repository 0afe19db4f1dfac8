"""``io``: steps, keys, retries with recorded waits, children, sleeps and tokens; live, after a crash, and on replay."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from decimal import Decimal
from typing import TYPE_CHECKING, Any, cast

import pytest

from airflow_childrun import Operation, operation
from airflow_childrun.authoring.steps import as_policy
from airflow_childrun.errors import InputError, OtherIoError, StateError
from airflow_childrun.model.config import Duration, Fixed, RetryPolicy
from airflow_childrun.model.events import WAIT_OPENED
from airflow_childrun.transports.registry import FunctionTransport, TransportRegistry
from tests.authoring.kit import Desk

if TYPE_CHECKING:
    from airflow_childrun.authoring.author_io import Io
    from airflow_childrun.authoring.handles import ChildResult


class World:
    """What steps ask; counts."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.failing = 0

    def ask(self, question: str = "") -> str:
        self.calls.append(question)
        if self.failing:
            self.failing -= 1
            message = f"no answer to {question!r}"
            raise ConnectionError(message)
        return f"answer {len(self.calls)}"


@pytest.fixture
def world() -> World:
    """Give a world."""
    return World()


QUICK = RetryPolicy(max_attempts=4, backoff=Fixed(delay=Duration.of_seconds(0.01)))

# ---------------------------------------------------------------------------------------------------------- steps, keys


def load(number: int, *, rate: int = 1) -> int:
    return number * rate


def test_keys_are_state_name_and_number(desk: Desk) -> None:
    """Default and explicit keys stand under the state; only the raw call takes its key as it is."""
    op = Operation("keyed", version="1")

    @op.state
    def prepare(io: Io) -> int:
        return io.step(load, 1) + io.step(load, 2, rate=3) + io.step(load, 5, key="mine")

    @op.state
    def finish(io: Io, prepare: int) -> int:
        io.record_value("note", {"a": 1})
        io.call("echo", [1], "raw key")
        return io.step(load, prepare)

    transports = TransportRegistry([FunctionTransport("echo", lambda call, env: call.request)])
    process = desk.process(transports=transports)
    run_id = process.engine.start(desk.manifest(op)).run_id
    assert desk.end(op, run_id).output == 12
    assert desk.keys(run_id) == [
        "prepare/load#0",
        "prepare/load#1",
        "prepare/mine",
        "finish/note",
        "raw key",
        "finish/load#0",
    ]


def test_a_recorded_step_is_not_called_again(desk: Desk, world: World) -> None:
    """Killed after any commit, resumed: each question is asked once, and the answers are the first ones."""

    @operation(version="1")
    def asking(io: Io) -> list[str]:
        return [io.step(world.ask, "a"), io.step(world.ask, "b")]

    for after in range(5):
        world.calls.clear()
        run_id = desk.kill(asking, after=after)
        assert desk.resume(asking, run_id).output == ["answer 1", "answer 2"]
        assert world.calls == ["a", "b"], after


def test_another_question_under_the_same_key_is_told(desk: Desk, world: World) -> None:
    """Code between steps that asks something else on re-entry is named with the key."""

    @operation(version="1")
    def fickle(io: Io) -> str:
        return io.step(world.ask, "first" if not world.calls else "second")

    run_id = desk.kill(fickle, after=2)
    end = desk.resume(fickle, run_id)
    assert end.cause is not None
    assert end.cause["code"] == "fact_request_mismatch"
    assert "'main/ask#0' answers another request" in end.cause["message"]
    assert world.calls == ["first"]


def test_nameless_functions_are_refused(desk: Desk) -> None:
    """Their name is their key."""
    functions: list[Callable[[], Any]] = [lambda: 1, functools.partial(load, 1)]
    for index, nameless in enumerate(functions):
        op = Operation(f"nameless{index}", version="1")
        op.state(_taking(nameless))
        end = desk.run(op)
        assert end.cause is not None
        assert end.cause["code"] == "step_unnamed"
        assert "define one with def" in end.cause["message"]


def _taking(function: Callable[[], Any]) -> Callable[[Io], Any]:
    def main(io: Io) -> Any:
        return io.step(function)

    return main


def test_async_steps_are_refused_before_they_run(desk: Desk) -> None:
    async def later() -> int:
        return 1

    @operation(version="1", retry=3)
    def waiting(io: Io) -> Any:
        return io.step(later)

    end = desk.run(waiting)
    assert end.cause is not None
    assert end.cause["code"] == "step_async"
    assert "'later' is async" in end.cause["message"]
    assert len(desk.failures(end.run_id)) == 1


def test_arguments_that_cannot_be_recorded_name_the_step(desk: Desk) -> None:
    @operation(version="1")
    def passing(io: Io) -> Any:
        return io.step(load, object())

    end = desk.run(passing)
    assert end.cause is not None
    assert "the arguments of step 'load' holds a value of type object at $[0]" in end.cause["message"]


# -------------------------------------------------------------------------------------------------------- retry, errors


def test_a_step_is_tried_again_with_recorded_waits(desk: Desk, world: World) -> None:
    world.failing = 2

    @operation(version="1")
    def retrying(io: Io) -> str:
        return io.step(world.ask, "a", retry=QUICK)

    end = desk.run(retrying)
    assert end.output == "answer 3"
    waits = desk.domain(end.run_id, WAIT_OPENED)
    assert [(wait["key"], wait["try"]) for wait in waits] == [("main/ask#0", 1), ("main/ask#0", 2)]
    assert all(later["until"] > earlier["until"] for earlier, later in itertools.pairwise(waits))


def test_the_count_of_tries_survives_a_crash(desk: Desk, world: World) -> None:
    """Killed in its second wait: two failures are on record, and two tries of four are left."""
    world.failing = 4

    @operation(version="1")
    def counting(io: Io) -> str:
        return io.step(world.ask, "a", retry=QUICK)

    run_id = desk.kill(counting, after=3)
    assert len(world.calls) == 2
    end = desk.resume(counting, run_id)
    assert end.status == "Failed"
    assert len(world.calls) == 4


def test_a_number_of_retries_waits_longer_and_longer() -> None:
    policy = as_policy(3)
    assert policy.attempts == 4
    assert [policy.delay_us(n) // 1_000_000 for n in (0, 1, 2, 10)] == [1, 2, 4, 60]


def test_an_error_of_a_step_is_recorded_and_delivered_again(desk: Desk, world: World) -> None:
    """The author may catch it; after a crash and on replay he catches the same one, and nobody is asked."""
    world.failing = 1
    caught: list[str] = []

    @operation(version="1")
    def catching(io: Io) -> str:
        try:
            return io.step(world.ask, "a")
        except OtherIoError as error:
            caught.append(f"{error.code}: {error.info.message}")
            return io.step(world.ask, "b")

    run_id = desk.kill(catching, after=3)
    assert desk.resume(catching, run_id).output == "answer 2"
    desk.replay(run_id)
    assert set(caught) == {"step_failed: step 'ask' raised ConnectionError: no answer to 'a'"}
    assert len(caught) == 3
    assert world.calls == ["a", "b"]


def test_a_state_that_is_tried_again_forgets_its_own_errors(desk: Desk, world: World) -> None:
    """The step that had answered stays recorded; the one that had failed is asked again."""
    world.failing = 0

    def flaky() -> str:
        world.calls.append("flaky")
        if world.calls.count("flaky") < 3:
            raise ConnectionError
        return "at last"

    @operation(version="1", retry=4)
    def stubborn(io: Io) -> list[str]:
        return [io.step(world.ask, "a"), io.step(flaky)]

    assert desk.run(stubborn).output == ["answer 1", "at last"]
    assert world.calls == ["a", "flaky", "flaky", "flaky"]


class AirflowFailException(Exception):  # noqa: N818 - known by this name
    """Stands for Airflow's: known by name, since steps import no Airflow."""


FINAL: list[Exception] = [
    AirflowFailException("no such customer"),
    StateError("no such customer"),
    OtherIoError("no such customer"),
    InputError("no such customer"),
]


@pytest.mark.parametrize("raised", FINAL, ids=lambda raised: type(raised).__name__)
def test_exceptions_that_are_final_are_not_tried_again(desk: Desk, raised: Exception) -> None:
    calls: list[int] = []

    def hopeless() -> None:
        calls.append(1)
        raise raised

    @operation(version="1", retry=3)
    def giving_up(io: Io) -> None:
        io.step(hopeless, retry=QUICK)

    end = desk.run(giving_up)
    assert (end.status, len(calls)) == ("Failed", 1)
    assert end.cause is not None
    assert not end.cause["retryable"]
    assert "no such customer" in end.cause["message"]


def test_a_retryable_error_says_so(desk: Desk) -> None:
    def busy() -> None:
        raise StateError("come back later", code="busy", retryable=True)

    @operation(version="1")
    def hoping(io: Io) -> None:
        io.step(busy)

    end = desk.run(hoping)
    assert end.cause is not None
    assert (end.cause["code"], end.cause["retryable"]) == ("busy", True)


def test_a_result_that_does_not_fit_its_hint_is_told_the_first_time_too(desk: Desk) -> None:
    def wrong() -> Any:
        return "no number"

    wrong.__annotations__ = {"return": int}

    @operation(version="1")
    def trusting(io: Io) -> Any:
        return io.step(wrong)

    end = desk.run(trusting)
    assert end.cause is not None
    assert "what step 'wrong' returned does not fit int" in end.cause["message"]
    assert "no number" not in end.cause["message"]


# -------------------------------------------------------------------------------------- time, chance, tokens, Airflow


def test_time_and_chance_are_recorded(desk: Desk) -> None:
    """After a crash the handler sees the same ones."""
    seen: list[list[Any]] = []

    @operation(version="1")
    def random(io: Io) -> list[Any]:
        seen.append([])
        for ask in (io.now_millis, lambda: io.random_bytes(4), io.now_millis, lambda: io.random_bytes(4)):
            seen[-1].append(ask())
        return seen[-1]

    run_id = desk.kill(random, after=4)
    assert desk.resume(random, run_id).status == "Completed"
    desk.replay(run_id)
    killed, resumed, replayed = seen
    assert len(killed) == 2
    assert resumed[:2] == killed
    assert replayed == resumed
    assert len(set(resumed[1::2])) == 2


def test_sleep_is_waited_once(desk: Desk) -> None:
    @operation(version="1")
    def sleepy(io: Io) -> None:
        io.sleep(0.01)
        io.sleep(0.01)
        io.sleep(0.01, key="nap")

    end = desk.run(sleepy)
    waits = desk.domain(end.run_id, WAIT_OPENED)
    assert [(wait["key"], wait["try"]) for wait in waits] == [("main/sleep#0", 1), ("main/sleep#1", 1), ("main/nap", 1)]
    run_id = desk.kill(sleepy, after=2)
    desk.resume(sleepy, run_id)
    assert len(desk.domain(run_id, WAIT_OPENED)) == 3


def test_the_token_of_a_call_stays_the_same(desk: Desk, world: World) -> None:
    """Over attempts and crashes; another run has another."""
    tokens: list[str] = []
    world.failing = 1

    @operation(version="1", retry=3)
    def paying(io: Io) -> str:
        tokens.append(io.idempotency_token("pay"))
        return io.step(world.ask, tokens[-1], key="pay")

    run_id = desk.kill(paying, after=1)
    assert desk.resume(paying, run_id).status == "Completed"
    assert len(set(tokens)) == 1
    assert set(world.calls) == set(tokens)
    desk.run(paying)
    assert len(set(tokens)) == 2


def test_outside_of_airflow_there_is_no_airflow(desk: Desk) -> None:
    @operation(version="1")
    def outside(io: Io) -> bool:
        return io.airflow is None

    assert desk.run(outside).output is True


def test_events_of_ones_own(desk: Desk) -> None:
    @operation(version="1")
    def telling(io: Io) -> None:
        io.emit("billed", {"amount": Decimal("1.5")})

    end = desk.run(telling)
    assert desk.domain(end.run_id, "billed") == [{"amount": "1.5"}]


def test_an_event_of_ones_own_needs_a_text_for_a_name(desk: Desk) -> None:
    @operation(version="1")
    def misnaming(io: Io) -> None:
        with pytest.raises(InputError, match="the name of an event is 5; give a text"):
            io.emit(cast("Any", 5), None)

    assert desk.run(misnaming).status == "Completed"


def test_a_recorded_value_keeps_its_key(desk: Desk) -> None:
    """The same value is fine, another one is refused."""

    @operation(version="1")
    def recording(io: Io) -> list[str | None]:
        first = io.record_value("note", 1)
        assert io.record_value("note", 1) == first
        with pytest.raises(OtherIoError, match="another value is recorded under the key"):
            io.record_value("note", 2)
        return [first, io.get_recorded_fact("main/note"), io.get_recorded_fact("main/other")]

    output = desk.run(recording).output
    assert output[0] == output[1]
    assert output[2] is None


# ------------------------------------------------------------------------------------------------------------ children


@dataclasses.dataclass
class Store:
    """What a child is given."""

    name: str
    amount: Decimal = Decimal(1)


def test_map_gives_results_in_order_and_by_type(desk: Desk) -> None:
    @operation(version="1")
    def priced(io: Io, store: Store) -> Decimal:
        return store.amount * 2

    @operation(version="1")
    def mapping(io: Io, amounts: list[Decimal]) -> list[Decimal]:
        results = io.map(priced, [Store(f"s{n}", amount) for n, amount in enumerate(amounts)])
        assert all(isinstance(result.output, Decimal) for result in results)
        return [result.output for result in results]

    end = desk.run(mapping, [3, 1, 2])
    assert end.output == [Decimal(6), Decimal(2), Decimal(4)]
    assert desk.keys(end.run_id)[:3] == ["main/priced#0", "main/priced#1", "main/priced#2"]


def by_name(store: Store) -> str:
    return store.name


@pytest.mark.parametrize("key", ["name", by_name, lambda store: store.name], ids=["field", "function", "lambda"])
def test_map_names_children_by_field_or_function(desk: Desk, key: Any) -> None:
    @operation(version="1")
    def priced(io: Io, store: Store) -> str:
        return store.name

    @operation(version="1")
    def naming(io: Io) -> list[str]:
        return [result.output for result in io.map(priced, [Store("b"), Store("a")], key=key)]

    end = desk.run(naming)
    assert end.output == ["b", "a"]
    assert desk.keys(end.run_id)[:2] == ["main/priced/b", "main/priced/a"]


BAD_MAPS: list[tuple[list[Any], Any, str, str]] = [
    ([Store("a"), Store("a")], "name", "child_key_duplicate", "have the key 'a'"),
    ([{"name": "a"}, {"nom": "b"}], "name", "child_key_missing", "element 1 has no field 'name'"),
    ([Store("a"), {"name": 5}], None, "input_invalid", "element 1 of io.map(priced): "),
]


@pytest.mark.parametrize(("elements", "key", "code", "told"), BAD_MAPS, ids=[row[2] for row in BAD_MAPS])
def test_map_refuses_before_any_child_exists(desk: Desk, elements: list[Any], key: Any, code: str, told: str) -> None:
    @operation(version="1")
    def priced(io: Io, store: Store) -> str:
        return store.name

    @operation(version="1")
    def mistaken(io: Io) -> None:
        io.map(priced, elements, key=key)

    end = desk.run(mistaken)
    assert end.cause is not None
    assert end.cause["code"] == code
    assert told in end.cause["message"]
    assert desk.children(end.run_id) == []


def test_map_over_nothing(desk: Desk) -> None:
    @operation(version="1")
    def leaf(io: Io, number: int) -> int:
        return number

    @operation(version="1")
    def idle(io: Io) -> int:
        return len(io.map(leaf, []))

    assert desk.run(idle).output == 0


def test_a_failing_child_is_a_result(desk: Desk) -> None:
    """Not an error: the parent decides. Its cause is told."""

    @operation(version="1")
    def halving(io: Io, number: int) -> int:
        if number % 2:
            raise StateError(f"{number} is odd", code="odd")
        return number // 2

    @operation(version="1")
    def judging(io: Io) -> list[Any]:
        results: list[ChildResult] = io.map(halving, [4, 3])
        errors = [result.error and (result.error.code, result.error.message) for result in results]
        return [[result.completed for result in results], [result.output for result in results], errors]

    assert desk.run(judging).output == [[True, False], [2, None], [None, ["odd", "3 is odd"]]]


def test_spawn_and_await_apart(desk: Desk) -> None:
    """Also by default keys, in any order, and twice."""

    @operation(version="1")
    def adding(io: Io, one: int, other: Decimal = Decimal(1)) -> Decimal:
        return one + other

    @operation(version="1")
    def apart(io: Io) -> list[Any]:
        first = io.spawn(adding, {"one": 1})
        second = io.spawn(adding, {"one": 2, "other": Decimal("0.5")}, key="second")
        ends = [io.await_child(second, adding), io.await_child(first), io.await_child(second, adding)]
        return [end.output for end in ends]

    end = desk.run(apart)
    assert end.output == ["2.5", "2", "2.5"]
    assert desk.keys(end.run_id) == ["main/adding#0", "main/second", "main/second/end", "main/adding#0/end"]


def test_a_spawn_that_does_not_fit_is_refused(desk: Desk) -> None:
    @operation(version="1")
    def strict_child(io: Io, number: int) -> int:
        return number

    @operation(version="1")
    def careless(io: Io) -> None:
        io.spawn(strict_child, "x")

    end = desk.run(careless)
    assert end.cause is not None
    assert end.cause["code"] == "input_invalid"
    assert "the input of strict_child 1, field 'number', does not fit int" in end.cause["message"]


def test_a_parent_killed_anywhere_has_each_child_once(desk: Desk, world: World) -> None:
    @operation(version="1")
    def asked(io: Io, number: int) -> str:
        return io.step(world.ask, str(number)) and str(number)

    @operation(version="1")
    def fan(io: Io) -> str:
        return "".join(result.output for result in io.map(asked, [1, 2]))

    for after in range(1, 10):
        world.calls.clear()
        run_id = desk.kill(fan, after=after)
        assert desk.resume(fan, run_id).output == "12", after
        assert len(desk.children(run_id)) == 2
        assert set(world.calls) == {"1", "2"}


def test_a_handler_reads_and_asks_through_io_alone(desk: Desk) -> None:
    """The provider behind it is the engine's: an unknown namespace is told without the request."""

    @operation(version="1")
    def lost(io: Io) -> None:
        io.call("nowhere", {"token": "x"}, "k")

    end = desk.run(lost)
    assert end.cause is not None
    assert end.cause["code"] == "io_unknown_namespace"
    assert "token" not in end.cause["message"]
