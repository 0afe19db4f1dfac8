"""Owners that die, give up, come back or meet (rules 11, 12 and 13)."""

from __future__ import annotations

import threading
from typing import Any
from uuid import UUID

import pytest

from airflow_childrun.errors import Abandoned, LeaseLost, NotFoundError, UnavailableError
from airflow_childrun.model.config import Duration, Fixed
from airflow_childrun.model.events import StateFailed
from airflow_childrun.testing.clock import ManualClock
from tests.engine.kit import DEATH, Background, Lab, Process, Stage, eventually, new_lab, retrying, wait_for


def recovered(lab: Lab, run_id: UUID) -> list[str | None]:
    return [event.recovered for event in lab.events(run_id) if isinstance(event, StateFailed)]


def crash_in_handler(lab: Lab, run_id: UUID, **limits: Any) -> Process:
    """Drive a run in a process that dies when the handler asks the world for `die`."""
    process = lab.process(**limits)
    lab.world.scripts["die"] = [lambda request: process.crash()]
    with pytest.raises(DEATH):
        process.resume(run_id)
    return process


def test_crashed_attempts_are_closed_and_counted_apart_from_failures(lab: Lab):
    """Two crashes do not use up the single attempt that the policy allows."""
    lab.put("op", lambda s: s.ask("die"))
    run_id = lab.process().create("op")
    crash_in_handler(lab, run_id)
    crash_in_handler(lab, run_id)
    assert lab.process().resume(run_id).phase == "Completed"
    assert recovered(lab, run_id) == ["lapsed", "lapsed"]
    assert lab.attempts(run_id) == [0, 1, 2]


@pytest.mark.parametrize("limit", [0, 1, 5])
def test_a_run_that_kills_every_owner_ends_at_the_recovery_limit(lab: Lab, limit: int):
    """One owner more than the limit dies; then the run is Failed with recovery_limit_exceeded, and resumable no more."""
    lab.put("op", lambda s: s.ask("die"))
    run_id = lab.process().create("op")
    for _ in range(limit + 1):
        crash_in_handler(lab, run_id, recovery_limit=limit)
    result = lab.process(recovery_limit=limit).resume(run_id)
    assert result.phase == "Failed"
    assert lab.row(run_id).error_code == "recovery_limit_exceeded"
    assert lab.world.counts == {"die": limit + 1}
    assert len(lab.attempts(run_id)) == limit + 1


def test_a_fact_sets_the_count_of_recoveries_to_zero(lab: Lab):
    """A run that dies often but moves each time is not ended."""
    progress = iter(range(100))

    def handler(s: Stage) -> None:
        for index in range(4):
            if s.io.find_fact(f"step {index}") is None:
                s.ask(f"step {index}", next(progress) * 0)
                s.ask(f"die {index}")

    lab.put("op", handler)
    run_id = lab.process().create("op")
    for index in range(4):
        process = lab.process(recovery_limit=1)
        lab.world.scripts[f"die {index}"] = [lambda request, process=process: process.crash()]
        with pytest.raises(DEATH):
            process.resume(run_id)
    assert lab.process(recovery_limit=1).resume(run_id).phase == "Completed"
    assert recovered(lab, run_id) == ["lapsed"] * 4


def test_owners_that_die_while_the_run_sleeps_are_not_counted():
    """A durable sleep outlives any number of processes, also those that only waited for its rest."""
    with new_lab(clock=ManualClock()) as still:
        still.put("op", lambda s: s.io.sleep("nap", 10**9))
        run_id = still.process().create("op")
        for tries in range(4):
            process = still.process(recovery_limit=0)
            run = Background(process.resume, run_id)
            eventually(lambda wanted: len(still.attempts(run_id)) == wanted, tries + 1)
            eventually(sleeps, process)
            process.crash()
            assert not run.is_done
        move(still, 10**9)
        # The last one died at a time that nobody knows, perhaps after the nap: that one counts.
        assert still.process(recovery_limit=1).resume(run_id).phase == "Completed"
        assert len(still.domain(run_id, "wait_opened")) == 1


def test_owners_that_die_while_a_child_is_not_terminal_are_not_counted(lab: Lab):
    """A parent that awaits is no crash loop."""
    gate = threading.Event()
    lab.put("child", lambda s: wait_for(gate))
    lab.put("op", lambda s: s.join(s.spawn("child", "c"), "a"))
    run_id = lab.process().create("op")
    for tries in range(3):
        process = lab.process(recovery_limit=9)
        Background(process.resume, run_id)
        eventually(lambda wanted: len(lab.attempts(run_id)) == wanted and len(lab.children(run_id)) == 1, tries + 1)
        eventually(lambda wanted: len(lab.attempts(lab.children(run_id)[0].run_id)) == wanted, tries + 1)
        process.crash()
    gate.set()
    assert lab.process(recovery_limit=9).resume(run_id).phase == "Completed"
    assert recovered(lab, run_id) == ["released"] * 3
    assert recovered(lab, lab.children(run_id)[0].run_id) == ["lapsed"] * 3


