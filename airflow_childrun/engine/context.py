"""Contexts: what the states of a run tell each other, and the snapshots that they become."""

from __future__ import annotations

from typing import Any, Protocol

from airflow_childrun.canonical import canonical_json_bytes, decode_stored
from airflow_childrun.errors import (
    CanonicalError,
    ContextSerializationError,
    OtherContextError,
    SecretsDetectedError,
)
from airflow_childrun.secret_policy import SecretPolicy

_GONE = object()


class Context(Protocol):
    """Keys and JSON values."""

    def read(self, key: str) -> Any:
        """Return the value of a key, or None."""

    def write(self, key: str, value: Any) -> None:
        """Set a key; checked when the state completes."""

    def delete(self, key: str) -> None:
        """Remove a key; an absent one is fine."""

    def dump(self) -> dict[str, Any]:
        """Return everything."""


class StagedContext:
    """A base snapshot and what one attempt changes on it."""

    def __init__(self, base: dict[str, Any]) -> None:
        self._base = base
        self._overlay: dict[str, Any] = {}

    def read(self, key: str) -> Any:
        """Return the value of a key, or None."""
        if key in self._overlay:
            value = self._overlay[key]
            return None if value is _GONE else value
        return self._base.get(key)

    def write(self, key: str, value: Any) -> None:
        """Set a key; checked when the state completes."""
        self._overlay[key] = value

    def delete(self, key: str) -> None:
        """Remove a key; an absent one is fine."""
        self._overlay[key] = _GONE

    def dump(self) -> dict[str, Any]:
        """Return the base with the changes applied."""
        merged = {**self._base, **self._overlay}
        return {key: value for key, value in merged.items() if value is not _GONE}


class NamespacedContext:
    """The part of a context whose keys begin with ``prefix``; the prefix is not seen."""

    def __init__(self, inner: Context, prefix: str) -> None:
        self._inner = inner
        self._prefix = prefix

    def read(self, key: str) -> Any:
        """Return the value of a key, or None."""
        return self._inner.read(self._prefix + key)

    def write(self, key: str, value: Any) -> None:
        """Set a key; checked when the state completes."""
        self._inner.write(self._prefix + key, value)

    def delete(self, key: str) -> None:
        """Remove a key; an absent one is fine."""
        self._inner.delete(self._prefix + key)

    def dump(self) -> dict[str, Any]:
        """Return the keys of this namespace, without the prefix."""
        start = len(self._prefix)
        return {key[start:]: value for key, value in self._inner.dump().items() if key.startswith(self._prefix)}


def snapshot_bytes(context: dict[str, Any], policy: SecretPolicy) -> bytes:
    """Return the canonical bytes of a context.

    :raises ContextSerializationError: code ``context_snapshot_not_canonical``
    :raises OtherContextError: code ``secrets_detected``
    """
    try:
        policy.check(context, "context snapshot")
        return canonical_json_bytes(context)
    except SecretsDetectedError as error:
        raise OtherContextError(error.info.message, code=error.code, details=error.info.details) from None
    except CanonicalError as error:
        raise ContextSerializationError(
            f"context snapshot is not canonical JSON: {error.info.message}", details=error.info.details
        ) from None


def read_snapshot(body: bytes) -> dict[str, Any]:
    """Return the context that a snapshot holds.

    :raises ContextSerializationError: code ``context_snapshot_not_object`` or ``context_snapshot_decode_failed``
    """
    try:
        value = decode_stored(body)
    except CanonicalError:
        raise ContextSerializationError(
            "a context snapshot is not JSON; run `childrun verify`", code="context_snapshot_decode_failed"
        ) from None
    if not isinstance(value, dict):
        raise ContextSerializationError(
            "a context must be a JSON object of keys and values", code="context_snapshot_not_object"
        )
    return value
