"""The plan of a run: its states and the order among them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from airflow_childrun.canonical import artifact_id, canonical_json_bytes
from airflow_childrun.errors import InvalidPlanError
from airflow_childrun.model.config import RetryPolicy

SideEffects = Literal["Pure", "ReadOnlyIo", "ApplySideEffect"]


@dataclass(frozen=True, slots=True)
class StateMeta:
    """What a plan says of a state beside its name.

    :param idempotency: the key under which the outside world recognises a repetition, or None
    :param retry: the state's own policy; None = the run's
    :param timeout_us: how long an attempt may take, or None; no part of what plans are compared by
    """

    tags: tuple[str, ...] = ()
    side_effects: SideEffects = "Pure"
    idempotency: str | None = None
    retry: RetryPolicy | None = None
    timeout_us: int | None = None


@dataclass(frozen=True, slots=True)
class StateNode:
    """A state of a plan. ``handler(context, io, recorder)`` returns None or raises."""

    id: str
    handler: Callable[[Any, Any, Any], None]
    meta: StateMeta = StateMeta()


@dataclass(frozen=True, slots=True)
class Edge:
    """``source`` must have finished before ``target`` begins."""

    source: str
    target: str


@dataclass(frozen=True)
class ExecutionPlan:
    """A validated graph of states and their order.

    :param output_key: context key under which the run's output stands in its final snapshot, or None
    :param on_cancel: clean-up that runs when the run is cancelled, or None
    :raises InvalidPlanError: if the graph is empty, names a state twice, an edge to nowhere, or a cycle
    """

    op_id: str
    op_version: str
    states: tuple[StateNode, ...]
    edges: tuple[Edge, ...] = ()
    output_key: str | None = None
    on_cancel: StateNode | None = None
    code_digest: str | None = None
    order: tuple[StateNode, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Validate and sort."""
        object.__setattr__(self, "order", _topological(self.states, self.edges))

    def state(self, state_id: str) -> StateNode | None:
        """Return a state by id, or None."""
        if self.on_cancel is not None and self.on_cancel.id == state_id:
            return self.on_cancel
        return next((node for node in self.order if node.id == state_id), None)

    def describe(self) -> dict[str, Any]:
        """Return what the plan digest covers: no code, no module path."""
        return {
            "op_id": self.op_id,
            "op_version": self.op_version,
            "states": [_describe(node, self.edges) for node in self.order],
        }

    def description_bytes(self) -> bytes:
        """Return the canonical bytes of :meth:`describe`; their SHA-256 is the plan id."""
        return self._description

    @cached_property
    def plan_id(self) -> str:
        """The plan digest: the artifact id of the plan's description."""
        return artifact_id(self._description)

    @cached_property
    def _description(self) -> bytes:
        return canonical_json_bytes(self.describe())

    def with_handlers(self, states: Sequence[StateNode], on_cancel: StateNode | None) -> ExecutionPlan:
        """Return this plan with other handlers: what is known of the graph is not worked out again.

        :param states: the same states in the same order
        """
        by_id = {node.id: node for node in states}
        known = {"plan_id": self.plan_id, "_description": self._description}
        nodes = {"states": tuple(states), "order": tuple(by_id[node.id] for node in self.order)}
        made = object.__new__(ExecutionPlan)
        made.__dict__.update(self.__dict__ | known | nodes | {"on_cancel": on_cancel})
        return made


def _describe(node: StateNode, edges: tuple[Edge, ...]) -> dict[str, Any]:
    return {
        "name": node.id,
        "after": [edge.source for edge in edges if edge.target == node.id],
        "tags": list(node.meta.tags),
        "side_effects": node.meta.side_effects,
        "idempotency": node.meta.idempotency,
        "retry": node.meta.retry.to_json() if node.meta.retry else None,
    }


def plan_differences(recorded: dict[str, Any], plan: ExecutionPlan, last_entered: str | None) -> list[str]:
    """Say in words where a plan differs from the recorded one, up to the last state that was entered.

    :param recorded: the description that stands in the run's plan artifact
    """
    now = plan.describe()
    found = [
        f"{name} was {recorded[name]!r}, is {now[name]!r}"
        for name in ("op_id", "op_version")
        if recorded[name] != now[name]
    ]
    before: list[dict[str, Any]] = recorded["states"]
    if last_entered is None:
        return found
    names = [state["name"] for state in before]
    upto = names.index(last_entered) + 1 if last_entered in names else len(names)
    for position, old in enumerate(before[:upto]):
        new = now["states"][position] if position < len(now["states"]) else None
        if new is None:
            found.append(f"state {position + 1} was {old['name']!r}, is gone")
        elif new["name"] != old["name"]:
            found.append(f"state {position + 1} was {old['name']!r}, is {new['name']!r}")
        else:
            found += [
                f"{old['name']}: {key} was {old[key]!r}, is {new[key]!r}" for key in old if old[key] != new.get(key)
            ]
    return found


def _topological(states: tuple[StateNode, ...], edges: tuple[Edge, ...]) -> tuple[StateNode, ...]:
    """Sort by Kahn's algorithm with a FIFO queue, in order of declaration."""
    if not states:
        raise InvalidPlanError(
            "the plan has no states; an operation needs at least one", code="empty_state_graph", category="ParsingInput"
        )
    nodes = _named(states)
    waiting = _indegrees(nodes, edges)
    ready = deque(name for name, count in waiting.items() if count == 0)
    order: list[StateNode] = []
    while ready:
        name = ready.popleft()
        order.append(nodes[name])
        for edge in edges:
            if edge.source == name:
                waiting[edge.target] -= 1
                if waiting[edge.target] == 0:
                    ready.append(edge.target)
    if len(order) < len(nodes):
        cycle = sorted(name for name, count in waiting.items() if count > 0)
        raise InvalidPlanError(f"the states {', '.join(cycle)} wait for each other", details={"cycle": cycle})
    return tuple(order)


def _named(states: tuple[StateNode, ...]) -> dict[str, StateNode]:
    nodes: dict[str, StateNode] = {}
    for node in states:
        if node.id in nodes:
            raise InvalidPlanError(
                f"two states are called {node.id!r}", code="duplicate_state_id", category="ParsingInput"
            )
        nodes[node.id] = node
    return nodes


def _indegrees(nodes: dict[str, StateNode], edges: tuple[Edge, ...]) -> dict[str, int]:
    waiting = dict.fromkeys(nodes, 0)
    for edge in edges:
        for end in (edge.source, edge.target):
            if end not in nodes:
                raise InvalidPlanError(
                    f"an edge names the state {end!r}, which is not in the plan",
                    code="missing_state_for_edge",
                    category="ParsingInput",
                )
        waiting[edge.target] += 1
    return waiting