def test_an_attempt_that_its_process_released_counts_as_nothing():
    """close() is no crash: neither failure nor recovery, and the state is entered again over its facts."""
    with new_lab(clock=ManualClock()) as still:

        def handler(s: Stage) -> None:
            s.ask("before")
            s.io.sleep("nap", 10**12)

        still.put("op", handler)
        run_id = still.process().create("op")
        for _ in range(3):
            process = still.process(recovery_limit=0)
            run = Background(process.resume, run_id)
            eventually(lambda: still.row(run_id).lease_expires_at is not None)
            eventually(sleeps, process)
            process.engine.close()
            with pytest.raises(Abandoned):
                run.join()
            eventually(lambda: still.row(run_id).lease_session_id is None)
        move(still, 10**12)
        assert still.process(recovery_limit=0).resume(run_id).phase == "Completed"
        assert set(recovered(still, run_id)) == {"released"}
        assert still.world.counts == {"before": 1}


def sleeps(process: Process) -> bool:
    """Whether a process has given all its slots back."""
    return process.house.slots._free == process.house.limits.max_concurrency


def move(lab: Lab, us: int) -> None:
    """Move a lab's clock, and wake who waits for it."""
    clock = lab.clock
    assert isinstance(clock, ManualClock)
    clock.advance(us)
    for process in lab.processes:
        with process.house.slots.monitor:
            process.house.slots.monitor.notify_all()


# -- giving up


def given_up(run: Background) -> None:
    """Expect Abandoned of a resume that was given up, unless somebody else has ended the run meanwhile."""
    try:
        assert run.join().phase == "Completed"
    except Abandoned:
        return


def test_close_raises_abandoned_in_the_next_io_and_releases_after_the_thread(lab: Lab):
    """A lone attempt: while its thread works the lease is held; its next io is dead; then another process goes on."""
    at_work, go_on = threading.Event(), threading.Event()
    raised: list[str] = []

    def handler(s: Stage) -> None:
        s.ask("first")
        at_work.set()
        wait_for(go_on)
        try:
            s.ask("second")
        except BaseException as error:
            raised.append(type(error).__name__)
            raise

    lab.put("op", handler)
    process = lab.process()
    run_id = process.create("op")
    run = Background(lambda: process.resume(run_id))
    wait_for(at_work)
    process.engine.close()
    assert lab.row(run_id).lease_expires_at is not None, "the lease is given back while the handler still works"
    other = lab.process(owner="somebody else")
    taking_over = Background(lambda: other.resume(run_id))
    go_on.set()
    assert taking_over.join().phase == "Completed"
    given_up(run)
    assert raised == ["Abandoned"]
    assert lab.world.counts == {"first": 1, "second": 1}
    assert recovered(lab, run_id) == ["released"]


def test_the_session_ends_with_the_last_thread(lab: Lab):
    """After close() and the end of the work, nothing of the process is left in the store."""
    at_work, go_on = threading.Event(), threading.Event()

    def handler(s: Stage) -> None:
        at_work.set()
        wait_for(go_on)

    lab.put("op", handler)
    process = lab.process()
    run_id = process.create("op")
    Background(lambda: process.resume(run_id))
    wait_for(at_work)
    session = lab.row(run_id).lease_session_id
    process.engine.close()
    assert session is not None
    assert lab.store._sessions[session].ended is None
    go_on.set()
    eventually(lambda: lab.store._sessions[session].ended == "closed")
    assert lab.names(run_id) == ["RunStarted", "StateEntered"]


