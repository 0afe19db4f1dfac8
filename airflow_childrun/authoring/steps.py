"""Steps: plain Python functions as calls to the outside world, tried again as often as their author allows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from airflow_childrun.authoring.encoder import encode
from airflow_childrun.engine.ports import Waits, Watch
from airflow_childrun.errors import ChildRunError, IoError, OtherIoError
from airflow_childrun.model.config import Duration, Exponential, RetryPolicy

FIRST_WAIT_S, LONGEST_WAIT_S = 1, 60
MESSAGE_LIMIT = 2000


@dataclass(frozen=True, slots=True)
class Looks:
    """How a step is tried again that only looks whether something outside has come.

    Whoever enters it again looks at once, in place of waiting the rest: it may have come meanwhile.

    :param policy: when it looks
    :param watch: what others may look at in its place, so that its process need not stay for the next look
    """

    policy: RetryPolicy
    watch: Watch


@dataclass(frozen=True, slots=True)
class StepCall:
    """A step as it is asked for: what an ``IoCall`` calls in place of a transport."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    name: str
    key: str
    policy: RetryPolicy
    watch: Watch | None = None

    def __call__(self, waits: Waits) -> Any:
        """Call the function as often as its policy allows, and return what it returned as JSON.

        :raises IoError: the last failure
        """
        function = lambda: self.function(*self.args, **self.kwargs)  # noqa: E731
        return run_step(function, self.name, self.key, self.policy, waits, self.watch)


def as_policy(retry: int | RetryPolicy | Looks) -> RetryPolicy:
    """Return a number of further tries as a policy: waits of 1, 2, 4 ... 60 seconds."""
    if isinstance(retry, Looks):
        return retry.policy
    return retry if isinstance(retry, RetryPolicy) else _tries(retry)


@lru_cache(maxsize=32, typed=True)
def _tries(retry: int) -> RetryPolicy:
    backoff = Exponential(base_delay=Duration(secs=FIRST_WAIT_S), max_delay=Duration(secs=LONGEST_WAIT_S))
    return RetryPolicy(max_attempts=retry + 1, backoff=backoff)


def run_step(
    function: Callable[[], Any],
    name: str,
    key: str,
    policy: RetryPolicy,
    waits: Waits,
    watch: Watch | None = None,
) -> Any:
    """Call a function until it succeeds or no try is left; a wait between tries survives a crash.

    :param watch: of a function that only looks; see :class:`Looks`
    :raises IoError: the last failure; code ``step_failed`` for an exception of the function's own
    """
    opened = waits.find(key)
    failures, until_us = opened or (0, None)
    if watch is None and until_us is not None:
        waits.resume(until_us)
        until_us = None
    while True:
        # A look before its time counts as none: the wait goes on as if there had been no look.
        failures += until_us is None
        try:
            return encode(function(), f"what step {name!r} returned")
        except Exception as raised:
            failure = _failure(raised, name)
            if failures >= policy.attempts or not failure.retryable:
                raise failure from raised
        if until_us is None:
            delay = waits.jitter(policy.delay_us(failures - 1), policy.jitter_percent)
            waits.pause(key, failures, delay, watch)
        else:
            waits.resume(until_us, watch)
            until_us = None


def _failure(raised: Exception, name: str) -> IoError:
    if isinstance(raised, IoError):
        return raised
    if isinstance(raised, ChildRunError):
        info = raised.info
        return OtherIoError(info.message, code=info.code, category=info.category, retryable=info.retryable)
    text = f"step {name!r} raised {type(raised).__name__}: {raised}"
    return OtherIoError(
        text[:MESSAGE_LIMIT].encode("utf-8", "replace").decode("utf-8"),
        code="step_failed",
        category="OffChain",
        retryable=not _is_final(raised),
    )


def _is_final(raised: Exception) -> bool:
    """Whether an exception says itself that trying again is useless, as Airflow's does; known by name, not by import."""
    return any(cls.__name__ == "AirflowFailException" for cls in type(raised).__mro__)
