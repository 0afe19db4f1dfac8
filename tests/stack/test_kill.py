"""The kill test: a task killed again and again ends as one that was not, and makes no recorded call twice.

``pytest tests/stack/test_kill.py -s`` runs both forms and prints the kills; ``CHILDRUN_KILL_SEED`` chooses the moments.
"""

from __future__ import annotations

import os

import pytest

from tests.stack.killer import Aim, play
from tests.stack.records import Records
from tests.stack.stand import Stand

pytestmark = [pytest.mark.stack, pytest.mark.provider, pytest.mark.fault]
SEED = int(os.environ.get("CHILDRUN_KILL_SEED", "20260301"))

PLAN: dict[Aim, int] = {"in a call": 7, "before a checkpoint": 7, "any moment": 6}


def test_three_kills_change_nothing(stand: Stand, records: Records):
    """Same snapshots and rows as undisturbed; a page is asked for once, and once more per kill that met it in flight."""
    kills = play(stand, records, SEED, ["in a call", "before a checkpoint", "any moment"], 3)
    assert len(kills) == 3


@pytest.mark.long
def test_twenty_kills_change_nothing(stand: Stand, records: Records):
    """The same with 20 kills, 5 of them at least inside a call and 5 between a fact and its checkpoint."""
    aims = [aim for aim, number in PLAN.items() for _ in range(number)]
    kills = play(stand, records, SEED + 1, aims, 10)
    assert len(kills) == 20
    assert sum(bool(kill.in_flight) for kill in kills) >= 5
    assert sum(bool(kill.open_facts) for kill in kills) >= 5
