"""Canonical JSON against the original's bytes, RFC 8785's own vectors, and everything that must be refused."""

from __future__ import annotations

import enum
import json
import struct
import uuid
from collections import OrderedDict, defaultdict
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from airflow_childrun.canonical import (
    MAX_DEPTH,
    artifact_id,
    canonical_equal,
    canonical_json_bytes,
    decode_outside,
    decode_stored,
    json_path,
)
from airflow_childrun.errors import CanonicalError
from airflow_childrun.secret_policy import strict

DATA = Path(__file__).parent / "data"
GOLDEN = Path(__file__).parents[1] / "golden"


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def name(row: dict[str, Any]) -> str:
    return ascii(row["text"])[1:41]


ROWS = rows(GOLDEN / "canonical.jsonl")
ACCEPTED = [row for row in ROWS if "canonical" in row]
FLOATS = [row for row in ROWS if row.get("error") == "float"]
INTEGERS_OUT_OF_RANGE = {"-9223372036854775809", "18446744073709551616", "123456789012345678901234567890"}
# ARCHITECTURE 5: where our bytes part from the original's, keys sort as UTF-16.
RESORTED = {
    '{"\\ue000":1,"\\ud800\\udc00":2}': '{"\U00010000":2,"\ue000":1}',
    '{"é":1,"e":2,"z":3,"\\u20ac":4,"\\r":5,"\\ufb33":6,"1":7,"\\ud83d\\ude00":8,"\\u0080":9,"ö":10}': (
        '{"\\r":5,"1":7,"e":2,"z":3,"\x80":9,"é":1,"ö":10,"€":4,"😀":8,"\ufb33":6}'
    ),
}


def refused(value: Any) -> tuple[str, str]:
    """Return code and path with which ``value`` is refused."""
    with pytest.raises(CanonicalError) as caught:
        canonical_json_bytes(value)
    info = caught.value.info
    assert info.details["path"] in info.message
    return info.code, info.details["path"]


def refused_text(text: bytes | str) -> str:
    with pytest.raises(CanonicalError) as caught:
        decode_outside(text)
    return caught.value.code


# --- the original's bytes


def test_the_golden_file_is_complete() -> None:
    assert len(ROWS) == 244
    assert len(ACCEPTED) == 178


@pytest.mark.parametrize("row", ACCEPTED, ids=name)
def test_what_the_original_accepts_has_its_bytes_and_id(row: dict[str, Any]) -> None:
    data = canonical_json_bytes(decode_outside(row["text"]))
    expected = RESORTED.get(row["text"], row["canonical"]).encode()
    assert data == expected
    assert artifact_id(expected) == row["id"] or row["text"] in RESORTED
    assert canonical_json_bytes(decode_stored(data)) == data
    assert strict().find(decode_outside(row["text"])) is None


def test_exactly_two_golden_rows_sort_otherwise() -> None:
    assert RESORTED.keys() <= {row["text"] for row in ACCEPTED}
    for text, canonical in RESORTED.items():
        assert json.loads(text) == json.loads(canonical)


@pytest.mark.parametrize("row", FLOATS, ids=name)
def test_floats_that_the_original_refuses_are_accepted_within_range(row: dict[str, Any]) -> None:
    if row["text"] in INTEGERS_OUT_OF_RANGE:
        assert refused_text(row["text"]) == "integer_out_of_range"
    else:
        data = canonical_json_bytes(decode_outside(row["text"]))
        assert canonical_json_bytes(decode_stored(data)) == data


@pytest.mark.parametrize("row", [row for row in ROWS if row.get("error") == "not_json"], ids=name)
def test_what_the_original_calls_no_json_is_a_typed_error(row: dict[str, Any]) -> None:
    expected = {
        "1E400": "float_not_finite",
        '"\\ud834"': "lone_surrogate",
        '"\\udd1e\\ud834"': "lone_surrogate",
    }
    assert refused_text(row["text"]) == expected.get(row["text"], "not_json")


# --- RFC 8785


@pytest.mark.parametrize("row", rows(DATA / "rfc8785_documents.jsonl"), ids=lambda row: row["name"])
def test_rfc8785_documents(row: dict[str, Any]) -> None:
    assert canonical_json_bytes(decode_outside(row["text"])) == row["canonical"].encode()


