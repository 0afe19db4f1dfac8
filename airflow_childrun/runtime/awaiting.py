"""What a task waits for: runs that this process drives, and runs that others drive, seen as one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from uuid import UUID

from airflow_childrun.errors import ChildRunError, HostError
from airflow_childrun.runtime.generations import all_runs, get_many
from airflow_childrun.runtime.house import House
from airflow_childrun.runtime.supervisor import Supervisor
from airflow_childrun.store.api import RunFilter, RunRow, Store

LOOK_S = 1.0
"""How long to wait for news of this process before looking around."""


class Awaiting:
    """Waits for the ends of many runs: drives those that nobody owns, and looks now and then at those of others.

    :param is_remote: whether a run is for others alone to drive
    :param poll_s: how often runs of others are looked at
    """

    def __init__(
        self,
        house: House,
        supervisor: Supervisor,
        rows: Iterable[RunRow],
        *,
        is_remote: Callable[[RunRow], bool] = lambda _: False,
        poll_s: float | None = None,
    ) -> None:
        self._house = house
        self._supervisor = supervisor
        self._is_remote = is_remote
        self._poll_s = house.limits.poll_s if poll_s is None else poll_s
        self._look_at_s = 0.0
        self.here: set[UUID] = set()
        """Runs that are driven here, as far as known."""
        self.elsewhere: dict[UUID, RunRow] = {}
        """Runs that have not ended and that others drive or will drive, as they were when last looked at."""
        self.errors: dict[UUID, ChildRunError] = {}
        """Why runs cannot be driven."""
        self._early: list[RunRow] = []
        self._place_all([row for row in rows if not row.is_terminal])

    @property
    def is_over(self) -> bool:
        """Whether every run has ended or cannot be driven, and what they left running has ended too."""
        return not self.here and not self.elsewhere and not self._early and self._supervisor.is_idle()

    def remote(self) -> set[UUID]:
        """Return those runs of others that they alone drive."""
        return {run_id for run_id, row in self.elsewhere.items() if self._is_remote(row)}

    def give_up(self, errors: Mapping[UUID, ChildRunError]) -> None:
        """Wait no longer for runs of others that nobody will go on with."""
        for run_id in self.elsewhere.keys() & errors.keys():
            del self.elsewhere[run_id]
            self.errors[run_id] = errors[run_id]

    def add(self, row: RunRow) -> None:
        """Wait for another run too."""
        self._place(row)

    def step(self, longest_s: float = LOOK_S) -> list[RunRow]:
        """Wait for news for about a second at most; return the rows of those that have ended meanwhile.

        :raises Abandoned: if the process gives up
        :raises HostError: code ``child_run_missing``, if a run is not in the store any more
        """
        self._supervisor.check_open()
        early, self._early = self._early, []
        if early:
            return early
        here = self._supervisor.wait_while_active(self.here, min(LOOK_S, longest_s))
        left, self.here = self.here - here, here
        if not left and not here:
            self._supervisor.wait_for_news(min(longest_s, self._poll_s))
        now_s = self._house.scheduler.now_s()
        asked = set(left)
        if now_s >= self._look_at_s:
            self._look_at_s = now_s + self._poll_s
            asked |= self.elsewhere.keys()
        return self._look(asked) if asked else []

    def _look(self, asked: Collection[UUID]) -> list[RunRow]:
        found = self._house.patience.attempt(lambda: self._house.store.get_runs(asked))
        ended = []
        for run_id in asked:
            row = found.get(run_id)
            if row is None:
                raise HostError(
                    f"child run {run_id} is not in the store any more; clear the task to spawn it again",
                    code="child_run_missing",
                )
            self.elsewhere.pop(run_id, None)
            if row.is_terminal:
                ended.append(row)
            elif (error := self._supervisor.error_of(run_id)) is not None:
                self.errors[run_id] = error
            else:
                self._place(row)
        return ended

    def _place_all(self, rows: Sequence[RunRow]) -> None:
        owned = [row.run_id for row in rows if not self._is_remote(row) and not self._supervisor.may_drive(row)]
        if owned:
            # Their owner may be an earlier try of this task, which the session of this one supersedes.
            self._house.patience.attempt(self._house.keeper.session_id)
        for row in rows:
            if row.run_id not in owned:
                self._place(row)
        if owned:
            self._early += self._look(owned)

    def _place(self, row: RunRow) -> None:
        """Have a run driven here, if that may be."""
        if not self._is_remote(row) and self._supervisor.may_drive(row):
            self.here.add(row.run_id)
            self._supervisor.hand_over(row.run_id)
        else:
            self.elsewhere[row.run_id] = row


def left_running(store: Store, rows: Iterable[RunRow]) -> list[UUID]:
    """Return runs below these whose parent has ended, and that nobody drives since their process left.

    Whoever drives a parent goes on with its children; these have only the task above them.

    :param rows: runs of one tree
    """
    slots = {row.slot_id: row.root_run_id for row in rows}
    found: list[UUID] = []
    for root_run_id in set(slots.values()):
        where = RunFilter(
            kind="operation", root_run_id=root_run_id, statuses=frozenset({"Pending", "Running"}), unowned=True
        )
        below = {row.run_id: row for row in all_runs(store, where) if row.depth > 1}
        above = {run_id: row.parent_run_id for run_id, row in below.items() if row.parent_run_id is not None}
        known: dict[UUID, RunRow] = {}
        level = set(above.values())
        while level:
            more = get_many(store, level)
            known |= more
            level = {row.parent_run_id for row in more.values() if row.parent_run_id is not None} - known.keys()
        found += [run_id for run_id, parent in above.items() if _is_left(parent, known, slots)]
    return found


def _is_left(parent_id: UUID, known: Mapping[UUID, RunRow], slots: Container[UUID]) -> bool:
    parent = known.get(parent_id)
    if parent is None or not parent.is_terminal:
        return False
    while parent is not None and parent.slot_id not in slots:
        parent = known.get(parent.parent_run_id) if parent.parent_run_id is not None else None
    return parent is not None
