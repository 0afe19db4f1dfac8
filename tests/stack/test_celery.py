"""The proof on Airflow's own distributed executor: ``pytest -m celery``; see tests/stack/celery.py."""

from __future__ import annotations

import socket

import pytest

from tests.postgres import PostgresServer
from tests.stack.celery import CHILDREN, WORKERS, celery_stand, play

pytestmark = [pytest.mark.celery, pytest.mark.provider, pytest.mark.fault]


def test_a_worker_killed_half_way_costs_no_child_and_repeats_no_recorded_call(postgres_server: PostgresServer):
    """200 children on two workers, one of them killed in the middle: all complete, both had their share.

    What was in flight is asked again, with the token it had; what was recorded is not. Neither worker had Airflow's
    database or its connections, and both bear names that are not their machine's.
    """
    with celery_stand(postgres_server) as (stand, records):
        outcome = play(stand, records)
        print(outcome)
    assert outcome.state == "success"
    assert len(outcome.outputs) == CHILDREN
    assert set(outcome.children_per_worker) == set(WORKERS)
    assert outcome.killed_after >= CHILDREN // 2
    assert outcome.takeovers > 0
    assert outcome.recorded_again == []
    assert outcome.tokens == len(outcome.repeated)
    assert outcome.findings == []
    assert outcome.hosts == set(WORKERS)
    assert socket.gethostname() not in WORKERS