@pytest.mark.parametrize("row", rows(DATA / "rfc8785_numbers.jsonl"), ids=lambda row: row["bits"])
def test_rfc8785_appendix_b(row: dict[str, Any]) -> None:
    (number,) = struct.unpack(">d", bytes.fromhex(row["bits"]))
    if row["canonical"] is None:
        assert refused([number]) == ("float_not_finite", "$[0]")
    else:
        assert canonical_json_bytes(number) == row["canonical"].encode()
        assert canonical_json_bytes({"a": [number, "x"]}) == f'{{"a":[{row["canonical"]},"x"]}}'.encode()


# --- the specification's vectors


@pytest.mark.parametrize(
    ("value", "canonical", "identity"),
    [
        ({}, "{}", "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"),
        ({"b": 1, "a": 2}, '{"a":2,"b":1}', "d3626ac30a87e6f7a6428233b3c68299976865fa5508e4267c5415c76af7a772"),
    ],
)
def test_specified_vectors(value: Any, canonical: str, identity: str) -> None:
    assert canonical_json_bytes(value) == canonical.encode()
    assert artifact_id(canonical.encode()) == identity


def test_specified_child_manifest_id() -> None:
    manifest = {
        "op_id": "proof",
        "op_version": "v1",
        "input_params": {
            "pipeline": {
                "machine_id": "proof",
                "pipeline_version": "v1",
                "steps": [{"step_id": "main", "op_id": "proof", "op_version": "v1", "op_config": {}}],
            },
            "input": {"i": 0},
        },
        "run_config": {
            "io_mode": "Live",
            "retry_policy": {"max_attempts": 3, "backoff": {"Fixed": {"delay": {"secs": 0, "nanos": 0}}}},
            "event_profile": "Normal",
            "execution_mode": "Sequential",
            "context_checkpointing": "AfterEveryState",
            "replay_missing_fact_retryable": False,
            "skip_tags": [],
            "nix_flake_allowlist": ["github:willyrgf/mfm"],
        },
        "build": {
            "git_commit": None,
            "cargo_lock_hash": None,
            "flake_lock_hash": None,
            "rustc_version": None,
            "target_triple": None,
            "env_allowlist": [],
        },
    }
    identity = artifact_id(canonical_json_bytes(manifest))
    assert identity == "2aa85e1506cc3a95b85226251d190692ea5e239a947034418a504295d756257a"


def test_s08_keys_are_sorted_at_every_level_and_a_newline_is_escaped() -> None:
    value = {"b": {"d": 1, "c": "x\ny"}, "a": [{"z": 1, "y": 2}]}
    assert canonical_json_bytes(value) == rb'{"a":[{"y":2,"z":1}],"b":{"c":"x\ny","d":1}}'


def test_s09_floats_are_written_as_ecmascript_does_instead_of_being_refused() -> None:
    """The original refuses them; ARCHITECTURE 5 admits them."""
    value = {"a": [1.5, 1.0, -0.0, 1e21, 1e-7, 2.0**60, 100.0]}
    assert canonical_json_bytes(value) == b'{"a":[1.5,1,0,1e+21,1e-7,1152921504606847000,100]}'


def test_s11_the_id_of_hello_is_64_lower_case_hex_digits() -> None:
    assert artifact_id(b"hello") == "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"


@pytest.mark.parametrize("other", [b"", b"hello ", b"Hello"])
def test_s12_s13_other_bytes_have_another_id(other: bytes) -> None:
    """What stores verify on put and get; the store contract proves that they do."""
    assert artifact_id(other) != artifact_id(b"hello")


def test_s14_child_linkage_payloads_are_canonical_and_hold_no_secret() -> None:
    payload = {
        "parent_run_id": "00000000-0000-4000-8000-000000000001",
        "child_run_id": "78b85994-fad4-5e3f-abda-66681a2c91d6",
        "child_manifest_id": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
    }
    assert decode_stored(canonical_json_bytes(payload)) == payload
    assert strict().find(payload) is None


# --- s112: ranges, bools, surrogates, key order (the properties stand in tests/property)


