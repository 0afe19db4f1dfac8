"""The world outside of the recorded scripts: it answers the same every time and remembers who asked."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from airflow_childrun.engine.ports import IoCall
from airflow_childrun.errors import IoError, OtherIoError, RateLimitedError, TransportError
from airflow_childrun.transports.registry import FunctionTransport, LiveIoEnv

GROUP = "world"


class World:
    """Answers ``world.*``; its counters of scripted failures survive crashes.

    :param counters: how often each scripted failure was counted before
    """

    def __init__(self, counters: Mapping[str, int] | None = None) -> None:
        self._lock = threading.Lock()
        self._counters = Counter(counters or {})
        self.calls: list[Any] = []

    def transport(self) -> FunctionTransport:
        """Return the transport that leads here."""
        return FunctionTransport(GROUP, self._answer)

    def count(self, name: str) -> int:
        """Count a scripted failure up and return the new count."""
        with self._lock:
            self._counters[name] += 1
            return self._counters[name]

    def counters(self) -> dict[str, int]:
        """Return every count."""
        with self._lock:
            return dict(self._counters)

    def _answer(self, call: IoCall, env: LiveIoEnv) -> Any:
        with self._lock:
            self.calls.append(
                {
                    "attempt": env.attempt,
                    "fact_key": call.fact_key,
                    "namespace": call.namespace,
                    "request": call.request,
                    "run_id": str(env.run_id),
                    "state_id": env.state_id,
                }
            )
        answer = _ANSWERS.get(call.namespace)
        if answer is None:
            raise OtherIoError("the world knows nothing of it", code="world_unknown")
        return answer(call.request)


def _raising(error: type[IoError], code: str, *, retryable: bool) -> Callable[[Any], Any]:
    def answer(request: Any) -> Any:
        raise error("the world refuses", code=code, retryable=retryable)

    return answer


def _sum(request: Any) -> Any:
    numbers = request if isinstance(request, list) else []
    return {"sum": sum(number for number in numbers if type(number) is int)}


_ANSWERS: Mapping[str, Callable[[Any], Any]] = {
    "world.echo": lambda request: {"echo": request},
    "world.sum": _sum,
    "world.transport_error": _raising(TransportError, "world_down", retryable=True),
    "world.rate_limited": _raising(RateLimitedError, "world_busy", retryable=True),
    "world.other_error": _raising(OtherIoError, "world_odd", retryable=False),
    "world.secret": lambda request: {"password": "p"},
    "world.float": lambda request: {"x": 1.5},
}
