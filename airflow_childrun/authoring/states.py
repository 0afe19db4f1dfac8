"""States: a function, what its parameters ask for, and the node of the plan that it becomes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

from airflow_childrun.authoring.encoder import decode, encode, hints_of
from airflow_childrun.errors import OperationError, StateError
from airflow_childrun.ids import is_op_id
from airflow_childrun.model.config import Duration, RetryPolicy, Span
from airflow_childrun.model.plan import SideEffects, StateMeta, StateNode

if TYPE_CHECKING:  # a DAG file declares states, and runs none
    from airflow_childrun.authoring.author_io import Io
    from airflow_childrun.engine.context import Context, NamespacedContext
    from airflow_childrun.engine.ports import IoProvider, Recorder

Handler = Callable[..., Any]
RESERVED = frozenset({"io", "ctx", "config"})
_NO_PLAIN_DEF = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)


@dataclass(frozen=True)
class State:
    """A declared state.

    :param returns: the type hint of its result
    """

    name: str
    function: Handler
    parameters: Mapping[str, inspect.Parameter]
    returns: Any
    after: tuple[str, ...]
    tags: tuple[str, ...]
    retry: RetryPolicy | None
    side_effects: SideEffects
    idempotency: str | None
    timeout_us: int | None = None

    @classmethod
    def of(
        cls,
        function: Handler,
        after: tuple[str, ...],
        tags: tuple[str, ...],
        retry: RetryPolicy | None,
        side_effects: SideEffects,
        idempotency: str | None,
        *,
        name: str | None = None,
        timeout: Span | None = None,
    ) -> Self:
        """Read a function's signature.

        :raises OperationError: code ``invalid_handler``, if it is no plain ``def`` or has a parameter that nothing can fill
        :raises InputError: code ``span_invalid``
        """
        own_name = name or str(getattr(function, "__name__", ""))
        if not is_op_id(own_name) or own_name in RESERVED:
            raise OperationError(f"{own_name!r} is no name for a state: use lower-case letters, digits and underscores")
        if any(is_kind(function) for is_kind in _NO_PLAIN_DEF):
            raise OperationError(
                f"{own_name!r} must be a plain def; for concurrency spawn children or use io.map",
                code="invalid_handler",
            )
        hints = hints_of(function)
        parameters = {}
        for key, parameter in inspect.signature(function).parameters.items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
                raise OperationError(
                    f"{own_name!r} has the parameter {key!r}; a handler's parameters are filled by name",
                    code="invalid_handler",
                )
            if key == own_name:
                raise OperationError(
                    f"the state {own_name!r} has a parameter of its own name, which would be its own result; rename one",
                    code="invalid_handler",
                )
            parameters[key] = parameter.replace(annotation=hints.get(key, inspect.Parameter.empty))
        returns = hints.get("return", Any)
        timeout_us = None if timeout is None else Duration.of(timeout, f"the timeout of {own_name!r}").us
        return cls(own_name, function, parameters, returns, after, tags, retry, side_effects, idempotency, timeout_us)

    def sources(self, states: Mapping[str, State]) -> tuple[str, ...]:
        """Return the states that must have finished before this one."""
        wanted = (key for key in self.parameters if key in states and key != self.name)
        return tuple(dict.fromkeys((*wanted, *self.after)))

    def inputs(self, states: Mapping[str, State]) -> dict[str, inspect.Parameter]:
        """Return the parameters that the run's input fills."""
        return {key: value for key, value in self.parameters.items() if key not in RESERVED and key not in states}

    def describe(self, states: Mapping[str, State]) -> list[Any]:
        """Return what a plan says of the state."""
        retry = self.retry.to_json() if self.retry else None
        return [self.name, list(self.sources(states)), list(self.tags), self.side_effects, self.idempotency, retry]


def build_node(
    state: State,
    prefix: str,
    states: Mapping[str, State],
    given: Given,
) -> StateNode:
    """Return the node of a plan that runs a state's function.

    :param prefix: ``<operation>.main.``: of state ids and of context keys
    """
    meta = StateMeta(state.tags, state.side_effects, state.idempotency, state.retry, state.timeout_us)
    return StateNode(prefix + state.name, _StateHandler(state, prefix, states, given), meta)


class Given(Protocol):
    """What a run was given, fresh each time: a handler may change it."""

    def arguments(self) -> Mapping[str, Any]:
        """Return the input by parameter."""

    def config(self) -> Any:
        """Return the config."""


@dataclass(frozen=True, slots=True)
class _StateHandler:
    """Calls a state's function with what its parameters ask for, and writes its result into the context.

    One object, where a function that closes over as much is a dozen: there is one for each state of each waiting child.
    """

    state: State
    prefix: str
    states: Mapping[str, State]
    given: Given

    def __call__(self, context: Context, provider: IoProvider, recorder: Recorder) -> None:
        from airflow_childrun.authoring.author_io import Io  # what a handler needs, and a DAG file does not
        from airflow_childrun.engine.context import NamespacedContext

        state = self.state
        own = NamespacedContext(context, self.prefix)
        io = Io(provider, recorder, state.name, provider.airflow)
        result = state.function(**self._parameters(io, own))
        if inspect.isawaitable(result) or inspect.isgenerator(result) or inspect.isasyncgen(result):
            if not inspect.isasyncgen(result):
                getattr(result, "close", _nothing)()  # else Python warns of what was never awaited
            raise StateError(f"{state.name} returned a {type(result).__name__}: a handler is a plain def")
        own.write(state.name, encode(result, f"what {state.name!r} returned"))

    def _parameters(self, io: Io, own: NamespacedContext) -> dict[str, Any]:
        arguments = self.given.arguments()
        found: dict[str, Any] = {}
        for key in self.state.parameters:
            if key == "io":
                found[key] = io
            elif key == "ctx":
                found[key] = own
            elif key == "config":
                found[key] = self.given.config()
            elif key in self.states:
                found[key] = decode_result(own.read(key), self.states[key].returns, f"the result of state {key!r}")
            elif key in arguments:
                found[key] = arguments[key]
        return found


def decode_result(value: Any, hint: Any, where: str) -> Any:
    """Return a state's recorded result by its hint; None of one that was skipped, whatever its hint says.

    :raises InputError: codes ``input_invalid``, ``hint_unusable``
    """
    return None if value is None else decode(value, hint, where)


def _nothing() -> None:
    """Do nothing."""
