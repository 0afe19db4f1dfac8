"""How a task waits, and what it leaves behind when it leaves its worker to wait in the triggerer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from airflow_childrun.errors import HostError

INLINE_S = 5.0
"""How long a task that may defer looks for itself first: many waits are shorter than the way to the triggerer and back."""
AWAIT_TIMED_OUT = "await_timed_out"
LONG_WAIT_S = 60.0
"""Children whose next step is nearer than this keep their worker."""


@dataclass(frozen=True, slots=True)
class AwaitPolicy:
    """How a task waits for its children.

    :param deferrable: whether it may leave its worker while others drive them, or while they all wait
    :param poll_interval_s: how often children that others drive are looked at
    :param give_up_at: wall clock, microseconds UTC; None = never
    :param lives_on: whether the process goes on after a deferral, as under ``dag.test``: waiting threads must unwind then
    """

    deferrable: bool = False
    poll_interval_s: float = 2.0
    give_up_at: int | None = None
    lives_on: bool = False


@dataclass(frozen=True, slots=True)
class HostMark:
    """The try that left: what its children may be asked in its name, as long as no other try has begun.

    :param epoch: of the host run when the try left
    :param grace_us: how long a request of this try may be taken back
    :param drove: children of other tasks that it drove; those that it spawned the store knows
    """

    run_id: UUID
    epoch: int
    grace_us: int
    drove: tuple[UUID, ...] = ()


Calls = Literal["last", "failure", "any"]


@dataclass(frozen=True, slots=True)
class AwaitedDagRun:
    """A DAG run that a child of a task that left waits for.

    :param calls: which end of it brings the task back at once: that of the last DAG run alone, since only then there is
        something to return; a failure, after which the child is tried again; any, since another run awaits the child
    """

    dag_id: str
    dag_run_id: str
    calls: Calls


@dataclass(frozen=True, slots=True)
class Parked:
    """What a task waits for that left its worker; whoever comes back reads everything anew.

    :param run_ids: its own children, in order
    :param keys: theirs
    :param driven: runs that have an owner now; left without one, they are for this task to take over
    :param remote: runs that others alone drive
    :param inboxes: by run that this task drove and that waits: the number of the last inbox entry that it has seen
    :param wake_at: when the first of these goes on by itself, in microseconds of the store's time; None = not by itself
    :param dag_runs: what some of these wait for
    """

    run_ids: tuple[UUID, ...]
    keys: tuple[str, ...]
    driven: frozenset[UUID]
    remote: frozenset[UUID]
    inboxes: Mapping[UUID, int]
    wake_at: int | None
    host: HostMark | None
    dag_runs: tuple[AwaitedDagRun, ...] = ()


class Deferral(Exception):  # noqa: N818 - no error: the task asks to be brought back
    """Leaves a task that waits; everything is recorded, every lease released."""

    def __init__(self, parked: Parked) -> None:
        super().__init__("the task waits in the triggerer")
        self.parked = parked


def await_timed_out() -> HostError:
    """Return the error of an await that gives up; nobody asks the children to end."""
    return HostError(
        "the children of this task had not ended when its await_timeout was over. They are left as they are: a retry or a "
        "clear of this task goes on with them",
        code=AWAIT_TIMED_OUT,
        retryable=True,
    )
