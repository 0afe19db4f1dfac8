"""The end of a run that was cancelled or ran out of time: children first, clean-up, then the last commit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import UUID

from airflow_childrun.engine.history import RunHistory
from airflow_childrun.engine.inbox import EndRequest
from airflow_childrun.engine.ports import Extras
from airflow_childrun.errors import ErrorInfo
from airflow_childrun.model.events import DEADLINE_OVER, RUN_TIMED_OUT, Failure, RunCompleted, StateFailed
from airflow_childrun.runtime.closing import closable_children, close_posts, consumed_event
from airflow_childrun.runtime.house import House
from airflow_childrun.runtime.journal import RunJournal
from airflow_childrun.store.api import RunRow

RUN_CANCELLED = "run_cancelled"


@dataclass(frozen=True, slots=True)
class Ender:
    """Writes the ends that no handler chose.

    :param ring: has children of this process look into their inboxes at once
    :param wait_all: drives children to their ends, holding no slot
    """

    house: House
    journal: RunJournal
    ring: Callable[[Sequence[UUID]], None]
    wait_all: Callable[[Sequence[UUID]], None]

    def end_children(self, reason: str) -> None:
        """Ask the children to end that are to end with their parent, and wait until they have."""
        rows = self._closable()
        if not rows:
            return
        posts = close_posts(self.house, (row.run_id for row in rows), reason)
        self.house.patience.attempt(lambda: self.house.store.post(posts))
        ids = [row.run_id for row in rows]
        self.ring(ids)
        self.wait_all(ids)

    def close_attempt(self, code: str, message: str, *, real: bool) -> None:
        """Close the open attempt, as a failure of its own or as given back."""
        attempt = self.journal.history.open_attempt
        if attempt is None:
            return
        info = ErrorInfo(code, message=message)
        failed = StateFailed(state_id=attempt.state_id, error=Failure(state_id=attempt.state_id, info=info.to_json()))
        self.journal.stage([failed if real else failed.model_copy(update={"recovered": "released"})])

    def finish_cancelled(self, request: EndRequest) -> None:
        """Write the last events of a cancelled run."""
        history = self.journal.history
        if history.inbox_consumed < request.n:
            self.journal.stage([consumed_event(request)])
        end = RunCompleted(status="Cancelled", final_snapshot_id=history.checkpoint_id, reason=request.to_json())
        self.journal.stage([end])
        self.journal.flush(release=True)

    def finish_timed_out(self) -> None:
        """Write the last events of a run whose deadline is over; its children are asked to end in the same commit."""
        self.close_attempt(RUN_TIMED_OUT, DEADLINE_OVER, real=True)
        history = self.journal.history
        end = RunCompleted(status="Failed", final_snapshot_id=history.checkpoint_id, reason={"code": RUN_TIMED_OUT})
        self.journal.stage([end])
        self.finish_unwell("its parent ran out of time")

    def finish_unwell(self, reason: str) -> None:
        """Make a staged end durable that is not Completed, and ask the children to end in the same commit."""
        rows = self._closable()
        posts = close_posts(self.house, (row.run_id for row in rows), reason)
        self.journal.flush(Extras(posts=tuple(posts)), release=True)
        self.ring([row.run_id for row in rows])

    def _closable(self) -> list[RunRow]:
        ids = children_of(self.journal.history)
        if not ids:
            return []
        return self.house.patience.attempt(lambda: closable_children(self.house.store, ids))


def children_of(history: RunHistory) -> list[UUID]:
    """Return the children that a run has spawned, those of the runs that it continues included."""
    return [child.child_run_id for child in history.children]
