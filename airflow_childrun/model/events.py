"""The events of a run: what happened, in the past tense. A stream of them is the truth about a run.

Wire shape of an event: ``{"Kernel": {"<Name>": {...}}}`` or ``{"Domain": {...}}``. Fields below a class's ``_added`` came
after V1 and are left out while they are absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import AfterValidator, ValidationError

from airflow_childrun.errors import CorruptionError, ErrorInfo, InvalidIdError
from airflow_childrun.ids import require_op_id, require_state_id
from airflow_childrun.model.config import ChildRetryPolicy
from airflow_childrun.model.wire import Wire

ENGINE = 1
"""Which engine behaviour wrote a history; stands in ``RunStarted.engine``. Absent: V1, the original engine."""

OpIdField = Annotated[str, AfterValidator(require_op_id)]
StateIdField = Annotated[str, AfterValidator(require_state_id)]

Status = Literal["Completed", "Failed", "Cancelled"]


class Continues(Wire):
    """From where a generation goes on: the run it continues and the last event of it that counts."""

    run_id: str
    seq: int
    hash: str


class Parent(Wire):
    """Who spawned a run: its parent's id, the fact key of the slot, and the slot's owner (the start of the parent's chain)."""

    run_id: str
    fact_key: str
    slot_owner_id: str
    state_id: str | None = None


class RunStarted(Wire):
    """A run exists.

    V1: ``op_id, manifest_id, initial_snapshot_id``. Ours adds ``engine`` and, where they apply, the plan's artifact id
    (its digest), lineage, generation, what closing and retry policies the parent chose (and which attempt under the latter it is), and for host runs ``kind``, ``airflow`` and, after
    the first generation, ``slot_id``: the first one's id, which no parent tells.
    """

    tag: ClassVar[str] = "RunStarted"
    _added = frozenset(
        {
            "engine",
            "kind",
            "op_version",
            "plan_id",
            "code_digest",
            "parent",
            "root_run_id",
            "depth",
            "generation",
            "slot_id",
            "continues",
            "parent_close_policy",
            "child_retry_policy",
            "child_attempt",
            "max_concurrency",
            "deadline_at",
            "on_cancel",
            "airflow",
        }
    )
    op_id: OpIdField
    manifest_id: str
    initial_snapshot_id: str
    engine: int | None = None
    kind: Literal["operation", "task_instance"] = "operation"
    op_version: str | None = None
    plan_id: str | None = None
    code_digest: str | None = None
    parent: Parent | None = None
    root_run_id: str | None = None
    depth: int = 0
    generation: int = 1
    slot_id: str | None = None
    continues: Continues | None = None
    parent_close_policy: Literal["cancel", "abandon"] | None = None
    child_retry_policy: ChildRetryPolicy | None = None
    child_attempt: int = 1
    max_concurrency: int | None = None
    deadline_at: int | None = None
    on_cancel: bool = False
    airflow: Any = None


class StateEntered(Wire):
    """An attempt of a state begins (``attempt`` is 0-based); durable before the handler starts.

    :param deadline_at: when it is out of time, in microseconds UTC; an attempt that recovers another one has that one's
    """

    tag: ClassVar[str] = "StateEntered"
    _added = frozenset({"deadline_at"})
    state_id: StateIdField
    attempt: int
    base_snapshot_id: str
    deadline_at: int | None = None


class Summary(Wire):
    """Where it is recorded what the events before event ``seq`` mean: that event's own summary, the artifact ``id``."""

    seq: int
    id: str


class StateCompleted(Wire):
    """The attempt succeeded: the snapshot is the run's new checkpoint.

    :param summary: the newest one of this run's stream, this event's own or an earlier one's; absent in short histories
    """

    tag: ClassVar[str] = "StateCompleted"
    _added = frozenset({"skipped", "summary"})
    state_id: StateIdField
    context_snapshot_id: str
    skipped: bool = False
    summary: Summary | None = None


class Failure(Wire):
    """The wire form of a state's error: ``{"state_id", "info": {code, category, retryable, message, details}}``."""

    state_id: str | None
    info: dict[str, Any]

    @property
    def error(self) -> ErrorInfo:
        """The error as a value."""
        return ErrorInfo.from_json(self.info)


class StateFailed(Wire):
    """The attempt ended without success.

    :param retry_at: when the next attempt may begin, in microseconds UTC; absent: at once, or never
    :param recovered: the attempt did not fail: its process died (``lapsed``) or gave it back (``released``)
    """

    tag: ClassVar[str] = "StateFailed"
    _added = frozenset({"retry_at", "recovered"})
    state_id: StateIdField
    error: Failure
    failure_snapshot_id: str | None = None
    retry_at: int | None = None
    recovered: Literal["lapsed", "released"] | None = None

    @property
    def is_real(self) -> bool:
        """Whether the handler failed, as opposed to its process."""
        return self.recovered is None and self.error.info.get("code") != ORPHAN_RECOVERED


class RunCompleted(Wire):
    """The run has ended; nothing follows."""

    tag: ClassVar[str] = "RunCompleted"
    _added = frozenset({"reason"})
    status: Status
    final_snapshot_id: str | None = None
    reason: Any = None


class DomainEvent(NamedTuple):
    """Anything else worth recording, by name: facts, linkage, waits, tries of a host, and what a handler emits.

    Most events are these: a tuple is made, and read, in a fraction of the time that a model takes.
    """

    name: str
    payload: Any = None
    payload_ref: str | None = None


KernelEvent = RunStarted | StateEntered | StateCompleted | StateFailed | RunCompleted
Event = KernelEvent | DomainEvent

ORPHAN_RECOVERED = "orphan_attempt_recovered"
ATTEMPT_RELEASED = "attempt_released"
RUN_TIMED_OUT = "run_timed_out"
DEADLINE_OVER = "the run's deadline is over"

FACT_RECORDED = "fact_recorded"
FACT_FAILED = "fact_failed"
ARTIFACT_WRITTEN = "artifact_written"
OP_BOUNDARY = "op_boundary"
CHILD_RUN_SPAWNED = "child_run_spawned"
CHILD_RUN_COMPLETED = "child_run_completed"
WAIT_OPENED = "wait_opened"
INBOX_CONSUMED = "inbox_consumed"
HOST_TRY = "host_try"
HOST_RETURNED = "host_returned"
CHILD_RUNS_DISPATCHED = "child_runs_dispatched"

ENGINE_NAMES = frozenset(
    {
        FACT_RECORDED,
        FACT_FAILED,
        CHILD_RUN_SPAWNED,
        CHILD_RUN_COMPLETED,
        WAIT_OPENED,
        INBOX_CONSUMED,
        HOST_TRY,
        HOST_RETURNED,
        CHILD_RUNS_DISPATCHED,
    }
)
"""Names that only the engine writes: kept under every event profile, refused from a handler's ``emit``."""

_new = tuple.__new__  # half of what the events' own __new__ take
_KERNEL: Mapping[str, type[KernelEvent]] = {
    cls.tag: cls for cls in (RunStarted, StateEntered, StateCompleted, StateFailed, RunCompleted)
}


def event_to_json(event: Event) -> dict[str, Any]:
    """Return the wire shape of an event."""
    if isinstance(event, DomainEvent):
        name, payload, ref = event
        return {"Domain": {"name": name, "payload": payload, "payload_ref": ref}}
    return {"Kernel": {event.tag: event.to_json()}}


def event_from_json(value: Any) -> Event:
    """Read the wire shape of an event, unknown fields ignored.

    :raises CorruptionError: code ``event_malformed``, if it is none
    """
    try:
        if "Domain" in value:
            body = value["Domain"]
            name, ref = body["name"], body.get("payload_ref")
            if type(name) is not str or not (ref is None or type(ref) is str):
                raise TypeError("an event's name and reference are texts")
            return _new(DomainEvent, (name, body.get("payload"), ref))
        ((tag, body),) = value["Kernel"].items()
        return _KERNEL[tag].from_json(body)
    except (KeyError, TypeError, ValueError, AttributeError, ValidationError, InvalidIdError):
        raise CorruptionError(
            "a stored event has no shape that this release knows; run `childrun verify`", code="event_malformed"
        ) from None