def test_close_ends_every_wait(lab: Lab):
    """A parent that awaits, a child that sleeps and a run in backoff are all given up, without any later repetition."""

    def flaky(s: Stage) -> None:
        if s.io.find_fact("tried") is None:
            s.io.record_value("tried", 1)
            raise ValueError("once")

    lab.put("sleeper", lambda s: s.io.sleep("nap", 10**12))
    lab.put("flaky", flaky)

    def parent(s: Stage) -> None:
        flaky_child = s.spawn("flaky", "f", config=retrying(2, backoff=Fixed(delay=Duration(secs=10**6))))
        sleeper = s.spawn("sleeper", "s")
        s.join(flaky_child, "fe")
        s.join(sleeper, "se")

    lab.put("op", parent)
    process = lab.process()
    run_id = process.create("op")
    run = Background(lambda: process.resume(run_id))
    eventually(lambda: len(lab.children(run_id)) == 2)
    by_op = {row.op_id: row.run_id for row in lab.children(run_id)}
    eventually(lambda: lab.row(by_op["flaky"]).wake_at is not None and "wait_opened" in lab.names(by_op["sleeper"]))
    eventually(lambda: sleeps(process))
    process.engine.close()
    with pytest.raises(Abandoned):
        run.join()
    for held in (run_id, *by_op.values()):
        eventually(lambda held: lab.row(held).lease_session_id is None, held)
    eventually(process.engine.supervisor.is_idle)


def test_close_lets_go_of_queued_runs(lab: Lab):
    """A caller that waits for a run which never got a slot is told at once."""
    at_work, go_on = threading.Event(), threading.Event()

    def handler(s: Stage) -> None:
        at_work.set()
        wait_for(go_on)

    lab.put("busy", handler)
    lab.put("op", lambda s: None)
    process = lab.process(max_concurrency=1)
    busy, queued = process.create("busy"), process.create("op")
    first = Background(lambda: process.resume(busy))
    wait_for(at_work)
    second = Background(lambda: process.resume(queued))
    eventually(lambda: bool(process.engine.supervisor.wait_while_active([busy], 0.0)))
    process.engine.close()
    with pytest.raises(Abandoned):
        second.join()
    go_on.set()
    with pytest.raises(Abandoned):
        first.join()


# -- several owners


def test_two_engines_on_one_run_have_one_owner(lab: Lab):
    """Both get the result, nothing is asked twice, the stream has one attempt."""
    lab.put("op", lambda s: s.write("r", [s.ask(f"k{index}") for index in range(20)]))
    one, two = lab.process(owner="one"), lab.process(owner="two")
    run_id = one.create("op")
    runs = [Background(process.resume, run_id) for process in (one, two)]
    results = [run.join() for run in runs]
    assert results[0] == results[1]
    assert results[0].phase == "Completed"
    assert set(lab.world.counts.values()) == {1}
    assert lab.attempts(run_id) == [0]


def test_two_engines_share_a_tree_without_repeating_a_call(lab: Lab):
    """Children may be driven by either process; each call happens once."""
    lab.put("child", lambda s: s.write("r", [s.ask(f"{s.input}.{index}") for index in range(3)]))
    lab.put("op", lambda s: s.write("r", [end["status"] for end in s.fan_out("child", range(12))]))
    one, two = lab.process(owner="one", max_concurrency=2), lab.process(owner="two", max_concurrency=2)
    run_id = one.create("op")
    runs = [Background(process.resume, run_id) for process in (one, two)]
    eventually(lambda: len(lab.children(run_id)) == 12)
    child_id = lab.children(run_id)[-1].run_id
    helper = Background(lambda: two.resume(child_id))
    assert [run.join().phase for run in runs] == ["Completed"] * 2
    assert helper.join().phase == "Completed"
    assert len(lab.world.calls) == 36
    assert set(lab.world.counts.values()) == {1}


def test_the_same_task_with_a_higher_try_takes_over_at_once(lab: Lab):
    """The old try, still at work, can neither write nor call any more."""
    at_work, go_on = threading.Event(), threading.Event()

    def handler(s: Stage) -> None:
        if not at_work.is_set():
            at_work.set()
            wait_for(go_on)
        s.ask("k")

    lab.put("op", handler)
    zombie = lab.process()
    run_id = zombie.create("op")
    lost = Background(lambda: zombie.resume(run_id))
    wait_for(at_work)
    assert lab.process().resume(run_id).phase == "Completed"
    go_on.set()
    assert lost.join().phase == "Completed"
    assert lab.names(run_id) == [
        "RunStarted",
        "StateEntered",
        "StateFailed",
        "StateEntered",
        "fact_recorded",
        "StateCompleted",
        "RunCompleted",
    ]


def test_a_lease_of_another_task_is_waited_for_until_its_session_is_over():
    """Nobody takes a living session's run; once the session has expired, anybody may."""
    with new_lab(clock=ManualClock()) as still:
        still.put("op", lambda s: s.ask("die"))
        run_id = still.process().create("op")
        crash_in_handler(still, run_id, session_ttl_s=3600.0)
        other = still.process(owner="other", session_ttl_s=3600.0)
        run = Background(lambda: other.resume(run_id))
        eventually(lambda: other.house.keeper._session_id is not None)
        assert still.attempts(run_id) == [0]
        assert not run.is_done
        move(still, 3_600_000_000 - 1)
        other.house.store.renew_session(other.house.keeper.session_id(), 10**12)
        assert not run.is_done
        move(still, 1)
        assert run.join().phase == "Completed"
        assert recovered(still, run_id) == ["lapsed"]


