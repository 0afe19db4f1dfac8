"""What authors hand over comes back by its type hints: as input, step result, state result and output, live as on replay."""

from __future__ import annotations

import base64
import collections
import dataclasses
import datetime as dt
import enum
import uuid
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from airflow_childrun import operation
from airflow_childrun.authoring.encoder import decode, encode, hints_of
from airflow_childrun.authoring.operation import Operation
from airflow_childrun.canonical import canonical_json_bytes, decode_stored
from airflow_childrun.errors import InputError
from tests.authoring.kit import Desk

if TYPE_CHECKING:
    from airflow_childrun.authoring.author_io import Io

NOT_TEXT = b"\x00\xfb\xff>?"


class Color(enum.Enum):
    RED = "r"
    BLUE = "b"


class Level(enum.IntEnum):
    LOW = 1


@dataclasses.dataclass
class Part:
    """A dataclass with bytes, which have no JSON form of their own."""

    raw: bytes
    when: dt.datetime


@dataclasses.dataclass
class Order:
    """A nested dataclass."""

    part: Part
    price: Decimal
    tags: set[str]
    color: Color = Color.RED
    note: Optional[str] = None  # noqa: UP045


class Customer(BaseModel):
    """A model with a nested dataclass."""

    id: uuid.UUID
    orders: list[Order] = []


class Blob(BaseModel):
    """A model that chose how its bytes look."""

    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")
    raw: bytes


class TextBlob(BaseModel):
    """A model whose bytes are text, as pydantic has it by default."""

    raw: bytes


class Pair(NamedTuple):
    """A named tuple."""

    left: int
    right: bytes


NOON = dt.datetime(2026, 1, 2, 12, 30, tzinfo=dt.UTC)
PART = Part(NOT_TEXT, NOON)
ORDER = Order(PART, Decimal("10.10"), {"b", "a"})
TEXT_ORDER = Order(Part(b"text", NOON), Decimal("10.10"), {"b"})

ROUND_TRIPS: list[tuple[Any, Any]] = [
    (Decimal("1.10"), Decimal),
    (dt.date(2026, 1, 2), dt.date),
    (NOON, dt.datetime),
    (NOON.astimezone(dt.timezone(dt.timedelta(hours=2))), dt.datetime),
    (dt.time(3, 4), dt.time),
    (dt.timedelta(seconds=90.5), dt.timedelta),
    (uuid.UUID(int=5), uuid.UUID),
    (NOT_TEXT, bytes),
    (Color.BLUE, Color),
    (Level.LOW, Level),
    (PART, Part),
    (ORDER, Order),
    ([ORDER, ORDER], list[Order]),
    ({"x": PART}, dict[str, Part]),
    (PART, Part | None),
    (None, Part | None),
    (None, Optional[int]),  # noqa: UP045
    (5, Optional[int]),  # noqa: UP045
    (Customer(id=uuid.UUID(int=1), orders=[TEXT_ORDER]), Customer),
    (Blob(raw=NOT_TEXT), Blob),
    ({"a": Blob(raw=NOT_TEXT)}, dict[str, Blob]),
    (TextBlob(raw=b"text"), TextBlob),
    ({3, 1, 2}, set[int]),
    (frozenset({"a"}), frozenset[str]),
    ({Color.RED, Color.BLUE}, set[Color]),
    ((1, "a", NOT_TEXT), tuple[int, str, bytes]),
    (Pair(1, NOT_TEXT), Pair),
    ({1: "a", 2: "b"}, dict[int, str]),
    ({uuid.UUID(int=1): 1}, dict[uuid.UUID, int]),
    ({dt.date(2026, 1, 1): Color.RED}, dict[dt.date, Color]),
    (collections.Counter("aab"), collections.Counter[str]),
    (Path("/a/b"), Path),
    (2**63, int),
    (0.1, float),
    (10.0**21, float),
    ({"plain": [1, None, True, "x", {"y": 2.5}]}, Any),
]
IDS = [f"{hint} {index}" for index, (_, hint) in enumerate(ROUND_TRIPS)]


