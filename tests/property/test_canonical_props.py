"""Canonical JSON against independent encoders: the fast path, the norm and the original specification never differ."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from airflow_childrun import canonical
from airflow_childrun.canonical import canonical_json_bytes, decode_outside, decode_stored
from airflow_childrun.errors import CanonicalError
from tests.property.strategies import EDGE_CHARACTERS, EDGE_FLOATS, EDGE_INTEGERS, floats, integers, json_values, texts

SAFE = 2**53 - 1


def ecmascript(number: float) -> str:
    """Write a finite double as ECMA-262 Number::toString does, out of the shortest digits that Python finds."""
    if number == 0:
        return "0"
    sign = "-" if number < 0 else ""
    _, digit_tuple, exponent = Decimal(repr(abs(number))).as_tuple()
    assert isinstance(exponent, int)
    digits = "".join(map(str, digit_tuple))
    point = len(digits) + exponent
    digits = digits.rstrip("0")
    size = len(digits)
    if size <= point <= 21:
        return sign + digits + "0" * (point - size)
    if 0 < point <= 21:
        return f"{sign}{digits[:point]}.{digits[point:]}"
    if -6 < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    fraction = f".{digits[1:]}" if size > 1 else ""
    return f"{sign}{digits[0]}{fraction}e{'+' if point > 0 else '-'}{abs(point - 1)}"


def reference(value: Any) -> str:
    """Write canonical JSON the plain way, sharing no code with the product."""
    if isinstance(value, float):
        return ecmascript(value)
    if isinstance(value, list):
        return f"[{','.join(map(reference, value))}]"
    if isinstance(value, dict):
        keys = sorted(value, key=lambda key: key.encode("utf-16-be"))
        return f"{{{','.join(f'{reference(key)}:{reference(value[key])}' for key in keys)}}}"
    return json.dumps(value, ensure_ascii=False)


def shuffled(value: Any, rng: random.Random) -> Any:
    if isinstance(value, dict):
        items = [(key, shuffled(item, rng)) for key, item in value.items()]
        rng.shuffle(items)
        return dict(items)
    return [shuffled(item, rng) for item in value] if isinstance(value, list) else value


@given(json_values())
def test_s112_all_admitted_values_are_written_as_the_reference_writes_them(value: Any) -> None:
    assert canonical_json_bytes(value).decode() == reference(value)


@given(json_values())
def test_s112_the_fast_path_equals_the_norm(value: Any) -> None:
    assert canonical_json_bytes(value) == canonical._norm(value)


@given(json_values(st.none() | st.booleans() | st.integers(-SAFE, SAFE) | floats() | texts()))
def test_s112_what_rfc8785_admits_has_its_bytes(value: Any) -> None:
    assert canonical_json_bytes(value) == rfc8785.dumps(value)


@given(floats())
def test_s112_floats_are_written_as_ecmascript_does(number: float) -> None:
    written = canonical_json_bytes(number).decode()
    assert written == ecmascript(number)
    assert float(written) == number


@given(json_values(), st.randoms(use_true_random=False))
def test_s112_the_order_of_insertion_does_not_matter(value: Any, rng: random.Random) -> None:
    assert canonical_json_bytes(shuffled(value, rng)) == canonical_json_bytes(value)


def as_read(value: Any, back: Any) -> Any:
    """Return ``back`` with each integer that stands for a double of ``value`` made a double again."""
    if isinstance(value, float):
        return float(back)
    if isinstance(value, list):
        return [as_read(*pair) for pair in zip(value, back, strict=True)]
    return {key: as_read(value[key], item) for key, item in back.items()} if isinstance(value, dict) else back


@given(json_values())
def test_s112_storage_gives_an_equal_value_and_the_same_bytes(value: Any) -> None:
    """A whole double may come back as an integer: never as another double, and never with other bytes."""
    data = canonical_json_bytes(value)
    back = decode_stored(data)
    assert as_read(value, back) == value
    assert canonical_json_bytes(back) == data


@given(json_values())
def test_a_value_read_back_once_is_read_back_the_same_for_ever(value: Any) -> None:
    back = decode_stored(canonical_json_bytes(value))
    again = decode_stored(canonical_json_bytes(back))
    assert repr(again) == repr(back)


@given(json_values(), st.sampled_from([None, 2]), st.booleans())
def test_outside_text_gives_the_value_however_it_is_spelt(value: Any, indent: int | None, ascii_only: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    assert decode_outside(text) == decode_outside(text.encode()) == value
    assert canonical_json_bytes(decode_outside(text)) == canonical_json_bytes(value)


@given(json_values(), st.integers(min_value=2**64) | st.integers(max_value=-(2**63) - 1))
def test_s112_an_integer_out_of_range_is_refused_wherever_it_stands(value: Any, number: int) -> None:
    for encode in (canonical_json_bytes, lambda tree: decode_outside(json.dumps(tree))):
        with pytest.raises(CanonicalError) as caught:
            encode({"a": value, "b": [number]})
        assert caught.value.code == "integer_out_of_range"
        assert caught.value.info.details == {"path": "$.b[0]"}


@given(json_values(), st.integers(0xD800, 0xDFFF), st.booleans())
def test_s112_a_lone_surrogate_is_refused_wherever_it_stands(value: Any, unit: int, as_key: bool) -> None:
    half = chr(unit)
    with pytest.raises(CanonicalError) as caught:
        canonical_json_bytes({"a": value, "b": [{half: 1} if as_key else half]})
    assert caught.value.code == "lone_surrogate"


@given(st.text(max_size=30) | st.text('[]{},:"0123456789.eE+-truefalsn\\u d', max_size=30))
def test_outside_text_is_decoded_or_refused_but_never_breaks(text: str) -> None:
    """Whatever is accepted is JSON to the standard library too, and has canonical bytes."""
    try:
        value, code = decode_outside(text), ""
    except CanonicalError as error:
        value, code = None, error.code
    if code:
        assert code in {"not_json", "integer_out_of_range", "float_not_finite", "lone_surrogate", "too_deep"}
    else:
        assert value == json.loads(text)
        assert canonical_json_bytes(value)


@given(integers())
def test_s112_integers_are_exact(number: int) -> None:
    assert canonical_json_bytes(number) == str(number).encode()
    assert decode_stored(str(number).encode()) == number


def seeded_floats(rng: random.Random) -> Iterator[float]:
    while True:
        number = struct.unpack(">d", rng.getrandbits(64).to_bytes(8, "big"))[0]
        if number - number == 0:
            yield number
        yield rng.randint(-(10**9), 10**9) / 10 ** rng.randint(0, 6)
        yield rng.uniform(-2, 2) * 10.0 ** rng.randint(-9, 24)
        yield float(rng.randint(-(2**70), 2**70) >> rng.randint(0, 70))
        yield rng.choice(EDGE_FLOATS) * (1 + rng.randint(-4, 4) * 2.0**-52)


def seeded_scalars(rng: random.Random) -> Iterator[Any]:
    numbers = seeded_floats(rng)
    while True:
        for _ in range(5):
            yield next(numbers)
        yield rng.randint(-(2**63), 2**64 - 1) >> rng.randint(0, 64)
        yield rng.choice(EDGE_INTEGERS)
        yield "".join(rng.choices(EDGE_CHARACTERS + "abc", k=rng.randint(0, 4)))
        code = rng.randrange(0x110000 - 0x800)
        yield chr(code if code < 0xD800 else code + 0x800)
        yield rng.choice((None, True, False, "", 0))


def test_s112_a_million_seeded_values_agree_with_rfc8785_and_ecmascript() -> None:
    rng = random.Random(8785)
    scalars = seeded_scalars(rng)
    for _ in range(50_000):
        batch = [next(scalars) for _ in range(20)]
        texts = [value for value in batch if type(value) is str]
        admitted = [value for value in batch if type(value) is not int or -SAFE <= value <= SAFE]
        assert canonical_json_bytes(batch).decode() == reference(batch)
        keyed = dict(zip(texts, admitted, strict=False))
        assert canonical_json_bytes([admitted, keyed]) == rfc8785.dumps([admitted, keyed])


def test_a_wrong_fast_path_would_be_noticed() -> None:
    """The references tell the spellings apart that orjson and RFC 8785 differ in."""
    assert [ecmascript(number) for number in (1e16, 1.0, 1e-5, 1e21, -1e-7, 123e18, 0.1)] == [
        "10000000000000000",
        "1",
        "0.00001",
        "1e+21",
        "-1e-7",
        "123000000000000000000",
        "0.1",
    ]
    assert reference({"\uffff": 1, "\U0001f600": 2}) == '{"\U0001f600":2,"\uffff":1}'
