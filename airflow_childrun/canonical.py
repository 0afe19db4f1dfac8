"""Canonical JSON: the bytes that identities are made of, and the way back.

The bytes are those of RFC 8785 for every value that it admits. On top of it, integers in [-2^63, 2^64-1] are written
exactly, where RFC 8785 stops at 2^53. Both are one format: a number is an integer literal or an ECMAScript double.

Plain data only: ``dict`` with string keys, ``list``, ``tuple``, ``str``, ``int``, ``float``, ``bool``, ``None``, and no
subclass of them (an ``IntEnum`` or a ``defaultdict`` is refused, so that what is hashed is what will be read back).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from typing import Any, NoReturn

import orjson
import rfc8785

from airflow_childrun.errors import CanonicalError

INT_MIN = -(2**63)
INT_MAX = 2**64 - 1
MAX_DEPTH = 100
"""How many arrays and objects may stand inside one another."""

_OPTIONS = (
    orjson.OPT_SORT_KEYS
    | orjson.OPT_PASSTHROUGH_SUBCLASS
    | orjson.OPT_PASSTHROUGH_DATACLASS
    | orjson.OPT_PASSTHROUGH_DATETIME
)
_SCALARS = frozenset({str, int, bool, type(None)})
_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}\Z")
# First bytes of UTF-8 sequences: only where both kinds occur can code point order and UTF-16 order differ.
_ASTRAL_LEADS = (b"\xf0", b"\xf1", b"\xf2", b"\xf3", b"\xf4")
_HIGH_BMP_LEADS = (b"\xee", b"\xef")
# Between these, the shortest digits of a double that is no integer have no exponent in either notation.
_PLAIN_FLOAT_MIN = 1e-4
_PLAIN_FLOAT_MAX = 1e15
_EXACT_FLOAT_MAX = 2**53
_LONG_NUMBER = re.compile("[0-9]{19}")


def canonical_json_bytes(value: Any) -> bytes:
    """Return the canonical JSON bytes of ``value``.

    :param value: plain data, see the module's docstring
    :returns: UTF-8 without whitespace, object keys in UTF-16 order
    :raises CanonicalError: ``float_not_finite``, ``integer_out_of_range``, ``key_not_string``, ``lone_surrogate``,
        ``too_deep`` or ``type_not_allowed``; ``details`` is ``{"path": "$.a[0]"}``
    """
    try:
        data = orjson.dumps(value if _is_plain(value, 0) else _respell(value, 0), option=_OPTIONS)
    except orjson.JSONEncodeError:
        pass  # an odd type or key, a surrogate, a large integer, too deep: the norm says where it stands
    else:
        if data.isascii() or not _may_sort_otherwise(data):
            return data
    return _norm(value)


def canonical_equal(a: Any, b: Any) -> bool:
    """Tell whether two values have the same canonical bytes: ``1`` equals ``1.0``, but not ``True``.

    :raises CanonicalError: as :func:`canonical_json_bytes`
    """
    return canonical_json_bytes(a) == canonical_json_bytes(b)


def artifact_id(data: bytes) -> str:
    """Return the identity of plain bytes: their SHA-256 as 64 lower-case hex digits."""
    return hashlib.sha256(data).hexdigest()


def decode_stored(data: bytes) -> Any:
    """Return the value of canonical bytes that we stored.

    RFC 8785 writes whole doubles as integer literals. A literal outside [-2^63, 2^64-1] becomes a ``float``, one inside
    an ``int``, even if it was a ``float`` when it was written: ``float()`` of it is the same double (between 2^53 and
    2^64 the integer itself may be another, since only the digits that tell doubles apart are written). Encoding the
    result gives the same bytes again.

    :raises CanonicalError: ``not_json``, if the bytes are not JSON
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        msg = f"stored bytes are not JSON: {error.msg} at character {error.pos}"
        raise CanonicalError(msg, code="not_json") from None


def decode_outside(text: bytes | str) -> Any:
    """Return the value of JSON that somebody else wrote; it is sure to have canonical bytes.

    Of a duplicate key the last value wins. An integer literal that we could not write exactly is refused, not rounded.

    :param text: JSON, as text or UTF-8
    :raises CanonicalError: ``not_json``, or as :func:`canonical_json_bytes`
    """
    try:
        text = text if isinstance(text, str) else text.decode()
    except UnicodeDecodeError as error:
        msg = f"not JSON: not UTF-8 at byte {error.start}"
        raise CanonicalError(msg, code="not_json") from None
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return _decode_slowly(text)
    if _is_plain(value, 0, floats=False):
        return value
    if _LONG_NUMBER.search(text):  # orjson reads an integer that is too large as a float
        return _decode_slowly(text)
    canonical_json_bytes(value)
    return value


def json_path(trail: Sequence[str | int]) -> str:
    """Write keys and indices as a path, such as ``$.a[0]`` or ``$["two words"]``; always ASCII."""
    return "$" + "".join(map(_segment, trail))


def _segment(step: str | int) -> str:
    if isinstance(step, int):
        return f"[{step}]"
    if _PLAIN_NAME.match(step):
        return f".{step}"
    return f"[{json.dumps(step if len(step) <= 64 else step[:64] + '...')}]"  # noqa: PLR2004


