"""A task tries its children again as wholes, and its own retries take no attempt away from them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from airflow_childrun.errors import OtherIoError
from airflow_childrun.model.config import ChildRetryPolicy, Duration, Fixed
from airflow_childrun.runtime.host_tree import WantedChild
from tests.engine.kit import Background, Stage, eventually
from tests.host.kit import AirflowTask, HostLab, outputs, returning, statuses

TASK = AirflowTask()
KEY = "frail/1"


@pytest.fixture
def frail(lab: HostLab) -> list[int]:
    """Know an operation that fails as often as its test says."""
    left = [0]

    def handler(stage: Stage) -> int:
        stage.ask("ask", stage.input)
        if left[0] > 0:
            left[0] -= 1
            raise OtherIoError("the world is down", code="down", retryable=True)
        return int(stage.input)

    lab.put("frail", returning(handler))
    return left


def wanted(lab: HostLab, attempts: int, seconds: float = 0.05) -> list[WantedChild]:
    backoff = Fixed(delay=Duration.of_seconds(seconds))
    policy = ChildRetryPolicy(max_attempts=attempts, backoff=backoff)
    return [replace(child, child_retry_policy=policy) for child in lab.wanted("frail", [1])]


def test_a_task_tries_a_failed_child_again(lab: HostLab, frail: list[int]) -> None:
    """Its result is that of the last attempt; what is recorded is not asked again."""
    frail[0] = 2
    results = lab.begin(TASK).run(wanted(lab, 3))
    assert outputs(results) == [1]
    assert lab.generations(TASK, KEY) == ["Failed", "Failed", "Completed"]
    assert len(lab.world.calls) == 1


def test_a_task_tries_a_child_no_more_often_than_its_policy_says(lab: HostLab, frail: list[int]) -> None:
    frail[0] = 9
    assert statuses(lab.begin(TASK).run(wanted(lab, 2))) == ["Failed"]
    assert lab.generations(TASK, KEY) == ["Failed", "Failed"]


def test_a_task_that_dies_between_two_attempts_neither_loses_nor_doubles_one(lab: HostLab, frail: list[int]) -> None:
    """Its retry leaves the child to the policy, which goes on where it stood."""
    frail[0] = 9
    first = lab.begin(TASK)
    Background(lambda: first.run(wanted(lab, 3, 1.0)))
    eventually(lambda: lab.generations(TASK, KEY) == ["Failed"])
    first.process.crash()
    first.process.house.slots.close()
    retry = TASK.retry()
    assert statuses(lab.begin(retry).run(wanted(lab, 3, 1.0))) == ["Failed"]
    assert lab.generations(retry, KEY) == ["Failed"] * 3


def test_a_retry_of_the_task_gives_an_exhausted_child_its_attempts_again(lab: HostLab, frail: list[int]) -> None:
    frail[0] = 3
    assert statuses(lab.begin(TASK).run(wanted(lab, 2))) == ["Failed"]
    retry = TASK.retry()
    assert outputs(lab.begin(retry).run(wanted(lab, 2))) == [1]
    assert lab.generations(retry, KEY) == ["Failed", "Failed", "Failed", "Completed"]
