"""What authors hand over becomes JSON, and comes back by its type hints: one encoder for inputs, steps and results."""

from __future__ import annotations

import base64
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from functools import lru_cache
from types import FunctionType
from typing import Any, get_args, get_type_hints
from weakref import WeakKeyDictionary

from pydantic import BaseModel, ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, to_jsonable_python
from typing_extensions import TypeAliasType

from airflow_childrun.canonical import INT_MAX, INT_MIN, MAX_DEPTH, canonical_json_bytes, json_path
from airflow_childrun.errors import CanonicalError, InputError
from airflow_childrun.model.wire import complaints

BYTES_AS_BASE64 = ConfigDict(val_json_bytes="base64", ser_json_bytes="base64")
_PLAIN = frozenset({str, int, float, bool, type(None)})


def encode(value: Any, where: str) -> Any:
    """Return a value as JSON: Decimal, dates, UUID, bytes (base64), enums, sets (sorted), dataclasses and models included.

    :param where: what is encoded, for the message
    :raises InputError: code ``value_not_encodable``, naming ``where``, the JSON path and the type
    """
    return _encode(value, where, [])


def _encode(value: Any, where: str, trail: list[str | int]) -> Any:
    if type(value) in _PLAIN:
        return value
    if len(trail) > MAX_DEPTH:
        # Also what holds itself; without this the stack overflows before canonical JSON can refuse it.
        raise InputError(
            f"{where} holds more than {MAX_DEPTH} lists and objects inside one another at {json_path(trail[:5])}...; "
            "flatten it, or keep it out of what is recorded",
            code="value_not_encodable",
            details={"path": json_path(trail[:5])},
        )
    if isinstance(value, dict):
        return _encode_object(value, where, trail)
    if isinstance(value, list | tuple):
        return [
            item if type(item) in _PLAIN else _encode(item, where, [*trail, index]) for index, item in enumerate(value)
        ]
    if isinstance(value, set | frozenset):
        return sorted((_encode(item, where, [*trail, "*"]) for item in value), key=canonical_json_bytes)
    if isinstance(value, bytes | bytearray):
        return base64.b64encode(value).decode("ascii")
    if _is_plain_dataclass(type(value)):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return _encode_object(fields, where, trail)
    if _cannot_come_back(value):
        raise _refused(value, where, trail)
    try:
        return to_jsonable_python(value, bytes_mode="base64", inf_nan_mode="constants")
    except (PydanticSerializationError, PydanticUserError, TypeError, ValueError):
        raise _refused(value, where, trail) from None


def _cannot_come_back(value: Any) -> bool:
    """Whether looking at a value would use it up, or its text is one that its type does not read."""
    return isinstance(value, Iterator) or (isinstance(value, Decimal) and not value.is_finite())


def _encode_object(value: Mapping[Any, Any], where: str, trail: list[str | int]) -> dict[str, Any]:
    encoded: dict[str, Any] = {}
    for key, item in value.items():
        name = _key(key, where, trail)
        if name in encoded:
            raise InputError(
                f"{where} has two keys at {json_path(trail)} that are both {name!r} in JSON; give one of them another "
                "name",
                code="value_not_encodable",
                details={"path": json_path(trail)},
            )
        encoded[name] = item if type(item) in _PLAIN else _encode(item, where, [*trail, name])
    return encoded


def _is_plain_dataclass(kind: type) -> bool:
    """Whether a class is a dataclass of the standard library, whose JSON form is ours to choose; pydantic's choose theirs."""
    has_own_form = hasattr(kind, "__pydantic_config__") or hasattr(kind, "__pydantic_validator__")
    return dataclasses.is_dataclass(kind) and not has_own_form


def _key(key: Any, where: str, trail: list[str | int]) -> str:
    if type(key) is str:
        return key
    encoded = _encode(key, where, trail)
    if isinstance(encoded, bool) or not isinstance(encoded, str | int):
        raise _refused(key, where, trail)
    return str(encoded)