@pytest.mark.parametrize(("value", "hint"), ROUND_TRIPS, ids=IDS)
def test_what_is_recorded_comes_back_by_its_hint(value: Any, hint: Any) -> None:
    stored = canonical_json_bytes(encode(value, "it"))
    back = decode(decode_stored(stored), hint, "it")
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize(("value", "hint"), ROUND_TRIPS, ids=IDS)
def test_live_equals_replay_on_every_surface(desk: Desk, value: Any, hint: Any) -> None:
    """Input, step argument, step result, state result and output: the first time as after a crash and as on replay."""
    seen: list[Any] = []

    def echo(given: Any) -> Any:
        assert given == value
        return given

    echo.__annotations__ = {"given": hint, "return": hint}
    op = Operation("surfaces", version="1")

    def take(io: Any, given: Any) -> Any:
        answer = io.step(echo, given)
        seen.append((given, answer))
        return answer

    take.__annotations__ = {"given": hint, "return": hint}

    def last(take: Any) -> Any:
        seen.append((take, take))
        return take

    last.__annotations__ = {"return": hint}
    op.state(take)
    op.state(last)
    end = desk.run(op, value)
    assert end.status == "Completed"
    assert end.output == value
    # Live, then replay: two handlers each.
    assert seen == [(value, value)] * 4
    assert {type(part) for pair in seen for part in pair} == {type(value)}


def test_without_a_hint_the_recorded_form_comes_back_the_first_time_too(desk: Desk) -> None:
    seen: list[Any] = []

    def load() -> Any:
        return Decimal("1.5")

    @operation(version="1")
    def unhinted(io, amount):
        seen.append((amount, io.step(load)))

    assert desk.run(unhinted, Decimal("2.5")).status == "Completed"
    assert seen == [("2.5", "1.5")] * 2


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(st.characters(codec="utf-8")),
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4)
        ),
        max_leaves=12,
    )
)
def test_plain_data_is_recorded_as_it_is(value: Any) -> None:
    assert encode(value, "it") == value


@given(st.binary(), st.decimals(allow_nan=False, allow_infinity=False), st.datetimes(timezones=st.just(dt.UTC)))
def test_any_bytes_decimals_and_times_come_back(raw: bytes, price: Decimal, when: dt.datetime) -> None:
    order = Order(Part(raw, when), price, set())
    stored = canonical_json_bytes(encode(order, "it"))
    assert decode(decode_stored(stored), Order, "it") == order


def test_bytes_are_standard_base64_everywhere() -> None:
    written = base64.b64encode(NOT_TEXT).decode()
    assert encode(NOT_TEXT, "it") == encode(PART, "it")["raw"] == encode(Pair(1, NOT_TEXT), "it")[1] == written


def test_sets_are_recorded_in_one_order() -> None:
    assert encode({"b", "a", "c"}, "it") == ["a", "b", "c"]


class Opaque:
    """Nothing that can be recorded."""


OPAQUE: Any = Opaque()


REFUSED: list[tuple[Any, str, str]] = [
    (OPAQUE, "$", "Opaque"),
    ({"a": [1, OPAQUE]}, "$.a[1]", "Opaque"),
    ({"a": {1, 2}, "b": (1, {"c": lambda: 1})}, "$.b[1].c", "function"),
    (Order(PART, OPAQUE, set()), "$.price", "Opaque"),
    (Order(Part(OPAQUE, NOON), Decimal(1), set()), "$.part.raw", "Opaque"),
    (collections.OrderedDict(a=OPAQUE), "$.a", "Opaque"),
    ({"a": ValueError("x")}, "$.a", "ValueError"),
    ({(1, 2): 3}, "$", "tuple"),
    ({None: 3}, "$", "NoneType"),
    ({"rows": (n for n in [1])}, "$.rows", "generator"),
    (iter([1]), "$", "list_iterator"),
    (TextBlob(raw=b"\xff"), "$", "TextBlob"),
    ({"price": Decimal("NaN")}, "$.price", "Decimal"),
    ([Decimal("-Infinity")], "$[0]", "Decimal"),
]


