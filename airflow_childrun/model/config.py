"""How a run is to be executed: the part of the manifest that an author may set."""

from __future__ import annotations

from datetime import timedelta
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_serializer, model_validator

from airflow_childrun.errors import InputError
from airflow_childrun.model.wire import Deferred

U32 = Annotated[int, Field(ge=0, le=2**32 - 1)]
U64 = Annotated[int, Field(ge=0, le=2**64 - 1)]

IoMode = Literal["Live", "Replay"]
DEFAULT_FLAKE_ALLOWLIST = ("github:willyrgf/mfm",)


LONGEST_WAIT_S = 100 * 366 * 86_400
LONGEST_WAIT_US = LONGEST_WAIT_S * 1_000_000
"""A century: the wire admits waits whose end no clock and no column could hold."""

Span = float | timedelta
"""A span of time as authors write it: seconds, or a timedelta."""


class Duration(Deferred):
    """A span of time in whole numbers: ``{"secs", "nanos"}``."""

    secs: U64 = 0
    nanos: Annotated[int, Field(ge=0, le=999_999_999)] = 0

    @classmethod
    def of_seconds(cls, seconds: float) -> Duration:
        """Make a duration of seconds, exact to the nanosecond."""
        nanos = round(seconds * 1_000_000_000)
        return cls(secs=nanos // 1_000_000_000, nanos=nanos % 1_000_000_000)

    @classmethod
    def of(cls, span: Span, where: str) -> Duration:
        """Make a duration of what an author wrote.

        :raises InputError: code ``span_invalid``, naming ``where``, if it is no positive span of time
        """
        seconds: object = span.total_seconds() if isinstance(span, timedelta) else span
        is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
        if not isinstance(seconds, int | float) or not is_number or not 0 < seconds <= LONGEST_WAIT_S:
            raise InputError(
                f"{where} is {span!r}; give seconds above 0 (a century at most), or a timedelta", code="span_invalid"
            )
        return cls.of_seconds(seconds)

    @property
    def us(self) -> int:
        """Whole microseconds, rounded down."""
        return self.secs * 1_000_000 + self.nanos // 1000


class Tagged(Deferred):
    """A variant with data: ``{"Tag": {...fields...}}``."""

    tag: ClassVar[str]

    @model_validator(mode="before")
    @classmethod
    def _untag(cls, value: Any) -> Any:
        if isinstance(value, dict) and set(value) == {cls.tag}:
            return value[cls.tag]
        return value

    @model_serializer
    def _tagged(self) -> dict[str, Any]:
        return self.to_json()

    def to_json(self) -> dict[str, Any]:
        """Return ``{tag: fields}``."""
        return {self.tag: super().to_json()}


class Fixed(Tagged):
    """Wait the same time after each failure."""

    tag = "Fixed"
    delay: Duration = Duration.model_construct()


class Exponential(Tagged):
    """Wait ``base_delay * 2**n`` after failure number n (0-based), at most ``max_delay``."""

    tag = "Exponential"
    base_delay: Duration
    max_delay: Duration


class FanOutJoin(Tagged):
    """An execution mode that V1 names and no engine has: refused at start."""

    tag = "FanOutJoin"
    max_concurrency: U32


class RetryPolicy(Deferred):
    """How often a state is tried.

    :param max_attempts: all attempts, the first included; 0 and 1 mean the same
    :param backoff: the wait after a retryable failure
    :param jitter_percent: how much of the wait is random (0-100); 0 = none
    """

    _added = frozenset({"jitter_percent"})
    max_attempts: U32 = 1
    backoff: Fixed | Exponential = Fixed.model_construct()
    jitter_percent: Annotated[int, Field(ge=0, le=100)] = 0

    @model_validator(mode="before")
    @classmethod
    def _one_backoff(cls, value: Any) -> Any:
        """Let the tag choose the variant: both have nothing but optional or tagged fields."""
        if isinstance(value, dict) and isinstance(value.get("backoff"), dict) and len(value["backoff"]) == 1:
            ((tag, body),) = value["backoff"].items()
            kinds: dict[str, type[Fixed | Exponential]] = {"Fixed": Fixed, "Exponential": Exponential}
            if tag in kinds:
                return {**value, "backoff": kinds[tag].model_validate(body)}
        return value

    def delay_us(self, failed_attempt: int) -> int:
        """Return the wait after failure number ``failed_attempt`` (0-based), in microseconds, before jitter."""
        if isinstance(self.backoff, Fixed):
            return min(self.backoff.delay.us, LONGEST_WAIT_US)
        grown: int = self.backoff.base_delay.us << min(failed_attempt, 31)
        return min(self.backoff.max_delay.us, grown, LONGEST_WAIT_US)

    @property
    def attempts(self) -> int:
        """How many attempts may fail before the state has."""
        return max(1, self.max_attempts)


class ChildRetryPolicy(RetryPolicy):
    """How often a child is tried as a whole.

    :param max_attempts: all attempts, the first included
    :param mode: the next attempt goes on at the last checkpoint with what is recorded, or starts afresh
    :param non_retryable: codes of errors after which it is not tried again
    """

    _added = frozenset({"jitter_percent", "mode", "non_retryable"})
    mode: Literal["continue", "afresh"] = "continue"
    non_retryable: Annotated[tuple[str, ...], Field(strict=False)] = ()

    @classmethod
    def of(cls, given: int | ChildRetryPolicy | dict[str, Any] | None, where: str) -> ChildRetryPolicy | None:
        """Read what an author wrote: a number of further attempts, with waits of 1, 2, 4 ... 60 seconds, or a policy.

        :raises InputError: naming ``where`` and what is wrong
        """
        if given is None:
            return None
        if isinstance(given, int) and not isinstance(given, bool):
            backoff = Exponential(base_delay=Duration(secs=1), max_delay=Duration(secs=60))
            if given < 0:
                raise InputError(f"{where} is {given}; give a number of further attempts, 0 or more, or a policy")
            return cls.from_author({"max_attempts": given + 1, "backoff": backoff}, where)
        return cls.from_author(given, where)


class CustomName(Deferred):
    """A named variant: ``{"Custom": "name"}``."""

    Custom: str


class RunConfig(Deferred):
    """How a run is executed. All fields but the allow-list are required on the wire."""

    io_mode: IoMode = "Live"
    retry_policy: RetryPolicy = RetryPolicy.model_construct()
    event_profile: Literal["Minimal", "Normal", "Verbose"] | CustomName = "Normal"
    execution_mode: Literal["Sequential"] | FanOutJoin = "Sequential"
    context_checkpointing: Literal["AfterEveryState"] | CustomName = "AfterEveryState"
    replay_missing_fact_retryable: bool = False
    skip_tags: Annotated[tuple[str, ...], Field(strict=False)] = ()
    nix_flake_allowlist: Annotated[tuple[str, ...], Field(strict=False)] = DEFAULT_FLAKE_ALLOWLIST

    def to_json(self) -> dict[str, Any]:
        """Return the wire shape; the same object each time, which nobody may change: most children have one config."""
        return self._written

    @cached_property
    def _written(self) -> dict[str, Any]:
        return super().to_json()

    @property
    def keeps_all_events(self) -> bool:
        """Whether domain events other than facts and linkage are recorded."""
        return self.event_profile != "Minimal"


V1_REQUIRED = (
    "io_mode",
    "retry_policy",
    "event_profile",
    "execution_mode",
    "context_checkpointing",
    "replay_missing_fact_retryable",
    "skip_tags",
)
"""Fields that a V1 request or manifest must carry."""
