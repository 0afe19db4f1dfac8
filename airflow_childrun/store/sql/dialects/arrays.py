"""Arrays as PostgreSQL receives them in binary: the driver's own, as text, took half of the CPU of a group commit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from struct import Struct
from typing import Any

_HEADER = Struct(">iiIii")  # dimensions, whether one is NULL, type of the elements, how many, from which index on
_LENGTH, _BIGINT, _INTEGER, _BOOLEAN = Struct(">i"), Struct(">iq"), Struct(">ii"), Struct(">i?")
_NULL = _LENGTH.pack(-1)


def _sized(data: bytes) -> bytes:
    return _LENGTH.pack(len(data)) + data


# By type of the elements, as SQLAlchemy writes it: its number, that of the array type, and an element with its length.
_KINDS: dict[str, tuple[int, int, Callable[[Any], bytes]]] = {
    "BYTEA": (17, 1001, _sized),
    "BIGINT": (20, 1016, lambda value: _BIGINT.pack(8, value)),
    "INTEGER": (23, 1007, lambda value: _INTEGER.pack(4, value)),
    "BOOLEAN": (16, 1000, lambda value: _BOOLEAN.pack(1, value)),
    "TEXT": (25, 1009, lambda value: _sized(value.encode())),
}


class Packed(bytes):
    """An array in binary; there is a subclass for each type of elements, by which the driver knows the type."""

    __slots__ = ()


_CLASSES = {kind: type(f"Packed{kind.title()}", (Packed,), {"__slots__": ()}) for kind in _KINDS}


def packed(kind: str, values: Sequence[Any]) -> Packed:
    """Return an array of one dimension.

    :param kind: type of the elements as the database writes it; one that is not known here is text, to be cast
    """
    known = kind if kind in _KINDS else "TEXT"
    element, _, write = _KINDS[known]
    has_null = None in values
    parts = [_HEADER.pack(1, has_null, element, len(values), 1)]
    parts += [_NULL if value is None else write(value) for value in values] if has_null else map(write, values)
    made: Packed = _CLASSES[known](b"".join(parts))
    return made


def register(connection: Any) -> None:
    """Teach a connection of psycopg what these arrays are."""
    from psycopg.adapt import Dumper  # only a store on PostgreSQL needs the driver
    from psycopg.pq import Format

    for kind, cls in _CLASSES.items():
        own = {"oid": _KINDS[kind][1], "format": Format.BINARY, "dump": lambda self, value: value}  # noqa: ARG005
        connection.adapters.register_dumper(cls, type(f"{cls.__name__}Dumper", (Dumper,), own))
