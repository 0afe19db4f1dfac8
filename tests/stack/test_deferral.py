"""Tasks that wait without a worker, on a real triggerer; expected outcomes stand first."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.stack.records import Records
from tests.stack.stand import Stand
from tests.stack.test_fate import wait_until

pytestmark = [pytest.mark.stack, pytest.mark.provider, pytest.mark.long]


def test_a_task_whose_children_sleep_leaves_its_worker_and_survives_a_killed_triggerer(stand: Stand, records: Records):
    """Deferred, no process of it left; the triggerer is killed and started again; every call is made once."""
    stand.browser.trigger("stand_naps", "naps")
    stand.browser.wait_for_task("stand_naps", "naps", "naps", "deferred")
    wait_until(lambda: not stand.tasks(), "no task's process is left", 20)
    triggerer = stand._components["triggerer"]
    for pid in [triggerer.pid]:
        os.killpg(pid, signal.SIGKILL)
    triggerer.wait()
    stand.start("triggerer")
    assert stand.browser.wait_for_run("stand_naps", "naps", 240) == "success"
    print(stand.browser.log("stand_naps", "naps", "naps", 1))
    assert set(stand.witness.counts("naps/").values()) == {1}
    (host,) = records.hosts("stand_naps", "naps")
    assert set(records.tries(host)) == {"first", "same"}
    assert records.findings("stand_naps", "naps") == []


def test_a_deferred_task_marked_failed_asks_its_children_to_end(stand: Stand, records: Records):
    """Within the grace the request can be taken back by a clear."""
    stand.browser.trigger("stand_long_naps", "marked")
    stand.browser.wait_for_task("stand_long_naps", "marked", "naps", "deferred")
    (row,) = records.children("stand_long_naps", "marked")
    time.sleep(5)
    stand.browser.mark("stand_long_naps", "marked", "naps", "failed")
    wait_until(lambda: [entry.kind for entry in records.store.read_inbox(row.run_id)] == ["close"], "asked to end", 30)
    stand.browser.clear("stand_long_naps", "marked", "naps")
    wait_until(
        lambda: [entry.kind for entry in records.store.read_inbox(row.run_id)] == ["close", "withdraw"],
        "taken back",
        60,
    )
    assert not records.store.get_runs([row.run_id])[row.run_id].is_terminal
