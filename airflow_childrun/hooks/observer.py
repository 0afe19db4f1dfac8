"""What a task's log says of its children: every line of a child names it, and a failure is told at once."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from uuid import UUID

import structlog

from airflow_childrun.errors import ErrorInfo
from airflow_childrun.ids import local_name
from airflow_childrun.model.plan import StateNode
from airflow_childrun.store.api import RunRow

_log = logging.getLogger("airflow.task.childrun")


class TaskObserver:
    """Writes to the task's log, whose handlers mask secrets.

    :param keys: names of the task's own children by run id; deeper ones are named by their operation
    """

    def __init__(self) -> None:
        self.keys: dict[UUID, str] = {}

    def name(self, row: RunRow) -> str:
        """Return how people know a child."""
        return self.keys.get(row.run_id, f"{row.op_id} {str(row.run_id)[:8]}")

    def handler(self, row: RunRow, node: StateNode, attempt: int) -> AbstractContextManager[None]:
        """Bind child id, key and state to the log lines of a handler's thread."""
        bound = {"child_run_id": str(row.run_id), "child_key": self.name(row), "state": local_name(node.id)}
        return _bound({**bound, "attempt": attempt + 1} if attempt else bound)

    def state_failed(
        self, row: RunRow, node: StateNode, attempt: int, info: ErrorInfo, raised: BaseException, *, will_retry: bool
    ) -> None:
        """Log a failed attempt with its traceback."""
        outcome = "it will be tried again" if will_retry else "no further attempt is allowed"
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
