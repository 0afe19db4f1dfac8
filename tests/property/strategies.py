"""Hypothesis strategies for JSON values, bent towards what encoders get wrong."""

from __future__ import annotations

import struct
from typing import Any

from hypothesis import strategies as st

# Both sides of every boundary in UTF-8 and UTF-16, controls, and what JSON escapes.
EDGE_CHARACTERS = '\x00\x1f\b\n"\\/\x7f\x80\u07ff\u0800\u2028\ud7ff\ue000\ufb33\uffff\U00010000\U0001f600\U0010ffff'
EDGE_FLOATS = (0.0, -0.0, 5e-324, 1e-7, 1e-6, 9.999e-5, 1e-4, 1e15, 1e16, 2.0**53, 2.0**63, 2.0**64, 1e20, 1e21, 1e22)
EDGE_INTEGERS = (0, 2**53 - 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1, -(2**53), -(2**63))


def texts(max_size: int = 12) -> st.SearchStrategy[str]:
    """Return text without lone surrogates."""
    any_character = st.characters(codec="utf-8")
    return st.text(any_character | st.sampled_from(EDGE_CHARACTERS) | st.sampled_from("ab"), max_size=max_size)


def integers() -> st.SearchStrategy[int]:
    """Return integers in the range of canonical JSON."""
    return st.integers(-(2**63), 2**64 - 1) | st.sampled_from(EDGE_INTEGERS) | st.integers(-100, 100)


def _from_bits(bits: int) -> float:
    return float(struct.unpack(">d", bits.to_bytes(8, "big"))[0])


def floats() -> st.SearchStrategy[float]:
    """Return finite doubles: by bit pattern, near the edges of notation, and as people write them."""
    near = st.builds(lambda edge, up: edge * (1 + up * 2.0**-52), st.sampled_from(EDGE_FLOATS), st.integers(-4, 4))
    decimal = st.builds(lambda digits, places: digits / 10.0**places, st.integers(-(10**9), 10**9), st.integers(0, 6))
    by_bits = st.builds(_from_bits, st.integers(0, 2**64 - 1)).filter(lambda x: x - x == 0)
    return st.floats(allow_nan=False, allow_infinity=False) | near | decimal | by_bits


def scalars() -> st.SearchStrategy[Any]:
    """Return every scalar that canonical JSON admits."""
    return st.none() | st.booleans() | integers() | floats() | texts()


def json_values(leaves: st.SearchStrategy[Any] | None = None, max_leaves: int = 25) -> st.SearchStrategy[Any]:
    """Return values of every kind that canonical JSON admits."""
    return st.recursive(
        scalars() if leaves is None else leaves,
        lambda inner: st.lists(inner, max_size=5) | st.dictionaries(texts(), inner, max_size=5),
        max_leaves=max_leaves,
    )
