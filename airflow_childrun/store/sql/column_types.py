"""How ids and digests are stored: as bytes, fixed in length, the same in every database."""

from __future__ import annotations

from functools import lru_cache
from typing import Any
from uuid import UUID

from sqlalchemy import LargeBinary
from sqlalchemy.dialects.mysql import BINARY, LONGBLOB
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator

from airflow_childrun.errors import CorruptionError

_UUID_BYTES = 16
Body = LargeBinary().with_variant(LONGBLOB(), "mysql", "mariadb")
"""Bytes of any length."""


class UuidBytes(TypeDecorator[UUID]):
    """A UUID as its 16 bytes."""

    impl = LargeBinary(16)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        """Choose a type that can be indexed."""
        return _fixed(dialect, 16)

    def process_bind_param(self, value: UUID | None, dialect: Dialect) -> bytes | None:  # noqa: ARG002
        """Encode."""
        return None if value is None else value.bytes

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> UUID | None:  # noqa: ARG002
        """Decode."""
        return None if value is None else read_uuid(value)


@lru_cache(maxsize=1024)
def read_uuid(value: bytes) -> UUID:
    """Return a stored id.

    :raises CorruptionError: code ``row_malformed``, if it is none
    """
    if len(value) != _UUID_BYTES:
        raise CorruptionError(
            f"a stored id has {len(value)} bytes, not {_UUID_BYTES}; run `childrun verify` and restore the row from a "
            "backup",
            code="row_malformed",
        )
    return UUID(bytes=bytes(value))


class HexBytes(TypeDecorator[str]):
    """A SHA-256 in hex as its 32 bytes."""

    impl = LargeBinary(32)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        """Choose a type that can be indexed."""
        return _fixed(dialect, 32)

    def process_bind_param(self, value: str | None, dialect: Dialect) -> bytes | None:  # noqa: ARG002
        """Encode."""
        return None if value is None else bytes.fromhex(value)

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        """Decode."""
        return None if value is None else bytes(value).hex()


def _fixed(dialect: Dialect, length: int) -> Any:
    mysql = dialect.name in {"mysql", "mariadb"}
    return dialect.type_descriptor(BINARY(length) if mysql else LargeBinary(length))
