"""Arrays as PostgreSQL receives them in binary: the driver's own, as text, took half of the CPU of a group commit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from struct import Struct
from typing import Any

_HEADER = Struct(">iiIii")  # dimensions, whether one is NULL, type of the elements, how many, from which index on
_LENGTH, _BIGINT, _INTEGER, _BOOLEAN = Struct(">i"), Struct(">q"), Struct(">i"), Struct(">?")
_NULL = _LENGTH.pack(-1)

# By type of the elements, as SQLAlchemy writes it: its number, that of the array type, and the bytes of an element.
_KINDS: dict[str, tuple[int, int, Callable[[Any], bytes] | None]] = {
    "BYTEA": (17, 1001, None),
    "BIGINT": (20, 1016, _BIGINT.pack),
    "INTEGER": (23, 1007, _INTEGER.pack),
    "BOOLEAN": (16, 1000, _BOOLEAN.pack),
    "TEXT": (25, 1009, str.encode),
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
    header = _HEADER.pack(1, has_null, element, len(values), 1)
    made: Packed = _CLASSES[known](header + (_with_nulls(values, write) if has_null else _sized(values, write)))
    return made


def _sized(values: Sequence[Any], write: Callable[[Any], bytes] | None) -> bytes:
    """Return each element behind its length; loops of the interpreter's own, since there are dozens for every child."""
    bodies: Sequence[bytes] = values if write is None else list(map(write, values))
    lengths = set(map(len, bodies))
    if len(lengths) == 1:  # ids, digests, numbers: most columns
        length = _LENGTH.pack(lengths.pop())
        return length + length.join(bodies)
    return b"".join(chain.from_iterable(zip(map(_LENGTH.pack, map(len, bodies)), bodies, strict=True)))


def _with_nulls(values: Sequence[Any], write: Callable[[Any], bytes] | None) -> bytes:
    if values.count(None) == len(values):
        return _NULL * len(values)
    return b"".join(_NULL if value is None else _sized((value,), write) for value in values)


def register(connection: Any) -> None:
    """Teach a connection of psycopg what these arrays are."""
    from psycopg.adapt import Dumper  # only a store on PostgreSQL needs the driver
    from psycopg.pq import Format

    for kind, cls in _CLASSES.items():
        own = {"oid": _KINDS[kind][1], "format": Format.BINARY, "dump": lambda self, value: value}  # noqa: ARG005
        connection.adapters.register_dumper(cls, type(f"{cls.__name__}Dumper", (Dumper,), own))