@pytest.mark.parametrize("number", [0, -1, 2**53, -(2**53) - 1, 2**63, 2**64 - 1, -(2**63)])
def test_s112_integers_in_range_are_exact(number: int) -> None:
    assert canonical_json_bytes([number]) == f"[{number}]".encode()
    assert decode_stored(canonical_json_bytes(number)) == number
    assert decode_outside(str(number)) == number


@pytest.mark.parametrize(
    "number", [2**64, -(2**63) - 1, 10**30, -(10**5000)], ids=["2^64", "-2^63-1", "10^30", "-10^5000"]
)
def test_s112_integers_out_of_range_are_refused(number: int) -> None:
    assert refused({"a": [number]}) == ("integer_out_of_range", "$.a[0]")


def test_s112_a_bool_is_not_an_integer() -> None:
    assert canonical_json_bytes([True, 1, False, 0]) == b"[true,1,false,0]"
    assert not canonical_equal(True, 1)


@pytest.mark.parametrize("text", ["\ud800", "x\udfff", "a\udc00b", "\udc00\ud800"])
def test_s112_lone_surrogates_are_refused_in_keys_and_values(text: str) -> None:
    assert refused(["ok", text]) == ("lone_surrogate", "$[1]")
    code, path = refused({"a": {text: 1}})
    assert code == "lone_surrogate"
    assert path.isascii()
    assert path.startswith('$.a["')


def test_s112_astral_keys_sort_before_the_end_of_the_basic_plane() -> None:
    """UTF-16 order: a surrogate (D800..DFFF) comes before E000..FFFF; code points would sort the other way."""
    value = {"\uffff": 1, "\U0001f600": 2, "\ue000": 3, "\ud7ff": 4, "a": 5}
    assert canonical_json_bytes({"deep": [value]}) == (
        '{"deep":[{"a":5,"\ud7ff":4,"\U0001f600":2,"\ue000":3,"\uffff":1}]}'.encode()
    )


# --- what is refused, and where


class Colour(enum.StrEnum):
    RED = "red"


class Number(enum.IntEnum):
    ONE = 1


class Text(str):
    __slots__ = ()


class Pair(NamedTuple):
    left: int
    right: int


@pytest.mark.parametrize(
    "odd",
    [
        b"bytes",
        {1, 2},
        Decimal("1.5"),
        datetime(2026, 1, 1, tzinfo=UTC),
        uuid.UUID(int=0),
        1j,
        object(),
        Colour.RED,
        Number.ONE,
        Text("x"),
        Pair(1, 2),
        OrderedDict(a=1),
        defaultdict(list),
        iter([1]),
    ],
    ids=lambda odd: type(odd).__name__,
)
def test_only_plain_types_are_admitted(odd: Any) -> None:
    """Also beside a float and beside an astral key, which take other paths through the encoder."""
    assert refused(odd) == ("type_not_allowed", "$")
    assert refused({"a": [1, odd]}) == ("type_not_allowed", "$.a[1]")
    assert refused({"a": [1.0, odd]}) == ("type_not_allowed", "$.a[1]")
    assert refused({"\U0001f600": 1, "\ue000": odd})[0] == "type_not_allowed"


def test_a_tuple_is_an_array() -> None:
    assert canonical_json_bytes({"a": (1, (2.0, ()))}) == b'{"a":[1,[2,[]]]}'


@pytest.mark.parametrize("key", [1, None, True, 1.5, ("a",), b"a", Text("a"), Colour.RED], ids=repr)
def test_keys_must_be_plain_strings(key: Any) -> None:
    assert refused({"a": [{key: 1}]}) == ("key_not_string", "$.a[0]")
    assert refused({"a": [{key: 1.0}]}) == ("key_not_string", "$.a[0]")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")], ids=repr)
def test_numbers_that_are_not_finite_are_refused(number: float) -> None:
    assert refused(number) == ("float_not_finite", "$")
    assert refused({"rows": [{"n": 1.25}, {"n": number}]}) == ("float_not_finite", "$.rows[1].n")


def nested(depth: int, inner: Any) -> Any:
    for level in range(depth):
        inner = [inner] if level % 2 else {"a": inner}
    return inner


@pytest.mark.parametrize("inner", [1, 1.0, "\U0001f600\ue000"])
def test_depth_ends_at_the_limit(inner: Any) -> None:
    assert canonical_json_bytes(nested(MAX_DEPTH, inner))
    assert refused(nested(MAX_DEPTH + 1, inner))[0] == "too_deep"


