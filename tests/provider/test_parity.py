"""Every parameter of the operators, played on the worker and deferred: what comes of it is the same."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.provider.kit import sqlite_connection
from tests.provider.parity import POLICY, Scene, perform, staged

pytestmark = pytest.mark.provider

NAPS = ("naps1", "naps2")
SECOND = timedelta(seconds=1)
HELD = ("held1", "held2")


def ending(inputs: tuple[str, ...], ends: tuple[str, ...], **more: Any) -> Scene:
    """Return an await of what others drive, which the triggerer is to end."""
    parameters = {"end_from_trigger": True, **more}
    return Scene(inputs, parameters, ends, ("await",), others=True, ends_in_triggerer=True)


SCENES = {
    "results=values": Scene(NAPS, {"results": "values"}, ("success",)),
    "results=references": Scene(NAPS, {"results": "references"}, ("success",)),
    "failure_mode=raise": Scene(("naps1", "naps bad"), {"failure_mode": "raise"}, ("AirflowException",)),
    "failure_mode=return": Scene(("naps1", "naps bad"), {"failure_mode": "return"}, ("success",)),
    "retry": Scene(("naps1", "naps bad"), {}, ("AirflowException", "success"), tries=("retry",)),
    "max_concurrency": Scene((*NAPS, "naps3"), {"max_concurrency": 1}, ("success",), ("await",)),
    "poll_interval": Scene(("held1",), {"poll_interval": 0.3}, ("success",), ("await",), others=True),
    "await_timeout": Scene(("sleeps",), {"await_timeout": 1}, ("AirflowException",)),
    "await_timeout, retry": Scene(
        ("sleeps",), {"await_timeout": 1}, ("AirflowException", "AirflowException"), tries=("retry",)
    ),
    "await_timeout, last try": Scene(("sleeps",), {"await_timeout": 1}, ("AirflowException",), max_tries=0),
    "execution_timeout": Scene(("sleeps",), {"execution_timeout": SECOND}, ("AirflowTaskTimeout",)),
    "execution_timeout, retry": Scene(
        ("sleeps",), {"execution_timeout": SECOND}, ("AirflowTaskTimeout", "AirflowTaskTimeout"), tries=("retry",)
    ),
    "execution_timeout before await_timeout": Scene(
        ("sleeps",), {"execution_timeout": SECOND, "await_timeout": 3600}, ("AirflowTaskTimeout",)
    ),
    "await_timeout before execution_timeout": Scene(
        ("sleeps",), {"execution_timeout": timedelta(hours=1), "await_timeout": 1}, ("AirflowException",)
    ),
    "child_timeout": Scene(("sleeps",), {"child_timeout": 1}, ("AirflowFailException",), ("spawn",)),
    "child_timeout, failure_mode=return": Scene(
        ("sleeps",), {"child_timeout": 1, "failure_mode": "return"}, ("success",), ("spawn",)
    ),
    "child_retry_policy": Scene(("naps1", "naps bad"), {"child_retry_policy": 1}, ("success",), ("spawn",)),
    "child_retry_policy of awaited ones": Scene(
        ("naps1", "naps bad"), {}, ("success",), ("await",), order={"child_retry_policy": POLICY}
    ),
    **{
        f"on_clear={policy}": Scene(NAPS, {"on_clear": policy}, ("success", "success"), ("spawn",), ("clear",))
        for policy in ("auto", "resume_failed", "reuse", "respawn")
    },
    **{
        f"on_clear={policy} after a failure": Scene(
            ("naps1", "naps bad"), {"on_clear": policy}, ("AirflowException", end), ("spawn",), ("clear",)
        )
        for policy, end in (
            ("auto", "success"),
            ("resume_failed", "success"),
            ("reuse", "AirflowException"),
            ("respawn", "success"),
        )
    },
    "end_from_trigger": ending(HELD, ("success",)),
    "end_from_trigger, results=references": ending(HELD, ("success",), results="references"),
    "end_from_trigger, failure_mode=return": ending(("held1", "held bad"), ("success",), failure_mode="return"),
    "end_from_trigger of what failed": Scene(
        ("held1", "held bad"), {"end_from_trigger": True}, ("AirflowException",), ("await",), others=True
    ),
    "end_from_trigger of what is tried again": Scene(
        ("held1", "held bad"),
        {"end_from_trigger": True, "failure_mode": "return"},
        ("success",),
        ("await",),
        order={"child_retry_policy": POLICY},
        others=True,
    ),
    "cleared await": Scene(NAPS, {}, ("success", "success"), ("await",), ("clear",)),
    "parent_close_policy=cancel, last try": Scene(
        ("sleeps",), {"execution_timeout": SECOND}, ("AirflowTaskTimeout",), max_tries=0
    ),
}


@pytest.fixture(autouse=True)
def stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Shorten every wait of ours."""
    with staged(monkeypatch):
        yield


@pytest.mark.parametrize(
    ("scene", "operator"),
    [(scene, operator) for scene in SCENES.values() for operator in scene.operators],
    ids=[f"{operator}, {name}" for name, scene in SCENES.items() for operator in scene.operators],
)
def test_a_parameter_means_the_same_on_the_worker_and_away(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scene: Scene, operator: str
) -> None:
    found = []
    for way in ("worker", "away"):
        (tmp_path / way).mkdir()
        with sqlite_connection(monkeypatch, tmp_path / way):
            found.append(perform(scene, operator, deferrable=way == "away"))
    here, away = found
    assert here.ends == scene.ends
    assert away == here
