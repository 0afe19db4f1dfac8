"""An attempt that has an end: its handler runs beside the driver, which goes on without it when the time is over.

A handler that is inside a call of its own cannot be stopped. It is abandoned: its ``io`` is dead and it holds no slot, but
what it does outside of ``io`` goes on, so that whoever would follow it in this process waits until it has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from uuid import UUID

from airflow_childrun.engine.attempt import Failed, Outcome
from airflow_childrun.engine.history import RunHistory
from airflow_childrun.engine.ports import NO_EXTRAS, Extras
from airflow_childrun.errors import Abandoned, StateError
from airflow_childrun.model.events import Event
from airflow_childrun.runtime.house import House
from airflow_childrun.runtime.journal import Pen
from airflow_childrun.runtime.scheduler import Monitor
from airflow_childrun.runtime.waiting import LONGEST_LOOK_S, Hold
from airflow_childrun.store.api import Artifact

STATE_TIMED_OUT = "state_timed_out"


class AttemptPen:
    """A pen that can be taken away from its attempt without ending the run's journal."""

    def __init__(self, journal: Pen, monitor: Monitor) -> None:
        self._journal = journal
        self._monitor = monitor
        self._is_taken = False

    @property
    def history(self) -> RunHistory:
        """What the run's events mean."""
        return self._journal.history

    def append(self, events: Sequence[Event], extras: Extras = NO_EXTRAS) -> None:
        """Make the events durable, all or none."""
        with self._monitor:
            self._require()
            self._journal.append(events, extras)

    def read_artifact(self, artifact_id: str) -> bytes:
        """Return an artifact of the run's tree."""
        self._require()
        return self._journal.read_artifact(artifact_id)

    def artifact(self, kind: str, body: bytes) -> Artifact:
        """Make an artifact of the run's tree; stored by the append that carries it."""
        return self._journal.artifact(kind, body)

    def before_call(self) -> None:
        """Raise an Interrupt if the attempt may not act on the world any more."""
        self._require()
        self._journal.before_call()

    def take_away(self) -> None:
        """Let the attempt write nothing more; a commit of its own that is under way happens first."""
        with self._monitor:
            self._is_taken = True

    def _require(self) -> None:
        if self._is_taken:
            raise Abandoned("this attempt ran out of time")


class Handler:
    """A handler at work beside its driver."""

    def __init__(self, monitor: Monitor, work: Callable[[], Outcome]) -> None:
        self._monitor = monitor
        self._work = work
        self._outcome: Outcome | BaseException | None = None

    @property
    def has_ended(self) -> bool:
        """Whether its thread does nothing more."""
        return self._outcome is not None

    def run(self) -> None:
        """Work, and wake whoever waits."""
        try:
            outcome: Outcome | BaseException = self._work()
        except BaseException as raised:  # noqa: BLE001 - raised again in the driver's thread
            outcome = raised
        with self._monitor:
            self._outcome = outcome
            self._monitor.notify_all()

    def result(self) -> Outcome:
        """Return its outcome, or raise what it raised."""
        if self._outcome is None:
            raise AssertionError("it has not ended")
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        return self._outcome


class TimedAttempts:
    """The attempts of one run that have an end."""

    def __init__(self, house: House, run_id: UUID) -> None:
        self._house = house
        self._monitor = house.slots.monitor
        self._run_id = run_id
        self._left: list[Handler] = []

    def attempt(self, journal: Pen, hold: Hold, until_us: int, work: Callable[[Pen, Hold], Outcome]) -> Outcome | None:
        """Return what ``work`` returns, or None if the time was over first: then it was abandoned.

        :raises Interrupt: if the attempt has to be left open
        """
        if until_us <= self._house.now_us():
            return None
        pen = AttemptPen(journal, self._house.scheduler.monitor())
        lent = hold.lend(until_us)
        handler = Handler(self._monitor, lambda: work(pen, lent))
        self._house.scheduler.start(f"childrun {self._run_id} handler", handler.run)
        with self._monitor:
            while not handler.has_ended and (left_us := until_us - self._house.now_us()) > 0:
                self._house.slots.pause(min(left_us / 1_000_000, LONGEST_LOOK_S))
        hold.regain(lent)
        if not handler.has_ended:
            pen.take_away()
        if handler.has_ended:
            return handler.result()
        self._left.append(handler)
        hold.has_left = self._are_at_work
        return None

    def wait_for_left(self, hold: Hold) -> None:
        """Wait, holding no slot, until every handler that was abandoned has ended.

        :raises Abandoned: if the process gives up
        :raises CancelInterrupt: if the run is asked to end meanwhile
        :raises DeadlineInterrupt: if the run is out of time
        """
        if self._are_at_work():
            hold.release()
            hold.wait_while(self._are_at_work)
            hold.take_again()

    def outlast(self) -> None:
        """Wait until every handler that was abandoned has ended, whatever else happens: the lease is to be given back."""
        with self._monitor:
            while self._are_at_work():
                self._monitor.wait(LONGEST_LOOK_S)

    def _are_at_work(self) -> bool:
        return any(not handler.has_ended for handler in self._left)


def time_over(state_id: str, timeout_us: int | None) -> Failed:
    """Return the failure of an attempt that ran out of its state's time."""
    span = "its time" if timeout_us is None else f"the {timeout_us / 1_000_000:g} s that it is given"
    error = StateError(f"{state_id} took longer than {span}", code=STATE_TIMED_OUT, retryable=True)
    return Failed(error.info, error)