def test_a_value_inside_itself_is_too_deep() -> None:
    loop: list[Any] = []
    loop += [loop, loop]
    assert refused(loop)[0] == "too_deep"


def test_the_first_problem_in_document_order_is_reported() -> None:
    assert refused({"b": object(), "a": [1, float("nan")]}) == ("float_not_finite", "$.a[1]")


@pytest.mark.parametrize(
    ("trail", "path"),
    [
        ([], "$"),
        (["a", 0, "b-c"], "$.a[0].b-c"),
        (["two words"], '$["two words"]'),
        (["", "1"], '$[""]["1"]'),
        (['"'], '$["\\""]'),
        (["é"], '$["\\u00e9"]'),
        (["x" * 100], f'$["{"x" * 64}..."]'),
        (["a\n"], '$["a\\n"]'),
    ],
)
def test_paths_are_ascii_and_unambiguous(trail: list[str | int], path: str) -> None:
    assert json_path(trail) == path


# --- the way back


@pytest.mark.parametrize("number", [1e20, -1e20, 2.0**64, -(2.0**63) * 1.5, 1.7e20, 1.2345678901234567e20, 1e21, 1e308])
def test_large_doubles_survive_storage(number: float) -> None:
    """RFC 8785 writes them as integer literals, which would come back as other numbers."""
    data = canonical_json_bytes({"n": number})
    back = decode_stored(data)["n"]
    assert type(back) is float
    assert back == number
    assert canonical_json_bytes({"n": back}) == data


def test_a_double_in_integer_range_comes_back_as_an_integer_with_the_same_bytes() -> None:
    assert decode_stored(canonical_json_bytes([1.0, 1e19])) == [1, 10**19]
    assert canonical_json_bytes([1, 10**19]) == canonical_json_bytes([1.0, 1e19])


def test_stored_bytes_that_are_not_json_are_an_error_without_the_bytes() -> None:
    with pytest.raises(CanonicalError) as caught:
        decode_stored(b'{"token": hunter2}')
    assert caught.value.code == "not_json"
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "nul", "NaN", "[Infinity]", "{'a': 1}", "[1] 2", '"\n"', "\ufeff1", "01", "1."])
def test_what_is_not_json_is_refused(text: str) -> None:
    assert refused_text(text) == "not_json"
    assert refused_text(text.encode()) == "not_json"


@pytest.mark.parametrize("data", [b"\xff", b'"\xed\xa0\x80"', '"é"'.encode("utf-16")])
def test_outside_bytes_must_be_utf8(data: bytes) -> None:
    assert refused_text(data) == "not_json"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("18446744073709551616", "integer_out_of_range"),
        ('{"a": [1.5, -9223372036854775809]}', "integer_out_of_range"),
        ("9" * 6000, "integer_out_of_range"),
        ("1e999", "float_not_finite"),
        ('{"\\ud800": 1}', "lone_surrogate"),
        ("[" * 101 + "]" * 101, "too_deep"),
        ("[" * 101 + "1.5" + "]" * 101, "too_deep"),
        ("[" * 100_000, "too_deep"),
    ],
)
def test_outside_json_that_cannot_be_canonical_is_refused(text: str, code: str) -> None:
    assert refused_text(text) == code


def test_outside_text_keeps_the_last_of_duplicate_keys() -> None:
    assert decode_outside('{"a": 1, "b": 2, "a": 3.5}') == {"a": 3.5, "b": 2}
    assert decode_outside('{"a": 12345678901234567890123, "a": 3}') == {"a": 3}


def test_long_fractions_are_read_like_short_ones() -> None:
    """A run of 19 digits sends the text through the slow parser; the value must not depend on it."""
    assert decode_outside("[0.1000000000000000000000, 0.30000000000000000001]") == [0.1, 0.3]


def test_equality_is_that_of_bytes() -> None:
    assert canonical_equal({"a": 1, "b": (2.0,)}, {"b": [2], "a": 1.0})
    assert not canonical_equal("1", 1)
    with pytest.raises(CanonicalError):
        canonical_equal(float("nan"), float("nan"))
