"""What a task's log says of its children: every line of a child names it, and a failure is told at once."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from uuid import UUID

import structlog

from airflow_childrun.canonical import canonical_json_bytes, decode_stored
from airflow_childrun.errors import ErrorInfo, StorageError
from airflow_childrun.ids import local_name
from airflow_childrun.model.manifest import RunManifest
from airflow_childrun.model.plan import StateNode
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

    def key(self, row: RunRow) -> str:
        """Return the key of a child."""
        return self.keys.get(row.run_id, f"{row.op_id} {str(row.run_id)[:8]}")

    def name(self, row: RunRow) -> str:
        """Return how people know a child: its key, and the input that the key is the digest of."""
        key = self.key(row)
        if not _DIGEST_KEY.search(key):
            return key
        try:
            body = self._store.get_artifacts(row.root_run_id, [row.manifest_id])[row.manifest_id]
        except (StorageError, KeyError):
            return key
        text = canonical_json_bytes(RunManifest.from_json(decode_stored(body)).input).decode()
        return f"{key} ({text if len(text) <= SHOWN else text[: SHOWN - 1] + '…'})"

    def handler(self, row: RunRow, node: StateNode, attempt: int) -> AbstractContextManager[None]:
        """Bind child id, key and state to the log lines of a handler's thread."""
        bound = {"child_run_id": str(row.run_id), "child_key": self.key(row), "state": local_name(node.id)}
        return _bound({**bound, "attempt": attempt + 1} if attempt else bound)

    def state_failed(
        self, row: RunRow, node: StateNode, attempt: int, info: ErrorInfo, raised: BaseException, *, will_retry: bool
    ) -> None:
        """Log a failed attempt with its traceback."""
        where = {"child_run_id": str(row.run_id), "child_key": self.key(row), "state": local_name(node.id)}
        outcome = "it will be tried again" if will_retry else "no further attempt is allowed"
        with _bound(where):
            _log.error(
                "child %s: state %s failed in attempt %d [%s] %s; %s",
                self.name(row),
                local_name(node.id),
                attempt + 1,
                info.code,
                info.message,
                outcome,
                exc_info=raised,
            )


@contextmanager
def _bound(values: Mapping[str, str | int]) -> Iterator[None]:
    with structlog.contextvars.bound_contextvars(**values):
        yield
