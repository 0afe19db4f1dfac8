"""What fate does to the process of a task: killed, stopped and woken up, told to leave. Expected outcomes stand first."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy

from airflow_childrun.store.api import RunRow
from tests.stack.records import Records
from tests.stack.stand import Stand, parent_of
from tests.stack.witness import Call

pytestmark = [pytest.mark.stack, pytest.mark.provider, pytest.mark.fault]

SPAWNED_AT_ONCE = 200
BARRIER = 20_000_260
BAR = f"""
CREATE FUNCTION childrun.bar() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF (SELECT count(*) FROM childrun.childrun_run WHERE op_id = 'parcel') >= {SPAWNED_AT_ONCE} THEN
        PERFORM pg_advisory_xact_lock_shared({BARRIER});
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER bar BEFORE INSERT ON childrun.childrun_run FOR EACH ROW WHEN (NEW.op_id = 'parcel') EXECUTE FUNCTION childrun.bar()
"""
# Of a killed client's statement the server only notices at its end: it would still happen.
GONE = (
    f"SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND objid = {BARRIER} AND NOT granted"
)


class Gate:
    """Holds the witness's answers under a prefix until it is opened."""

    def __init__(self, stand: Stand, prefix: str) -> None:
        self._opened, self._reached = threading.Event(), threading.Event()
        self._prefix = prefix
        self.stand = stand
        stand.witness.on_call = self._hold

    def _hold(self, call: Call) -> None:
        if call.key.startswith(self._prefix) and not self._opened.is_set():
            self._reached.set()
            self._opened.wait(120)

    def wait_for_call(self) -> int:
        """Wait until a call hangs at the gate, and return the process that made it."""
        assert self._reached.wait(60), "nobody called"
        return self.stand.witness.seen(self._prefix)[-1].pid

    def open(self) -> None:
        """Let everybody through."""
        self._opened.set()


@pytest.fixture
def gate(stand: Stand) -> Iterator[Callable[[str], Gate]]:
    """Give a function that holds the witness's answers under a prefix."""
    made: list[Gate] = []

    def close(prefix: str) -> Gate:
        made.append(Gate(stand, prefix))
        return made[-1]

    yield close
    stand.witness.on_call = lambda _: None
    for each in made:
        each.open()


def wait_until(done: Callable[[], object], what: str, timeout_s: float = 60) -> None:
    """Wait for something, looking often."""
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline, f"{what}: not after {timeout_s} s"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that is only not yet buried does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def barrier(records: Records) -> Iterator[Callable[[], None]]:
    """Stop spawns of parcels behind the first commit of them; the function that it gives lets the next ones pass."""
    with records.store.database.engine().connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sqlalchemy.text(BAR))
        connection.execute(sqlalchemy.text(f"SELECT pg_advisory_lock({BARRIER})"))

        def lift() -> None:
            wait_until(lambda: connection.execute(sqlalchemy.text(GONE)).all(), "somebody at the barrier")
            connection.execute(sqlalchemy.text(f"SELECT pg_advisory_unlock({BARRIER})"))

        yield lift
        connection.execute(sqlalchemy.text("SELECT pg_advisory_unlock_all()"))
        connection.execute(sqlalchemy.text("DROP FUNCTION childrun.bar() CASCADE"))


def test_a_try_killed_half_way_through_its_spawns_is_completed_by_the_next(
    stand: Stand, records: Records, barrier: Callable[[], None]
):
    """200 of 260 children exist when the task dies: the next try spawns the rest, none twice, none in a second generation."""
    stand.browser.trigger("stand_parcels", "half")
    wait_until(lambda: records.children("stand_parcels", "half"), "spawned its first")
    (task,) = stand.tasks()
    os.kill(task, signal.SIGKILL)
    barrier()
    assert len(records.children("stand_parcels", "half")) == SPAWNED_AT_ONCE
    assert stand.browser.wait_for_run("stand_parcels", "half") == "success"
    assert stand.browser.task("stand_parcels", "half", "parcels")["try_number"] == 2
    assert records.statuses("stand_parcels", "half") == [(1, "Completed")] * 260
    assert [result["output"] for result in stand.browser.xcom("stand_parcels", "half", "parcels")] == list(range(260))


