"""How a triggerer reads a store: with the connection of Airflow, in a thread, one statement for many runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar
from uuid import UUID

from airflow_childrun._airflow import channel_is_shared
from airflow_childrun.clock import Clock, SystemClock
from airflow_childrun.errors import UnavailableError
from airflow_childrun.hooks.connection import (
    StoreSettings,
    forget_store,
    open_store,
    read_store_settings,
    read_store_settings_async,
)
from airflow_childrun.store.api import RunRow, Store

T = TypeVar("T")
CLOCK_AGE_S = 300.0
"""How long the store's time is counted on by this machine's clock before it is asked again."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a store answered.

    :param rows: of those runs that exist
    :param now_us: the store's time, or a little less
    """

    rows: Mapping[UUID, RunRow]
    now_us: int


class StoreReader:
    """Reads for one connection, with one database connection at a time.

    A connection of Airflow's is read again after a failure: its password may have been changed.
    """

    def __init__(self, conn_id: str, clock: Clock | None = None) -> None:
        self._conn_id = conn_id
        self._clock = clock or SystemClock()
        self._settings: StoreSettings | None = None
        self._time: tuple[int, float] | None = None

    async def ask(self, run_ids: frozenset[UUID]) -> Seen:
        """Return the rows of some runs.

        :raises HostError: what is wrong with the connection
        :raises StorageError: if the store cannot be reached or used
        """
        return await self.with_store(lambda store: Seen(store.get_runs(run_ids), self._now_us(store)))

    async def with_store(self, work: Callable[[Store], T]) -> T:
        """Do something with the store, in a thread.

        :raises HostError: what is wrong with the connection
        :raises StorageError: if the store cannot be reached or used
        """
        settings = self._settings = self._settings or await self._read_settings()
        try:
            return await asyncio.to_thread(lambda: work(open_store(settings)))
        except UnavailableError:
            await self.close()
            raise

    async def close(self) -> None:
        """Close the connections to the database."""
        settings, self._settings, self._time = self._settings, None, None
        if settings is not None:
            await asyncio.to_thread(forget_store, settings)

    async def _read_settings(self) -> StoreSettings:
        if channel_is_shared():
            # The channel of dag.test knows no asynchronous calls, and blocks nobody else.
            return read_store_settings(self._conn_id)
        return await read_store_settings_async(self._conn_id)

    def _now_us(self, store: Store) -> int:
        """Return the store's time: asked now and then, and counted on by a clock that never jumps."""
        at_s = self._clock.monotonic_s()
        if self._time is None or at_s - self._time[1] > CLOCK_AGE_S:
            self._time = (store.now_us(), at_s)
        return self._time[0] + round((at_s - self._time[1]) * 1_000_000)
