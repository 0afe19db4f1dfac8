"""Whatever a handler raises ends in StateFailed; how often it is tried again, and when (rules 8 and 10, spec 9.4)."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_childrun.engine.ports import IoCall
from airflow_childrun.errors import (
    Abandoned,
    ChildRunError,
    ErrorInfo,
    OtherIoError,
    OtherStorageError,
    StateError,
    TransportError,
)
from airflow_childrun.model.config import Duration, Exponential, Fixed, RetryPolicy, RunConfig
from airflow_childrun.model.events import StateFailed
from airflow_childrun.model.plan import StateMeta
from airflow_childrun.secret_policy import strict
from airflow_childrun.testing.clock import ManualClock
from tests.engine.kit import Background, Lab, Stage, eventually, new_lab, retrying


class UnspeakableError(Exception):
    """An exception without a text."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def odd_error() -> StateError:
    error = StateError("x")
    odd: Any = ("\ud800odd", "Nonsense", "yes", "m" * 9000 + "\udfff", {"f": object()})
    error.info = ErrorInfo(*odd)
    return error


def raising(error: BaseException) -> Any:
    def handler(s: Stage) -> None:
        raise error

    return handler


def failures(lab: Lab, run_id: Any) -> list[StateFailed]:
    return [event for event in lab.events(run_id) if isinstance(event, StateFailed)]


@pytest.mark.parametrize(
    ("error", "code", "retryable"),
    [
        (ValueError("no"), "handler_raised", True),
        (SystemExit(3), "handler_raised", False),
        (KeyboardInterrupt(), "handler_raised", False),
        (GeneratorExit(), "handler_raised", False),
        (RecursionError("deep"), "handler_raised", True),
        (StateError("mine", code="mine", retryable=True), "mine", True),
        (OtherIoError("io", code="io_x"), "io_x", False),
        (StateError("x", details={"f": float("nan"), "o": object()}), "state_failed", False),
        (UnspeakableError(), "handler_raised", True),
        (ValueError("half a pair \ud800"), "handler_raised", True),
        (odd_error(), "?odd", True),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_whatever_a_handler_raises_is_recorded_and_ends_the_run(
    lab: Lab, error: BaseException, code: str, retryable: bool
):
    """No exception, however odd, poisons a run: it is Failed, terminal and readable."""
    lab.put("op", raising(error))
    result = lab.process().start("op")
    assert result.phase == "Failed"
    (failed,) = failures(lab, result.run_id)
    info = failed.error.error
    assert (info.code, info.retryable, info.details) == (code, retryable, None)
    assert failed.error.state_id == "op.main.s0"
    assert lab.names(result.run_id)[-1] == "RunCompleted"
    assert lab.process().resume(result.run_id).phase == "Failed"


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (float("nan"), "context_snapshot_not_canonical"),
        (float("inf"), "context_snapshot_not_canonical"),
        (2**64, "context_snapshot_not_canonical"),
        (object(), "context_snapshot_not_canonical"),
        ({1: 2}, "context_snapshot_not_canonical"),
        ("\ud800", "context_snapshot_not_canonical"),
        ({"password": "hunter2hunter2"}, "secrets_detected"),
    ],
    ids=["nan", "inf", "too large", "object", "number as key", "half a pair", "secret"],
)
def test_a_context_that_cannot_be_stored_fails_its_state(lab: Lab, value: Any, code: str):
    """The handler returned, but what it wrote cannot be recorded: StateFailed, run terminal, nothing retried for ever."""
    lab.put("op", lambda s: s.write("x", value))
    result = lab.process().start("op")
    assert result.phase == "Failed"
    assert failures(lab, result.run_id)[0].error.error.code == code
    assert "hunter2" not in lab.stored_text()


def test_a_snapshot_error_keeps_the_last_good_snapshot(lab: Lab):
    """The final snapshot of a failed run is its last checkpoint."""
    lab.put("op", lambda s: s.write("good", 1), lambda s: s.write("bad", float("nan")))
    run_id = lab.process().start("op").run_id
    assert lab.final(run_id) == {"op.main.good": 1}


