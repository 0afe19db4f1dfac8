"""One attempt of a state: the handler runs, and whatever it does becomes a snapshot or a failure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from airflow_childrun.canonical import canonical_json_bytes
from airflow_childrun.engine.context import StagedContext, snapshot_bytes
from airflow_childrun.engine.ports import IoProvider, Journal
from airflow_childrun.engine.presentable import presentable
from airflow_childrun.errors import (
    CATEGORIES,
    CanonicalError,
    ChildRunError,
    ErrorInfo,
    Interrupt,
    OtherRunError,
    SecretsDetectedError,
)
from airflow_childrun.model.config import RunConfig
from airflow_childrun.model.events import (
    ENGINE_NAMES,
    DomainEvent,
    Failure,
    StateCompleted,
    StateFailed,
)
from airflow_childrun.model.plan import StateNode
from airflow_childrun.secret_policy import SecretPolicy

MESSAGE_LIMIT = 2000
HANDLER_RAISED = "handler_raised"


@dataclass(frozen=True, slots=True)
class Success:
    """The handler returned; ``snapshot`` is the canonical context."""

    snapshot: bytes


@dataclass(frozen=True, slots=True)
class Failed:
    """The handler raised, or its context cannot be stored; ``raised`` is for the log: no message in it is secret."""

    info: ErrorInfo
    raised: BaseException


Outcome = Success | Failed


def run_handler(
    node: StateNode, base: dict[str, Any], io: IoProvider, recorder: EventRecorder, policy: SecretPolicy
) -> Outcome:
    """Run a handler on a base context.

    :raises Interrupt: if the attempt has to be left open
    """
    context = StagedContext(base)
    try:
        node.handler(context, io, recorder)
        return Success(snapshot_bytes(context.dump(), policy))
    except Interrupt:
        raise
    except BaseException as raised:  # noqa: BLE001 - SystemExit of a handler must end its state, not the process
        return Failed(policy.redact_info(describe(raised)), presentable(raised, policy))


def describe(raised: BaseException, code: str = HANDLER_RAISED) -> ErrorInfo:
    """Return what can be recorded of something raised, before redaction.

    :param code: of what is no error of ours
    """
    if isinstance(raised, ChildRunError):
        return storable(raised.info)
    text = f"{type(raised).__name__}: {_text_of(raised)}"
    return storable(ErrorInfo(code, retryable=isinstance(raised, Exception), message=text))


def storable(info: ErrorInfo) -> ErrorInfo:
    """Return an error whose fields can be recorded whatever an author put into them; without its details."""
    category = info.category if info.category in CATEGORIES else "Unknown"
    return ErrorInfo(_clean(info.code), category, bool(info.retryable), _clean(info.message), None)


def _text_of(raised: BaseException) -> str:
    try:
        return str(raised)
    except Exception:  # noqa: BLE001 - what __str__ of somebody's exception does must not poison the run
        return "(it has no text)"


def completed(node: StateNode, snapshot_id: str, *, skipped: bool = False) -> StateCompleted:
    """Return the event that closes a successful attempt."""
    return StateCompleted(state_id=node.id, context_snapshot_id=snapshot_id, skipped=skipped)


def failed(node: StateNode, info: ErrorInfo, retry_at: int | None) -> StateFailed:
    """Return the event that closes a failed attempt."""
    return StateFailed(state_id=node.id, error=Failure(state_id=node.id, info=info.to_json()), retry_at=retry_at)


def is_skipped(node: StateNode, config: RunConfig) -> bool:
    """Whether the run's skip tags name one of the state's tags."""
    return not set(node.meta.tags).isdisjoint(config.skip_tags)


class EventRecorder:
    """Lets a handler write domain events into the stream, filtered by the run's event profile."""

    def __init__(self, journal: Journal, config: RunConfig, policy: SecretPolicy) -> None:
        self._journal = journal
        self._config = config
        self._policy = policy

    def emit(self, name: str, payload: Any) -> None:
        """Record a domain event; under the profile ``Minimal`` it is dropped.

        :raises OtherRunError: codes ``secrets_detected``, ``domain_event_invalid``
        """
        if not self._config.keeps_all_events:
            return
        event = DomainEvent(name=checked_name(name), payload=payload)
        try:
            self._policy.check([name, payload], f"the event {name!r}")
            canonical_json_bytes(payload)
        except SecretsDetectedError as error:
            raise OtherRunError("an event holds a secret", code=error.code, details=error.info.details) from None
        except CanonicalError as error:
            raise OtherRunError(
                f"the event {name!r} is not canonical JSON: {error.info.message}", code="domain_event_invalid"
            ) from None
        self._journal.append([event])


class SilentRecorder(EventRecorder):
    """Checks like the other, writes nothing: for replay."""

    def __init__(self, config: RunConfig, policy: SecretPolicy, journal: Journal) -> None:
        super().__init__(_Mute(journal), config, policy)


class _Mute:
    """A journal that forgets what is appended."""

    def __init__(self, inner: Journal) -> None:
        self.read_artifact = inner.read_artifact
        self.artifact = inner.artifact
        self.before_call: Callable[[], None] = inner.before_call

    def append(self, events: Any, extras: Any = None) -> None:
        """Forget."""


def checked_name(name: str) -> str:
    """Refuse the names that only the engine writes.

    :raises OtherRunError: code ``domain_event_invalid``
    """
    if name in ENGINE_NAMES:
        raise OtherRunError(f"{name!r} is no name for an event of yours", code="domain_event_invalid")
    return name


def _clean(text: object) -> str:
    """Return a text of bearable length without lone surrogates, which no stored text may hold."""
    return str(text)[:MESSAGE_LIMIT].encode("utf-8", "replace").decode("utf-8")
