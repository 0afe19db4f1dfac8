"""What lets an operator leave its worker while its child runs wait, and come back."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

from airflow_childrun._airflow import (
    AirflowException,
    AirflowFailException,
    AirflowTaskTimeout,
    BaseOperator,
    Context,
    TaskDeferralError,
    TaskDeferralTimeout,
    TaskDeferred,
    conf,
)
from airflow_childrun.clock import SystemClock
from airflow_childrun.errors import ChildRunError, InputError
from airflow_childrun.hooks.childrun import ChildRunHook
from airflow_childrun.hooks.deferral import AwaitPolicy, Deferral, Parked, await_timed_out
from airflow_childrun.hooks.settings import DEFAULT_CONN_ID, check_max_concurrency
from airflow_childrun.model.config import Duration, Span
from airflow_childrun.triggers.childrun import LEAST_AWAY_S, make_trigger
from airflow_childrun.triggers.wire import NEXT_METHOD, EndingKwargs

_log = logging.getLogger("airflow.task.childrun")
DEFAULT_DEFERRABLE: bool = conf.getboolean("operators", "default_deferrable", fallback=False)
POLL_INTERVAL_S = 2.0
SHORTEST_TIMEOUT_S = LEAST_AWAY_S + 2
"""A deferral that Airflow ends sooner could not be told from one that never began."""


class DeferringOperator(BaseOperator):
    """What operators share that wait for child runs.

    :param deferrable: leave the worker while others drive the children, or while all of them wait for DAG runs, or for a
        minute or more; default: ``[operators] default_deferrable`` of Airflow's configuration
    :param poll_interval: how often, in seconds, children that others drive are looked at, here and in the triggerer
    :param end_from_trigger: let the triggerer end the task where it can, without a worker; not with ``outlets``
    """

    def __init__(
        self,
        *,
        deferrable: bool = DEFAULT_DEFERRABLE,
        poll_interval: float = POLL_INTERVAL_S,
        end_from_trigger: bool = False,
        childrun_conn_id: str = DEFAULT_CONN_ID,
        max_concurrency: int | None = None,
        await_timeout: Span | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if end_from_trigger and self.outlets:
            raise InputError(
                f"task {self.task_id!r} has outlets, whose events only a worker can record: leave end_from_trigger out",
                code="end_from_trigger_outlets",
            )
        if type(poll_interval) not in (int, float) or not 0 < poll_interval < math.inf:
            raise InputError(f"poll_interval is {poll_interval!r}; it takes seconds above 0", code="argument_invalid")
        check_max_concurrency(max_concurrency)
        self.deferrable = deferrable
        self.poll_interval = poll_interval
        self.end_from_trigger = end_from_trigger
        self.childrun_conn_id = childrun_conn_id
        self.max_concurrency = max_concurrency
        self.await_timeout = span_of("await_timeout", await_timeout)
        self.results: str = "values"
        self.failure_mode: str = "raise"
        self._hook: ChildRunHook | None = None
        self._whole_timeout: timedelta | None = None

    def execute(self, context: Context) -> Any:
        """Do the work, or leave the worker in the middle of it."""
        return self._run(context, come_back=False)

    def execute_complete(self, context: Context, event: Any = None) -> Any:
        """Go on after a deferral: what the event says is only told, everything is read anew."""
        detail = event.get("detail") or event.get("reason", "") if isinstance(event, Mapping) else ""
        _log.info("back from the triggerer%s", f": {detail}" if detail else "")
        return self._run(context, come_back=True)

    def pre_execute(self, context: Any) -> None:
        """Have Airflow's timer count the whole try, of which some may have passed in the triggerer."""
        super().pre_execute(context)
        if self._whole_timeout is None:
            self._whole_timeout = self.execution_timeout
        if self._whole_timeout is not None:
            left = self._whole_timeout - (_now() - begun_at(context))
            self.execution_timeout = max(left, timedelta(seconds=1))

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Come back; after a deferral that failed, have become of the children what becomes of them on a worker."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except TaskDeferralTimeout:
            self._time_is_over(context)
        except TaskDeferralError:
            self._open_hook().give_up(context, "its task failed in the triggerer")
            raise

    def on_kill(self) -> None:
        """Give up what this process drives, so that the next try goes on at once."""
        if self._hook is not None:
            self._hook.abandon()

    def _work(self, context: Context, *, come_back: bool) -> Any:
        """Do the work; ``come_back``: of a try that left its worker before.

        :raises Deferral: to leave the worker
        """
        raise NotImplementedError

    def _run(self, context: Context, *, come_back: bool) -> Any:
        try:
            return self._work(context, come_back=come_back)
        except Deferral as deferral:
            parked = deferral.parked
        except ChildRunError as error:
            fail_task(error)
        raise self._leave(context, parked)

    def _leave(self, context: Context, parked: Parked) -> TaskDeferred:
        _log.info(
            "this task leaves its worker: %d child runs are driven by others, %d wait, %d of them for DAG runs%s; the "
            "triggerer looks at them",
            len(parked.driven | parked.remote),
            len(parked.inboxes),
            len(parked.dag_runs),
            ""
            if parked.wake_at is None
            else f" (until {datetime.fromtimestamp(parked.wake_at / 1_000_000, UTC):%c} UTC)",
        )
        trigger = make_trigger(parked, self.childrun_conn_id, self.poll_interval, self._ending(parked))
        return TaskDeferred(trigger=trigger, method_name=NEXT_METHOD, timeout=self._time_left(context))

    def _ending(self, parked: Parked) -> EndingKwargs | None:
        # A mapped downstream task needs to be told how long the list is, which only a worker does.
        if not self.end_from_trigger or parked.inboxes or next(iter(self.iter_mapped_dependants()), None) is not None:
            return None
        return EndingKwargs(
            run_ids=[str(run_id) for run_id in parked.run_ids],
            keys=list(parked.keys),
            single=self._is_single(),
            results=self.results,
            failure_mode=self.failure_mode,
            push=self.do_xcom_push,
        )

    def _is_single(self) -> bool:
        """Whether the task returns one result instead of a list."""
        raise NotImplementedError

    def _time_left(self, context: Context) -> timedelta | None:
        """Return how long the task may be away."""
        ends = [
            begun_at(context) + limit for limit in (self._whole_timeout, self._await_timeout()) if limit is not None
        ]
        if not ends:
            return None
        return max(min(ends) - _now(), timedelta(seconds=SHORTEST_TIMEOUT_S))

    def _time_is_over(self, context: Context) -> NoReturn:
        """Fail as the timeout does on a worker that was over first."""
        limit = self._await_timeout()
        if limit is not None and (self._whole_timeout is None or limit <= self._whole_timeout):
            fail_task(await_timed_out())
        self._open_hook().give_up(context, "the task's execution_timeout is over", gracefully=True)
        raise AirflowTaskTimeout(f"execution_timeout ({self._whole_timeout}) is over, while the task was deferred")

    def _await_timeout(self) -> timedelta | None:
        """Return how long a try waits for its children; None = as long as it takes."""
        return None if self.await_timeout is None else timedelta(microseconds=self.await_timeout.us)

    def _policy(self, context: Context) -> AwaitPolicy:
        limit = self._await_timeout()
        return AwaitPolicy(
            deferrable=self.deferrable,
            poll_interval_s=self.poll_interval,
            give_up_at=None if limit is None else round((begun_at(context) + limit).timestamp() * 1_000_000),
        )

    def _open_hook(self) -> ChildRunHook:
        self._hook = ChildRunHook(self.childrun_conn_id, self.max_concurrency)
        return self._hook


def begun_at(context: Any) -> datetime:
    """Return when the try began, on its first worker."""
    found = getattr(context["ti"], "start_date", None)
    return found if isinstance(found, datetime) else _now()


def span_of(name: str, value: Span | None) -> Duration | None:
    """Read a span of time.

    :raises InputError: code ``span_invalid``, naming the argument
    """
    return None if value is None else Duration.of(value, name)


def _now() -> datetime:
    return datetime.fromtimestamp(SystemClock().now_us() / 1_000_000, UTC)


def fail_task(error: ChildRunError) -> NoReturn:
    """Fail the task: for good if trying again cannot help.

    The message says it all; below it, Airflow would print the same once more with a traceback of our own calls.
    """
    if error.retryable:
        raise AirflowException(str(error)) from None
    raise AirflowFailException(str(error)) from None