def _is_plain(value: Any, depth: int, *, floats: bool = True) -> bool:
    """Tell whether orjson may write ``value``: exact types, not too deep, no float that the two formats spell apart."""
    kind = type(value)
    if kind in _SCALARS:
        return True
    if kind is float:
        return floats and _PLAIN_FLOAT_MIN <= abs(value) < _PLAIN_FLOAT_MAX and not value.is_integer()
    if kind is dict:
        items = value.values()
    elif kind is list or kind is tuple:
        items = value
    else:
        return False
    if depth >= MAX_DEPTH:
        return False
    depth += 1
    for item in items:  # noqa: SIM110 - a generator costs twice the time
        if type(item) not in _SCALARS and not _is_plain(item, depth, floats=floats):
            return False
    return True


def _respell(value: Any, depth: int) -> Any:
    """Return ``value`` with every float in a form that orjson writes as RFC 8785 does.

    :raises orjson.JSONEncodeError: for what only the norm can judge
    """
    kind = type(value)
    if kind in _SCALARS:
        return value
    if kind is float:
        if abs(value) <= _EXACT_FLOAT_MAX and value.is_integer():
            return int(value)
        return value if _is_plain(value, 0) else orjson.Fragment(_float(value))
    if depth < MAX_DEPTH:
        depth += 1
        if kind is dict:
            return {key: _respell(item, depth) for key, item in value.items()}
        if kind is list or kind is tuple:
            return [_respell(item, depth) for item in value]
    raise orjson.JSONEncodeError


def _float(value: float) -> bytes:
    try:
        return rfc8785.dumps(value)
    except rfc8785.FloatDomainError:
        raise orjson.JSONEncodeError from None


def _may_sort_otherwise(data: bytes) -> bool:
    return any(lead in data for lead in _ASTRAL_LEADS) and any(lead in data for lead in _HIGH_BMP_LEADS)


def _norm(value: Any) -> bytes:
    """Write ``value`` piece by piece, knowing at each where it stands."""
    out: list[bytes] = []
    _write(value, out, [])
    return b"".join(out)


def _write(value: Any, out: list[bytes], trail: list[str | int]) -> None:
    kind = type(value)
    if kind is dict or kind is list or kind is tuple:
        if len(trail) >= MAX_DEPTH:
            _refuse("too_deep", f"more than {MAX_DEPTH} arrays and objects inside one another", trail)
        if kind is dict:
            _write_object(value, out, trail)
        else:
            _write_array(value, out, trail)
    elif kind is float:
        if not math.isfinite(value):
            _refuse("float_not_finite", "a number that is not finite has no JSON form", trail)
        out.append(rfc8785.dumps(value))
    elif kind is int and not INT_MIN <= value <= INT_MAX:
        _refuse("integer_out_of_range", "an integer outside [-2^63, 2^64-1]; write it as a string", trail)
    elif kind in _SCALARS:
        out.append(_scalar(value, trail))
    else:
        _refuse("type_not_allowed", f"a {kind.__name__} is not plain JSON data; convert it first", trail)


def _scalar(value: Any, trail: list[str | int]) -> bytes:
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        _refuse("lone_surrogate", "text with half of a surrogate pair has no UTF-8 form", trail)


def _write_array(value: Sequence[Any], out: list[bytes], trail: list[str | int]) -> None:
    before = b"["
    for index, item in enumerate(value):
        out.append(before)
        trail.append(index)
        _write(item, out, trail)
        trail.pop()
        before = b","
    out.append(b"]" if value else b"[]")


def _write_object(value: dict[Any, Any], out: list[bytes], trail: list[str | int]) -> None:
    names: list[tuple[bytes, str, bytes]] = []
    for key in value:
        if type(key) is not str:
            _refuse("key_not_string", f"an object key is a {type(key).__name__}; keys must be str", trail)
        name = _scalar(key, [*trail, key])
        names.append((key.encode("utf-16-be"), key, name))
    before = b"{"
    for _, key, name in sorted(names):
        out += (before, name, b":")
        trail.append(key)
        _write(value[key], out, trail)
        trail.pop()
        before = b","
    out.append(b"}" if value else b"{}")


def _refuse(code: str, problem: str, trail: Sequence[str | int]) -> NoReturn:
    path = json_path(trail)
    raise CanonicalError(f"{path}: {problem}", code=code, details={"path": path})


def _decode_slowly(text: str) -> Any:
    try:
        value = json.loads(text, parse_int=_parse_int, parse_constant=_no_constant)
    except RecursionError:
        _refuse("too_deep", f"more than {MAX_DEPTH} arrays and objects inside one another", [])
    except ValueError as error:
        problem = f"{error.msg} at character {error.pos}" if isinstance(error, json.JSONDecodeError) else str(error)
        msg = f"not JSON: {problem}"
        raise CanonicalError(msg, code="not_json") from None
    canonical_json_bytes(value)
    return value


def _parse_int(literal: str) -> int:
    # Python refuses to convert thousands of digits; 20 of them are out of range already.
    return int(literal) if len(literal) <= 20 else (INT_MIN - 1 if literal[0] == "-" else INT_MAX + 1)  # noqa: PLR2004


def _no_constant(literal: str) -> NoReturn:
    msg = f"{literal} is not JSON"
    raise ValueError(msg)
