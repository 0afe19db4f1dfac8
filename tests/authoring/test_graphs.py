"""Graphs of states: results by parameter, order, tags, side effects, plans built from a configuration, and their digest."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from airflow_childrun import Operation, operation
from airflow_childrun.authoring.registry import REGISTRY
from airflow_childrun.errors import ChildRunError, InvalidPlanError, StateError
from airflow_childrun.model.config import RetryPolicy, RunConfig
from airflow_childrun.model.events import StateEntered
from airflow_childrun.model.plan import ExecutionPlan
from tests.authoring.kit import Desk, load

if TYPE_CHECKING:
    from airflow_childrun.authoring.author_io import Io


def visited(desk: Desk, run_id: Any) -> list[str]:
    """Return the local names of the states that were entered, in order."""
    entered = [event.state_id for event in desk.events(run_id) if isinstance(event, StateEntered)]
    return [state_id.rpartition(".")[2] for state_id in entered]


def test_states_take_results_by_parameter(desk: Desk) -> None:
    """Declared in any order; the last one's result is the output; results keep their types."""
    op = Operation("chain", version="1")

    @op.state
    def total(load: list[Decimal], rate: Decimal) -> Decimal:
        return sum(load, Decimal(0)) * rate

    @op.state
    def load(io: Io, number: int) -> list[Decimal]:
        return [Decimal(number), Decimal("0.5")]

    @op.state
    def rate() -> Decimal:
        return Decimal(2)

    end = desk.run(op, 3)
    assert end.output == Decimal("7.0")
    assert visited(desk, end.run_id)[-1] == "total"
    assert desk.final(end.run_id) == {
        "chain.main.load": ["3", "0.5"],
        "chain.main.rate": "2",
        "chain.main.total": "7.0",
    }


def test_after_orders_without_data(desk: Desk) -> None:
    op = Operation("ordered", version="1")
    seen: list[str] = []

    @op.state(after=["second"])
    def third() -> None:
        seen.append("third")

    @op.state(after="first")
    def second() -> None:
        seen.append("second")

    @op.state
    def first() -> None:
        seen.append("first")

    assert desk.run(op).status == "Completed"
    assert seen == ["first", "second", "third"] * 2


def test_a_state_reads_and_writes_its_context(desk: Desk) -> None:
    op = Operation("with_ctx", version="1")

    @op.state
    def write(ctx: Any) -> None:
        ctx.write("extra", 5)

    @op.state(after=["write"])
    def read(ctx: Any) -> int:
        return int(ctx.read("extra"))

    assert desk.run(op).output == 5


def test_skip_tags_skip_states(desk: Desk) -> None:
    """A skipped state is entered and completed without its handler; who wants its result gets None."""
    op = Operation("tagged", version="1", run_config=RunConfig(skip_tags=("slow",)))

    @op.state(tags=["slow"])
    def slow() -> int:
        raise AssertionError

    @op.state
    def fast(slow: int | None) -> str:
        return f"slow gave {slow}"

    assert desk.run(op).output == "slow gave None"
    with pytest.raises(AssertionError):
        op.states["slow"].function()
    assert desk.run(op, run_config=RunConfig()).status == "Failed"


def test_side_effects_need_an_idempotency_key() -> None:
    op = Operation("careful", version="1")
    with pytest.raises(
        InvalidPlanError, match="state 'pay' of 'careful' applies side effects: give it idempotency="
    ) as no:

        @op.state(side_effects="ApplySideEffect")
        def pay() -> None: ...

    assert no.value.code == "missing_idempotency_key"

    @op.state(side_effects="ApplySideEffect", idempotency="invoice")
    def bill() -> None: ...

    assert list(op.states) == ["bill"]


def test_two_states_of_one_name_are_refused() -> None:
    op = Operation("twice", version="1")
    op.state(named("same"))
    with pytest.raises(InvalidPlanError, match="'twice' has two states called 'same'") as raised:
        op.state(named("same"))
    assert raised.value.code == "duplicate_state_id"


def named(name: str) -> Callable[[], None]:
    def handler() -> None: ...

    handler.__name__ = name
    return handler


def test_graphs_that_are_none_are_refused_before_anything_is_stored(desk: Desk) -> None:
    nowhere = Operation("nowhere", version="1")
    nowhere.state(after=["missing"])(named("only"))
    circle = Operation("circle", version="1")
    circle.state(after=["b"])(named("a"))
    circle.state(after=["a"])(named("b"))
    for op, told in ((nowhere, "missing"), (circle, "wait for each other")):
        with pytest.raises(InvalidPlanError, match=told):
            desk.run(op)
    assert desk.all_runs() == []


def test_a_plan_may_be_built_from_the_config(desk: Desk) -> None:
    """One state per region; the config decides how many, and a handler may ask for it."""

    def build(draft: Operation, config: Any) -> None:
        for region in config["regions"]:
            draft.state(named(region))

        def collect(config: Any, number: int) -> str:
            return f"{number} in {config['regions']}"

        draft.state(after=config["regions"])(collect)

    op = Operation("regional", version="1", build=build)
    end = desk.run(op, 5, config={"regions": ["north", "south"]})
    assert end.output == "5 in ['north', 'south']"
    assert visited(desk, end.run_id) == ["north", "south", "collect"]
    assert visited(desk, desk.run(op, 1, config={"regions": ["east"]}).run_id) == ["east", "collect"]


