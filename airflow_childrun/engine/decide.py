"""The decision: from a history, a plan and the time to what happens next. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from airflow_childrun.engine.history import RunHistory
from airflow_childrun.errors import ErrorInfo, InvalidPlanError
from airflow_childrun.model.config import RetryPolicy, RunConfig
from airflow_childrun.model.events import (
    ATTEMPT_RELEASED,
    ORPHAN_RECOVERED,
    Event,
    Failure,
    RunCompleted,
    StateEntered,
    StateFailed,
)
from airflow_childrun.model.plan import ExecutionPlan, StateNode

RECOVERY_LIMIT_EXCEEDED = "recovery_limit_exceeded"


@dataclass(frozen=True, slots=True)
class EnterState:
    """Begin an attempt."""

    node: StateNode
    event: StateEntered


@dataclass(frozen=True, slots=True)
class WaitUntil:
    """Do nothing before ``at`` (microseconds UTC)."""

    at: int


@dataclass(frozen=True, slots=True)
class FinishRun:
    """End the run."""

    event: RunCompleted


@dataclass(frozen=True, slots=True)
class Finished:
    """The run has ended already."""

    event: RunCompleted


Decision = EnterState | WaitUntil | FinishRun | Finished


def retry_policy_of(node: StateNode, config: RunConfig) -> RetryPolicy:
    """Return the policy that governs a state: its own, or the run's."""
    return node.meta.retry or config.retry_policy


def decide(history: RunHistory, plan: ExecutionPlan, config: RunConfig, now_us: int) -> Decision:
    """Say what a run without open attempt does next.

    :raises InvalidPlanError: code ``recovery_state_not_in_plan``, if the plan lacks a state of the history
    """
    if history.finished is not None:
        return Finished(history.finished)
    check_states_in_plan(history, plan)
    node = next((node for node in plan.order if node.id not in history.completed), None)
    if node is None:
        return FinishRun(RunCompleted(status="Completed", final_snapshot_id=history.checkpoint_id))
    failure = history.last_failure.get(node.id)
    if failure is not None:
        if not may_retry(history, node, config):
            return FinishRun(RunCompleted(status="Failed", final_snapshot_id=history.checkpoint_id))
        if failure.event.retry_at is not None and failure.event.retry_at > now_us:
            return WaitUntil(failure.event.retry_at)
    attempt = history.last_attempt.get(node.id, -1) + 1
    entered = StateEntered(state_id=node.id, attempt=attempt, base_snapshot_id=history.checkpoint_id)
    return EnterState(node, entered)


def may_retry(history: RunHistory, node: StateNode, config: RunConfig) -> bool:
    """Whether the last real failure of a state leaves it another attempt; crashed attempts do not count."""
    failure = history.last_failure[node.id]
    return (
        failure.event.error.error.retryable
        and history.failures[node.id] < retry_policy_of(node, config).attempts
        and failure.event.error.error.code != RECOVERY_LIMIT_EXCEEDED
    )


def close_orphan(history: RunHistory, *, lapsed: bool, limit: int) -> list[Event]:
    """Return the events that close the attempt which its owner left open.

    :param lapsed: the owner died; otherwise it gave the run back, which counts as neither failure nor recovery
    :param limit: how many owners may die over a run that does not move
    """
    attempt = history.open_attempt
    if attempt is None:
        return []
    if lapsed and history.recoveries + 1 > limit:
        info = ErrorInfo(
            RECOVERY_LIMIT_EXCEEDED,
            message=f"{limit + 1} processes in a row died in {attempt.state_id} without progress; "
            "look at their memory and logs, then clear the task to go on from the last checkpoint",
        )
        failed = _closing(attempt.state_id, info)
        return [failed, RunCompleted(status="Failed", final_snapshot_id=history.checkpoint_id)]
    code = ORPHAN_RECOVERED if lapsed else ATTEMPT_RELEASED
    info = ErrorInfo(code, retryable=True, message="the process that made this attempt left it open")
    closing = _closing(attempt.state_id, info)
    return [closing.model_copy(update={"recovered": "lapsed" if lapsed else "released"})]


def _closing(state_id: str, info: ErrorInfo) -> StateFailed:
    return StateFailed(state_id=state_id, error=Failure(state_id=state_id, info=info.to_json()))


def check_states_in_plan(history: RunHistory, plan: ExecutionPlan) -> None:
    """Refuse a plan that lacks a state which the history knows.

    :raises InvalidPlanError: code ``recovery_state_not_in_plan``
    """
    names = {node.id for node in plan.order} | ({plan.on_cancel.id} if plan.on_cancel else set())
    lost = sorted((set(history.completed) | set(history.last_attempt)) - names)
    if lost:
        raise InvalidPlanError(
            f"the plan of {plan.op_id} {plan.op_version} has no state {', '.join(lost)}, but run {history.run_id} was "
            "there; give the changed operation another version, or respawn the run",
            code="recovery_state_not_in_plan",
            details={"states": lost},
        )