def test_no_call_starts_once_the_session_may_be_over(lab: Lab, monkeypatch: pytest.MonkeyPatch):
    """A process that cannot renew stops acting before its lease ends, and goes on under a new session afterwards."""
    cut = threading.Event()
    lab.world.scripts["second"] = []
    process = lab.process(session_ttl_s=0.2)
    real = lab.store.renew_session
    seen: list[str] = []

    def renew(session_id: UUID, ttl_us: int) -> Any:
        if cut.is_set():
            raise UnavailableError("no route")
        return real(session_id, ttl_us)

    monkeypatch.setattr(lab.store, "renew_session", renew)

    def handler(s: Stage) -> None:
        s.ask("first")
        if not seen:
            cut.set()
            eventually(lambda: not process.house.keeper.is_safe)
            try:
                s.ask("second")
            except LeaseLost:
                seen.append("lost")
                cut.clear()
                raise
        s.ask("second")

    lab.put("op", handler)
    result = process.start("op")
    assert result.phase == "Completed"
    assert seen == ["lost"]
    assert lab.world.counts == {"first": 1, "second": 1}
    assert recovered(lab, result.run_id) == ["lapsed"]


def test_a_session_that_is_over_is_followed_by_a_new_one(lab: Lab):
    """A process that slept through its session (a laptop, a paused container) does not use up the run's recoveries."""
    lab.put("op", lambda s: s.ask("k"))
    process = lab.process(session_ttl_s=0.1)
    first = process.house.keeper.session_id()
    lab.store.close_session(first)
    eventually(lambda: not process.house.keeper.owns(first))
    assert process.start("op").phase == "Completed"
    assert process.house.keeper.session_id() != first


def test_waits_end_by_the_clock_of_the_store():
    """A worker whose clock is an hour slow neither waits an hour longer nor writes its own time."""
    with new_lab(clock=ManualClock()) as still:
        slow = ManualClock(still.clock.now_us() - 3_600_000_000)
        still.put("op", lambda s: s.io.sleep("nap", 5_000_000))
        process = still.process(clock=slow)
        run_id = process.create("op")
        run = Background(lambda: process.resume(run_id))
        eventually(lambda: "wait_opened" in still.names(run_id))
        assert still.domain(run_id, "wait_opened")[0]["until"] == still.clock.now_us() + 5_000_000
        slow.advance(5_000_000)
        move(still, 5_000_000)
        assert run.join().phase == "Completed"


# -- resume


def test_resume_of_an_unknown_run(lab: Lab):
    """run_not_found."""
    with pytest.raises(NotFoundError) as caught:
        lab.process().resume(UUID(int=7))
    assert caught.value.code == "run_not_found"


def test_resume_of_an_ended_run_writes_nothing(lab: Lab):
    """The answer is what is stored."""
    lab.put("op", lambda s: s.write("x", 1))
    result = lab.process().start("op")
    process = lab.process()
    assert process.resume(result.run_id) == result
    assert process.gate.commits == []


def test_failpoint_leaves_the_attempt_open_and_resume_in_the_same_process_finishes(lab: Lab):
    """Phases Running, then Completed; the failpoint works once."""
    lab.put("op", lambda s: s.write("x", 1))
    process = lab.process()
    run_id = process.create("op")
    process.stop_after_handler(run_id)
    assert process.resume(run_id).phase == "Running"
    assert lab.names(run_id) == ["RunStarted", "StateEntered"]
    assert process.resume(run_id).phase == "Completed"
    assert lab.attempts(run_id) == [0, 1]
    assert lab.final(run_id) == {"op.main.x": 1}


def test_store_that_stays_away_ends_the_call_and_leaves_the_run_open(lab: Lab):
    """After the patience the caller hears of it, nothing is Failed, the next process goes on."""
    lab.put("op", lambda s: s.ask("k"))
    process = lab.process()
    process.house.patience._limit_s = 0.1
    run_id = process.create("op")

    def away(number: int, commit: Any) -> None:
        if number >= 3:
            raise UnavailableError("no route")

    process.gate.on_commit = away
    with pytest.raises(UnavailableError):
        process.resume(run_id)
    assert lab.row(run_id).status == "Running"
    assert lab.process().resume(run_id).phase == "Completed"
    assert lab.world.counts == {"k": 2}