@pytest.mark.parametrize(("value", "path", "kind"), REFUSED, ids=[f"{kind} {path}" for _, path, kind in REFUSED])
def test_what_cannot_be_recorded_is_refused_by_place(value: Any, path: str, kind: str) -> None:
    with pytest.raises(InputError) as raised:
        encode(value, "what step 'load' returned")
    error = raised.value
    assert error.code == "value_not_encodable"
    assert error.info.details == {"path": path}
    assert not error.retryable
    assert f"what step 'load' returned holds a value of type {kind} at {path}, which cannot be recorded" in str(error)


def test_looking_at_an_iterator_does_not_use_it_up() -> None:
    rows = iter([1, 2])
    with pytest.raises(InputError, match="make a list of it first"):
        encode(rows, "the arguments")
    assert list(rows) == [1, 2]


def test_keys_that_are_one_in_json_are_refused() -> None:
    with pytest.raises(InputError, match=r"two keys at \$\.a that are both '1' in JSON"):
        encode({"a": {1: "x", "1": "y"}}, "it")


@pytest.mark.parametrize(
    "bad", [Opaque(), float("nan"), 2**70, "\ud800"], ids=["object", "nan", "too large", "surrogate"]
)
def test_a_handler_that_returns_it_fails_for_good(desk: Desk, bad: Any) -> None:
    """Ends in StateFailed, not retryable, naming state and place; the run is not poisoned."""

    @operation(version="1", retry=5)
    def careless(io: Io) -> Any:
        return {"rows": [bad]}

    end = desk.run(careless)
    assert end.status == "Failed"
    (failure,) = desk.failures(end.run_id)
    assert not failure.retryable
    assert "rows" in failure.message
    assert "[0]" in failure.message


@pytest.mark.parametrize("bad", [Opaque(), float("nan"), 2**70], ids=["object", "nan", "too large"])
def test_a_step_that_returns_it_fails_for_good(desk: Desk, bad: Any) -> None:
    """The step is called once, named in the error, and not tried again."""
    calls: list[int] = []

    def load() -> Any:
        calls.append(1)
        return {"rows": [bad]}

    @operation(version="1", retry=5)
    def stepping(io: Io) -> Any:
        return io.step(load, retry=5)

    end = desk.run(stepping)
    (failure,) = desk.failures(end.run_id)
    assert (end.status, failure.retryable, len(calls)) == ("Failed", False, 1)
    assert "$.rows[0]" in failure.message
    assert "load" in failure.message


def test_one_hint_for_type_checkers_alone_does_not_take_the_others_along(desk: Desk) -> None:
    """``io: Io`` under TYPE_CHECKING cannot be resolved here; ``amount: Decimal`` can."""

    @operation(version="1")
    def hinted(io: Io, amount: Decimal) -> Decimal:
        return amount * 2

    assert hints_of(hinted.states["main"].function) == {"amount": Decimal, "return": Decimal}
    assert desk.run(hinted, Decimal("1.10")).output == Decimal("2.20")
    with pytest.raises(InputError, match="field 'amount'"):
        hinted.encode_input("no number")


def test_a_hint_by_which_nothing_can_be_checked_is_refused_at_spawn() -> None:
    @operation(version="1")
    def strange(io: Io, engine: Opaque) -> None: ...

    with pytest.raises(InputError, match="field 'engine', has the type hint Opaque") as raised:
        strange.encode_input({"a": 1})
    assert raised.value.code == "hint_unusable"


def lazily() -> Iterator[int]:
    yield 1


def test_a_step_that_returns_a_generator_is_told_to_make_a_list(desk: Desk) -> None:
    @operation(version="1")
    def lazy(io: Io) -> Any:
        return io.step(lazily)

    end = desk.run(lazy)
    assert end.cause is not None
    assert "make a list of it first" in end.cause["message"]
