"""The recorded canonical bytes and names, against ours."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from airflow_childrun.canonical import (
    INT_MAX,
    INT_MIN,
    artifact_id,
    canonical_json_bytes,
    decode_outside,
    decode_stored,
)
from airflow_childrun.errors import CanonicalError
from airflow_childrun.ids import is_op_id, is_state_id
from airflow_childrun.secret_policy import strict
from tests.golden.rules import Explained

FLOATS = "floats are admitted within range (ARCHITECTURE 5)"
KEY_ORDER = "keys mixing astral characters with U+E000-U+FFFF sort as RFC 8785 says"
TYPED = "too large numbers and lone surrogates are typed errors"


def compare_canonical(row: Mapping[str, Any], explained: Explained) -> list[str]:
    """Compare bytes and id of a text, or why it is refused."""
    if "error" in row:
        return _compare_refusal(row, explained)
    value = decode_outside(row["text"])
    data, wanted = canonical_json_bytes(value), row["canonical"].encode()
    found = []
    if artifact_id(wanted) != row["id"]:
        found.append("the recording: the id is not that of the bytes")
    if strict().find(value) is not None:
        found.append("accepted -> secret")
    if data != wanted:
        if _sorted_otherwise(value) and json.loads(wanted) == json.loads(data) and wanted == _by_code_point(value):
            explained.rows.add(KEY_ORDER)
        else:
            found.append(f"{row['canonical']} -> {data.decode()}")
    return found


def compare_names(row: Mapping[str, Any]) -> list[str]:
    """Compare of which kind a text is a valid name."""
    ours = {"op_id": is_op_id(row["text"]), "state_id": is_state_id(row["text"])}
    return [f"{kind}: {row[kind]} -> {valid}" for kind, valid in ours.items() if row[kind] != valid]


def _compare_refusal(row: Mapping[str, Any], explained: Explained) -> list[str]:
    wanted, came = row["error"], _judgement(row["text"])
    if came == wanted:
        return []
    if wanted == "float" and came == "accepted" and any(type(n) is float for n in _numbers(row["text"])):
        explained.rows.add(FLOATS)
        return []
    if wanted == "float" and came == "integer_out_of_range":
        return []
    if wanted == "not_json" and came in {"float_not_finite", "lone_surrogate"}:
        explained.rows.add(TYPED)
        return []
    return [f"{wanted} -> {came}"]


def _judgement(text: str) -> str:
    """Return ``accepted``, ``secret``, or the code with which ours refuses a text."""
    try:
        value = decode_outside(text)
        if strict().find(value) is not None:
            return "secret"
        data = canonical_json_bytes(value)
        return "accepted" if canonical_json_bytes(decode_stored(data)) == data else "unstable"
    except CanonicalError as error:
        return error.code


def _numbers(text: str) -> Iterator[Any]:
    """Yield every number in a text, as Python reads it."""
    values = [json.loads(text)]
    while values:
        value = values.pop()
        if isinstance(value, dict):
            values += value.values()
        elif isinstance(value, list):
            values += value
        elif type(value) in (int, float):
            # "-0" is a float to the original.
            yield (
                value
                if type(value) is float or (INT_MIN <= value <= INT_MAX and text.strip() != "-0")
                else float(value)
            )


def _sorted_otherwise(value: Any) -> bool:
    """Whether some object's keys sort differently by code point and by UTF-16."""
    if isinstance(value, dict):
        by_unit = sorted(value, key=lambda key: key.encode("utf-16-be"))
        return by_unit != sorted(value) or any(map(_sorted_otherwise, value.values()))
    return isinstance(value, list) and any(map(_sorted_otherwise, value))


def _by_code_point(value: Any) -> bytes:
    """Return canonical bytes with keys in the original's order."""
    if isinstance(value, dict):
        items = (canonical_json_bytes(key) + b":" + _by_code_point(value[key]) for key in sorted(value))
        return b"{" + b",".join(items) + b"}"
    if isinstance(value, list):
        return b"[" + b",".join(map(_by_code_point, value)) + b"]"
    return canonical_json_bytes(value)