def test_retryable_failure_is_tried_again_from_the_same_base(lab: Lab):
    """Attempts 0 and 1; what the failed one wrote is gone."""
    seen: list[Any] = []

    def handler(s: Stage) -> None:
        seen.append(s.read("x"))
        s.write("x", len(seen))
        if len(seen) == 1:
            raise ValueError("once")

    lab.put("op", handler)
    result = lab.process().start("op", config=retrying(2))
    assert result.phase == "Completed"
    assert lab.attempts(result.run_id) == [0, 1]
    assert seen == [None, None]
    assert lab.final(result.run_id) == {"op.main.x": 2}


@pytest.mark.parametrize(("allowed", "made"), [(0, 1), (1, 1), (2, 2), (3, 3)])
def test_max_attempts_counts_all_attempts(lab: Lab, allowed: int, made: int):
    """0 and 1 both mean a single attempt."""
    lab.put("op", raising(ValueError("always")))
    result = lab.process().start("op", config=retrying(allowed))
    assert result.phase == "Failed"
    assert lab.attempts(result.run_id) == list(range(made))


def test_failure_that_is_not_retryable_ends_the_run_at_once(lab: Lab):
    """SystemExit and the like are not tried again."""
    lab.put("op", raising(SystemExit(1)))
    result = lab.process().start("op", config=retrying(5))
    assert lab.attempts(result.run_id) == [0]


def test_a_state_may_have_its_own_retry_policy(lab: Lab):
    """The state's policy governs in place of the run's."""
    lab.put("op", (raising(ValueError("x")), StateMeta(retry=RetryPolicy(max_attempts=3))))
    assert lab.attempts(lab.process().start("op").run_id) == [0, 1, 2]


@pytest.mark.parametrize(
    ("policy", "waits"),
    [
        (Fixed(delay=Duration(nanos=2_000_000)), [2000, 2000, 2000]),
        (Exponential(base_delay=Duration(nanos=1_000_000), max_delay=Duration(nanos=3_000_000)), [1000, 2000, 3000]),
    ],
    ids=["fixed", "exponential"],
)
def test_backoff_stands_in_the_log_and_is_exact_by_default(lab: Lab, policy: Any, waits: list[int]):
    """retry_at = the failure's time plus the wait: base first, doubled, capped, without jitter."""
    clock = ManualClock()
    with new_lab(clock=clock) as still:
        still.put("op", raising(ValueError("x")))
        process = still.process()
        run = Background(lambda: process.start("op", config=retrying(4, backoff=policy)))
        ats: list[int] = []
        for wait in waits:
            eventually(
                lambda: len(still.all_runs()) == 1 and len(failures(still, still.all_runs()[0].run_id)) > len(ats)
            )
            at = failures(still, still.all_runs()[0].run_id)[-1].retry_at
            assert at == clock.now_us() + wait
            ats.append(at)
            assert still.all_runs()[0].wake_at == at
            clock.advance(wait)
            with process.house.slots.monitor:
                process.house.slots.monitor.notify_all()
        assert run.join().phase == "Failed"
        assert failures(still, still.all_runs()[0].run_id)[-1].retry_at is None


def test_jitter_only_shortens_the_wait_by_the_given_part():
    """With 50 percent the wait lies between half and whole."""
    clock = ManualClock()
    with new_lab(clock=clock) as still:
        still.put("op", raising(ValueError("x")))
        process = still.process()
        policy = retrying(2, backoff=Fixed(delay=Duration(secs=100)), jitter_percent=50)
        run_id = process.create("op", config=policy)
        run = Background(lambda: process.resume(run_id))
        eventually(lambda: len(failures(still, run_id)) == 1)
        at = failures(still, run_id)[0].retry_at or 0
        assert 50_000_000 <= at - clock.now_us() <= 100_000_000
        process.engine.close()
        with pytest.raises(Abandoned):
            run.join()


def test_a_wait_beyond_every_clock_can_still_be_recorded(lab: Lab):
    """A policy of 2**64 - 1 seconds does not poison the run: the wait is capped where it can be stored."""
    lab.put("op", raising(ValueError("x")))
    process = lab.process()
    config = retrying(2, backoff=Fixed(delay=Duration(secs=2**64 - 1)))
    run_id = process.create("op", config=config)
    run = Background(lambda: process.resume(run_id))
    eventually(lambda: lab.row(run_id).wake_at is not None)
    assert lab.row(run_id).wake_at is not None
    process.engine.close()
    with pytest.raises(Abandoned):
        run.join()


