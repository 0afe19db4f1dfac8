"""A thousand parked awaits in a real triggerer: what they ask the store, and what each of them costs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

from airflow_childrun.store.api import RunRow
from airflow_childrun.triggers.wire import CLASSPATH, ChildRunTriggerKwargs, ClosingKwargs
from tests.stack.records import Records
from tests.stack.stand import Stand, parent_of, processes_of_sessions
from tests.stack.test_fate import wait_until

pytestmark = [pytest.mark.stack, pytest.mark.provider, pytest.mark.long]
PARKED = 1000
INTERVAL_S = 2.0
INTERVALS = 10

# Every row of a run that the store's login reads leaves the statement that read it: a policy is asked for each.
WATCH = """
CREATE TABLE childrun.asked (backend integer NOT NULL, at timestamptz NOT NULL);
CREATE FUNCTION childrun.note() RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
    INSERT INTO childrun.asked VALUES (pg_backend_pid(), statement_timestamp());
    RETURN true;
END $$;
CREATE POLICY asked ON childrun.childrun_run USING (childrun.note());
ALTER TABLE childrun.childrun_run ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY
"""
UNWATCH = """
ALTER TABLE childrun.childrun_run DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY;
DROP POLICY asked ON childrun.childrun_run;
DROP FUNCTION childrun.note();
DROP TABLE childrun.asked
"""
SEED_TRIGGERS = """
INSERT INTO trigger (classpath, kwargs, created_date)
SELECT :classpath, kwargs, now() FROM unnest(CAST(:kwargs AS text[])) AS kwargs RETURNING id
"""
# A triggerer drops a trigger that no task waits for: each has a copy of the task that spawned.
SEED_TASKS = """
INSERT INTO task_instance
SELECT (jsonb_populate_record(t, jsonb_build_object(
    'id', gen_random_uuid(), 'map_index', parked.index, 'state', 'deferred', 'trigger_id', parked.trigger_id))).*
FROM task_instance t, unnest(CAST(:triggers AS integer[])) WITH ORDINALITY AS parked(trigger_id, index)
WHERE t.dag_id = 'stand_parked' AND t.run_id = 'parked' AND t.task_id = 'spawn'
"""
UNSEED = (
    "DELETE FROM task_instance WHERE dag_id = 'stand_parked' AND map_index > 0",
    "DELETE FROM trigger WHERE id = ANY(:triggers)",
)
ASKED = "SELECT at, count(*) FROM childrun.asked GROUP BY backend, at ORDER BY at"


def kwargs_of(host: RunRow, row: RunRow) -> ChildRunTriggerKwargs:
    """Return what a task writes that leaves while its one child sleeps for a day."""
    return ChildRunTriggerKwargs(
        childrun_conn_id="childrun_default",
        poll_interval=INTERVAL_S,
        driven=[],
        remote=[],
        inboxes={str(row.run_id): row.head.inbox_seq},
        wake_at=row.created_at + 86_400_000_000,
        closing=ClosingKwargs(host_run_id=str(host.run_id), epoch=host.head.epoch, grace_us=120_000_000, drove=[]),
        ending=None,
    )


@contextmanager
def parked(records: Records, all_kwargs: list[ChildRunTriggerKwargs]) -> Iterator[None]:
    """Put a deferred task with its trigger into Airflow's database for each."""
    engine = records.store.database.engine()
    with engine.begin() as connection:
        written = {"classpath": CLASSPATH, "kwargs": [json.dumps(kwargs) for kwargs in all_kwargs]}
        triggers = list(connection.execute(sqlalchemy.text(SEED_TRIGGERS), written).scalars())
        connection.execute(sqlalchemy.text(SEED_TASKS), {"triggers": triggers})
    try:
        yield
    finally:
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text(UNSEED[0]))
            connection.execute(sqlalchemy.text(UNSEED[1]), {"triggers": triggers})


@contextmanager
def watched(records: Records) -> Iterator[Any]:
    """Have the database note every statement that reads runs; give what returns time and number of runs of each."""
    engine = records.store.database.engine()

    def do(script: str) -> None:
        with engine.begin() as connection:
            connection.exec_driver_sql(script)

    def asked() -> list[tuple[datetime, int]]:
        with engine.connect() as connection:
            return [(at, runs) for at, runs in connection.execute(sqlalchemy.text(ASKED))]

    do(WATCH)
    try:
        yield asked
    finally:
        do(UNWATCH)


def runner_of(stand: Stand) -> int:
    """Return the process in which the triggers run: of what the triggerer started, that with the most memory."""
    triggerer = stand.pid_of("triggerer")
    children = [pid for pid in processes_of_sessions({triggerer}) if parent_of(pid) == triggerer]
    return max(children, key=lambda pid: memory_kib(pid, "Rss"))


def memory_kib(pid: int, *names: str) -> int:
    """Return some kinds of a process's memory, added up."""
    lines = (Path("/proc") / str(pid) / "smaps_rollup").read_text().splitlines()[1:]
    found = {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines)}
    return sum(found[name] for name in names)


def whole(questions: list[tuple[datetime, int]]) -> list[datetime]:
    """Return when all of them were asked for at once."""
    return [at for at, runs in questions if runs == PARKED]


def test_a_thousand_parked_awaits_are_one_question_per_interval(stand: Stand, records: Records):
    """Counted in the database, while the triggerer takes them up and afterwards; what each costs in memory is printed."""
    stand.browser.trigger("stand_parked", "parked")
    assert stand.browser.wait_for_run("stand_parked", "parked", 240) == "failed"
    (host,) = records.hosts("stand_parked", "parked", "spawn")
    rows = records.children("stand_parked", "parked", "spawn")
    assert len(rows) == PARKED
    runner = runner_of(stand)
    before = memory_kib(runner, "Rss"), memory_kib(runner, "Private_Clean", "Private_Dirty")
    with watched(records) as asked, parked(records, [kwargs_of(host, row) for row in rows]):
        began = time.monotonic()
        wait_until(lambda: whole(asked()), "all of them asked for at once", 300)
        taken_up_s = time.monotonic() - began
        wait_until(lambda: len(whole(asked())) >= INTERVALS, "all of them asked for again and again", 120)
        questions = asked()
        after = memory_kib(runner, "Rss"), memory_kib(runner, "Private_Clean", "Private_Dirty")
    pauses_s = [(later - at).total_seconds() for (at, _), (later, _) in pairwise(questions)]
    resident, own = ((there - then) / PARKED for there, then in zip(after, before, strict=True))
    print(
        f"\n{PARKED} parked awaits, taken up in {taken_up_s:.0f} s: {len(questions)} statements, {len(whole(questions))} "
        f"of them about all, {min(pauses_s):.2f} to {max(pauses_s):.2f} s apart (interval {INTERVAL_S} s); "
        f"the runner grew by {resident:.1f} KiB for each, to {after[0] / 1024:.0f} MiB; its private memory by {own:.1f} KiB, with "
        "the pages that it shared with its parent before"
    )
    assert min(pauses_s) >= INTERVAL_S
