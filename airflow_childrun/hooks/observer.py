"""What a task's log says of its children: every line of a child names it, and a failure is told at once."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from uuid import UUID

import structlog

from airflow_childrun.canonical import canonical_json_bytes, decode_stored
from airflow_childrun.errors import ErrorInfo, StorageError
from airflow_childrun.ids import local_name
from airflow_childrun.model.manifest import RunManifest
from airflow_childrun.model.plan import StateNode
from airflow_childrun.runtime.generations import DAG_RUN_OPERATION
from airflow_childrun.store.api import RunRow, Store

_log = logging.getLogger("airflow.task.childrun")
_DIGEST_KEY = re.compile(r"/[0-9a-f]{16}#\d+$")
SHOWN = 40
"""How much of an input is shown, in characters."""


class TaskObserver:
    """Writes to the task's log, whose handlers mask secrets.

    :param store: where the input of a child stands whose key, a digest, would tell people nothing
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.keys: dict[UUID, str] = {}
        """Keys of the task's own children by run id; deeper ones are known by their operation."""
        self._inputs: dict[UUID, str] = {}

    def know(self, run_id: UUID, key: str, value: Any) -> None:
        """Take note of a child's key, and of its input if the key is the digest of that."""
        self.keys[run_id] = key
        if _DIGEST_KEY.search(key):
            self._inputs[run_id] = _short(value)

    def key(self, row: RunRow) -> str:
        """Return the key of a child."""
        return self.keys.get(row.run_id, f"{row.op_id} {str(row.run_id)[:8]}")

    def name(self, row: RunRow) -> str:
        """Return how people know a child: its key, and the input that the key is the digest of."""
        key = self.key(row)
        if row.run_id in self._inputs:
            return f"{key} ({self._inputs[row.run_id]})"
        if not _DIGEST_KEY.search(key):
            return key
        try:
            body = self._store.get_artifacts(row.root_run_id, [row.manifest_id])[row.manifest_id]
        except (StorageError, KeyError):
            return key
        return f"{key} ({_short(RunManifest.from_json(decode_stored(body)).input)})"

    def handler(self, row: RunRow, node: StateNode, attempt: int) -> AbstractContextManager[None]:
        """Bind child id, key and state to the log lines of a handler's thread."""
        bound = self._where(row, node)
        return _bound({**bound, "attempt": attempt + 1} if attempt else bound)

    def state_failed(
        self, row: RunRow, node: StateNode, attempt: int, info: ErrorInfo, raised: BaseException, *, will_retry: bool
    ) -> None:
        """Log a failed attempt with its traceback."""
        outcome = "it will be tried again" if will_retry else "no further attempt is allowed"
        with _bound(self._where(row, node)):
            _log.error(
                "child %s: state %s failed in attempt %d [%s] %s; %s",
                self.name(row),
                local_name(node.id),
                attempt + 1,
                info.code,
                info.message,
                outcome,
                # What happened to a DAG run stands in its own log; where we noticed it tells nobody anything.
                exc_info=None if row.op_id.startswith(DAG_RUN_OPERATION) else raised,
            )

    def _where(self, row: RunRow, node: StateNode) -> dict[str, str | int]:
        where: dict[str, str | int] = {"child_key": self.key(row), "state": local_name(node.id)}
        if row.run_id in self._inputs:
            where["child_input"] = self._inputs[row.run_id]
        return {**where, "child_run_id": str(row.run_id)}


def _short(value: Any) -> str:
    text = canonical_json_bytes(value).decode()
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


@contextmanager
def _bound(values: Mapping[str, str | int]) -> Iterator[None]:
    with structlog.contextvars.bound_contextvars(**values):
        yield
