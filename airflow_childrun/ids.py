"""Identifiers: their rules, and how one follows from another."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from typing import Any, NewType, NoReturn
from uuid import UUID, uuid5

from airflow_childrun.canonical import canonical_json_bytes
from airflow_childrun.errors import InvalidIdError

OpId = NewType("OpId", str)
"""Name of an operation: one segment."""
StateId = NewType("StateId", str)
"""Name of a state: ``<operation>.<step>.<local name>``."""
ArtifactId = NewType("ArtifactId", str)
"""SHA-256 of an artifact's plain bytes, 64 lower-case hex digits."""
FactKey = NewType("FactKey", str)
"""Under what a fact is recorded inside its run: free text without U+001F."""

NAMESPACE = UUID("8c3b305d-d2e4-4ed5-a563-bb2ea4bee112")
"""Namespace of :func:`named_id`. Part of the wire format: it never changes."""

GENERATION_SEPARATOR = "\u001f"
"""Stands between a fact key and a generation's number, hence in no fact key."""

_S = r"[a-z][a-z0-9_]{0,62}"
_SEGMENT = re.compile(_S)
_OP_PATH = re.compile(rf"{_S}(?:\.{_S})+")
_STATE_ID = re.compile(rf"{_S}\.{_S}\.{_S}")
_ARTIFACT_ID = re.compile(r"[0-9a-f]{64}")


def is_op_id(text: str) -> bool:
    """Tell whether ``text`` is one segment: a lower-case letter, then up to 62 of ``a-z``, ``0-9`` and ``_``."""
    return _SEGMENT.fullmatch(text) is not None


def is_state_id(text: str) -> bool:
    """Tell whether ``text`` is three segments joined by dots."""
    return _STATE_ID.fullmatch(text) is not None


def require_op_id(text: str) -> OpId:
    """Return ``text`` as an operation's name.

    :raises InvalidIdError: if it is not one segment
    """
    return OpId(_require("op_id", _SEGMENT, text))


def require_op_path(text: str) -> str:
    """Return ``text`` if it is an operation's path, ``<operation>.<step>`` with any number of children below.

    :raises InvalidIdError: if it is not two or more segments
    """
    return _require("op_path", _OP_PATH, text)


def require_state_id(text: str) -> StateId:
    """Return ``text`` as a state's name.

    :raises InvalidIdError: if it is not three segments
    """
    return StateId(_require("state_id", _STATE_ID, text))


def require_artifact_id(text: str) -> ArtifactId:
    """Return ``text`` as an artifact's id.

    :raises InvalidIdError: if it is not 64 lower-case hex digits
    """
    return ArtifactId(_require("artifact_id", _ARTIFACT_ID, text))


@lru_cache(maxsize=4096)
def uuid_of(text: str) -> UUID:
    """Return the id that a text names: the same object for the same text, since a run's id is read several times.

    :raises ValueError: if it is none
    """
    return UUID(text)


def state_id(op_id: str, step_id: str, local: str) -> StateId:
    """Return the name of the state ``local`` of a step.

    :raises InvalidIdError: if a part is not one segment
    """
    return require_state_id(f"{op_id}.{step_id}.{local}")


def local_name(state_id: str) -> str:
    """Return the last segment of a state's name.

    :raises InvalidIdError: if it is not a state's name
    """
    return require_state_id(state_id).rpartition(".")[2]


def child_run_id(parent_run_id: UUID, fact_key: str, generation: int = 1) -> UUID:
    """Return the run id of a slot's generation: UUIDv5 of the parent's id and the fact key.

    :param fact_key: under which the parent recorded the spawn
    :param generation: 1 for the first run of the slot; n > 1 adds U+001F and n to the key
    :raises InvalidIdError: ``fact_key_invalid``, if the key holds U+001F or half of a surrogate pair;
        ``invalid_id``, if the generation is not 1 or more
    """
    check_fact_key(fact_key)
    if type(generation) is not int or generation < 1:
        _refuse("generation", generation)
    return _named(parent_run_id, fact_key if generation == 1 else f"{fact_key}{GENERATION_SEPARATOR}{generation}")


@lru_cache(maxsize=4096)
def _named(namespace: UUID, name: str) -> UUID:
    return uuid5(namespace, name)


def named_id(*parts: Any) -> UUID:
    """Return the id that follows from ``parts``: UUIDv5 of our namespace and the canonical JSON of their list.

    :raises CanonicalError: if a part is not plain JSON data
    """
    return uuid5(NAMESPACE, canonical_json_bytes(parts).decode())


def key_digest(fact_key: str) -> str:
    """Return the SHA-256 of a fact key's UTF-8, 64 lower-case hex digits; stores index facts by it.

    :raises InvalidIdError: ``fact_key_invalid``, as :func:`child_run_id`
    """
    return hashlib.sha256(check_fact_key(fact_key)).hexdigest()


def check_fact_key(fact_key: str) -> bytes:
    """Return a fact key's UTF-8.

    :raises InvalidIdError: ``fact_key_invalid``, as :func:`child_run_id`
    """
    if type(fact_key) is not str:
        problem = f"is a {type(fact_key).__name__}"
    elif GENERATION_SEPARATOR in fact_key:
        problem = "holds U+001F, which separates key and generation"
    else:
        try:
            return fact_key.encode()
        except UnicodeEncodeError:
            problem = "holds half of a surrogate pair"
    msg = f"invalid fact_key: it {problem}; use plain text"
    raise InvalidIdError(msg, code="fact_key_invalid")


def _require(kind: str, rule: re.Pattern[str], text: str) -> str:
    if type(text) is not str or rule.fullmatch(text) is None:
        _refuse(kind, text)
    return text


def _refuse(kind: str, value: object) -> NoReturn:
    msg = f"invalid {kind}: {value}"
    raise InvalidIdError(msg, details={"kind": kind})
