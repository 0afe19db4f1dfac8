"""A task whose children wait leaves its worker: when, what it leaves behind, and how it goes on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from airflow_childrun.errors import HostError, StateError
from airflow_childrun.hooks import driving
from airflow_childrun.hooks.absence import close_absent
from airflow_childrun.hooks.deferral import AwaitPolicy, Deferral, Parked
from airflow_childrun.model.config import Duration, Fixed
from airflow_childrun.model.events import StateFailed
from airflow_childrun.model.manifest import manifest_id
from airflow_childrun.runtime.closing import cancel_run
from airflow_childrun.store.api import RunRow
from airflow_childrun.testing.clock import ManualClock
from tests.engine.kit import Background, Stage, eventually, manifest, retrying
from tests.host.kit import AirflowTask, HostLab, Try

HOUR = 3_600_000_000
SECOND = 1_000_000


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Iterator[HostLab]:
    """Give tries of tasks that look at once whether they may leave; the clock stands still."""
    monkeypatch.setattr(driving, "INLINE_S", 0.0)
    made = HostLab(clock=ManualClock())
    yield made
    made.close()


def leave(lab: HostLab, one: Try, rows: list[RunRow], *, lives_on: bool = False) -> Parked:
    """Drive until the task leaves."""
    policy = AwaitPolicy(deferrable=True, poll_interval_s=0.01, lives_on=lives_on)
    driving_it = Background(lambda: one.host.drive(rows, policy))
    with pytest.raises(Deferral) as raised:
        driving_it.join()
    one.host.close()
    return raised.value.parked


def go_on(lab: HostLab, task: AirflowTask, **policy: Any) -> list[RunRow]:
    """Come back in another process and drive to the end."""
    again = lab.begin(task)
    rows = again.host.come_back()
    try:
        ended: list[RunRow] = Background(lambda: again.host.drive(rows, AwaitPolicy(**policy))).join()
        return ended
    finally:
        again.host.close()


def advance(lab: HostLab, us: int) -> None:
    clock = lab.clock
    assert isinstance(clock, ManualClock)
    clock.advance(us)


def recovered(lab: HostLab, row: RunRow) -> list[str | None]:
    return [event.recovered for event in lab.events(row.run_id) if isinstance(event, StateFailed)]


def naps(lab: HostLab, us: int = HOUR) -> list[str]:
    """Put an operation that asks, sleeps and asks; return what its ``finally`` notes."""
    unwound: list[str] = []

    def handler(stage: Stage) -> None:
        stage.ask(f"{stage.input} before")
        try:
            stage.io.sleep("nap", us)
        finally:
            unwound.append(stage.input)
        stage.ask(f"{stage.input} after")

    lab.put("naps", handler)
    return unwound


@pytest.mark.parametrize("lives_on", [False, True], ids=["the process leaves", "the process lives on"])
def test_children_that_all_sleep_let_their_task_leave_and_go_on_after(lab: HostLab, lives_on: bool) -> None:
    """Leases are free at once; come back, it is the same try, no call is repeated, nothing counts as a crash."""
    unwound = naps(lab)
    task = AirflowTask()
    one = lab.begin(task)
    rows = one.spawn(lab.wanted("naps", ["a", "b"]))
    parked = leave(lab, one, rows, lives_on=lives_on)
    assert set(parked.inboxes) == {row.run_id for row in rows}
    assert (parked.wake_at, parked.driven) == (lab.clock.now_us() + HOUR, frozenset())
    assert [lab.row(row.run_id).lease_session_id for row in rows] == [None, None]
    assert sorted(unwound) == (["a", "b"] if lives_on else [])
    advance(lab, HOUR)
    assert [row.status for row in go_on(lab, task)] == ["Completed"] * 2
    assert set(lab.world.counts.values()) == {1}
    assert [entry["kind"] for entry in lab.tries(task)] == ["first", "same"]
    assert [recovered(lab, row) for row in rows] == [["released"], ["released"]]


def test_children_that_wait_for_the_places_of_sleepers_let_their_task_leave(lab: HostLab) -> None:
    """Of three one may work at a time: while it sleeps nothing happens, and each in its turn is driven to its end."""
    naps(lab)
    task = AirflowTask()
    one = lab.begin(task)
    rows = one.spawn([replace(wanted, max_concurrency=1) for wanted in lab.wanted("naps", ["a", "b", "c"])])
    for number in range(3):
        parked = leave(lab, one, rows)
        assert set(parked.inboxes) == {row.run_id for row in rows[number:]}
        assert parked.wake_at == lab.clock.now_us() + HOUR
        assert [lab.row(row.run_id).status for row in rows] == ["Completed"] * number + ["Running"] + ["Pending"] * (
            2 - number
        )
        advance(lab, HOUR)
        one = lab.begin(task)
        rows = one.host.come_back()
    assert [row.status for row in one.host.drive(rows)] == ["Completed"] * 3
    assert set(lab.world.counts.values()) == {1}
    one.host.close()


def test_abandoned_threads_of_a_process_that_leaves_never_go_on(lab: HostLab) -> None:
    """Their time comes while the process is not gone yet: they write nothing, ask nobody, unwind nothing."""
    unwound = naps(lab)
    one = lab.begin(AirflowTask())
    (row,) = one.spawn(lab.wanted("naps", ["a"]))
    leave(lab, one, [row])
    head = lab.row(row.run_id).head
    advance(lab, HOUR)
    monitor = one.process.house.slots.monitor
    for _ in range(5):
        with monitor:
            monitor.notify_all()
            monitor.wait(0.02)
    assert (lab.row(row.run_id).head, unwound, lab.world.counts["a after"]) == (head, [], 0)


def test_one_child_at_work_keeps_the_worker(lab: HostLab) -> None:
    """The task leaves as soon as that one has ended."""
    gate = threading.Event()
    naps(lab)
    lab.put("works", lambda _: gate.wait(20))
    task = AirflowTask()
    one = lab.begin(task)
    rows = one.spawn([*lab.wanted("naps", ["a"]), *lab.wanted("works", ["b"])])
    waiting = Background(lambda: leave(lab, one, rows))
    eventually(lambda: lab.row(rows[0].run_id).wake_at is not None)
    assert not waiting.is_done
    gate.set()
    assert set(waiting.join().inboxes) == {rows[0].run_id}


@pytest.mark.parametrize(("nap", "stays"), [(59 * SECOND, True), (60 * SECOND, False)])
def test_a_wait_of_less_than_a_minute_keeps_the_worker(lab: HostLab, nap: int, stays: bool) -> None:
    naps(lab, nap)
    one = lab.begin(AirflowTask())
    rows = one.spawn(lab.wanted("naps", ["a"]))
    supervisor = one.host._supervisor
    driving_it = Background(lambda: one.host.drive(rows, AwaitPolicy(deferrable=True)))
    eventually(lambda: lab.row(rows[0].run_id).wake_at is not None)
    if stays:
        assert supervisor.park({}, 60, lives_on=False) is None
        one.host.close()
    else:
        with pytest.raises(Deferral):
            driving_it.join()


def test_a_backoff_counts_as_a_wait(lab: HostLab) -> None:
    calls: list[int] = []

    def fails(stage: Stage) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise StateError("not yet", code="not_yet", retryable=True)

    lab.put("fails", fails)
    task = AirflowTask()
    one = lab.begin(task)
    made = manifest("fails", "x", config=retrying(3, backoff=Fixed(delay=Duration(secs=3600))))
    rows = one.spawn([replace(lab.child("fails", "x"), manifest=made, manifest_id=manifest_id(made))])
    parked = leave(lab, one, rows)
    assert parked.wake_at == lab.clock.now_us() + HOUR
    advance(lab, HOUR)
    assert [row.status for row in go_on(lab, task)] == ["Completed"]


def test_a_whole_tree_waits_and_goes_on(lab: HostLab) -> None:
    """A parent that awaits a sleeping child is watched with it; the first nap of several is when the task comes back."""
    naps(lab, HOUR)
    lab.put("parent", lambda s: s.join(s.spawn("naps", "c", "deep"), "a"))
    lab.put("long", lambda s: s.io.sleep("nap", 2 * HOUR))
    task = AirflowTask()
    one = lab.begin(task)
    rows = one.spawn([*lab.wanted("parent", ["p"]), *lab.wanted("long", ["l"])])
    parked = leave(lab, one, rows)
    assert len(parked.inboxes) == 3
    assert parked.wake_at == lab.clock.now_us() + HOUR
    advance(lab, HOUR)
    again = lab.begin(task)
    second = leave(lab, again, again.host.come_back())
    assert set(second.inboxes) == {rows[1].run_id}
    assert lab.row(rows[0].run_id).status == "Completed"
    advance(lab, HOUR)
    assert [row.status for row in go_on(lab, task)] == ["Completed"] * 2
    assert [entry["kind"] for entry in lab.tries(task)] == ["first", "same", "same"]


def test_a_sleeper_whose_parent_has_ended_is_gone_on_with(lab: HostLab) -> None:
    """Nobody awaits it but the task: its parent completed before the task left."""
    naps(lab)
    lab.put("parent", lambda s: s.spawn("naps", "c", "left"))
    task = AirflowTask()
    one = lab.begin(task)
    rows = one.spawn(lab.wanted("parent", ["p"]))
    parked = leave(lab, one, rows)
    (sleeper,) = lab.children(rows[0].run_id)
    assert (set(parked.inboxes), lab.row(rows[0].run_id).status) == ({sleeper.run_id}, "Completed")
    advance(lab, HOUR)
    go_on(lab, task)
    assert lab.row(sleeper.run_id).status == "Completed"


def test_what_comes_while_the_task_is_away_is_found(lab: HostLab) -> None:
    """A cancel ends an unowned sleeper; the task finds it ended when it comes back."""
    naps(lab)
    task = AirflowTask()
    one = lab.begin(task)
    rows = one.spawn(lab.wanted("naps", ["a", "b"]))
    leave(lab, one, rows)
    cancel_run(lab.process().house, rows[0].run_id, "enough")
    advance(lab, HOUR)
    assert [row.status for row in go_on(lab, task)] == ["Cancelled", "Completed"]


def test_children_of_a_living_process_are_left_to_it(lab: HostLab) -> None:
    """An await of what another task drives leaves; it asks nobody to end, for it neither spawned nor drives them."""
    naps(lab)
    spawner, awaiter = AirflowTask(), AirflowTask("await")
    first = lab.begin(spawner)
    rows = first.spawn(lab.wanted("naps", ["a"]))
    handles = first.handles(rows)
    Background(lambda: first.host.drive(rows))
    eventually(lambda: lab.row(rows[0].run_id).lease_expires_at is not None)
    second = lab.begin(awaiter)
    parked = leave(lab, second, second.host.attach(handles))
    assert parked.driven == {rows[0].run_id}
    assert (dict(parked.inboxes), parked.wake_at) == ({}, None)
    assert parked.host is not None
    assert parked.host.drove == ()
    second.host.stop("stopped")
    assert lab.store.read_inbox(rows[0].run_id) == []
    first.host.close()


def test_a_task_whose_store_was_emptied_fails_clearly(lab: HostLab) -> None:
    with pytest.raises(HostError, match="the store does not know it any more") as raised:
        lab.begin(AirflowTask()).host.come_back()
    assert raised.value.code == "child_run_missing"


def test_a_kill_while_the_task_is_away_asks_its_children_to_end(lab: HostLab) -> None:
    """In one commit that raises the host's epoch; a retry takes the request back, and after it an old mark counts for nothing."""
    naps(lab)
    task = AirflowTask()
    one = lab.begin(task)
    rows = one.spawn(lab.wanted("naps", ["a"]))
    mark = leave(lab, one, rows).host
    assert mark is not None
    closing = {"host_run_id": str(mark.run_id), "epoch": mark.epoch, "grace_us": mark.grace_us, "drove": []}
    assert close_absent(lab.store, closing, "killed")
    assert not close_absent(lab.store, closing, "killed twice")
    assert [entry.kind for entry in lab.store.read_inbox(rows[0].run_id)] == ["close"]
    again = lab.begin(task.retry())
    again.spawn(lab.wanted("naps", ["a"]))
    assert [entry.kind for entry in lab.store.read_inbox(rows[0].run_id)] == ["close", "withdraw"]
    assert not close_absent(lab.store, closing, "killed late")


def test_an_await_gives_up_after_its_timeout_and_asks_nobody_to_end(lab: HostLab) -> None:
    naps(lab)
    one = lab.begin(AirflowTask())
    rows = one.spawn(lab.wanted("naps", ["a"]))
    with pytest.raises(HostError) as raised:
        Background(lambda: one.host.drive(rows, AwaitPolicy(give_up_at=lab.clock.now_us()))).join()
    assert (raised.value.code, raised.value.retryable) == ("await_timed_out", True)
    one.host.close()
    assert lab.store.read_inbox(rows[0].run_id) == []
