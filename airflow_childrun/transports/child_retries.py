"""A parent tries its children again as wholes: each attempt is the next generation of its slot."""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID

from airflow_childrun.engine.ports import Extras, Journal, RunIdentity
from airflow_childrun.errors import ChildRunError
from airflow_childrun.model.events import CHILD_RUN_SPAWNED, WAIT_OPENED, DomainEvent
from airflow_childrun.store.api import RunRow
from airflow_childrun.transports.child_requests import engine_failed
from airflow_childrun.transports.nursery import NextAttempt, Nursery


class ChildRetries:
    """The retries of one parent's children."""

    def __init__(self, journal: Journal, nursery: Nursery, identity: RunIdentity) -> None:
        self._journal = journal
        self._nursery = nursery
        self._identity = identity

    def settle(self, newest: Mapping[UUID, RunRow]) -> dict[UUID, RunRow]:
        """Wait for many slots at once, each tried again as soon as its wait is over; return their last generations.

        One that nobody drives here is left as it is, and so is one that is to be healed.
        """
        last = dict(newest)
        going = {row.run_id: row for row in last.values() if not row.is_terminal}
        due: dict[UUID, int] = {}
        failed = [row for row in last.values() if row.status == "Failed" and not self._nursery.must_heal(row)]
        waiting = {again.row.run_id: again for again in self._announced(failed, due)}
        while going or waiting:
            driven = self._nursery.wait_some(list(going), min(due.values(), default=None))
            ended = self._nursery.get_runs([run_id for run_id in going if run_id not in driven])
            going = {run_id: row for run_id, row in going.items() if run_id in driven}
            last |= {row.slot_id: row for row in ended.values()}
            unwell = [row for row in ended.values() if row.status == "Failed"]
            waiting |= {again.row.run_id: again for again in self._announced(unwell, due)}
            now = self._nursery.now_us()
            for run_id in [run_id for run_id, at in due.items() if at <= now]:
                row = self.open(waiting.pop(run_id))
                del due[run_id]
                going[row.run_id] = last[row.slot_id] = row
        return last

    def follow(self, row: RunRow, until_us: int | None) -> RunRow | None:
        """Wait for the time of a failed child's next attempt and open it; None if there is none, or the time is over."""
        due: dict[UUID, int] = {}
        again = next(iter(self._announced([row], due)), None)
        if again is None:
            return None
        at = due[row.run_id]
        self._nursery.wait_some([], at if until_us is None else min(at, until_us))
        if until_us is not None and until_us < at:
            raise self._nursery.too_late(row.run_id)
        return self.open(again)

    def open(self, again: NextAttempt) -> RunRow:
        """Open the generation that is the next attempt; its parent's linkage comes in the same commit."""
        return self.succeed(again.row, again)

    def succeed(self, row: RunRow, again: NextAttempt | None) -> RunRow:
        """Open the generation that follows a terminal one, as an attempt of its policy or else as a first one.

        :raises OtherIoError: code ``child_run_engine_failed``
        """
        try:
            opening = self._nursery.next_generation(row, self._identity, again)
        except ChildRunError as error:
            raise engine_failed(error) from None
        payload = {
            "parent_run_id": str(self._identity.run_id),
            "child_run_id": str(opening.run_id),
            "child_manifest_id": row.manifest_id,
            "generation": row.generation + 1,
        }
        event = DomainEvent(name=CHILD_RUN_SPAWNED, payload=payload)
        self._journal.append([event], Extras(opening.artifacts, (opening.step,)))
        self._nursery.hand_over(opening.run_id)
        return self._nursery.newest_generation(row.slot_id)

    def _announced(self, rows: list[RunRow], due: dict[UUID, int]) -> list[NextAttempt]:
        """Return the attempts that follow some failed ones, with their waits in the log, once each."""
        found: list[NextAttempt] = []
        events: list[DomainEvent] = []
        for row in rows:
            again = self._nursery.next_attempt(row)
            if again is None:
                continue
            key = f"retry/{row.slot_id}"
            known = self._nursery.find_wait(key)
            until = known[1] if known is not None and known[0] == row.generation else again.at_us
            if known is None or known[0] != row.generation:
                payload = {"key": key, "try": row.generation, "until": until}
                events.append(DomainEvent(name=WAIT_OPENED, payload=payload))
            due[row.run_id] = until
            found.append(again)
        if events:
            self._journal.append(events)
        return found
