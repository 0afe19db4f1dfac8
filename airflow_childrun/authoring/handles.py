"""What an author holds of a child: its handle, and its end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from airflow_childrun.model.config import RunConfig


class Spawnable(Protocol):
    """What can be spawned: an operation, as far as ``io`` needs to know it."""

    name: str
    version: str
    run_config: RunConfig

    def encode_input(self, element: Any) -> Any:
        """Return an input as JSON, after checking it."""

    def decode_output(self, value: Any) -> Any:
        """Return a recorded output as its type."""


@dataclass(frozen=True, slots=True)
class ChildHandle:
    """Names a slot: the child that was spawned under ``key``, whichever generation of it comes to an end."""

    child_run_id: str
    child_manifest_id: str
    operation: str
    version: str
    key: str


@dataclass(frozen=True, slots=True)
class ChildError:
    """Why a child did not complete: its last failed state."""

    code: str
    message: str
    retryable: bool
    state_id: str | None


@dataclass(frozen=True, slots=True)
class ChildResult:
    """How a child ended.

    :param status: ``Completed``, ``Failed`` or ``Cancelled``
    :param output: what its operation returned; None unless it completed
    """

    child_run_id: str
    status: str
    output: Any
    final_snapshot_id: str | None
    error: ChildError | None = None

    @property
    def completed(self) -> bool:
        """Whether the child did what it was to do."""
        return self.status == "Completed"