@pytest.mark.long
def test_a_stale_try_that_wakes_up_changes_nothing(stand: Stand, records: Records, gate: Callable[[str], Gate]):
    """Woken up after another try has completed everything, with its answer in hand, it writes nothing and leaves.

    Task and supervisor are stopped until the scheduler gives them up.
    """
    held = gate("stale/")
    stand.browser.trigger("stand_patient", "stale")
    old = held.wait_for_call()
    supervisor = parent_of(old)
    os.kill(supervisor, signal.SIGSTOP)
    os.kill(old, signal.SIGSTOP)
    try:
        wait_until(lambda: len(stand.witness.seen("stale/")) == 2, "asked again by the second try", 90)
        new = stand.witness.seen("stale/")[-1].pid
        assert new != old
        held.open()
        assert stand.browser.wait_for_run("stand_patient", "stale") == "success"
        before = {
            row.run_id: row.head for row in [*records.hosts("stand_patient", "stale"), *children(records, "stale")]
        }
        os.kill(old, signal.SIGCONT)
        time.sleep(3)
    finally:
        os.kill(old, signal.SIGCONT)
        os.kill(supervisor, signal.SIGCONT)
    wait_until(lambda: not is_alive(old), "the stale process left", 30)
    after = {row.run_id: row.head for row in [*records.hosts("stand_patient", "stale"), *children(records, "stale")]}
    assert after == before
    assert stand.witness.counts("stale/") == Counter({"stale/a/first": 2, "stale/a/second": 1})
    assert len({call.token for call in stand.witness.seen("stale/a/first")}) == 1
    assert records.findings("stand_patient", "stale") == []


def children(records: Records, run_id: str) -> list[RunRow]:
    """Return the children of a run of ``stand_patient``."""
    return records.children("stand_patient", run_id)


def test_a_task_marked_failed_leaves_in_time_and_can_be_cleared(
    stand: Stand, records: Records, gate: Callable[[str], Gate]
):
    """Marked failed inside a call, the process is gone within the five seconds after which Airflow kills.

    Cleared, the child goes on, and asks again for the call in flight alone, under the same token.
    """
    held = gate("marked/a/second")
    stand.browser.trigger("stand_patient", "marked")
    pid = held.wait_for_call()
    stand.browser.mark("stand_patient", "marked", "patient", "failed")
    began = time.monotonic()
    wait_until(lambda: not is_alive(pid), "the process left", 20)
    log = stand.browser.log("stand_patient", "marked", "patient", 1)
    print(f"left after {time.monotonic() - began:.1f} s\n{log}")
    assert "a retry or a clear of this task goes on from there" in log
    held.open()
    stand.browser.clear("stand_patient", "marked", "patient")
    stand.browser.wait_for_task("stand_patient", "marked", "patient", "success")
    assert stand.witness.counts("marked/") == Counter({"marked/a/first": 1, "marked/a/second": 2})
    assert len({call.token for call in stand.witness.seen("marked/a/second")}) == 1
    assert records.findings("stand_patient", "marked") == []


@pytest.mark.long
def test_a_task_cleared_while_it_runs_goes_on_at_once(stand: Stand, records: Records, gate: Callable[[str], Gate]):
    """Cleared inside a call: the first process leaves, the second goes on with the same child."""
    held = gate("midway/a/second")
    stand.browser.trigger("stand_patient", "midway")
    pid = held.wait_for_call()
    stand.browser.clear("stand_patient", "midway", "patient")
    wait_until(lambda: not is_alive(pid), "the process left", 20)
    held.open()
    stand.browser.wait_for_task("stand_patient", "midway", "patient", "success")
    assert stand.witness.counts("midway/") == Counter({"midway/a/first": 1, "midway/a/second": 2})
    (host,) = records.hosts("stand_patient", "midway")
    assert records.tries(host) == ["first", "clear"]
    assert records.findings("stand_patient", "midway") == []
