"""Namespaces and what stands behind them: the registry of transports, and the router of one attempt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

from airflow_childrun.engine.fact_io import bound_digest, request_mismatch
from airflow_childrun.engine.ports import Binding, Completing, IoCall, Reply, RunIdentity, Superseded, Transport
from airflow_childrun.errors import IoError, OperationError, OtherIoError


@dataclass(frozen=True, slots=True)
class LiveIoEnv:
    """The attempt that a transport is made for."""

    identity: RunIdentity
    state_id: str
    attempt: int

    @property
    def run_id(self) -> UUID:
        """The run whose attempt it is."""
        return self.identity.run_id


class LiveIoTransport(Protocol):
    """The simplest transport: one method. Errors are :class:`~airflow_childrun.errors.IoError`."""

    def call(self, call: IoCall) -> Any:
        """Answer a request with JSON."""


class LiveIoTransportFactory(Protocol):
    """Makes a transport for each attempt; serves a namespace group and everything below it.

    A factory whose transports bind requests in a way of their own has a method ``binding(env)`` beside, which returns a
    :class:`~airflow_childrun.engine.ports.Binding`: replay uses that, and never calls :meth:`make`.
    """

    def namespace_group(self) -> str:
        """Return the group: ``proof`` serves ``proof`` and ``proof.*``."""

    def make(self, env: LiveIoEnv) -> LiveIoTransport | Transport:
        """Make the transport of one attempt."""


class TransportRegistry:
    """Which factory serves which namespace group."""

    def __init__(self, factories: Iterable[LiveIoTransportFactory] = ()) -> None:
        self._by_group: dict[str, LiveIoTransportFactory] = {}
        for factory in factories:
            self.register(factory)

    def register(self, factory: LiveIoTransportFactory) -> None:
        """Take a factory in.

        :raises OperationError: codes ``transport_group_empty``, ``transport_group_duplicate``
        """
        group = factory.namespace_group()
        if not group.strip():
            raise OperationError("a transport's namespace group must not be empty", code="transport_group_empty")
        if group in self._by_group:
            raise OperationError(f"duplicate transport namespace group: {group}", code="transport_group_duplicate")
        self._by_group[group] = factory

    def resolve(self, group: str) -> LiveIoTransportFactory | None:
        """Return the factory of exactly this group."""
        return self._by_group.get(group)

    def all(self) -> Mapping[str, LiveIoTransportFactory]:
        """Return every factory by group."""
        return dict(self._by_group)


class Router:
    """The transport of one attempt: the longest matching group serves a namespace.

    :param replay: only bind requests; no transport is ever made
    """

    def __init__(self, registry: TransportRegistry, env: LiveIoEnv, *, replay: bool = False) -> None:
        self._factories = registry.all()
        self._env = env
        self._replay = replay
        self._made: dict[str, Transport] = {}
        self._groups: dict[str, str | None] = {}

    def request_digest(self, call: IoCall) -> str:
        """Return the digest of what could change the answer; see :class:`~airflow_childrun.engine.ports.Binding`."""
        return self._binding(call.namespace).request_digest(call)

    def mismatch(self, call: IoCall, recorded: Any) -> IoError:
        """Return the error for a request that differs from the recorded one."""
        return self._binding(call.namespace).mismatch(call, recorded)

    def perform(self, call: IoCall, superseded: Superseded | None = None) -> Reply:
        """Ask the transport that serves the namespace.

        :raises OtherIoError: code ``io_unknown_namespace``; the request is not echoed
        """
        serving = self._find(call.namespace)
        if serving is None:
            raise OtherIoError("unknown io namespace", code="io_unknown_namespace")
        return serving.perform(call, superseded)

    def prepare(self, calls: Sequence[IoCall]) -> None:
        """Let each transport get ready for its calls."""
        by_group: dict[str, list[IoCall]] = {}
        for call in calls:
            by_group.setdefault(self._group(call.namespace) or "", []).append(call)
        for group in by_group.values():
            serving = self._find(group[0].namespace)
            if serving is not None:
                serving.prepare(group)

    def complete(self, call: IoCall, recorded: Any) -> Reply | None:
        """Return what a V1 history lacks beside a recorded answer; see :class:`~airflow_childrun.engine.ports.Completing`."""
        serving = self._find(call.namespace)
        if serving is None or not isinstance(serving, Completing):
            return None
        return serving.complete(call, recorded)

    def _binding(self, namespace: str) -> Binding:
        if not self._replay:
            return self._find(namespace) or _PLAIN
        group = self._group(namespace)
        bind = getattr(self._factories.get(group or ""), "binding", None)
        binding: Binding = _PLAIN if bind is None else bind(self._env)
        return binding

    def _group(self, namespace: str) -> str | None:
        if namespace not in self._groups:
            groups = (group for group in self._factories if namespace == group or namespace.startswith(group + "."))
            self._groups[namespace] = max(groups, key=len, default=None)
        return self._groups[namespace]

    def _find(self, namespace: str) -> Transport | None:
        group = self._group(namespace)
        if group is None or self._replay:
            return None
        if group not in self._made:
            made = self._factories[group].make(self._env)
            self._made[group] = made if isinstance(made, Transport) else _Simple(made)
        return self._made[group]


class PlainBinding:
    """Binds an answer to namespace and request."""

    def request_digest(self, call: IoCall) -> str:
        """Bind the whole request."""
        return bound_digest(call)

    def mismatch(self, call: IoCall, recorded: Any) -> IoError:  # noqa: ARG002 - a plain answer tells nothing of its request
        """Name key and namespace."""
        return request_mismatch(call)


_PLAIN = PlainBinding()


class _Simple(PlainBinding):
    """Gives a transport of one method the other two."""

    def __init__(self, inner: LiveIoTransport) -> None:
        self._inner = inner

    def prepare(self, calls: Sequence[IoCall]) -> None:
        """Nothing is gained by it."""

    def perform(self, call: IoCall, superseded: Superseded | None = None) -> Reply:  # noqa: ARG002 - stateless
        """Ask."""
        return Reply(self._inner.call(call))


class FunctionTransport:
    """A factory around a plain function ``(IoCall, LiveIoEnv) -> JSON``."""

    def __init__(self, group: str, answer: Callable[[IoCall, LiveIoEnv], Any]) -> None:
        self._group = group
        self._answer = answer

    def namespace_group(self) -> str:
        """Return the group."""
        return self._group

    def make(self, env: LiveIoEnv) -> LiveIoTransport:
        """Bind the function to an attempt."""
        return _Bound(self._answer, env)


class _Bound:
    def __init__(self, answer: Callable[[IoCall, LiveIoEnv], Any], env: LiveIoEnv) -> None:
        self._answer = answer
        self._env = env

    def call(self, call: IoCall) -> Any:
        """Ask the function."""
        return self._answer(call, self._env)
