"""Whether a child that failed is tried again as a whole: told by its own history alone, whoever asks, and whenever."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from uuid import UUID

from airflow_childrun.model.config import ChildRetryPolicy
from airflow_childrun.model.events import RUN_TIMED_OUT
from airflow_childrun.runtime.ends import find_cause
from airflow_childrun.runtime.histories import read_start
from airflow_childrun.store.api import RunRow, Store


@dataclass(frozen=True, slots=True)
class Again:
    """The next attempt of a child.

    :param row: the generation that failed
    :param attempt: its number, from 1
    :param at_us: before when it does not begin, in microseconds UTC
    :param afresh: whether it forgets what the attempts before have recorded
    """

    row: RunRow
    attempt: int
    at_us: int
    afresh: bool


def next_attempt(store: Store, row: RunRow) -> Again | None:
    """Return the attempt that is to follow a run, or None if it has ended for good.

    What was cancelled is not tried again, nor what failed with an error that says so itself or that the policy names.
    """
    if row.status != "Failed" or row.ended_at is None:
        return None
    started = read_start(store, row.run_id)
    policy = started.child_retry_policy
    if policy is None or started.child_attempt >= policy.attempts:
        return None
    if row.error_code in policy.non_retryable or not _may_help(store, row):
        return None
    at_us = row.ended_at + _delay_us(policy, started.child_attempt, row.run_id)
    return Again(row, started.child_attempt + 1, at_us, policy.mode == "afresh")


def _may_help(store: Store, row: RunRow) -> bool:
    if row.error_code == RUN_TIMED_OUT:
        return True
    cause = find_cause(store, row)
    return cause is not None and cause.retryable


def _delay_us(policy: ChildRetryPolicy, attempt: int, run_id: UUID) -> int:
    """Return the wait after an attempt: its random part follows from the run's id, so that everybody waits the same."""
    delay = policy.delay_us(attempt - 1)
    share = int.from_bytes(hashlib.sha256(run_id.bytes).digest()[:4]) / 2**32
    return delay - int(delay * policy.jitter_percent / 100 * share)
