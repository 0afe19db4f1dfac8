"""What triggers write into Airflow's database is read by other releases: its names are pinned here."""

from __future__ import annotations

from typing import get_args

from airflow_childrun.triggers import wire


def test_names_of_the_wire_format_stay() -> None:
    """A change of any of these breaks tasks that are deferred while images roll."""
    assert wire.CLASSPATH == "airflow_childrun.triggers.childrun.ChildRunTrigger"
    assert wire.NEXT_METHOD == "execute_complete"
    fields = "childrun_conn_id poll_interval driven remote inboxes wake_at closing ending dag_runs"
    assert list(wire.ChildRunTriggerKwargs.__annotations__) == fields.split()
    assert list(wire.DagRunKwargs.__annotations__) == ["dag_id", "dag_run_id", "calls"]
    assert list(wire.ClosingKwargs.__annotations__) == ["host_run_id", "epoch", "grace_us", "drove"]
    ending = ["run_ids", "keys", "single", "results", "failure_mode", "push"]
    assert list(wire.EndingKwargs.__annotations__) == ending
    assert list(wire.ChildRunEvent.__annotations__) == ["reason", "detail"]
    assert get_args(wire.Reason) == ("ended", "woke", "asked", "unowned", "gone", "outage", "dag_runs")
