"""The base of everything that is written down."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from airflow_childrun.errors import InputError

_SCALARS = frozenset({str, int, bool, type(None)})


class Wire(BaseModel):
    """A frozen model with a JSON shape that old and new releases share.

    Unknown fields are ignored on read. Fields named in ``_added`` came after V1: they are left out while they have
    their default, so that what V1 could say is written as V1 wrote it.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)
    _added: ClassVar[frozenset[str]] = frozenset()

    def to_json(self) -> dict[str, Any]:
        """Return the wire shape: plain dicts, lists, strings, integers, booleans and None."""
        values = self.__dict__
        return {
            name: value if type(value := values[name]) in _SCALARS else _plain(value)
            for name, is_added, default in _layout(type(self))
            if not is_added or values[name] != default
        }

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy; what was worked out from the fields of this one is left behind."""
        copied = super().model_copy(update=update, deep=deep)
        for name in copied.__dict__.keys() - type(self).model_fields.keys():
            del copied.__dict__[name]
        return copied

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Read the wire shape, unknown fields ignored.

        :raises pydantic.ValidationError: if a field is absent or of another type
        """
        return cls.model_validate(value)

    @classmethod
    def from_author(cls, value: Any, where: str) -> Self:
        """Read what a person wrote: an unknown field is an error here.

        :raises InputError: naming ``where``, the field and what is wrong with it
        """
        if isinstance(value, cls):
            return value
        try:
            return cls.model_validate(value, extra="forbid")
        except ValidationError as error:
            raise InputError(f"{where} does not fit: {complaints(error)}") from None


class Deferred(Wire):
    """A model that DAG files import and hardly make: its validator is built when it is first needed.

    Two threads must not build one at the same time: whoever starts threads calls :func:`build_deferred` before.
    """

    model_config = ConfigDict(defer_build=True)


def build_deferred(base: type[Wire] = Deferred) -> None:
    """Build the validators of all deferred models."""
    base.model_rebuild()
    for cls in base.__subclasses__():
        build_deferred(cls)


def complaints(error: ValidationError) -> str:
    """Say what pydantic found in one line, without the values: they may be secret."""
    return "; ".join(
        f"{'.'.join(str(part) for part in found['loc']) or 'value'}: {found['msg']}"
        for found in error.errors(include_url=False, include_input=False, include_context=False)
    )


@cache
def _layout(cls: type[Wire]) -> tuple[tuple[str, bool, Any], ...]:
    """Return name, whether it came after V1, and default of each field."""
    return tuple(
        (name, name in cls._added, field.get_default(call_default_factory=True))
        for name, field in cls.model_fields.items()
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Wire):
        return value.to_json()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value