def test_secret_in_an_error_is_redacted_and_details_dropped(lab: Lab):
    """The record says which state failed and with which code, and nothing of the secret."""
    error = StateError("login with password=hunter2", code="login_failed", details={"token": "hunter2"})
    with new_lab(policy=strict()) as careful:
        careful.put("op", raising(error))
        run_id = careful.process().start("op").run_id
        info = failures(careful, run_id)[0].error.error
        assert (info.code, info.message, info.details) == ("login_failed", "error details redacted", None)
        assert "hunter2" not in careful.stored_text()


def test_skip_tag_completes_a_state_without_its_handler(lab: Lab):
    """StateCompleted says `skipped`, its snapshot is the base."""
    calls: list[int] = []
    lab.put("op", lambda s: s.write("a", 1), (lambda s: calls.append(1), StateMeta(tags=("report",))))
    result = lab.process().start("op", config=RunConfig(skip_tags=("report",)))
    first, second = lab.completions(result.run_id)
    assert calls == []
    assert second.skipped
    assert not first.skipped
    assert second.context_snapshot_id == first.context_snapshot_id == result.final_snapshot_id


def test_a_handler_that_swallows_an_interrupt_cannot_go_on_writing(lab: Lab):
    """After the store refused, the attempt stays open whatever the handler catches; the next process goes on."""

    def handler(s: Stage) -> None:
        try:
            s.ask("a")
        except BaseException:  # what no handler should do
            s.ask("b")

    lab.put("op", handler)
    process = lab.process()
    run_id = process.create("op")

    def refuse(number: int, commit: Any) -> None:
        if commit.steps[0].events and b"fact_recorded" in commit.steps[0].events[0].body:
            raise OtherStorageError("disk full")

    process.gate.on_commit = refuse
    with pytest.raises(Exception, match="disk full"):
        process.resume(run_id)
    assert lab.names(run_id) == ["RunStarted", "StateEntered"]
    assert lab.process().resume(run_id).phase == "Completed"
    assert lab.names(run_id).count("fact_recorded") == 1


def test_an_event_that_cannot_be_stored_fails_the_handler_alone(lab: Lab):
    """A name or payload that no store can hold is refused before it counts, and the run goes on."""
    deep: Any = None
    for _ in range(99):
        deep = [deep]
    codes: list[str] = []

    def handler(s: Stage) -> None:
        for name, payload in (("\ud800", None), ("deep", deep), ("nan", float("nan")), ("fact_recorded", {})):
            try:
                s.rec.emit(name, payload)
            except Exception as error:
                codes.append(getattr(error, "code", type(error).__name__))
        s.rec.emit("fine", {"n": 1})

    lab.put("op", handler)
    result = lab.process().start("op")
    assert result.phase == "Completed"
    assert lab.names(result.run_id) == ["RunStarted", "StateEntered", "fine", "StateCompleted", "RunCompleted"]
    assert len(codes) == 4


@pytest.mark.parametrize(
    "raised", [ValueError("odd"), UnspeakableError(), TransportError("down", details={"o": object()})]
)
def test_whatever_a_transport_raises_is_recorded_and_delivered_again(lab: Lab, raised: Exception):
    """A crash right after the error does not ask the world again: the same error comes from the record."""
    lab.world.scripts["k"] = [raised]
    seen: list[tuple[str, str, str, Any]] = []

    def handler(s: Stage) -> None:
        try:
            s.ask("k")
        except ChildRunError as error:
            info = error.info
            seen.append((type(error).__name__, info.code, info.message, info.details))
            s.write("error", info.code)

    lab.put("op", handler)
    process = lab.process()
    run_id = process.create("op")
    process.stop_after_handler(run_id)
    assert process.resume(run_id).phase == "Running"
    assert lab.process().resume(run_id).phase == "Completed"
    assert lab.world.counts == {"k": 1}
    assert seen[0] == seen[1]
    assert lab.processes[-1].engine.replay(run_id) == lab.row(run_id).final_snapshot_id
    assert seen[2] == seen[0]


def test_call_without_key_raises_what_the_transport_raised(lab: Lab):
    """What is not recorded is not wrapped either."""
    lab.world.scripts["-"] = [ValueError("plain")]

    def handler(s: Stage) -> None:
        with pytest.raises(ValueError, match="plain"):
            s.io.call(IoCall("world", None))

    lab.put("op", handler)
    assert lab.process().start("op").phase == "Completed"
