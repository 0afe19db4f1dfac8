"""Backfills of thirty days, by the command that people use."""

from __future__ import annotations

import json
from typing import Any

from tests.stack.matrix.stage import MonthStage

FIRST, LAST = "2026-03-01", "2026-03-30"
DAYS = tuple(f"2026-03-{number:02}" for number in range(1, 31))
REFUSED = (DAYS[2], DAYS[16], DAYS[29])
LONG_S = 600.0


def backfill(
    stage: MonthStage, behaviour: str = "none", *, conf: dict[str, Any] | None = None, backwards: bool = False
) -> None:
    """Make a backfill of all days, and wait until it is over."""
    options = ["--reprocess-behavior", behaviour, "--max-active-runs", "8"]
    options += ["--dag-run-conf", json.dumps(conf)] if conf else []
    options += ["--run-backwards"] if backwards else []
    days = ("--from-date", FIRST, "--to-date", LAST)
    before = len(_backfills(stage))
    stage.stand.airflow("backfill", "create", "--dag-id", stage.dag_id, *days, *options)

    def is_over() -> bool:
        found = _backfills(stage)
        return len(found) > before and all(each["completed_at"] for each in found) and stage.is_over()

    stage.wait(is_over, f"the backfill with {behaviour} is over", LONG_S)


def each_reprocess_behaviour(stage: MonthStage) -> None:
    """Backfill with three days that fail; again with ``none``, ``failed``, and ``completed`` under another on_clear."""
    stage.refuse(*REFUSED)
    stage.stand.browser.pause(stage.dag_id, paused=False)
    backfill(stage)
    assert sorted(stage.states()) == ["failed"] * 3 + ["success"] * 27
    stage.accept()
    backfill(stage, "none")
    assert sorted(stage.states()) == ["failed"] * 3 + ["success"] * 27
    assert len(stage.children()) == len(DAYS)
    backfill(stage, "failed")
    assert stage.states() == ["success"] * 30
    backfill(stage, "completed", conf={"childrun": {"on_clear": "reuse"}})
    check_own(stage)


def completed_again(stage: MonthStage) -> None:
    """Backfill twice: the second time everything runs again, as a clear of a green task means."""
    stage.stand.browser.pause(stage.dag_id, paused=False)
    backfill(stage)
    assert len(stage.children()) == len(DAYS)
    backfill(stage, "completed")
    check_own(stage)


def scheduled_again_in_reverse(stage: MonthStage) -> None:
    """Let the schedule make thirty runs, and reprocess them from the last day to the first."""
    stage.stand.browser.pause(stage.dag_id, paused=False)
    stage.wait(lambda: len(stage.states()) == len(DAYS) and stage.is_over(), "the schedule made thirty runs", LONG_S)
    backfill(stage, "completed", backwards=True)
    check_own(stage)


def check_own(stage: MonthStage) -> None:
    """Check that there are thirty DAG runs with a host run each, and that generations follow one another in its slot."""
    assert len(stage.states()) == len(DAYS)
    assert len(stage.records.hosts(stage.dag_id, None)) == len(DAYS)
    for rows in stage.rows().values():
        assert [row.generation for row in rows] == list(range(1, len(rows) + 1))
        assert len({row.slot_id for row in rows}) == 1


def _backfills(stage: MonthStage) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = stage.stand.browser.get("/backfills", dag_id=stage.dag_id, limit=100)["backfills"]
    return found
