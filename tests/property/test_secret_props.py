"""Secret policies: looking at a whole document at once finds what looking at each string finds."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from airflow_childrun.secret_policy import SecretPolicy, standard, strict
from tests.property.strategies import json_values, texts

REGISTERED = "correct-horse-battery"
PIECES = (
    *(
        "basic",
        "Basic ",
        "bearer\n",
        "Bearer",
        " ",
        "\n",
        "://",
        ":",
        "@",
        "a",
        "eyJ",
        ".",
        "word ",
        "AKIA",
        "pass",
        "word",
    ),
    *("password", "api_key", "correct-horse-", "battery", REGISTERED, "abcdefgh12345678", "IOSFODNN7EXAMPLE"),
    base64.b64encode(b"user:pass").decode(),
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N",
)
pieces = st.lists(st.sampled_from(PIECES), max_size=5).map("".join) | texts(4)
documents = st.recursive(
    pieces | st.integers() | st.none(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(pieces, inner, max_size=4),
    max_leaves=12,
)
policies = st.sampled_from([strict(), standard(lambda: [REGISTERED, "short"])])


def texts_of(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from texts_of(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts_of(item)


def named(value: Any) -> bool:
    """Tell whether a string stands under ``password`` or ``api_key``, the only names among the pieces."""
    if isinstance(value, list):
        return any(map(named, value))
    if not isinstance(value, dict):
        return False
    return any(
        (key in {"password", "api_key"} and isinstance(item, str) and item != "") or named(item)
        for key, item in value.items()
    )


@given(policies, documents)
def test_a_document_is_refused_if_and_only_if_one_of_its_parts_is(policy: SecretPolicy, value: Any) -> None:
    parts = any(map(policy.is_secret_text, texts_of(value)))
    expected = parts or (policy.name == "standard" and named(value))
    assert (policy.find(value) is not None) is expected


@given(policies, documents, st.sampled_from(["a", "two words", ""]))
def test_where_a_value_stands_changes_the_path_only(policy: SecretPolicy, value: Any, key: str) -> None:
    inside, alone = policy.find([{"z": [], key: value}]), policy.find(value)
    if alone is None or isinstance(value, str):
        assert (inside is None) is (alone is None)
    else:
        assert inside is not None
        assert inside.startswith("$[0]")
        assert inside.endswith(alone[1:])


@given(policies, json_values())
def test_every_json_value_is_judged(policy: SecretPolicy, value: Any) -> None:
    path = policy.find(value)
    assert path is None or (path.startswith("$") and path.isascii())
