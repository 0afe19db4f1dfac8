"""Ending a run's process at every IO, and saying what was different when the next one went on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from airflow_childrun.authoring.operation import Operation
from airflow_childrun.canonical import canonical_json_bytes
from airflow_childrun.engine.prepare import Request
from airflow_childrun.errors import ChildRunError, NotFoundError
from airflow_childrun.testing.process import Bench, Process
from airflow_childrun.testing.record import RunRecord, read_record
from airflow_childrun.testing.virtual_time import StuckError
from airflow_childrun.testing.watched_io import Ask, Entry, How, Point

SHOWN = 300
WAYS: dict[How, str] = {
    "crash": "its answer was recorded, and the process died before the handler saw it; no `finally` ran",
    "abandon": "its answer was recorded, and the process gave the run up; the handler was unwound",
    "in_flight": "the world had answered, and the process died before the answer was recorded",
}
SAME_KEYS = (
    "The code between steps runs again and must ask the same, in the same order, given the same answers. What differs from "
    "one time to the next (the clock, chance, another system, the order of a set) belongs in a step, or comes from io"
)
NO_FINALLY = (
    "Clean-up does not belong in `finally` or `except BaseException`: a killed process runs neither, and one that gives the "
    "run up runs them although the run goes on. Make it a step, or the operation's on_cancel"
)
NO_PATHS = "Whoever goes on may be another machine: return the data itself, or the address of a shared storage"


class ReentryError(AssertionError):
    """An operation does not survive the end of its process."""


@dataclass(frozen=True, slots=True)
class ReentryReport:
    """What was tried.

    :param ios: the IOs of the operation and its children
    :param ended: how often a process was ended
    """

    ios: int
    ended: int


class Trial:
    """A run on a store of its own: begun by one process, ended by others.

    :param make_process: makes a process on a bench; without one, a new bench
    """

    def __init__(
        self,
        operation: Operation,
        run_id: UUID,
        request: Request,
        make_process: Callable[[Bench | None, Point | None], tuple[Bench, Process]],
        point: Point | None = None,
    ) -> None:
        self.operation = operation
        self.run_id = run_id
        self.point = point
        self._request = request
        self._make_process = make_process
        self.bench, self.first = make_process(None, point)
        self.last = self.first

    def again(self, point: Point | None) -> Trial:
        """Return a trial of the same run that has not begun."""
        return Trial(self.operation, self.run_id, self._request, self._make_process, point)

    def begin(self) -> None:
        """Create the run and drive it until it, or its process, has ended."""
        self.first.create(self.run_id, self._request)
        self.first.drive(self.run_id)

    def resume(self) -> None:
        """Go on in another process."""
        _, self.last = self._make_process(self.bench, None)
        self.last.drive(self.run_id)

    def replay(self) -> None:
        """Run the handlers again over what is recorded.

        :raises NondeterminismError: where code and history part
        """
        _, process = self._make_process(self.bench, None)
        process.replay(self.run_id)

    def record(self) -> RunRecord:
        """Return what is recorded."""
        row = self.bench.store.find_run(self.run_id)
        if row is None:
            raise NotFoundError(f"there is no run {self.run_id}", code="run_not_found")
        return read_record(self.bench.store, row, self.operation)


def check_reentry(plain: Trial, hows: Sequence[How], rewind: Callable[[], None]) -> ReentryReport:
    """Run undisturbed, then end the process at every IO in every way.

    :param plain: not begun
    :raises ReentryError: what did not survive
    """
    rewind()
    plain.begin()
    wanted = plain.record()
    _check_paths(plain)
    points = [point for how in hows for point in _points(plain.first.log.entries, how)]
    with _quiet():
        for point in points:
            rewind()
            _Examination(plain, plain.again(point), point, wanted).examine()
        if wanted.completed:
            _check_replay(plain)
    rewind()
    return ReentryReport(sum(len(entry.asks) for entry in plain.first.log.entries), len(points))


def _points(entries: Sequence[Entry], how: How) -> Iterator[Point]:
    for entry in entries:
        for index in range(len(entry.asks)):
            if how != "in_flight" or index in entry.to_world:
                yield Point(entry.run_id, entry.state_id, entry.number, index, how)


class _Examination:
    """One end of a process, and what came of it."""

    def __init__(self, plain: Trial, trial: Trial, point: Point, wanted: RunRecord) -> None:
        self._plain = plain
        self._trial = trial
        self._point = point
        self._wanted = wanted

    def examine(self) -> None:
        """End the process, go on, and compare.

        :raises ReentryError: what was different
        """
        trial = self._trial
        try:
            trial.begin()
            if not trial.first.has_left:
                raise self._error(
                    "when the operation was run once more from the beginning, it never came there. What it asks depends on "
                    "something that a test must fake: give its steps the same answers each time",
                )
            trial.resume()
        except StuckError as stuck:
            raise self._error(f"then {stuck}") from stuck
        except ChildRunError as refused:
            raise self._error(f"the run could not go on: {refused}") from refused
        self._check_unwinding()
        for entry in trial.first.log.entries:
            if not entry.has_ended:
                self._check_asks(entry)
        self._check_end()
        _check_paths(trial)

    def _check_unwinding(self) -> None:
        for _, ask in self._trial.first.log.unwinding:
            raise self._error(f"while the handler was unwound, it used io again: {ask}. {NO_FINALLY}")

    def _check_asks(self, entry: Entry) -> None:
        """Compare what a handler asked before its process ended with what it asked when it was entered again."""
        again = self._trial.last.log.of(entry.run_id, entry.state_id)
        if not again:
            return
        for number, (before, after) in enumerate(zip(entry.asks, again[0].asks, strict=False), 1):
            if before != after:
                raise self._error(
                    f"entered again, {self._name(entry)} {_difference(number, before, after)}. {SAME_KEYS}"
                )
        if len(again[0].asks) < len(entry.asks):
            missing, ending = entry.asks[len(again[0].asks)], self._ending()
            hint = NO_FINALLY if ending and self._point.how == "crash" else SAME_KEYS
            raise self._error(
                f"entered again, {self._name(entry)} did not come to its IO {len(again[0].asks) + 1}, {missing}"
                f"{ending}. {hint}"
            )

    def _check_end(self) -> None:
        found, wanted = self._trial.record(), self._wanted
        if found.status != wanted.status:
            raise self._error(f"the run ended {found.status}{self._ending()}; undisturbed, it ended {wanted.status}")
        if self._point.how == "in_flight":
            return  # the world may have answered the repeated call otherwise
        for place, was, is_now in _differences(wanted, found):
            raise self._error(f"{place} was {_shown(is_now)}; undisturbed, it was {_shown(was)}. {SAME_KEYS}")

    def _ending(self) -> str:
        error = self._trial.record().error
        return "" if error is None else f": [{error.code}] {error.message}"

    def _name(self, entry: Entry) -> str:
        row = self._trial.bench.store.find_run(entry.run_id)
        state = entry.state_id.rpartition(".")[2]
        return f"state {state!r} of {row.op_id if row else entry.run_id}"

    def _error(self, what: str) -> ReentryError:
        point = self._point
        entry = self._plain.first.log.of(point.run_id, point.state_id)[point.number]
        ask, name = entry.asks[point.index], self._plain.operation.name
        return ReentryError(
            f"{name} does not survive the end of its process at IO {point.index + 1} of {len(entry.asks)} of "
            f"{self._name(entry)}: {ask} ({WAYS[point.how]}): {what}"
        )


def _difference(number: int, before: Ask, after: Ask) -> str:
    """Say in which way an IO is another one."""
    if before.kind == after.kind and len(before.asked) == len(after.asked) and before.asked:
        for (key, name, request), (new_key, new_name, new_request) in zip(before.asked, after.asked, strict=True):
            if key != new_key:
                return (
                    f"asked under another key: IO {number}, {before.kind}, had the key {key!r} and now has {new_key!r}"
                )
            if (name, request) != (new_name, new_request):
                return (
                    f"asked something else under the same key: IO {number}, {before.kind} {key!r}, was "
                    f"{name} with {_shown(request)} and is now {new_name} with {_shown(new_request)}"
                )
    return f"asked something else: IO {number} was {before} and is now {after}"


def _differences(wanted: RunRecord, found: RunRecord) -> Iterator[tuple[str, Any, Any]]:
    """Yield where two ends of a tree differ: place, then both values."""
    if wanted.status != found.status:
        yield f"the status of {found.operation}", wanted.status, found.status
    if wanted.output != found.output:
        yield f"the output of {found.operation}", wanted.output, found.output
    children = {child.run_id: child for child in found.children}
    for child in wanted.children:
        if child.run_id not in children:
            yield f"the children of {found.operation}: {child.key!r}", child.status, "missing"
        else:
            yield from _differences(child, children.pop(child.run_id))
    for extra in children.values():
        yield f"the children of {found.operation}: {extra.key!r}", "missing", extra.status


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what every one of many runs would log out of a test's report; the undisturbed run has logged it."""
    log = logging.getLogger("airflow_childrun")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def _check_replay(plain: Trial) -> None:
    try:
        plain.replay()
    except ChildRunError as parted:
        raise ReentryError(
            f"{plain.operation.name} cannot be replayed over what it recorded: {parted}. {SAME_KEYS}"
        ) from (parted)


def _check_paths(trial: Trial) -> None:
    """Refuse recorded paths into the temporary directory of a machine."""
    for process in (trial.first, trial.last):
        lost = str(process.directory)
        for record in _tree(trial.record()):
            for key, answer in record.facts.items():
                if not isinstance(answer, bytes) and lost.encode() in canonical_json_bytes(answer):
                    raise ReentryError(
                        f"{trial.operation.name} recorded a path of the machine it ran on, under the key {key!r} of "
                        f"{record.operation}: {_shown(answer)}. {NO_PATHS}"
                    )


def _tree(record: RunRecord) -> Iterator[RunRecord]:
    yield record
    for child in record.children:
        yield from _tree(child)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
