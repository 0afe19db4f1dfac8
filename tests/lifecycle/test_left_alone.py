"""What the simulation found: runs that were left alone by a living process, and runs that ended twice."""

from __future__ import annotations

import threading
from typing import Any
from uuid import UUID

import pytest

from airflow_childrun.errors import UnavailableError
from airflow_childrun.runtime.closing import cancel_run
from airflow_childrun.runtime.engine import RunResult
from airflow_childrun.store.verify import verify_run
from tests.engine.kit import Background, Stage, eventually, new_lab


def test_a_living_process_does_not_keep_the_lease_of_a_run_that_it_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its session was in doubt for a moment; then it lives on, and another process drives the run all the same."""
    with new_lab() as lab:
        first = lab.process(owner="first", session_ttl_s=0.5)
        cut, left = threading.Event(), threading.Event()
        real = lab.store.renew_session

        def renew(session_id: UUID, ttl_us: int) -> Any:
            if cut.is_set():
                raise UnavailableError("no route")
            return real(session_id, ttl_us)

        def handler(s: Stage) -> None:
            if not left.is_set():
                cut.set()
                eventually(lambda: not first.house.keeper.is_safe)
                cut.clear()
                left.set()
            s.ask("k")

        monkeypatch.setattr(lab.store, "renew_session", renew)
        lab.put("op", handler)
        run_id = first.create("op")
        first.engine.supervisor.hand_over(run_id)
        eventually(first.engine.supervisor.is_idle)
        assert Background(lambda: lab.process(owner="second").resume(run_id)).join().phase == "Completed"
        assert lab.world.counts == {"k": 1}


@pytest.mark.parametrize("happens", [False, True])
def test_a_commit_of_unknown_outcome_leaves_no_lease_behind(happens: bool) -> None:
    """The process gives the run up after an answer that never came; whether or not the commit happened, others drive it."""
    with new_lab() as lab:
        first = lab.process(owner="first")
        first.house.patience._limit_s = 0.0

        def lose(number: int, commit: Any) -> None:
            if b"StateEntered" in b"".join(event.body for step in commit.steps for event in step.events):
                first.gate.on_commit = lambda number, commit: None
                if happens:
                    lab.store.commit([commit])
                raise UnavailableError("the answer is lost")

        lab.put("op", lambda s: s.ask("k"))
        run_id = first.create("op")
        first.gate.on_commit = lose
        first.engine.supervisor.hand_over(run_id)
        eventually(first.engine.supervisor.is_idle)
        assert lab.row(run_id).lease_session_id is None
        assert Background(lambda: lab.process(owner="second").resume(run_id)).join().phase == "Completed"


def test_a_session_whose_leases_cannot_be_given_back_runs_out() -> None:
    """Where even the giving back fails, the process takes no further run in that session."""
    with new_lab() as lab:
        first = lab.process(owner="first")
        first.house.patience._limit_s = 0.0

        def refuse(number: int, commit: Any) -> None:
            raise UnavailableError("disk full")

        def handler(s: Stage) -> None:
            first.gate.on_commit = refuse
            s.ask("k")

        lab.put("op", handler)
        run_id = first.create("op")
        first.engine.supervisor.hand_over(run_id)
        eventually(first.engine.supervisor.is_idle)
        session_id = lab.row(run_id).lease_session_id
        assert session_id is not None
        assert not first.house.keeper.owns(session_id)


def test_a_run_given_up_for_its_dead_owners_ends_once_though_it_was_cancelled() -> None:
    """The end that the recovery limit wrote stands; the request to cancel comes too late."""
    with new_lab() as lab:
        lab.put("op", lambda s: s.ask("die"))
        dying = lab.process(recovery_limit=0)
        run_id = dying.create("op")
        lab.world.scripts["die"] = [lambda request: dying.crash()]
        with pytest.raises(BaseException):  # noqa: B017 - the process is dead
            dying.resume(run_id)
        last = lab.process(recovery_limit=0)
        assert cancel_run(last.house, run_id, "too late") == {run_id: "requested"}
        assert last.resume(run_id).phase == "Failed"
        assert lab.row(run_id).error_code == "recovery_limit_exceeded"
        assert verify_run(lab.store, run_id) == []


def test_a_run_that_ends_while_it_is_loaded_is_not_touched() -> None:
    """Its row said that it was free; when its events were read it had ended."""
    with new_lab() as lab:
        lab.put("op", lambda s: s.ask("k"))
        slow, fast = lab.process(owner="slow"), lab.process(owner="fast")
        run_id = slow.create("op")
        real, done = slow.house.store.read_events, list[RunResult]()

        def read_events(*args: Any, **kwargs: Any) -> Any:
            if not done:
                done.append(fast.resume(run_id))
            return real(*args, **kwargs)

        slow.gate.__dict__["read_events"] = read_events
        assert slow.resume(run_id).phase == "Completed"
        assert done[0].phase == "Completed"
        row = lab.row(run_id)
        assert (row.head.epoch, row.lease_session_id) == (1, None)
