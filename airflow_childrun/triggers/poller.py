"""One question for many: all triggers of a process that look at the same place share its answers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Hashable
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar
from weakref import WeakKeyDictionary

from airflow_childrun.clock import Clock, Entropy, SystemClock, SystemEntropy
from airflow_childrun.errors import ChildRunError, UnavailableError

K = TypeVar("K", bound=Hashable)
S = TypeVar("S")
R = TypeVar("R")
K_co = TypeVar("K_co", bound=Hashable, covariant=True)
S_contra = TypeVar("S_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)
_log = logging.getLogger("airflow_childrun.triggers")
JITTER = 0.2
"""A pause is longer than the interval by up to this part of it: triggerers that began together drift apart."""
LONGEST_PAUSE_S = 60.0
OUTAGE_S = 600.0
"""For how long a place may be out of reach before those who wait for it are told."""


class Watcher(Protocol[K_co, S_contra, R_co]):
    """Somebody who waits for something."""

    def asked(self) -> Collection[K_co]:
        """Return what has to be asked for."""

    def look(self, seen: S_contra) -> R_co | None:
        """Return what it waited for, or None to go on."""


@dataclass(eq=False)
class _Wait(Generic[K, S]):
    watcher: Watcher[K, S, Any]
    since_s: float
    answer: asyncio.Future[Any] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Poller(Generic[K, S]):
    """Asks once per interval for everything that anybody waits for.

    Works while somebody waits, and not longer. A place that cannot be reached is asked again after longer and longer
    pauses.

    :param ask: answers for many keys at once
    :param interval_s: the shortest pause between two questions
    :param close: called when nobody waits any more
    """

    def __init__(
        self,
        ask: Callable[[frozenset[K]], Awaitable[S]],
        interval_s: float,
        *,
        close: Callable[[], Awaitable[None]] | None = None,
        outage_s: float = OUTAGE_S,
        entropy: Entropy | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._ask = ask
        self._interval_s = interval_s
        self._close = close
        self._outage_s = outage_s
        self._entropy = entropy or SystemEntropy()
        self._now_s = (clock or SystemClock()).monotonic_s
        self._waits: set[_Wait[K, S]] = set()
        self._work: asyncio.Task[None] | None = None
        self._failing_since_s: float | None = None

    async def watch(self, watcher: Watcher[K, S, R]) -> R:
        """Wait until ``watcher`` has seen what it waits for.

        :raises ChildRunError: what is wrong with the place: at once if time cannot mend it, else after an outage
        """
        wait = _Wait[K, S](watcher, self._now_s())
        self._waits.add(wait)
        if self._work is None:
            # A context of its own: its log lines are of no single trigger.
            self._work = asyncio.get_running_loop().create_task(self._run(), context=Context())
        try:
            answer: R = await wait.answer
        finally:
            self._waits.discard(wait)
        return answer

    async def _run(self) -> None:
        try:
            while self._waits:
                pause_s = await self._round()
                await asyncio.sleep(pause_s)
        finally:
            # From here on whoever comes begins anew.
            self._work = None
            if self._close is not None:
                await self._close()

    async def _round(self) -> float:
        """Ask once and tell everybody; return how long to pause."""
        waits = list(self._waits)
        keys = frozenset(key for wait in waits for key in wait.watcher.asked())
        try:
            seen = await self._ask(keys)
        except UnavailableError as error:
            return self._failed(error)
        except Exception as error:  # noqa: BLE001 - whoever waits is told, whatever it is
            self._tell(waits, error)
            return self._pause(self._interval_s)
        if self._failing_since_s is not None:
            _log.info("the outage is over: what could not be asked answers again")
            self._failing_since_s = None
        for wait in waits:
            self._show(wait, seen)
        return self._pause(self._interval_s)

    def _show(self, wait: _Wait[K, S], seen: S) -> None:
        try:
            found = wait.watcher.look(seen)
        except Exception as error:  # noqa: BLE001 - one bad watcher must not stop the others
            self._tell([wait], error)
            return
        if found is not None and not wait.answer.done():
            wait.answer.set_result(found)

    def _failed(self, error: ChildRunError) -> float:
        now_s = self._now_s()
        since_s = self._failing_since_s
        if since_s is None:
            self._failing_since_s = since_s = now_s
            _log.warning("%s; it is asked again until it answers, for %.0f s at least", error, self._outage_s)
        self._tell([wait for wait in self._waits if now_s - max(since_s, wait.since_s) >= self._outage_s], error)
        return self._pause(min(max(self._interval_s, now_s - since_s), LONGEST_PAUSE_S))

    def _tell(self, waits: Collection[_Wait[K, S]], error: Exception) -> None:
        for wait in waits:
            if not wait.answer.done():
                wait.answer.set_exception(error)

    def _pause(self, seconds: float) -> float:
        share = int.from_bytes(self._entropy.random_bytes(4)) / 2**32
        return seconds * (1 + JITTER * share)


class Pollers(Generic[K, S]):
    """The pollers of a process, one per event loop and name."""

    def __init__(self) -> None:
        self._by_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Hashable, Poller[K, S]]] = WeakKeyDictionary()

    def get(self, name: Hashable, make: Callable[[], Poller[K, S]]) -> Poller[K, S]:
        """Return the running loop's poller of this name, made now if need be."""
        mine = self._by_loop.setdefault(asyncio.get_running_loop(), {})
        if name not in mine:
            mine[name] = make()
        return mine[name]
