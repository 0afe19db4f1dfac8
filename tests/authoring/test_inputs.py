"""What an operation takes: one input, several, none, defaults; what does not fit is refused before spawn."""

from __future__ import annotations

import dataclasses
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel

from airflow_childrun import Operation, operation
from airflow_childrun.errors import InputError, InvalidPlanError, OperationError
from tests.authoring.kit import Desk

if TYPE_CHECKING:
    from airflow_childrun.authoring.author_io import Io

HUSH = "correct horse battery staple"


@dataclasses.dataclass
class Line:
    """A line of an invoice."""

    price: Decimal
    count: int = 1


class Address(BaseModel):
    """Where somebody lives."""

    city: str


def test_one_input_is_the_value_itself(desk: Desk) -> None:
    @operation(version="1")
    def single(io: Io, lines: list[Line]) -> Decimal:
        return sum((line.price * line.count for line in lines), Decimal(0))

    assert desk.run(single, [Line(Decimal("1.50"), 2), {"price": "2"}]).output == Decimal("5.00")


def test_several_inputs_are_an_object_by_name(desk: Desk) -> None:
    @operation(version="1")
    def several(io: Io, store: str, amount: Decimal, note: str | None = None) -> str:
        return f"{store} {amount} {note}"

    assert desk.run(several, {"store": "a", "amount": Decimal("1.5")}).output == "a 1.5 None"
    assert desk.run(several, {"store": "a", "amount": 2, "note": "x"}).output == "a 2 x"


def test_no_input(desk: Desk) -> None:
    @operation(version="1")
    def nothing(io: Io) -> int:
        return 1

    assert desk.run(nothing).output == 1
    assert desk.run(nothing, {}).output == 1
    with pytest.raises(InputError, match="it takes no input, but was given one"):
        nothing.encode_input(5)


def test_an_operation_needs_not_even_io(desk: Desk) -> None:
    @operation(version="1")
    def pure(number: int) -> int:
        return number + 1

    assert desk.run(pure, 1).output == 2


def test_a_single_input_may_have_a_default(desk: Desk) -> None:
    @operation(version="1")
    def greeting(io: Io, name: str = "you") -> str:
        return f"hello {name}"

    assert desk.run(greeting).output == "hello you"
    assert desk.run(greeting, "me").output == "hello me"


def test_parameters_may_have_any_name(desk: Desk) -> None:
    """No word of ours, and none of the library that validates, is taken."""

    @operation(version="1")
    def odd(io: Io, schema: str, json: int, copy: bytes, model_config: list[int], _hidden: int = 3) -> list[Any]:
        return [schema, json, copy.decode(), model_config, _hidden]

    given = {"schema": "s", "json": 1, "copy": b"c", "model_config": [2]}
    assert desk.run(odd, given).output == ["s", 1, "c", [2], 3]


def test_a_handler_may_change_what_it_is_given(desk: Desk) -> None:
    """Its next attempt, and the next run, see the input, the config and the default as they were."""
    seen: list[Any] = []
    op = Operation("greedy", version="1")

    @op.state(retry=1)
    def main(rows: list[int], config: Any, more: list[int] = []) -> None:  # noqa: B006
        seen.append((list(rows), list(config), list(more)))
        rows.clear()
        config.clear()
        more.append(1)
        if len(seen) == 1:
            raise ValueError

    assert desk.run(op, {"rows": [1, 2]}, config=[3]).status == "Completed"
    assert seen == [([1, 2], [3], [])] * 3


UNFIT: list[tuple[Any, list[str]]] = [
    ("x", ["takes the fields store, line", "not a str"]),
    ({"store": "a"}, ["line: Field required"]),
    ({"store": "a", "line": {"price": "cheap"}}, ["line.price: ", "valid decimal"]),
    ({"store": 5, "line": {"price": 1}}, ["store: Input should be a valid string"]),
    ({"store": "a", "line": {"price": 1, "count": "many"}}, ["line.count: ", "valid integer"]),
    ({"store": "a", "line": {"price": 1}, "stor": 1, "z": 1}, ["no field stor, z", "fields are store, line"]),
    ({"store": "a", "line": {"price": 1}, "homes": [{"city": "b"}, {}]}, ["homes.1.city: Field required"]),
]


@pytest.mark.parametrize(("given", "told"), UNFIT, ids=[told[0] for _, told in UNFIT])
def test_an_input_that_does_not_fit_is_told_by_field_place_and_type(given: Any, told: list[str]) -> None:
    @operation(version="7")
    def strict_op(io: Io, store: str, line: Line, homes: list[Address] = []) -> None: ...  # noqa: B006

    with pytest.raises(InputError) as raised:
        strict_op.encode_input(given)
    text = str(raised.value)
    assert text.startswith("[input_invalid] the input of strict_op 7")
    for part in told:
        assert part in text


