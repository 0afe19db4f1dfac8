"""How long the runtime puts up with a database that does not answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from airflow_childrun.errors import StoreInterrupt, UnavailableError
from airflow_childrun.runtime.scheduler import Scheduler

T = TypeVar("T")


class Patience:
    """Tries again while the store is unavailable.

    :param limit_s: after how long an Interrupt is raised instead
    """

    def __init__(self, scheduler: Scheduler, limit_s: float = 60.0) -> None:
        self._scheduler = scheduler
        self._limit_s = limit_s

    def attempt(self, work: Callable[[], T]) -> T:
        """Return what ``work`` returns; it must be safe to repeat.

        :raises StoreInterrupt: if the store stays unavailable
        """
        give_up = self._scheduler.now_s() + self._limit_s
        delay = 0.05
        while True:
            try:
                return work()
            except UnavailableError as error:
                if self._scheduler.now_s() + delay > give_up:
                    raise StoreInterrupt(str(error), error) from error
            self._scheduler.sleep(delay)
            delay = min(delay * 2, 5.0)