def _refused(value: Any, where: str, trail: list[str | int]) -> InputError:
    path = json_path(trail)
    advice = "return plain data, a dataclass or a pydantic model, or keep it out of the result"
    if isinstance(value, Iterator):
        advice = "make a list of it first"
    elif isinstance(value, Decimal):
        advice = "it is not finite: return None, or a text of your own, in its place"
    elif isinstance(value, BaseModel):
        advice = (
            "its own serializer refuses it; if it holds bytes, give it "
            'model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")'
        )
    return InputError(
        f"{where} holds a value of type {type(value).__name__} at {path}, which cannot be recorded; {advice}",
        code="value_not_encodable",
        details={"path": path},
    )


@lru_cache(maxsize=1024)
def _adapter(hint: Any) -> TypeAdapter[Any]:
    try:
        # The alias lets a dataclass take our form of bytes; a model with a form of its own keeps that.
        alias: Any = TypeAliasType("_Hinted", hint)
        return TypeAdapter(alias, config=BYTES_AS_BASE64)
    except PydanticUserError:
        return TypeAdapter(hint)


def adapter(hint: Any) -> TypeAdapter[Any]:
    """Return the validator of a type hint."""
    try:
        return _adapter(hint)
    except TypeError:
        return _adapter.__wrapped__(hint)


def decode(value: Any, hint: Any, where: str) -> Any:
    """Return recorded JSON as the type that the hint names.

    :raises InputError: codes ``input_invalid``, naming ``where``, the place and what is wrong with it; ``hint_unusable``
    """
    if hint is Any or hint is inspect.Parameter.empty or hint is None or _fits(value, hint):
        return value
    try:
        return adapter(hint).validate_json(canonical_json_bytes(value))
    except PydanticUserError:
        raise InputError(
            f"{where} has the type hint {_name(hint)}, by which nothing can be checked: use plain types, dataclasses or "
            "pydantic models",
            code="hint_unusable",
        ) from None
    except ValidationError as error:
        raise InputError(f"{where} does not fit {_name(hint)}: {complaints(error)}") from None
    except CanonicalError as error:
        raise InputError(f"{where}: {error.info.message}", code=error.code, details=error.info.details) from None


def _fits(value: Any, hint: Any) -> bool:
    """Whether JSON is sure to be what a plain hint names, and would be read as itself."""
    kind = type(value)
    if kind is not hint:
        return False
    return kind is bool or (kind is str and value.isascii()) or (kind is int and INT_MIN <= value <= INT_MAX)


_HINTS: WeakKeyDictionary[Callable[..., Any], Mapping[str, Any]] = WeakKeyDictionary()


def hints_of(function: Callable[..., Any]) -> Mapping[str, Any]:
    """Return the type hints of a function; each that cannot be resolved counts as absent."""
    try:
        known = _HINTS.get(function)
    except TypeError:  # neither hashable nor weakly referable
        return _hints_of(function)
    if known is None:
        known = _hints_of(function)
        # A hint whose name is not defined yet may be, the next time.
        if known.keys() == getattr(function, "__annotations__", {}).keys() and type(function) is FunctionType:
            _HINTS[function] = known
    return known


def _hints_of(function: Callable[..., Any]) -> Mapping[str, Any]:
    try:
        return get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError):
        return _hints_one_by_one(function)


def _hints_one_by_one(function: Callable[..., Any]) -> dict[str, Any]:
    """Resolve what can be: one name imported for type checkers alone must not take the others with it."""
    found: dict[str, Any] = {}
    for name, annotation in getattr(function, "__annotations__", {}).items():
        holder = type("_Holder", (), {"__annotations__": {name: annotation}})
        try:
            found |= get_type_hints(holder, getattr(function, "__globals__", {}), include_extras=True)
        except (NameError, TypeError, AttributeError):
            continue
    return found


def _name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint).replace("typing.", "")
