"""What triggers write into Airflow's database: a wire format, read by triggerers and workers of other releases.

A field may be added if a trigger without it behaves as before; nothing is renamed or given another meaning.
"""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

CLASSPATH = "airflow_childrun.triggers.childrun.ChildRunTrigger"
NEXT_METHOD = "execute_complete"
"""The operators' method that Airflow calls when a trigger has fired."""

Reason = Literal["ended", "woke", "asked", "unowned", "gone", "outage", "dag_runs"]
"""Why a task is brought back: its runs have ended; one of them goes on by itself; something came for one of them; one has
lost its owner; one is not in the store any more; the store, or Airflow, could not be asked for too long; DAG runs that its
children wait for have ended."""


class ClosingKwargs(TypedDict):
    """In whose name children may be asked to end while their task is away.

    :param host_run_id: the task's run
    :param epoch: its epoch when the task left: a later try has another
    :param grace_us: how long the next try may take the request back
    :param drove: run ids of children of other tasks that it drove
    """

    host_run_id: str
    epoch: int
    grace_us: int
    drove: list[str]


class EndingKwargs(TypedDict):
    """What it takes to end a task without a worker.

    :param run_ids: its children, in order
    :param keys: theirs
    :param single: whether the task returns one result instead of a list
    :param results: ``values`` or ``references``
    :param failure_mode: ``raise`` or ``return``; with ``raise`` a worker reports what did not complete
    :param push: whether the task returns anything
    """

    run_ids: list[str]
    keys: list[str]
    single: bool
    results: str
    failure_mode: str
    push: bool


class DagRunKwargs(TypedDict):
    """A DAG run that one of the task's children waits for.

    :param calls: which end of it brings the task back at once: ``any``; ``failure``; ``last``: with the end of the last one
    """

    dag_id: str
    dag_run_id: str
    calls: Literal["last", "failure", "any"]


class ChildRunTriggerKwargs(TypedDict):
    """What a deferred task waits for.

    :param childrun_conn_id: the connection
    :param poll_interval: how often to look, in seconds
    :param driven: run ids: each has an owner now, and the task comes back at once for one that has lost it
    :param remote: run ids: others alone drive them; the task comes back to look after them once nobody does for a minute
    :param inboxes: by run id: runs that wait, and the number of the last inbox entry that the task has seen
    :param wake_at: when the first of these goes on by itself, in microseconds of the store's time
    :param closing: what a kill of the task asks of whom
    :param ending: how the task ends without a worker; None: it comes back
    :param dag_runs: what some of the runs in ``inboxes`` wait for; left out: none waits for a DAG run
    """

    childrun_conn_id: str
    poll_interval: float
    driven: list[str]
    remote: list[str]
    inboxes: dict[str, int]
    wake_at: int | None
    closing: ClosingKwargs | None
    ending: EndingKwargs | None
    dag_runs: NotRequired[list[DagRunKwargs]]


class ChildRunEvent(TypedDict):
    """What a trigger says to the task that it brings back; results are read from the store anew.

    :param reason: a :data:`Reason`
    :param detail: for people: what the store answered, which run is gone; may be empty
    """

    reason: Reason
    detail: str
