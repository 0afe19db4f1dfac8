"""Identifiers: the original's rules and vectors, and ids that follow from others."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import pytest

from airflow_childrun import ids
from airflow_childrun.canonical import decode_outside
from airflow_childrun.errors import CanonicalError, InvalidIdError, MissingFactKeyError

GOLDEN = Path(__file__).parents[1] / "golden" / "ids.jsonl"
ROWS: list[dict[str, Any]] = [json.loads(line) for line in GOLDEN.read_text("utf-8").splitlines()]
PARENT = UUID("00000000-0000-4000-8000-000000000001")


def test_the_golden_file_is_complete() -> None:
    assert len(ROWS) == 28


@pytest.mark.parametrize("row", ROWS, ids=lambda row: ascii(row["text"])[1:31])
def test_names_are_valid_where_the_original_says_so(row: dict[str, Any]) -> None:
    assert ids.is_op_id(row["text"]) is row["op_id"]
    assert ids.is_state_id(row["text"]) is row["state_id"]


@pytest.mark.parametrize("segment", ["a", "a0", "a_0b", "a" * 63])
def test_s01_valid_segments(segment: str) -> None:
    assert ids.require_op_id(segment) == segment


@pytest.mark.parametrize("segment", ["", "_a", "A", "a-1", "0a", "a" * 64, "a.b", "a\n", "é", "\uff41"])
def test_s01_invalid_segments(segment: str) -> None:
    with pytest.raises(InvalidIdError) as caught:
        ids.require_op_id(segment)
    assert caught.value.info.message == f"invalid op_id: {segment}"
    assert caught.value.info.details == {"kind": "op_id"}


@pytest.mark.parametrize("path", ["m.s", "m0.a_", "m.s.child", "m.s.child.grandchild"])
def test_s02_an_op_path_has_two_segments_or_more(path: str) -> None:
    assert ids.require_op_path(path) == path


@pytest.mark.parametrize("path", ["m", "M.s", "m.s-1", "m0._", "m.", ".m", "m..s", "m.s\n"])
def test_s02_invalid_op_paths(path: str) -> None:
    with pytest.raises(InvalidIdError, match="invalid op_path: "):
        ids.require_op_path(path)


def test_s03_a_state_id_has_exactly_three_segments() -> None:
    assert ids.require_state_id("m.s.x") == "m.s.x"


@pytest.mark.parametrize("text", ["m.s", "m.s.x.y", "M.s.x", "m.s-1.x", "m..x", "m.s.x\n"])
def test_s03_s04_invalid_state_ids(text: str) -> None:
    with pytest.raises(InvalidIdError, match="invalid state_id: "):
        ids.require_state_id(text)


@pytest.mark.parametrize("text", ['"A"', "1", "null", '["a"]', '{"a": 1}', "true"])
def test_s05_decoded_json_that_is_no_id_is_refused(text: str) -> None:
    value = decode_outside(text)
    for require in (ids.require_op_id, ids.require_state_id, ids.require_op_path, ids.require_artifact_id):
        with pytest.raises(InvalidIdError):
            require(value)


def test_s06_the_parts_of_a_state_id_can_be_reached() -> None:
    name = ids.state_id("region_report", "main", "total")
    assert name == "region_report.main.total"
    assert ids.local_name(name) == "total"


@pytest.mark.parametrize("parts", [("a", "b", ""), ("a.b", "c", "d"), ("a", "B", "c")])
def test_s06_a_state_id_is_not_made_of_invalid_parts(parts: tuple[str, str, str]) -> None:
    with pytest.raises(InvalidIdError):
        ids.state_id(*parts)


def test_s07_the_code_of_a_missing_fact_key_is_stable() -> None:
    assert MissingFactKeyError().code == "missing_fact_key"


@pytest.mark.parametrize("text", ["", "a" * 63, "a" * 65, "A" * 64, "g" * 64, "a" * 64 + "\n"])
def test_an_artifact_id_is_64_lower_case_hex_digits(text: str) -> None:
    assert ids.require_artifact_id("0123456789abcdef" * 4)
    with pytest.raises(InvalidIdError, match="invalid artifact_id: "):
        ids.require_artifact_id(text)


@pytest.mark.parametrize(
    ("key", "child"),
    [
        ("child_parent:spawn|op:child_parent.main|i:0", "78b85994-fad4-5e3f-abda-66681a2c91d6"),
        ("child_parent:spawn|op:child_parent.main|i:1", "4a28edf4-c3ee-5983-9af0-f2cfb7217224"),
        ("k", "88104e85-54cf-526a-a530-5b56f29d23cc"),
        ("ключ", "b2954a93-c3cd-5e73-b130-96f021224e3c"),
    ],
)
def test_the_first_generation_has_the_original_child_id(key: str, child: str) -> None:
    assert str(ids.child_run_id(PARENT, key)) == child
    assert str(ids.child_run_id(PARENT, key, 1)) == child


def test_a_later_generation_appends_its_number_to_the_key() -> None:
    assert ids.child_run_id(PARENT, "k", 2) == uuid5(PARENT, "k\x1f2")
    assert ids.child_run_id(PARENT, "k", 12) == uuid5(PARENT, "k\x1f12")


def test_keys_and_generations_never_share_an_id() -> None:
    keys = ["k", "k1", "k2", "k12", "", "2", "12"]
    made = [ids.child_run_id(PARENT, key, generation) for key in keys for generation in range(1, 30)]
    assert len(set(made)) == len(made)


@pytest.mark.parametrize("key", ["k\x1f2", "\x1f", "\ud800", 1, None, b"k"], ids=ascii)
def test_a_key_that_could_be_mistaken_is_refused(key: Any) -> None:
    for make in (lambda: ids.child_run_id(PARENT, key), lambda: ids.key_digest(key)):
        with pytest.raises(InvalidIdError) as caught:
            make()
        assert caught.value.code == "fact_key_invalid"


@pytest.mark.parametrize("generation", [0, -1, True, 1.0, "2"])
def test_a_generation_is_a_number_from_one(generation: Any) -> None:
    with pytest.raises(InvalidIdError, match="invalid generation: "):
        ids.child_run_id(PARENT, "k", generation)


def test_named_ids_follow_from_canonical_json() -> None:
    assert ids.named_id("prod", "dag", {"b": 1, "a": 2}) == ids.named_id("prod", "dag", {"a": 2, "b": 1.0})
    assert ids.named_id("a", "b") != ids.named_id("ab")
    assert ids.named_id(["a", "b"]) != ids.named_id("a", "b")
    assert ids.named_id("prod", ["x", -1]) == uuid5(ids.NAMESPACE, '["prod",["x",-1]]')
    with pytest.raises(CanonicalError):
        ids.named_id(object())


def test_the_namespace_is_frozen() -> None:
    """Host runs are found by it: another value would orphan every stored run."""
    assert str(ids.NAMESPACE) == "8c3b305d-d2e4-4ed5-a563-bb2ea4bee112"
    assert ids.NAMESPACE.version == 4


def test_key_digests_are_those_of_utf8() -> None:
    assert ids.key_digest("hello") == "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    assert ids.key_digest("ключ") != ids.key_digest("kлюч")


def test_ids_do_not_depend_on_the_process() -> None:
    script = "from airflow_childrun import ids; print(ids.named_id('a', {'b': 1}))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == str(ids.named_id("a", {"b": 1}))
