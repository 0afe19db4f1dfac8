"""Every error of airflow-childrun, and nothing else.

An error is part of the API: it has a stable ``code``, a ``category`` and says whether trying again may help.

::

    ChildRunError
    ├── InvalidIdError
    ├── CanonicalError                 a value that canonical JSON does not admit
    ├── SecretsDetectedError           the secret policy refused a value
    ├── IoError
    │   ├── MissingFactKeyError
    │   ├── MissingFactError
    │   ├── TransportError
    │   ├── RateLimitedError
    │   └── OtherIoError
    ├── ContextError
    │   ├── MissingContextKeyError
    │   ├── ContextSerializationError
    │   └── OtherContextError
    ├── StorageError
    │   ├── ConcurrencyError
    │   ├── NotFoundError
    │   ├── CorruptionError
    │   ├── UnavailableError           the database cannot be reached, or did not answer
    │   ├── SchemaError                tables missing, or of another major version
    │   └── OtherStorageError
    ├── StateError                     a handler failed
    ├── InvalidPlanError               refused before anything was stored
    ├── InvalidHistoryError            a stream that no engine can have written
    ├── NondeterminismError            replay and history part
    ├── OperationError                 an operation is wrongly defined, unknown or not reachable
    ├── InputError                     an input, config or argument does not fit
    ├── HostError                      the Airflow side: stale attempt, list changed, connection
    ├── ChildRunFailedError            an awaited child did not complete
    └── OtherRunError

    Interrupt (BaseException)          leaves an attempt open; no ``except Exception`` swallows it
    ├── Abandoned                      this process gave the run up
    ├── LeaseLost                      somebody else drives the run
    ├── StoreInterrupt                 the store failed in the middle of an attempt
    ├── CancelInterrupt                the run was asked to end
    └── DeadlineInterrupt              the run ran out of time
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

Category = Literal["ParsingInput", "OnChain", "OffChain", "Rpc", "Storage", "Context", "Unknown"]
CATEGORIES: tuple[str, ...] = get_args(Category)


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """What is known of a failure, in the form in which it is recorded.

    Wire shape: ``{"code", "category", "retryable", "message", "details"}``; ``details`` is JSON or null.
    """

    code: str
    category: Category = "Unknown"
    retryable: bool = False
    message: str = ""
    details: Any = None

    def to_json(self) -> dict[str, Any]:
        """Return the wire shape."""
        return {
            "code": self.code,
            "category": self.category,
            "retryable": self.retryable,
            "message": self.message,
            "details": self.details,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ErrorInfo:
        """Read the wire shape; unknown fields are ignored.

        :raises KeyError: if a required field is absent
        """
        category = value["category"]
        return cls(
            code=str(value["code"]),
            category=category if category in CATEGORIES else "Unknown",
            retryable=bool(value["retryable"]),
            message=str(value["message"]),
            details=value.get("details"),
        )


class ChildRunError(Exception):
    """Base of all errors.

    :param code: stable snake_case string, the same in every release
    :param message: what went wrong and what to do about it; never holds a secret
    :param details: JSON for programs, or None
    """

    kind: ClassVar[str] = "Other"
    default_code: ClassVar[str] = "childrun_error"
    default_category: ClassVar[Category] = "Unknown"
    default_retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str = "",
        *,
        code: str | None = None,
        category: Category | None = None,
        retryable: bool | None = None,
        details: Any = None,
    ) -> None:
        self.info = ErrorInfo(
            code=code or self.default_code,
            category=category or self.default_category,
            retryable=self.default_retryable if retryable is None else retryable,
            message=message,
            details=details,
        )
        super().__init__(message)

    @classmethod
    def of(cls, info: ErrorInfo) -> ChildRunError:
        """Make an error of this class out of recorded ``info``."""
        return cls(info.message, code=info.code, category=info.category, retryable=info.retryable, details=info.details)

    @property
    def code(self) -> str:
        """The stable code."""
        return self.info.code

    @property
    def retryable(self) -> bool:
        """Whether the same call may succeed later."""
        return self.info.retryable

    def __str__(self) -> str:
        return f"[{self.info.code}] {self.info.message}" if self.info.message else f"[{self.info.code}]"

    def __reduce__(self) -> tuple[Any, ...]:
        return (_restore, (type(self), self.info))


def _restore(cls: type[ChildRunError], info: ErrorInfo) -> ChildRunError:
    return cls.of(info)


class InvalidIdError(ChildRunError):
    """An identifier breaks the rule of its kind (``op_id``, ``state_id``, ``op_path``, ``artifact_id``)."""

    default_code = "invalid_id"
    default_category = "ParsingInput"


class CanonicalError(ChildRunError):
    """A value that canonical JSON does not admit; ``details`` is ``{"path": "$.a[0]"}``."""

    default_code = "not_canonical"
    default_category = "ParsingInput"


class SecretsDetectedError(ChildRunError):
    """The secret policy refused a value; ``details`` is ``{"path": ...}``, never the value."""

    default_code = "secrets_detected"


class IoError(ChildRunError):
    """A call to the outside world failed."""


class MissingFactKeyError(IoError):
    """The call needs a fact key."""

    kind = "MissingFactKey"
    default_code = "missing_fact_key"
    default_category = "ParsingInput"


class MissingFactError(IoError):
    """Replay asks for a fact that was never recorded; ``details`` is ``{"key": ...}``."""

    kind = "MissingFact"
    default_code = "missing_fact"
    default_category = "Rpc"


class TransportError(IoError):
    """The other side could not be reached or answered wrongly."""

    kind = "Transport"
    default_code = "transport"
    default_category = "Rpc"


class RateLimitedError(IoError):
    """The other side asks for fewer calls."""

    kind = "RateLimited"
    default_code = "rate_limited"
    default_category = "Rpc"
    default_retryable = True


class AwaitTimeoutError(IoError):
    """A child had not ended when the time that its parent gave the await was over; the child goes on."""

    kind = "AwaitTimeout"
    default_code = "await_timed_out"
    default_retryable = True


class OtherIoError(IoError):
    """Any other IO error."""


class ContextError(ChildRunError):
    """A context cannot be read or stored."""

    default_category = "Context"


class MissingContextKeyError(ContextError):
    """A context key is absent."""

    kind = "MissingKey"
    default_code = "context_key_missing"


class ContextSerializationError(ContextError):
    """A context value is not canonical JSON."""

    kind = "Serialization"
    default_code = "context_snapshot_not_canonical"


class OtherContextError(ContextError):
    """Any other context error, such as a refused secret."""


class StorageError(ChildRunError):
    """The store failed."""

    default_category = "Storage"


class ConcurrencyError(StorageError):
    """Another writer was faster."""

    kind = "Concurrency"
    default_code = "event_store_concurrency"
    default_retryable = True


class NotFoundError(StorageError):
    """Nothing is stored under this id."""

    kind = "NotFound"
    default_code = "run_not_found"


class CorruptionError(StorageError):
    """Stored bytes are not what they were when they were written."""

    kind = "Corruption"
    default_code = "artifact_content_address_mismatch"


class UnavailableError(StorageError):
    """The database cannot be reached, or the connection broke; trying again may help."""

    default_code = "store_unavailable"
    default_retryable = True


class SchemaError(StorageError):
    """Tables are missing or of a version that this release cannot use; the message names the command."""

    default_code = "store_schema"


class OtherStorageError(StorageError):
    """Any other storage error."""

    default_code = "store_failed"


class StateError(ChildRunError):
    """What a handler raises to fail its state.

    :param retryable: whether the state's retry policy may try again
    """

    kind = "State"
    default_code = "state_failed"


class InvalidPlanError(ChildRunError):
    """Refused before anything was stored: plan, manifest or run configuration."""

    kind = "InvalidPlan"
    default_code = "invalid_plan"


class InvalidHistoryError(ChildRunError):
    """A stream that no engine can have written; ``details`` is ``{"run_id", "seq"}``."""

    kind = "InvalidPlan"
    default_code = "invalid_attempt_envelopes"


class NondeterminismError(ChildRunError):
    """Replay and history part; ``details`` is ``{"state_id", "expected", "recorded"}``."""

    default_code = "nondeterminism"


class OperationError(ChildRunError):
    """An operation is wrongly defined, unknown, or not reachable from where it shall run."""

    default_code = "operation_not_found"
    default_category = "ParsingInput"


class InputError(ChildRunError):
    """An input, a config or an argument does not fit; the message names the field, the place and the remedy."""

    default_code = "input_invalid"
    default_category = "ParsingInput"


class HostError(ChildRunError):
    """Something between us and Airflow: a stale attempt, a changed list, a missing connection."""

    default_code = "host_error"


class ChildRunFailedError(ChildRunError):
    """An awaited child ended Failed or Cancelled; ``details`` is the result as data."""

    default_code = "child_run_failed"


class OtherRunError(ChildRunError):
    """Any other error of a run."""

    default_code = "run_error"


class Interrupt(BaseException):
    """Ends a handler without ending its attempt: the attempt stays open for the next owner.

    A BaseException, so that no ``except Exception`` of a handler swallows it.
    """

    def __init__(self, message: str = "", cause: ChildRunError | None = None) -> None:
        super().__init__(message)
        self.cause = cause


class Abandoned(Interrupt):
    """This process gave the run up; the ``io`` that raised it is dead."""


class LeaseLost(Interrupt):
    """Somebody else drives the run now; every later write of this process would be refused."""


class NoPlace(Interrupt):
    """As many children of a parent work as may; nothing was written, and the run waits for its turn."""


class StoreInterrupt(Interrupt):
    """The store failed for longer than we wait; ``cause`` is the storage error."""


class CancelInterrupt(Interrupt):
    """The run was asked to end."""


class DeadlineInterrupt(Interrupt):
    """The run ran out of time."""
