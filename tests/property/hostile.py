"""Hypothesis strategies for what nobody should send: anything at all, and good requests with something wrong in them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from decimal import Decimal
from random import Random
from typing import Any
from uuid import UUID

from hypothesis import strategies as st

from tests.property.strategies import json_values, scalars

RUN_ID = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"
STRANGE: tuple[Any, ...] = (
    None,
    "",
    "\x00",
    "\ud800",
    "\U0001f600",
    "a\x1fb",
    "9" * 5000,
    -1,
    2**63,
    2**64,
    2**70,
    -(2**70),
    1e308,
    float("nan"),
    float("inf"),
    True,
    [],
    {},
    [[]],
    {"": None},
    {1: 2},
    {None: 1},
    b"bytes",
    (1, 2),
    frozenset({1}),
    date(2024, 2, 30 - 1),
    Decimal("1.5"),
    UUID(RUN_ID),
    object(),
    int,
    len,
    "Live",
    "password",
    "-----BEGIN PRIVATE KEY-----",
    RUN_ID,
)


def anything() -> st.SearchStrategy[Any]:
    """Return JSON values with things in them that are none."""
    return _ANYTHING


_ANYTHING = json_values(scalars() | st.sampled_from(STRANGE), max_leaves=8) | st.sampled_from(STRANGE)


def deep(depth: int) -> Any:
    """Return a list in a list in a list ..."""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def mutated(good: Any) -> st.SearchStrategy[Any]:
    """Return a good value with some of its parts replaced, left out or added."""
    return st.builds(_mutate, st.just(good), st.integers(0, 2**32), anything(), st.integers(1, 3))


def _mutate(good: Any, seed: int, strange: Any, times: int) -> Any:
    value, random = _copy(good), Random(seed)
    for _ in range(times):
        value = _change(value, random, strange)
    return value


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def _change(value: Any, random: Any, strange: Any) -> Any:
    if isinstance(value, dict) and value:
        key = random.choice(list(value))
        actions: list[Callable[[], Any]] = [
            lambda: {**value, key: _change(value[key], random, strange)},
            lambda: {**value, key: strange},
            lambda: {name: item for name, item in value.items() if name != key},
            lambda: {**value, "unknown": strange},
        ]
        return random.choice(actions)()
    if isinstance(value, list) and value and random.random() < 0.7:
        at = random.randrange(len(value))
        return [*value[:at], _change(value[at], random, strange), *value[at + 1 :]]
    return strange
