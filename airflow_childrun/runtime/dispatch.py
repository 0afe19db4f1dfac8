"""Children that DAG runs of a runner DAG drive: which DAG run has which of them, and what is done when one is lost."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol
from uuid import UUID

from airflow_childrun.errors import ChildRunError, ErrorInfo, HostError
from airflow_childrun.model.events import CHILD_RUNS_DISPATCHED, DomainEvent
from airflow_childrun.runtime.histories import load_history
from airflow_childrun.store.api import RunRow, Store

_log = logging.getLogger("airflow.task.childrun")
CONF_KEY = "childrun"
ACTIVE = ("queued", "running")
MOST_ASKED = 100
"""About how many DAG runs one question may ask: their ids stand in a URL."""
MOST_DISPATCHES = 4
"""How many DAG runs one try gives to the same children before it gives up."""

OnRunnerLost = Literal["redispatch", "fail"]
Cut = Callable[[Sequence[UUID]], "Sequence[Batch]"]
"""Says which DAG runs are to drive the runs that a commit creates."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Runs that one DAG run drives.

    :param run_ids: the first of them names the batch
    :param number: which DAG run of this batch it is, from 1
    :param on_runner_lost: what is done when the DAG run is over, or gone, before its runs have ended
    """

    runner_dag_id: str
    run_ids: tuple[UUID, ...]
    number: int = 1
    on_runner_lost: OnRunnerLost = "redispatch"

    @property
    def dag_run_id(self) -> str:
        """The id of the DAG run: whoever dispatches the batch anew finds the same one."""
        return f"childrun__{self.run_ids[0]}" + (f"__{self.number}" if self.number > 1 else "")

    @property
    def conf(self) -> dict[str, Any]:
        """What the DAG run is told."""
        return {CONF_KEY: {"run_ids": [str(run_id) for run_id in self.run_ids]}}

    def to_json(self) -> dict[str, Any]:
        """Return the entry of a ``child_runs_dispatched`` event."""
        ids = [str(run_id) for run_id in self.run_ids]
        entry = {"runner_dag_id": self.runner_dag_id, "run_ids": ids, "number": self.number}
        return entry if self.on_runner_lost == "redispatch" else {**entry, "on_runner_lost": self.on_runner_lost}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Batch:
        """Read an entry back."""
        run_ids = tuple(UUID(run_id) for run_id in entry["run_ids"])
        return cls(entry["runner_dag_id"], run_ids, entry["number"], entry.get("on_runner_lost", "redispatch"))

    def __str__(self) -> str:
        return f"DAG run {self.dag_run_id} of DAG {self.runner_dag_id}"


@dataclass(frozen=True, slots=True)
class Cutter:
    """Cuts runs into batches, in their order.

    :param size: how many runs one DAG run drives
    """

    runner_dag_id: str
    size: int
    on_runner_lost: OnRunnerLost = "redispatch"

    def __call__(self, run_ids: Sequence[UUID]) -> list[Batch]:
        """Return the batches."""
        starts = range(0, len(run_ids), self.size)
        cuts = [tuple(run_ids[start : start + self.size]) for start in starts]
        return [Batch(self.runner_dag_id, cut, on_runner_lost=self.on_runner_lost) for cut in cuts]


def successors(batches: Mapping[UUID, Batch], before: Mapping[UUID, UUID]) -> Cut:
    """Return what puts next generations together as the ones before them were.

    :param batches: by run id
    :param before: by run id of a next generation, the run that it continues
    """

    def cut(run_ids: Sequence[UUID]) -> list[Batch]:
        together: dict[Batch, list[UUID]] = {}
        for run_id in run_ids:
            batch = batches.get(before[run_id])
            if batch is not None:
                together.setdefault(batch, []).append(run_id)
        return [replace(batch, run_ids=tuple(ids), number=1) for batch, ids in together.items()]

    return cut


def dispatched_event(batches: Sequence[Batch]) -> DomainEvent:
    """Return the event that says which DAG run is to drive what, written before any is triggered."""
    return DomainEvent(name=CHILD_RUNS_DISPATCHED, payload={"batches": [batch.to_json() for batch in batches]})


def batches_of(store: Store, host_ids: Iterable[UUID]) -> dict[UUID, Batch]:
    """Return by run id the last batch in which a run was dispatched, as the streams of tasks tell it."""
    found: dict[UUID, Batch] = {}
    for host_id in dict.fromkeys(host_ids):
        for entry in load_history(store, host_id).dispatched:
            batch = Batch.from_json(entry)
            for run_id in batch.run_ids:
                if run_id not in found or found[run_id].number <= batch.number:
                    found[run_id] = batch
    return found


def newest_dag_run(dag_runs: DagRuns, batch: Batch) -> tuple[Batch, str | None]:
    """Return the newest DAG run of a batch, and its state: others may have dispatched anew since it was recorded.

    :raises HostError: code ``airflow_unavailable``
    """
    state = dag_runs.state(batch.runner_dag_id, batch.dag_run_id)
    while state not in ACTIVE:
        following = replace(batch, number=batch.number + 1)
        later = dag_runs.state(following.runner_dag_id, following.dag_run_id)
        if later is None:
            break
        batch, state = following, later
    return batch, state


class DagRuns(Protocol):
    """Asks Airflow for DAG runs. Each may raise HostError, code ``airflow_unavailable``: ask again later."""

    def trigger(self, dag_id: str, run_id: str, conf: Mapping[str, Any]) -> bool:
        """Make a DAG run; False if there is one of this id.

        :raises HostError: codes ``dag_not_found``, ``dag_refused``
        """

    def state(self, dag_id: str, run_id: str) -> str | None:
        """Return ``queued``, ``running``, ``success`` or ``failed``; None if there is none."""

    def count_active(self, dag_id: str, run_ids: Sequence[str]) -> int:
        """Return how many of them are queued or run."""

    def error_of(self, dag_id: str, run_id: str) -> ErrorInfo | None:
        """Return why a DAG run could not drive its children, as far as it could say so."""


@dataclass
class Dispatcher:
    """Has DAG runs drive children, and another one when one is lost.

    :param batches: by run id
    :param record: makes batches durable, before they are triggered
    :param errors: by run id, why nobody will go on with a child
    """

    store: Store
    dag_runs: DagRuns
    batches: dict[UUID, Batch]
    record: Callable[[Sequence[Batch]], None]
    errors: dict[UUID, ChildRunError] = field(default_factory=dict)
    _made: dict[UUID, int] = field(default_factory=dict)

    def drives(self, run_id: UUID) -> bool:
        """Whether DAG runs are to drive a run."""
        return run_id in self.batches

    def begin(self, rows: Iterable[RunRow]) -> int:
        """See to it that every child which has not ended has its DAG run; return how many were made.

        :raises HostError: codes ``dag_not_found``, ``dag_refused``, ``airflow_unavailable``
        """
        made = 0
        for chunk in self._idle_batches(rows):
            if self._all_active(chunk):
                continue
            for batch in chunk:
                if self._trigger(batch):
                    made += 1
                elif (state := self._state(batch)) not in ACTIVE:
                    # That a try begins is reason enough to dispatch anew, whatever the policy says of later losses.
                    self._follow_up(batch, state, again=True)
        return made

    def look(self, rows: Iterable[RunRow]) -> None:
        """Notice DAG runs that ended, or are gone, before their children have.

        :raises HostError: code ``stale_attempt``, if another try of this task has begun
        """
        try:
            for chunk in self._idle_batches(rows):
                if not self._all_active(chunk):
                    for batch, state in [(batch, self._state(batch)) for batch in chunk]:
                        if state not in ACTIVE:
                            self._follow_up(batch, state)
        except HostError as error:
            if error.code != "airflow_unavailable":
                raise
            _log.warning("the DAG runs that drive children cannot be looked at now: %s", error)

    def _idle_batches(self, rows: Iterable[RunRow]) -> list[list[Batch]]:
        """Return the batches of children that nobody drives, as many together as one question may hold."""
        by_dag: dict[str, list[Batch]] = {}
        for batch in dict.fromkeys(self.batches[row.run_id] for row in rows if self._is_idle(row)):
            by_dag.setdefault(batch.runner_dag_id, []).append(batch)
        return [
            found[start : start + MOST_ASKED] for found in by_dag.values() for start in range(0, len(found), MOST_ASKED)
        ]

    def _all_active(self, chunk: Sequence[Batch]) -> bool:
        ids = [batch.dag_run_id for batch in chunk]
        return self.dag_runs.count_active(chunk[0].runner_dag_id, ids) == len(ids)

    def _state(self, batch: Batch) -> str | None:
        return self.dag_runs.state(batch.runner_dag_id, batch.dag_run_id)

    def _trigger(self, batch: Batch) -> bool:
        return self.dag_runs.trigger(batch.runner_dag_id, batch.dag_run_id, batch.conf)

    def _is_idle(self, row: RunRow) -> bool:
        return (
            row.run_id in self.batches
            and row.run_id not in self.errors
            and not row.is_terminal
            and row.lease_expires_at is None
        )

    def _follow_up(self, batch: Batch, state: str | None, *, again: bool = False) -> None:
        """Dispatch anew what a DAG run left, or remember why nobody will go on with it."""
        # Rows first, DAG run second: what had ended in between is no loss.
        rows = self.store.get_runs(batch.run_ids).values()
        left = [row for row in rows if self._is_idle(row)]
        if not left:
            return
        what = "was deleted" if state is None else f"ended ({state})"
        cause = self.dag_runs.error_of(batch.runner_dag_id, batch.dag_run_id)
        text = f"the {batch} {what} before {len(left)} of its {len(batch.run_ids)} children had ended"
        if cause is not None:
            text = f"{text}: [{cause.code}] {cause.message}"
        made = self._made.get(batch.run_ids[0], 1)
        is_final = cause is not None and not cause.retryable
        if not again and (is_final or batch.on_runner_lost == "fail" or made >= MOST_DISPATCHES):
            error = HostError(text, code="runner_lost", retryable=not is_final)
            self.errors.update(dict.fromkeys((row.run_id for row in left), error))
            _log.error("%s", text)
            return
        following = replace(batch, number=batch.number + 1)
        self.record([following])
        self.batches.update(dict.fromkeys(batch.run_ids, following))
        self._made[batch.run_ids[0]] = made + 1
        self._trigger(following)
        _log.warning("%s; dispatched anew: %s", text, following.dag_run_id)
