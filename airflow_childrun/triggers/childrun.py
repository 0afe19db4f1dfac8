"""The trigger of a task that waits for child runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

from airflow_childrun._airflow import BaseTrigger, TaskSuccessEvent, TriggerEvent, channel_is_shared
from airflow_childrun.errors import ChildRunError
from airflow_childrun.hooks.absence import close_absent, ending_of, note_return
from airflow_childrun.hooks.deferral import Parked
from airflow_childrun.hooks.settings import read_settings
from airflow_childrun.triggers.dag_runs import DagRunWatcher, Ends, Key, make_dag_run_poller
from airflow_childrun.triggers.poller import Poller, Pollers
from airflow_childrun.triggers.reader import Seen, StoreReader
from airflow_childrun.triggers.wire import (
    CLASSPATH,
    ChildRunEvent,
    ChildRunTriggerKwargs,
    ClosingKwargs,
    DagRunKwargs,
    EndingKwargs,
)

LEAST_AWAY_S = 8.0
"""Airflow may take a task that comes back sooner for one that never left, and fail it."""
LOST_US = 60_000_000
"""For how long nobody may drive a run of others before the task comes back to look after its driver."""
KILLED = "the task was told to stop while it waited in the triggerer"

_pollers: Pollers[UUID, Seen] = Pollers()
_dag_run_pollers: Pollers[Key, Ends] = Pollers()


class ChildRunTrigger(BaseTrigger):
    """Brings a task back when there is something to do; see :class:`~airflow_childrun.triggers.wire.ChildRunTriggerKwargs`."""

    def __init__(
        self,
        *,
        childrun_conn_id: str,
        poll_interval: float,
        driven: list[str],
        remote: list[str],
        inboxes: dict[str, int],
        wake_at: int | None = None,
        closing: ClosingKwargs | None = None,
        ending: EndingKwargs | None = None,
        dag_runs: list[DagRunKwargs] | None = None,
    ) -> None:
        untyped: Any = super().__init__
        untyped()
        self.kwargs = ChildRunTriggerKwargs(
            childrun_conn_id=childrun_conn_id,
            poll_interval=poll_interval,
            driven=driven,
            remote=remote,
            inboxes=inboxes,
            wake_at=wake_at,
            closing=closing,
            ending=ending,
        )
        if dag_runs:
            self.kwargs["dag_runs"] = dag_runs

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return class path and arguments."""
        return CLASSPATH, dict(self.kwargs)

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait; yield one event."""
        loop = asyncio.get_running_loop()
        # Counted from here, since clocks of two machines cannot be compared: it is never less than since the deferral.
        not_before_s = loop.time() + (0 if channel_is_shared() else LEAST_AWAY_S)
        event = await self._wait()
        await asyncio.sleep(max(0.0, not_before_s - loop.time()))
        ended = await self._end() if event["reason"] == "ended" else None
        come_back: Any = TriggerEvent
        yield ended or come_back(event)

    async def on_kill(self) -> None:
        """Ask the children to end as a task does that is told to stop; Airflow calls it from 3.3 on."""
        closing = self.kwargs["closing"]
        if closing is not None:
            reader = StoreReader(self.kwargs["childrun_conn_id"])
            await reader.with_store(lambda store: close_absent(store, dict(closing), KILLED))

    async def _wait(self) -> ChildRunEvent:
        """Return the first cause to come back."""
        conn_id, interval_s = self.kwargs["childrun_conn_id"], self.kwargs["poll_interval"]
        poller = _pollers.get((conn_id, interval_s), lambda: _make_poller(conn_id, interval_s))
        causes = [asyncio.ensure_future(poller.watch(RunWatcher(self.kwargs)))]
        dag_runs = self.kwargs.get("dag_runs")
        if dag_runs:
            asking = _dag_run_pollers.get(interval_s, lambda: make_dag_run_poller(interval_s))
            causes.append(asyncio.ensure_future(asking.watch(DagRunWatcher(dag_runs))))
        try:
            done, _ = await asyncio.wait(causes, return_when=asyncio.FIRST_COMPLETED)
            return done.pop().result()
        except ChildRunError as error:
            # The worker asks itself: it fails with the same error, or finds what the triggerer cannot reach.
            return {"reason": "outage", "detail": str(error)}
        finally:
            for cause in causes:
                cause.cancel()

    async def _end(self) -> TriggerEvent | None:
        """Return the event that ends the task right here; None if a worker has to do it."""
        ending = self.kwargs["ending"]
        if ending is None:
            return None
        closing, conn_id = self.kwargs["closing"], self.kwargs["childrun_conn_id"]
        limit = read_settings().xcom_max_bytes
        try:
            reader = StoreReader(conn_id)
            found = await reader.with_store(lambda store: ending_of(store, dict(ending), conn_id, limit))
            if found is None:
                return None
            if closing is not None and not await reader.with_store(lambda store: note_return(store, dict(closing))):
                return None
        except ChildRunError as error:
            self.log.info("a worker has to end this task: %s", error)
            return None
        if not ending["push"]:
            return TaskSuccessEvent()
        returned: Any = found[0] if ending["single"] else found
        return TaskSuccessEvent(xcoms={"return_value": returned})


def make_trigger(
    parked: Parked, childrun_conn_id: str, poll_interval: float, ending: EndingKwargs | None
) -> ChildRunTrigger:
    """Return the trigger of a task that leaves its worker."""
    host = parked.host
    closing = None
    if host is not None:
        drove = [str(run_id) for run_id in host.drove]
        closing = ClosingKwargs(host_run_id=str(host.run_id), epoch=host.epoch, grace_us=host.grace_us, drove=drove)
    return ChildRunTrigger(
        childrun_conn_id=childrun_conn_id,
        poll_interval=poll_interval,
        driven=sorted(map(str, parked.driven)),
        remote=sorted(map(str, parked.remote)),
        inboxes={str(run_id): number for run_id, number in parked.inboxes.items()},
        wake_at=parked.wake_at,
        closing=closing,
        ending=ending,
        dag_runs=[
            DagRunKwargs(dag_id=run.dag_id, dag_run_id=run.dag_run_id, calls=run.calls) for run in parked.dag_runs
        ],
    )


class RunWatcher:
    """Sees when a task has to come back; asks for what has not ended alone."""

    def __init__(self, kwargs: ChildRunTriggerKwargs) -> None:
        self._driven = {UUID(run_id) for run_id in kwargs["driven"]}
        self._idle_since: dict[UUID, int] = {}
        self._open = self._driven | {UUID(run_id) for run_id in kwargs["remote"]}
        self._inboxes = {UUID(run_id): number for run_id, number in kwargs["inboxes"].items()}
        self._wake_at = kwargs["wake_at"]

    def asked(self) -> set[UUID]:
        """Return the runs that have not ended."""
        return self._open | self._inboxes.keys()

    def look(self, seen: Seen) -> ChildRunEvent | None:
        """Say why the task has to come back, or None."""
        for run_id in self.asked():
            row = seen.rows.get(run_id)
            if row is None:
                return _event("gone", f"child run {run_id} is not in the store any more")
            if row.is_terminal:
                if run_id in self._inboxes:
                    return _event("ended", f"child run {run_id} has ended")
                self._open.discard(run_id)
            elif row.head.inbox_seq > self._inboxes.get(run_id, row.head.inbox_seq):
                return _event("asked", f"something came for child run {run_id}")
            elif run_id in self._driven and row.lease_expires_at is None:
                return _event("unowned", f"nobody drives child run {run_id} any more")
            elif row.lease_expires_at is not None or run_id in self._inboxes:
                self._idle_since.pop(run_id, None)
            elif seen.now_us - self._idle_since.setdefault(run_id, seen.now_us) >= LOST_US:
                return _event("unowned", f"nobody has driven child run {run_id} for a while")
        if self._wake_at is not None and seen.now_us >= self._wake_at:
            return _event("woke", "")
        return None if self._open or self._inboxes or self._wake_at is not None else _event("ended", "")


def _event(reason: Any, detail: str) -> ChildRunEvent:
    return {"reason": reason, "detail": detail}


def _make_poller(conn_id: str, interval_s: float) -> Poller[UUID, Seen]:
    reader = StoreReader(conn_id)
    return Poller(reader.ask, interval_s, close=reader.close)