def test_a_state_is_retried_by_its_own_policy_or_the_runs(desk: Desk) -> None:
    tries: list[str] = []
    op = Operation("patient", version="1", run_config=RunConfig(retry_policy=RetryPolicy(max_attempts=2)))

    @op.state
    def by_run() -> None:
        tries.append("run")
        if tries.count("run") < 2:
            raise StateError("again", retryable=True)

    @op.state(after="by_run", retry=2)
    def by_state() -> None:
        tries.append("state")
        if tries.count("state") < 3:
            raise ValueError("any exception may be retried")

    assert desk.run(op).status == "Completed"
    assert tries[:5] == ["run"] * 2 + ["state"] * 3


def test_what_says_that_it_is_final_is_not_retried(desk: Desk) -> None:
    tries: list[int] = []

    @operation(version="1", retry=5)
    def hopeless(io: Io) -> None:
        tries.append(1)
        raise StateError("no such customer")

    end = desk.run(hopeless)
    assert (end.status, len(tries)) == ("Failed", 1)
    assert end.cause is not None
    assert (end.cause["code"], end.cause["message"]) == ("state_failed", "no such customer")


def test_leaving_the_process_ends_the_state_alone(desk: Desk) -> None:
    @operation(version="1")
    def leaving(io: Io) -> None:
        raise SystemExit(3)

    end = desk.run(leaving)
    assert end.status == "Failed"
    assert end.cause is not None
    assert "SystemExit: 3" in end.cause["message"]


# ------------------------------------------------------------------------------------------------- digest of the plan


def plan_id(op: Operation, desk: Desk) -> str:
    return op.plan(desk.manifest(op)).plan_id


def drafted(**changes: Any) -> Operation:
    """Return an operation of two states, with changes to the second one."""
    op = Operation(changes.pop("name", "digested"), version=changes.pop("version", "1"))
    op.state(named(changes.pop("first", "first")))
    op.state(**{"after": ["first"], **changes})(changes_handler())
    return op


def changes_handler() -> Callable[[], int]:
    def second() -> int:
        return 1

    return second


CHANGES: list[dict[str, Any]] = [
    {"version": "2"},
    {"name": "other"},
    {"after": []},
    {"tags": ["slow"]},
    {"retry": 3},
    {"side_effects": "ReadOnlyIo"},
    {"side_effects": "ApplySideEffect", "idempotency": "key"},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_the_plan_digest_sees_what_changes_a_run(desk: Desk, change: dict[str, Any]) -> None:
    before = plan_id(drafted(), desk)
    REGISTRY._known.clear()
    assert plan_id(drafted(**change), desk) != before


def test_the_plan_digest_ignores_code_module_and_line(desk: Desk, tmp_path: Path) -> None:
    """The same states, written elsewhere and doing something else, resume; the code's digest is another."""
    plans: list[ExecutionPlan] = []
    for index, body in enumerate(("return 1", "return io.now_millis()")):
        REGISTRY._known.clear()
        file = load(tmp_path / f"{index}.py", "\n" * index + f"@operation(version='1')\ndef moved(io):\n    {body}")
        plans.append(file.moved.plan(desk.manifest(file.moved)))
    assert plans[0].plan_id == plans[1].plan_id
    assert plans[0].code_digest != plans[1].code_digest


def test_a_changed_constant_is_a_changed_code_digest(desk: Desk, tmp_path: Path) -> None:
    """Also one inside a nested function; the same text read again is the same code."""
    digests: list[str | None] = []
    for number in (1, 2, 2):
        file = load(tmp_path / "dag.py", f"@operation(version='1')\ndef tuned(io):\n    return (lambda: {number}00)()")
        digests.append(file.tuned.plan(desk.manifest(file.tuned)).code_digest)
    assert digests[0] != digests[1] == digests[2]


def test_a_run_resumes_with_changed_code(desk: Desk) -> None:
    """The first process dies after its step; the second has another handler for the same plan."""
    world: list[str] = []

    def ask() -> str:
        world.append("asked")
        return "answer"

    op = Operation("evolving", version="1")

    def main(io: Io) -> str:
        return io.step(ask) + " old"

    op.state(main)
    run_id = desk.kill(op, after=2)
    op.states.clear()

    def newer(io: Io) -> str:
        return io.step(ask) + " new"

    newer.__name__ = "main"
    op.state(newer)
    assert desk.resume(op, run_id).output == "answer new"
    assert world == ["asked"]


def test_another_plan_is_drift_listing_what_differs(desk: Desk) -> None:
    op = Operation("drifting", version="1")
    op.state(named("one"))
    op.state(after=["one"])(named("two"))
    run_id = desk.kill(op, after=1)
    op.states.clear()
    op.state(tags=["new"])(named("one"))
    with pytest.raises(ChildRunError) as raised:
        desk.resume(op, run_id)
    assert raised.value.code == "plan_drift"
    assert "one" in str(raised.value)
