"""Lanes: how many children of one operation and parent work at a time. The store decides; here they wait for their turn.

A child holds its place from its first commit to its end, or until its owner gives it back or dies.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import UUID

from airflow_childrun.runtime.scheduler import Scheduler
from airflow_childrun.runtime.slots import Slots
from airflow_childrun.store.api import Cap

Begin = Callable[[], None]


@dataclass
class _Lane:
    """The children of one lane in this process.

    :param held: those that may begin, or have begun
    :param parked: those that wait, in the order in which they were handed over
    :param shut_until_s: the store had no place for another one: others hold them
    """

    most: int
    held: set[UUID] = field(default_factory=set)
    parked: OrderedDict[UUID, None] = field(default_factory=OrderedDict)
    shut_until_s: float = 0.0


class Lanes:
    """The lanes of a process.

    :param again_s: after how long a lane is tried again whose places are held elsewhere
    """

    def __init__(self, slots: Slots, scheduler: Scheduler, again_s: float) -> None:
        self._slots = slots
        self._monitor = slots.monitor
        self._scheduler = scheduler
        self._again_s = again_s
        self._lanes: dict[tuple[UUID, str], _Lane] = {}
        self._lane_of: dict[UUID, _Lane] = {}
        self._begin: dict[UUID, Begin] = {}
        self._ticks = False

    def submit(self, run_id: UUID, cap: Cap | None, begin: Begin) -> None:
        """Queue a run for a slot, or let it wait for its turn."""
        if cap is not None and not self._enter(run_id, cap, begin):
            return
        self._slots.submit(run_id, begin)

    def may_begin(self, run_id: UUID, cap: Cap, begin: Begin) -> bool:
        """Whether a run that has a slot may ask the store for a place; else it waits here for its turn."""
        return self._enter(run_id, cap, begin)

    def refused(self, run_id: UUID) -> None:
        """Let a run wait in front of all others: the store had no place for it."""
        with self._monitor:
            lane = self._lane_of[run_id]
            lane.held.discard(run_id)
            lane.parked[run_id] = None
            lane.parked.move_to_end(run_id, last=False)
            lane.shut_until_s = self._scheduler.now_s() + self._again_s
            if self._ticks:
                return
            self._ticks = True
        self._scheduler.start("childrun lanes", self._tick)

    def leave(self, run_id: UUID) -> None:
        """Give a run's turn to the next one."""
        with self._monitor:
            lane = self._lane_of.pop(run_id, None)
            self._begin.pop(run_id, None)
            if lane is None:
                return
            lane.held.discard(run_id)
        self._call_next(lane)

    def _enter(self, run_id: UUID, cap: Cap, begin: Begin) -> bool:
        with self._monitor:
            lane = self._lanes.setdefault((cap.parent_run_id, cap.op_id), _Lane(cap.most))
            self._lane_of[run_id] = lane
            self._begin[run_id] = begin
            if run_id in lane.held:
                return True
            if lane.parked or not self._has_room(lane):
                lane.parked.setdefault(run_id)
                return False
            lane.held.add(run_id)
            return True

    def _has_room(self, lane: _Lane) -> bool:
        return len(lane.held) < lane.most and self._scheduler.now_s() >= lane.shut_until_s

    def _call_next(self, lane: _Lane) -> None:
        """Queue those whose turn it is, in order."""
        called: list[tuple[UUID, Begin]] = []
        with self._monitor:
            while lane.parked and self._has_room(lane):
                run_id, _ = lane.parked.popitem(last=False)
                lane.held.add(run_id)
                called.append((run_id, self._begin[run_id]))
        for run_id, begin in called:
            self._slots.submit(run_id, begin)

    def _tick(self) -> None:
        """Try lanes again whose places were held elsewhere."""
        while True:
            self._scheduler.sleep(self._again_s)
            with self._monitor:
                lanes = [lane for lane in self._lanes.values() if lane.parked]
                if not lanes or self._slots.is_closed:
                    self._ticks = False
                    return
            for lane in lanes:
                self._call_next(lane)
