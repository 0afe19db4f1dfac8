"""The host run: an Airflow task instance as the parent of child runs, through its tries, clears and re-creations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal
from uuid import UUID

from airflow_childrun.engine.history import RunHistory
from airflow_childrun.errors import HostError
from airflow_childrun.ids import child_run_id
from airflow_childrun.model.events import HOST_RETURNED, HOST_TRY, DomainEvent
from airflow_childrun.runtime.child_retry import Again, next_attempt
from airflow_childrun.runtime.closing import withdraw_posts
from airflow_childrun.runtime.dispatch import Batch, Cut, Cutter, batches_of, dispatched_event, successors
from airflow_childrun.runtime.generations import find_cleaned_up, newest_of
from airflow_childrun.runtime.histories import is_drifted, load_history
from airflow_childrun.runtime.host_stream import HostStream
from airflow_childrun.runtime.host_tree import Opening, TreeKeeper, WantedChild, known_of
from airflow_childrun.runtime.host_try import (
    HostCoordinates,
    Kind,
    Known,
    Listed,
    OnClear,
    TryFacts,
    action_of,
    has_returned,
    kind_of,
    listed_of,
    plan_keys,
)
from airflow_childrun.runtime.house import House
from airflow_childrun.runtime.overdue import settle
from airflow_childrun.store.api import (
    Owner,
    RunRow,
    TakeLease,
)

CHUNK = 200
OnPlanChange = Literal["fail", "respawn"]


@dataclass(frozen=True, slots=True)
class Slot:
    """A child as this try has it.

    :param run_id: the generation that the try's list names
    """

    key: str
    slot_id: UUID
    run_id: UUID
    generation: int


@dataclass(frozen=True, slots=True)
class Opened:
    """A try that has begun.

    :param ran: how many children this try spawned, continued or started again
    :param repeated: how many of those had completed before
    """

    kind: Kind
    slots: tuple[Slot, ...]
    ran: int
    repeated: int = 0


class HostRun:
    """One task instance's run, during one try.

    Every append carries the epoch that the try raised when it began: a try that another one followed writes nothing more.

    :param airflow: what children are told of Airflow: dag_id, run_id, logical date and data interval
    """

    def __init__(self, house: House, coordinates: HostCoordinates, facts: TryFacts, airflow: Mapping[str, Any]) -> None:
        self._house = house
        self._coordinates = coordinates
        self._facts = facts
        self._airflow = dict(airflow)
        self._root = coordinates.root_run_id()
        self._history: RunHistory | None = None
        self._has_begun = False
        self._label = f"{coordinates.label} try {facts.try_number}"
        self._stream = HostStream(house, coordinates, self._label, self._airflow)

    @property
    def root_run_id(self) -> UUID:
        """The tree: that of the DAG run."""
        return self._root

    @property
    def run_id(self) -> UUID | None:
        """The host run of this try, once it has begun."""
        return None if self._stream.row is None else self._stream.row.run_id

    def spawn(
        self, wanted: Sequence[WantedChild], on_clear: OnClear, on_plan_change: OnPlanChange, cut: Cut | None = None
    ) -> Opened:
        """Begin the try with the list of its children, and make those exist that do not yet.

        :param cut: which DAG runs are to drive the children; None if this task does
        :raises HostError: codes ``stale_attempt``, ``host_list_changed``, ``child_run_conflict``
        :raises ChildRunError: what is wrong with an operation, an input or a configuration; nothing is stored then
        """
        kind, last = self._recognise()
        host_id = self._host_id(kind)
        keeper = TreeKeeper(self._house, host_id, self._root, self._airflow)
        keys = [*(child.key for child in wanted), *(entry.key for entry in last)]
        newest = self._newest(child_run_id(host_id, key) for key in keys)
        known = known_of(self._house.store, host_id, wanted, newest)
        known |= self._known_only_before(host_id, last, known, newest)
        keys = [child.key for child in wanted]
        listed = plan_keys(kind, last, keys, known, on_clear, returned=has_returned(self._last_try(kind)))
        listed = self._follow_plan_change(listed, known, on_plan_change, kind)
        by_key = {child.key: child for child in wanted}
        for entry in listed:
            if action_of(entry, known) in ("spawn", "respawn") and not _is_as_before(entry, by_key):
                keeper.check(by_key[entry.key], entry.generation)
        taken = [known[entry.key].row for entry in listed if entry.key in known]
        self._begin(kind, [*listed, *self._carried(kind, awaited=True)], taken)
        self._close_vanished(kind, last, listed, known)
        repeated = sum(action_of(entry, known) == "respawn" and known[entry.key].is_done for entry in listed)
        ran = self._open(keeper, by_key, listed, known, cut)
        return Opened(kind, tuple(self._slot(host_id, entry) for entry in listed), ran, repeated)

    def come_back(self) -> Opened:
        """Go on with the list of this very try, which left its process in between.

        :raises HostError: code ``stale_attempt``; code ``child_run_missing``, if the store does not know the try
        """
        kind, last = self._recognise()
        if kind != "same":
            raise HostError(
                f"{self._label} comes back, but the store does not know it any more: was it purged, or does the connection "
                "lead to another store? Clear the task to begin anew",
                code="child_run_missing",
            )
        host_id = self._host_id(kind)
        newest = newest_of(self._house.store, (child_run_id(host_id, entry.key) for entry in last))
        listed = [_as_it_is(entry, newest.get(child_run_id(host_id, entry.key))) for entry in last]
        self._begin(kind, [*listed, *self._carried(kind, awaited=True)], newest.values())
        return Opened(kind, tuple(self._slot(host_id, entry) for entry in listed), 0)

    def awaited(self) -> tuple[Slot, ...]:
        """Return the slots of other tasks that this try awaited before it came back, as they are now."""
        slots = [UUID(entry.key) for entry in self._carried("same", awaited=True)]
        newest = newest_of(self._house.store, slots)
        return tuple(
            Slot(str(slot), slot, newest[slot].run_id, newest[slot].generation) for slot in slots if slot in newest
        )

    def attach(self, slot_ids: Sequence[UUID]) -> Opened:
        """Begin the try of a task that only awaits: take what is there, or continue what its own last try saw end badly.

        :raises HostError: code ``stale_attempt``
        """
        kind, _ = self._recognise()
        named = {entry.key: entry.generation for entry in listed_of(self._last_try(kind), awaited=True)}
        newest = self._newest(slot_ids)
        keeper = TreeKeeper(self._house, self._host_id(kind), self._root, self._airflow)
        cleaned_up = find_cleaned_up(self._house.store, newest.values())
        listed: list[Listed] = []
        for slot_id in dict.fromkeys(slot_ids):
            row = newest[slot_id]
            again = kind in ("retry", "clear") and named.get(str(slot_id)) == row.generation
            due = kind == "retry" and next_attempt(self._house.store, row) is not None
            if again and row.is_terminal and row.status != "Completed" and not due:
                resumes = None if row.run_id in cleaned_up else row.run_id
                listed.append(Listed(str(slot_id), row.generation + 1, resumes, awaited=True))
            else:
                listed.append(Listed(str(slot_id), row.generation, awaited=True))
        self._begin(kind, [*self._carried(kind, awaited=False), *listed], newest.values())
        opened = [row for entry in listed if (row := newest[UUID(entry.key)]).generation < entry.generation]
        openings = [keeper.resume(row) for row in opened]
        before = {opening.run_id: row.run_id for opening, row in zip(openings, opened, strict=True)}
        batches = self.dispatched_by_parents(opened)
        ran = self._commit_openings(openings, successors(batches, before))
        newest |= newest_of(self._house.store, (row.slot_id for row in opened))
        slots = tuple(
            Slot(str(slot_id), slot_id, newest[slot_id].run_id, newest[slot_id].generation) for slot_id in slot_ids
        )
        return Opened(kind, slots, ran)

    def try_again(self, again: Again) -> RunRow:
        """Open the next attempt of a child under its retry policy, and return it."""
        keeper = TreeKeeper(self._house, self._host_id("same"), self._root, self._airflow)
        self._commit_openings([keeper.resume(again.row, again)], None)
        return self._newest([again.row.slot_id])[again.row.slot_id]

    @property
    def epoch(self) -> int:
        """The epoch that this try's appends carry."""
        return self._stream.epoch

    def note_return(self) -> None:
        """Record that this try has all that it is about to return: a clear of it, then, clears a green task.

        :raises HostError: code ``stale_attempt``
        """
        if self._has_begun:
            self._stream.append([DomainEvent(name=HOST_RETURNED, payload={})])

    def _recognise(self) -> tuple[Kind, list[Listed]]:
        """Find the newest host run and say what this try is to it."""
        first = self._coordinates.run_id()
        rows = newest_of(self._house.store, [first])
        row = rows.get(first)
        if row is None:
            return "first", []
        self._history = load_history(self._house.store, row.run_id)
        self._stream.adopt(row)
        kind = kind_of(self._last_try(None), self._facts)
        if kind == "stale":
            raise HostError(
                f"{self._label} is not the newest try any more: another one has begun since. It stops here and has "
                "changed nothing",
                code="stale_attempt",
            )
        return kind, listed_of(self._last_try(kind))

    def _last_try(self, kind: Kind | None) -> Mapping[str, Any] | None:
        """Return what the try before this one recorded; one of a deleted DAG run does not count."""
        if kind == "recreated" or self._history is None or not self._history.host_tries:
            return None
        return self._history.host_tries[-1]

    def _carried(self, kind: Kind, *, awaited: bool) -> list[Listed]:
        """Return what this very try has listed before: a task may spawn first and await then."""
        return listed_of(self._last_try(kind), awaited=awaited) if kind == "same" else []

    def _newest(self, slot_ids: Iterable[UUID]) -> dict[UUID, RunRow]:
        """Return the newest generation of each slot; one that is over though nobody wrote so is ended now."""
        newest = newest_of(self._house.store, slot_ids)
        ended = settle(self._house, newest.values())
        return {slot_id: ended.get(row.run_id, row) for slot_id, row in newest.items()}

    def _host_id(self, kind: Kind) -> UUID:
        row = self._stream.row
        if row is None:
            return self._coordinates.run_id()
        return self._coordinates.run_id(row.generation + 1) if kind == "recreated" else row.run_id

    def close(self, run_ids: Iterable[UUID], reason: str, grace_us: int = 0) -> bool:
        """Ask this task's children to end after a grace; see :meth:`HostStream.close`. A try that did not begin asks nobody."""
        return self._has_begun and self._stream.close(run_ids, reason, grace_us)

    def end(self, run_ids: Iterable[UUID], reason: str) -> None:
        """End children now, as far as nobody owns them."""
        if self._has_begun:
            self._stream.end(run_ids, reason)

    def dispatched_by_parents(self, rows: Iterable[RunRow]) -> dict[UUID, Batch]:
        """Return by run id which DAG runs are to drive runs, as this task and those that spawned them recorded it."""
        own = self._stream.row
        hosts = [row.parent_run_id for row in rows if row.parent_run_id is not None]
        return batches_of(self._house.store, hosts + ([] if own is None or not hosts else [own.run_id]))

    def dispatch(self, batches: Sequence[Batch]) -> None:
        """Record which DAG runs are to drive what, before any of them is triggered.

        :raises HostError: code ``stale_attempt``
        """
        self._stream.append([dispatched_event(batches)])

    def _begin(self, kind: Kind, listed: Sequence[Listed], taken: Iterable[RunRow]) -> None:
        """Write ``host_try``: from here on only this try appends; what asked the children to end is taken back."""
        payload = {**self._facts.to_json(), "kind": kind, "keys": [entry.to_json() for entry in listed]}
        event = DomainEvent(name=HOST_TRY, payload=payload)
        if kind in ("first", "recreated"):
            self._stream.create(event)
        else:
            self._stream.append([event], posts=withdraw_posts(self._house, taken), lease=TakeLease(None))
        self._has_begun = True
        # Whoever drove this task's children before is superseded by the session that the first lease opens.
        self._house.keeper.owner = Owner(self._label, str(self._coordinates.run_id()), self._stream.incarnation)

    def _known_only_before(
        self, host_id: UUID, last: Sequence[Listed], known: Mapping[str, Known], newest: Mapping[UUID, RunRow]
    ) -> dict[str, Known]:
        """Return children that the last try listed and this one does not ask for."""
        found: dict[str, Known] = {}
        for entry in last:
            row = newest.get(child_run_id(host_id, entry.key))
            if row is not None and entry.key not in known:
                found[entry.key] = Known(row)
        cleaned_up = find_cleaned_up(self._house.store, (child.row for child in found.values()))
        return {key: replace(child, is_cleaned_up=child.row.run_id in cleaned_up) for key, child in found.items()}

    def _follow_plan_change(
        self, listed: Sequence[Listed], known: Mapping[str, Known], on_plan_change: OnPlanChange, kind: Kind
    ) -> list[Listed]:
        """Start children afresh whose operation has another plan now, if the author wants that."""
        if on_plan_change == "fail" or kind in ("first", "recreated", "same"):
            return list(listed)
        return [self._respawned(entry, known.get(entry.key)) for entry in listed]

    def _respawned(self, entry: Listed, child: Known | None) -> Listed:
        if child is None or child.row.status == "Completed" or not self._has_drifted(child.row):
            return entry
        return Listed(entry.key, max(entry.generation, child.row.generation + 1))

    def _has_drifted(self, row: RunRow) -> bool:
        return is_drifted(self._house.store, row, self._house.resolver)

    def _close_vanished(
        self, kind: Kind, last: Sequence[Listed], listed: Sequence[Listed], known: Mapping[str, Known]
    ) -> None:
        """Ask children to end that a clear's new list no longer names."""
        if kind != "clear":
            return
        still = {entry.key for entry in listed}
        gone = [known[entry.key].row for entry in last if entry.key not in still and entry.key in known]
        self._stream.end((row.run_id for row in gone), "a clear's list does not name it any more")

    def _open(
        self,
        keeper: TreeKeeper,
        wanted: Mapping[str, WantedChild],
        listed: Sequence[Listed],
        known: Mapping[str, Known],
        cut: Cut | None,
    ) -> int:
        """Make every listed generation exist, some hundred to a commit."""
        openings: list[Opening] = []
        for entry in listed:
            action = action_of(entry, known)
            if action == "spawn":
                openings.append(keeper.spawn(wanted[entry.key], entry.generation))
            elif action == "continue" or (action == "respawn" and _is_as_before(entry, wanted)):
                openings.append(keeper.resume(known[entry.key].row))
            elif action == "respawn":
                ended, posts = keeper.end(known[entry.key].row, "respawned")
                opening = keeper.spawn(wanted[entry.key], entry.generation)
                openings.append(replace(opening, steps=(*ended, *opening.steps), posts=posts))
        return self._commit_openings(openings, cut)

    def _commit_openings(self, openings: Sequence[Opening], cut: Cut | None) -> int:
        """Make generations exist, and return how many; those that somebody else opened meanwhile are taken as they are."""
        opened = 0
        # No commit cuts a batch in two.
        size = cut.size * max(1, CHUNK // cut.size) if isinstance(cut, Cutter) else CHUNK
        for start in range(0, len(openings), size):
            chunk = openings[start : start + size]
            while chunk and not self._try_openings(chunk, cut):
                there = self._house.store.get_runs(opening.run_id for opening in chunk)
                chunk = [opening for opening in chunk if opening.run_id not in there]
            opened += len(chunk)
        return opened

    def _try_openings(self, chunk: Sequence[Opening], cut: Cut | None) -> bool:
        """Commit openings; False if one of their runs is there already."""
        events = [event for opening in chunk for event in opening.events]
        batches = [] if cut is None else cut([opening.run_id for opening in chunk])
        events += [dispatched_event(batches)] if batches else []
        steps = tuple(step for opening in chunk for step in opening.steps)
        unique = {artifact.id: artifact for opening in chunk for artifact in opening.artifacts}
        posts = [post for opening in chunk for post in opening.posts]
        return self._stream.append(events, steps, tuple(unique.values()), posts=posts)

    def _slot(self, host_id: UUID, entry: Listed) -> Slot:
        slot_id = child_run_id(host_id, entry.key)
        return Slot(entry.key, slot_id, child_run_id(host_id, entry.key, entry.generation), entry.generation)


def _is_as_before(entry: Listed, wanted: Mapping[str, WantedChild]) -> bool:
    """Whether a child that starts afresh is asked for as it was: this try does not name it, or keeps it as it is."""
    return entry.as_is or entry.key not in wanted


def _as_it_is(entry: Listed, newest: RunRow | None) -> Listed:
    """Return an entry for the generation that its slot has now."""
    return replace(entry, generation=newest.generation if newest else entry.generation, continues=None)
