"""What authors hand over becomes JSON, and comes back by its type hints: one encoder for inputs, steps and results."""

from __future__ import annotations

import base64
import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, get_type_hints

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, to_jsonable_python

from airflow_childrun.canonical import canonical_json_bytes, json_path
from airflow_childrun.errors import CanonicalError, InputError
from airflow_childrun.model.wire import complaints

_CONFIG = ConfigDict(val_json_bytes="base64", ser_json_bytes="base64")
_PLAIN = frozenset({str, int, float, bool, type(None)})


def encode(value: Any, where: str) -> Any:
    """Return a value as JSON: Decimal, dates, UUID, bytes (base64), enums, sets (sorted), dataclasses and models included.

    :param where: what is encoded, for the message
    :raises InputError: code ``value_not_encodable``, naming ``where``, the JSON path and the type
    """
    return _encode(value, where, [])


def _encode(value: Any, where: str, trail: list[str | int]) -> Any:
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is dict:
        return {_key(key, where, trail): _encode(item, where, [*trail, str(key)]) for key, item in value.items()}
    if kind in (list, tuple):
        return [_encode(item, where, [*trail, index]) for index, item in enumerate(value)]
    if kind in (set, frozenset):
        return sorted((_encode(item, where, [*trail, "*"]) for item in value), key=canonical_json_bytes)
    if kind in (bytes, bytearray):
        return base64.b64encode(value).decode("ascii")
    try:
        return to_jsonable_python(value, bytes_mode="base64", inf_nan_mode="constants")
    except (PydanticSerializationError, PydanticUserError, TypeError, ValueError):
        raise _refused(value, where, trail) from None


def _key(key: Any, where: str, trail: list[str | int]) -> str:
    if type(key) is str:
        return key
    encoded = _encode(key, where, trail)
    if isinstance(encoded, bool) or not isinstance(encoded, str | int):
        raise _refused(key, where, trail)
    return str(encoded)


def _refused(value: Any, where: str, trail: list[str | int]) -> InputError:
    path = json_path(trail)
    return InputError(
        f"{where} holds a {type(value).__name__} at {path}, which cannot be recorded; return plain data, a dataclass or a "
        "pydantic model, or keep it out of the result",
        code="value_not_encodable",
        details={"path": path},
    )


@lru_cache(maxsize=1024)
def _adapter(hint: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(hint, config=_CONFIG)
    except PydanticUserError:
        return TypeAdapter(hint)


def adapter(hint: Any) -> TypeAdapter[Any]:
    """Return the validator of a type hint."""
    try:
        return _adapter(hint)
    except TypeError:
        return TypeAdapter(hint)


def decode(value: Any, hint: Any, where: str) -> Any:
    """Return recorded JSON as the type that the hint names.

    :raises InputError: code ``input_invalid``, naming ``where``, the place and what is wrong with it
    """
    if hint is Any or hint is inspect.Parameter.empty or hint is None:
        return value
    try:
        return adapter(hint).validate_json(canonical_json_bytes(value))
    except ValidationError as error:
        raise InputError(f"{where} does not fit {_name(hint)}: {complaints(error)}") from None
    except CanonicalError as error:
        raise InputError(f"{where}: {error.info.message}", code=error.code, details=error.info.details) from None


def hints_of(function: Callable[..., Any]) -> Mapping[str, Any]:
    """Return the type hints of a function; what cannot be resolved counts as unhinted."""
    try:
        return get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError):
        return {}


def _name(hint: Any) -> str:
    return getattr(hint, "__name__", None) or str(hint)