def test_a_single_field_is_named_with_its_type() -> None:
    @operation(version="1")
    def priced(io: Io, lines: dict[str, list[Line]]) -> None: ...

    with pytest.raises(InputError) as raised:
        priced.encode_input({"a": [{"price": 1}, {"price": None}]})
    assert "the input of priced 1, field 'lines', does not fit dict[str, list[" in str(raised.value)
    assert "a.1.price: " in str(raised.value)


@pytest.mark.parametrize("hint", [int, Decimal, bool, list[int], Line, Address, "Literal"], ids=str)
def test_no_refusal_echoes_a_value(hint: Any) -> None:
    """The value may be the password that somebody put into the wrong field."""

    def handler(given: Any, other: int = 1) -> None: ...

    handler.__annotations__ = {"given": hint if hint != "Literal" else Decimal}
    op = Operation("hush", version="1")
    op.state(handler)
    for value in (HUSH, {"price": HUSH, "count": HUSH, "city": [HUSH]}, [HUSH]):
        with pytest.raises(InputError) as raised:
            op.encode_input({"given": value})
        assert HUSH not in str(raised.value)


def test_an_input_is_checked_before_anything_is_stored(desk: Desk) -> None:
    @operation(version="1")
    def counted(io: Io, number: int) -> int:
        return number

    manifest = desk.manifest(counted, 1)
    broken = manifest.model_copy(update={"input_params": {**manifest.input_params, "input": "x"}})
    with pytest.raises(InputError, match="field 'number'"):
        desk.process().engine.start(broken)
    assert desk.all_runs() == []


def test_the_schema_of_the_input_is_what_a_form_needs() -> None:
    @operation(version="1")
    def formed(io: Io, month: str, lines: list[Line], dry_run: bool = True, tags: list[str] = []) -> None: ...  # noqa: B006

    schema = formed.input_schema()
    assert schema["required"] == ["month", "lines"]
    assert schema["properties"]["dry_run"]["default"] is True
    assert schema["properties"]["month"]["type"] == "string"
    assert schema["properties"]["tags"]["type"] == "array"

    @operation(version="1")
    def single_form(io: Io, line: Line) -> None: ...

    assert set(single_form.input_schema()["properties"]) == {"price", "count"}


# ------------------------------------------------------------------------------------------------- wrong definitions


def test_async_handlers_and_generators_are_refused() -> None:
    async def later(io: Io) -> None: ...

    async def stream(io: Io) -> Any:
        yield 1

    def rows(io: Io) -> Any:
        yield 1

    for handler in (later, stream, rows):
        with pytest.raises(OperationError, match="must be a plain def; for concurrency spawn children") as raised:
            operation(version="1")(handler)
        assert raised.value.code == "invalid_handler"


def test_a_lambda_that_hides_a_coroutine_fails_its_state(desk: Desk) -> None:
    async def later() -> None: ...

    @operation(version="1")
    def hidden(io: Io) -> Any:
        return later()

    end = desk.run(hidden)
    assert end.cause is not None
    assert "returned a coroutine: a handler is a plain def" in end.cause["message"]


def test_handlers_take_their_parameters_by_name() -> None:
    for handler in (lambda *rows: None, lambda **rows: None):
        handler.__name__ = "starred"
        with pytest.raises(OperationError, match="has the parameter 'rows'; a handler's parameters are filled by name"):
            operation(version="1")(handler)


def test_a_state_cannot_ask_for_its_own_result() -> None:
    with pytest.raises(OperationError, match="parameter of its own name"):

        @operation(version="1")
        def ouroboros(io: Io, main: int) -> None: ...


@pytest.mark.parametrize("name", ["Report", "1st", "a-b", "", "a" * 64, "a.b"])
def test_bad_names_say_the_rule(name: str) -> None:
    with pytest.raises(OperationError, match="use lower-case letters, digits and underscores") as raised:
        Operation(name, version="1")
    assert raised.value.code == "invalid_op_id"


def test_a_version_is_text() -> None:
    for version in ("", 1, None):
        given: Any = version
        with pytest.raises(OperationError, match='needs a version, such as version="1"'):
            Operation("versioned", version=given)


def test_an_operation_without_states_is_refused_when_it_is_wanted(desk: Desk) -> None:
    op = Operation("hollow", version="1")
    with pytest.raises(InvalidPlanError) as raised:
        desk.run(op)
    assert raised.value.code == "empty_state_graph"


def test_an_operation_is_spawned_not_called() -> None:
    """Airflow would write the source of anything callable into the serialized DAG, instead of name and version."""

    @operation(version="1")
    def durable(io: Io) -> None: ...

    assert not callable(durable)
    assert "Operation('durable', version='1')" in repr([durable])
