"""Lanes: how many children of one operation and parent work at a time. The store decides; here they wait for their turn.

A child holds its place from its first commit to its end, or until its owner gives it back or dies.

The order: within a process, places go to children in the order in which they were handed over, which is that of their
spawn. Between processes nobody queues, since what a queue knew would have to be written down, and read, for every child.
Instead, a process that gives a place back, and has another child for it, first looks now and then whether siblings wait
that it does not drive, and then leaves the place free for a moment, in which every process that wants one asks for it.
So no process keeps the places for itself for ever. Whether anybody alive wants to drive those siblings, nobody knows:
where an offer is not taken, the next one comes later.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import count
from operator import itemgetter
from uuid import UUID

from airflow_childrun.errors import StorageError
from airflow_childrun.runtime.scheduler import Scheduler
from airflow_childrun.runtime.slots import Slots
from airflow_childrun.store.api import Cap, RunFilter, RunStatus, Store

Begin = Callable[[], None]
OPEN: frozenset[RunStatus] = frozenset({"Pending", "Running"})
OFFER_ROUNDS = 2
"""For how many rounds of asking an offered place stays free."""
REST_ROUNDS = 10
"""How many rounds pass between two looks at those who wait elsewhere."""
LONGEST_REST = 16
"""Up to how many times that long, where nobody takes what is offered."""


@dataclass
class _Lane:
    """The children of one lane in this process.

    :param held: those that may begin, or have begun
    :param parked: those that wait, in the order in which they were handed over
    :param shut_until_s: the store had no place for another one: others hold them, or are offered one
    :param look_at_s: when it is looked again whether others wait
    :param rest_s: how long it is until then
    :param is_offered: whether a place was left free, and nobody is known to have taken it
    :param is_held_back: whether one waits, though there is room, until it is known if earlier ones are its siblings
    """

    cap: Cap
    look_at_s: float
    rest_s: float
    held: set[UUID] = field(default_factory=set)
    parked: OrderedDict[UUID, int] = field(default_factory=OrderedDict)
    shut_until_s: float = 0.0
    is_offered: bool = False
    is_held_back: bool = False

    @property
    def known(self) -> set[UUID]:
        """Those of this process."""
        return self.held | self.parked.keys()

    def is_queued_before(self, number: int) -> bool:
        """Whether one waits that comes first."""
        return next(iter(self.parked.values()), number) < number

    def park(self, run_id: UUID, number: int) -> None:
        """Let a run wait for its turn, in the order of numbers."""
        is_last = not self.parked or next(reversed(self.parked.values())) < number
        self.parked[run_id] = number
        if not is_last:
            self.parked = OrderedDict(sorted(self.parked.items(), key=itemgetter(1)))


class Lanes:
    """The lanes of a process.

    :param again_s: after how long a lane is tried again whose places are held elsewhere
    """

    def __init__(self, store: Store, slots: Slots, scheduler: Scheduler, again_s: float) -> None:
        self._store = store
        self._slots = slots
        self._monitor = slots.monitor
        self._scheduler = scheduler
        self._again_s = again_s
        self._lanes: dict[tuple[UUID, str], _Lane] = {}
        self._lane_of: dict[UUID, _Lane] = {}
        self._begin: dict[UUID, Begin] = {}
        self._numbers: dict[UUID, int] = {}
        self._count = count()
        # Of runs without a cap, which most are, nothing below takes the lock: each of these calls is one of the interpreter.
        self._unread: set[UUID] = set()
        self._holds_back = False
        self._ticks = False

    def submit(self, run_id: UUID, cap: Cap | None, begin: Begin) -> None:
        """Queue a run for a slot, or let it wait for its turn; None: whether it has a cap is read once it has a slot."""
        self._numbers[run_id] = next(self._count)
        if cap is None:
            self._slots.submit(run_id, lambda: self._begin_unread(run_id, begin))
        elif self._enter(run_id, cap, begin):
            self._slots.submit(run_id, begin)
        else:
            self._call_held_back()

    def may_begin(self, run_id: UUID, cap: Cap | None, begin: Begin) -> bool:
        """Whether a run that has a slot may ask the store for a place; else it waits here for its turn.

        Siblings come in the order in which they were handed over, whichever thread has read its run's cap first.
        """
        self._unread.discard(run_id)
        may = cap is None or self._enter(run_id, cap, begin)
        # Also where this run itself was just held back: what it was to wait for may have been read meanwhile.
        self._call_held_back()
        return may

    def refused(self, run_id: UUID) -> None:
        """Let a run wait on, in front of those that came after it: the store had no place for it."""
        with self._monitor:
            lane = self._lane_of[run_id]
            lane.held.discard(run_id)
            lane.park(run_id, self._number_of(run_id))
            # Others are at work: what was offered has been taken.
            lane.is_offered, lane.rest_s = False, self._again_s * REST_ROUNDS
        self._shut(lane, 1)

    def leave(self, run_id: UUID) -> None:
        """Give a run's turn to the next one, here or elsewhere."""
        self._unread.discard(run_id)
        self._numbers.pop(run_id, None)
        lane, looks = self._left(run_id) if run_id in self._lane_of else (None, False)
        self._call_held_back()
        if lane is None:
            return
        if looks and self._others_wait(lane):
            lane.is_offered = True
            self._shut(lane, OFFER_ROUNDS)
        self._call_next(lane)

    def _left(self, run_id: UUID) -> tuple[_Lane | None, bool]:
        """Take a run out of its lane, and say whether it is time to look around; None if another thread of the run was first."""
        with self._monitor:
            lane = self._lane_of.pop(run_id, None)
            if lane is None:
                return None, False
            self._begin.pop(run_id, None)
            lane.held.discard(run_id)
            return lane, self._is_to_look(lane)

    def queued(self, known: Mapping[UUID, int]) -> dict[UUID, int]:
        """Return of these runs those whose turn comes when another one of this process gives its place back, not before."""
        with self._monitor:
            full = [lane for lane in self._lanes.values() if len(lane.held) >= lane.cap.most]
            return {run_id: known[run_id] for lane in full for run_id in lane.parked if run_id in known}

    def _is_to_look(self, lane: _Lane) -> bool:
        """Whether it is time to look if others wait for a place that one of this process's children would take."""
        now_s = self._scheduler.now_s()
        if not lane.parked or self._slots.is_closed or now_s < lane.look_at_s:
            return False
        if lane.is_offered:
            lane.is_offered = False
            lane.rest_s = min(lane.rest_s * 2, self._again_s * REST_ROUNDS * LONGEST_REST)
        lane.look_at_s = now_s + lane.rest_s
        return True

    def _others_wait(self, lane: _Lane) -> bool:
        """Whether siblings have no owner that this process does not drive."""
        with self._monitor:
            known = lane.known
        cap = lane.cap
        where = RunFilter(parent_run_id=cap.parent_run_id, op_id=cap.op_id, statuses=OPEN, unowned=True)
        try:
            found = self._store.find_runs(where, limit=len(known) + 1).rows
        except StorageError:
            return False
        return any(row.run_id not in known for row in found)

    def _shut(self, lane: _Lane, rounds: int) -> None:
        """Ask for no place for a while."""
        with self._monitor:
            lane.shut_until_s = self._scheduler.now_s() + self._again_s * rounds
            if self._ticks:
                return
            self._ticks = True
        self._scheduler.start("childrun lanes", self._tick)

    def _enter(self, run_id: UUID, cap: Cap, begin: Begin) -> bool:
        with self._monitor:
            lane = self._lane(cap)
            self._lane_of[run_id] = lane
            self._begin[run_id] = begin
            if run_id in lane.held:
                return True
            number = self._number_of(run_id)
            if lane.is_queued_before(number) or not self._has_room(lane) or self._may_have_siblings_before(number):
                lane.park(run_id, number)
                lane.is_held_back = self._has_room(lane)
                self._holds_back |= lane.is_held_back
                return False
            lane.held.add(run_id)
            return True

    def _number_of(self, run_id: UUID) -> int:
        """Return a run's place in the order; of one that was handed over while its last thread was leaving, a new one."""
        return self._numbers.setdefault(run_id, next(self._count))

    def _may_have_siblings_before(self, number: int) -> bool:
        """Whether a run that was handed over earlier, and is being read, may turn out to be a sibling."""
        return any(self._numbers.get(run_id, number) < number for run_id in tuple(self._unread))

    def _begin_unread(self, run_id: UUID, begin: Begin) -> None:
        self._unread.add(run_id)
        begin()

    def _call_held_back(self) -> None:
        """Look whether anybody's turn has come by what was read since."""
        if not self._holds_back:
            return
        with self._monitor:
            lanes = [lane for lane in self._lanes.values() if lane.is_held_back]
            self._holds_back = bool(lanes)
        for lane in lanes:
            self._call_next(lane)

    def _lane(self, cap: Cap) -> _Lane:
        key = (cap.parent_run_id, cap.op_id)
        if key not in self._lanes:
            rest_s = self._again_s * REST_ROUNDS
            self._lanes[key] = _Lane(cap, self._scheduler.now_s() + rest_s, rest_s)
        return self._lanes[key]

    def _has_room(self, lane: _Lane) -> bool:
        return len(lane.held) < lane.cap.most and self._scheduler.now_s() >= lane.shut_until_s

    def _call_next(self, lane: _Lane) -> None:
        """Queue those whose turn it is, in order."""
        called: list[tuple[UUID, Begin]] = []
        with self._monitor:
            lane.is_held_back = False
            while lane.parked and self._has_room(lane):
                run_id, number = next(iter(lane.parked.items()))
                if self._may_have_siblings_before(number):
                    lane.is_held_back = self._holds_back = True
                    break
                del lane.parked[run_id]
                lane.held.add(run_id)
                called.append((run_id, self._begin[run_id]))
        for run_id, begin in called:
            self._slots.submit(run_id, begin)

    def _tick(self) -> None:
        """Try lanes again whose places were held elsewhere."""
        while True:
            self._scheduler.sleep(self._again_s)
            with self._monitor:
                now_s = self._scheduler.now_s()
                lanes = [lane for lane in self._lanes.values() if lane.parked]
                # Who comes to a lane that is still shut is parked, and has nobody else to call it.
                may_park = any(now_s < lane.shut_until_s for lane in self._lanes.values())
                if not (lanes or may_park) or self._slots.is_closed:
                    self._ticks = False
                    return
            for lane in lanes:
                self._call_next(lane)
