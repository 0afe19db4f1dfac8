"""Operations: what an author writes. A plain function, or a small graph of states."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
from collections.abc import Callable, Iterable
from copy import deepcopy
from types import CodeType
from typing import Any, Self, overload

from pydantic import ValidationError

from airflow_childrun.authoring.encoder import adapter, decode, encode
from airflow_childrun.authoring.registry import REGISTRY, Place
from airflow_childrun.authoring.states import Handler, State, build_node, decode_result
from airflow_childrun.canonical import canonical_json_bytes
from airflow_childrun.errors import InputError, InvalidPlanError, OperationError
from airflow_childrun.ids import is_op_id
from airflow_childrun.model.config import RetryPolicy, RunConfig, Span
from airflow_childrun.model.manifest import MAIN_STEP, RunManifest
from airflow_childrun.model.plan import Edge, ExecutionPlan, SideEffects, StateNode
from airflow_childrun.model.wire import complaints

MAIN = "main"
ON_CANCEL = "on_cancel"
Build = Callable[["Operation", Any], None]


class Operation:
    """Something that can be run durably: a name, a version and a graph of states. It is spawned, and cannot be called.

    What Airflow can call it serializes as its source; this stands in a serialized DAG as its name and version.

    :param name: lower-case letters, digits and underscores, at most 63
    :param version: raise it when the plan changes; several may be registered at once
    :param run_config: how its runs are executed unless a spawn says otherwise
    :param build: declares the states as a function of the run's ``op_config``
    """

    def __init__(
        self, name: str, *, version: str, run_config: RunConfig | None = None, build: Build | None = None
    ) -> None:
        if not is_op_id(name):
            raise OperationError(
                f"{name!r} is no name for an operation: use lower-case letters, digits and underscores, begin with a "
                "letter, 63 characters at most",
                code="invalid_op_id",
            )
        if not version or not isinstance(version, str):
            raise OperationError(f'operation {name!r} needs a version, such as version="1"', code="invalid_version")
        self.name = name
        self.version = version
        self.run_config = run_config or RunConfig()
        self._build = build
        self.states: dict[str, State] = {}
        self.clean_up: State | None = None
        # Input fields and plan of the states as they stand, for an operation whose config does not change them.
        self._known: tuple[dict[str, inspect.Parameter], ExecutionPlan] | None = None
        self._last: State | None = None
        self.place = Place.of_caller(build)
        REGISTRY.register(self)

    @overload
    def state(self, function: Handler, /) -> Handler: ...

    @overload
    def state(
        self,
        /,
        *,
        after: Iterable[str] = ...,
        tags: Iterable[str] = ...,
        retry: int | RetryPolicy | None = ...,
        side_effects: SideEffects = ...,
        idempotency: str | None = ...,
        timeout: Span | None = ...,
    ) -> Callable[[Handler], Handler]: ...

    def state(
        self,
        function: Handler | None = None,
        /,
        *,
        after: Iterable[str] = (),
        tags: Iterable[str] = (),
        retry: int | RetryPolicy | None = None,
        side_effects: SideEffects = "Pure",
        idempotency: str | None = None,
        timeout: Span | None = None,
    ) -> Any:
        """Make a function a state of this operation; its name is the state's name.

        Its parameters name what it wants: ``io``, ``ctx``, ``config``, other states (their results), or input fields.

        :param after: states that must have finished, beside those whose results it wants
        :param retry: how often the state may be tried again, or a whole policy; by default the run's
        :param idempotency: required where ``side_effects="ApplySideEffect"``
        :param timeout: how long an attempt may take, waits included (seconds or a timedelta); then it has failed, code
            ``state_timed_out``. A process that dies does not set it back
        :raises InvalidPlanError: codes ``missing_idempotency_key``, ``duplicate_state_id``
        """
        policy = RetryPolicy(max_attempts=retry + 1) if isinstance(retry, int) else retry

        def take(handler: Handler) -> Handler:
            state = State.of(handler, _names(after), _names(tags), policy, side_effects, idempotency, timeout=timeout)
            self.declare(state)
            return handler

        return take if function is None else take(function)

    def on_cancel(self, function: Handler, /) -> Handler:
        """Make a function the clean-up that runs when a run is asked to end after it has entered a state.

        It is recorded like any state, and may use ``io``, ``ctx``, ``config`` and the input; it does not run when the
        run fails or completes.

        :raises OperationError: code ``invalid_handler``
        """
        self.clean_up = State.of(function, (), (), None, "Pure", None, name=ON_CANCEL)
        return function

    def declare(self, state: State) -> None:
        """Take a state in.

        :raises InvalidPlanError: codes ``missing_idempotency_key``, ``duplicate_state_id``
        """
        if state.name == ON_CANCEL:
            raise InvalidPlanError(
                f"operation {self.name!r} has a state called {ON_CANCEL!r}: that is the name of its clean-up; call the "
                f"state otherwise, or make it the clean-up with @{self.name}.on_cancel",
                code="duplicate_state_id",
            )
        if state.name in self.states:
            raise InvalidPlanError(
                f"operation {self.name!r} has two states called {state.name!r}", code="duplicate_state_id"
            )
        if state.side_effects == "ApplySideEffect" and not state.idempotency:
            raise InvalidPlanError(
                f"state {state.name!r} of {self.name!r} applies side effects: give it idempotency=, the key under which "
                "the outside world recognises a repetition",
                code="missing_idempotency_key",
            )
        self.states[state.name] = state
        self._known = self._last = None

    def plan(self, manifest: RunManifest) -> ExecutionPlan:
        """Return the plan of a run.

        :raises InvalidPlanError: if the states make no valid graph
        :raises InputError: if input or config do not fit
        """
        states = self._states_for(manifest.op_config)
        known = self._known if self._build is None else None
        fields = known[0] if known else self.input_fields(states)
        self.bind(manifest.input, fields)
        prefix = f"{self.name}.{MAIN_STEP}."
        given = _Given(self, manifest, fields)
        nodes = tuple([build_node(state, prefix, states, given) for state in states.values()])
        clean_up = None if self.clean_up is None else build_node(self.clean_up, prefix, states, given)
        if known is not None:
            return known[1].with_handlers(nodes, clean_up)
        edges = tuple(
            Edge(prefix + source, prefix + state.name) for state in states.values() for source in state.sources(states)
        )
        code_digest = self._code_digest(states)
        plan = ExecutionPlan(self.name, self.version, nodes, edges, on_cancel=clean_up, code_digest=code_digest)
        if self._build is None:
            self._known = fields, plan
        return plan

    def _states_for(self, config: Any) -> dict[str, State]:
        if self._build is None:
            return self.states
        draft = _Draft(self)
        self._build(draft, config)
        return draft.states

    def input_fields(self, states: dict[str, State] | None = None) -> dict[str, inspect.Parameter]:
        """Return the parameters that are neither ``io``, ``ctx``, ``config`` nor states: the run's input."""
        fields: dict[str, inspect.Parameter] = {}
        known = self.states if states is None else states
        for state in known.values():
            for name, parameter in state.inputs(known).items():
                fields.setdefault(name, parameter)
        return fields

    def encode_input(self, element: Any) -> Any:
        """Return an input as JSON, after checking it against the type hints.

        :raises InputError: naming the field, the value's place and the expected type
        """
        encoded = encode(element, f"the input of {self.name}")
        if self._build is None:
            self.bind(encoded, self.input_fields())
        return encoded

    def bind(self, value: Any, fields: dict[str, inspect.Parameter]) -> dict[str, Any]:
        """Bind an input to the fields: the value itself where there is one, an object by name where there are more."""
        where = f"the input of {self.name} {self.version}"
        if not fields:
            if value not in (None, {}):
                raise InputError(f"{where}: it takes no input, but was given one")
            return {}
        if len(fields) == 1:
            ((name, parameter),) = fields.items()
            if value is None and parameter.default is not inspect.Parameter.empty:
                return {name: deepcopy(parameter.default)}
            if parameter.annotation in (Any, inspect.Parameter.empty):
                return {name: deepcopy(value)}
            return {name: decode(value, parameter.annotation, f"{where}, field {name!r},")}
        if not isinstance(value, dict):
            raise InputError(
                f"{where}: it takes the fields {', '.join(fields)}; give an object with these names, not "
                f"a {type(value).__name__}"
            )
        unknown = sorted(set(value) - set(fields))
        if unknown:
            raise InputError(f"{where}: it has no field {', '.join(unknown)}; its fields are {', '.join(fields)}")
        try:
            found = adapter(self._input_class(fields)).validate_json(canonical_json_bytes(value))
        except ValidationError as error:
            raise InputError(f"{where} does not fit: {complaints(error)}") from None
        return {name: getattr(found, name) for name in fields}

    def _input_class(self, fields: dict[str, inspect.Parameter]) -> type:
        """Make a dataclass of the fields: no name that a parameter may have means anything to it."""
        made = [(name, _hint_of(parameter), _field_of(parameter)) for name, parameter in fields.items()]
        return dataclasses.make_dataclass(f"{self.name}_input", made, kw_only=True)

    def input_schema(self) -> dict[str, Any]:
        """Return the JSON schema of the input: what a DAG's ``params`` and the form in the UI are made of."""
        fields = self.input_fields()
        if len(fields) == 1:
            (parameter,) = fields.values()
            return adapter(_hint_of(parameter)).json_schema()
        return adapter(self._input_class(fields)).json_schema()

    def decode_output(self, value: Any) -> Any:
        """Return a recorded output as the type that the last state's return hint names."""
        if self._build is not None or not self.states:
            return value
        if self._last is None:
            self._last = self._last_state()
        return decode_result(value, self._last.returns, f"the output of {self.name}")

    def _last_state(self) -> State:
        plan = ExecutionPlan(
            self.name,
            self.version,
            tuple(StateNode(state.name, state.function) for state in self.states.values()),  # nobody runs it
            tuple(Edge(s, state.name) for state in self.states.values() for s in state.sources(self.states)),
        )
        return self.states[plan.order[-1].id]

    def shape(self) -> bytes:
        """Return what two operations of one name and version must have in common."""
        parts = [state.describe(self.states) for state in self.states.values()]
        build = "" if self._build is None else code_of(self._build)
        return canonical_json_bytes([self.name, self.version, parts, build])

    def _code_digest(self, states: dict[str, State]) -> str:
        return hashlib.sha256("\n".join(code_of(state.function) for state in states.values()).encode()).hexdigest()

    def __repr__(self) -> str:
        return f"Operation({self.name!r}, version={self.version!r})"

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


@dataclasses.dataclass(frozen=True, slots=True)
class _Given:
    """What a run was given."""

    operation: Operation
    manifest: RunManifest
    fields: dict[str, inspect.Parameter]

    def arguments(self) -> dict[str, Any]:
        """Return the input by parameter, fresh."""
        return self.operation.bind(self.manifest.input, self.fields)

    def config(self) -> Any:
        """Return the config, fresh."""
        return deepcopy(self.manifest.op_config)


class _Draft(Operation):
    """Collects the states that a build function declares for one config."""

    def __init__(self, of: Operation) -> None:
        self.name, self.version, self.run_config = of.name, of.version, of.run_config
        self._build = None
        self.states = {}
        self.clean_up = of.clean_up
        self._known = self._last = None


@overload
def operation(function: Handler, /) -> Operation: ...


@overload
def operation(
    function: None = None,
    /,
    *,
    version: str = ...,
    name: str | None = ...,
    retry: int | RetryPolicy | None = ...,
    timeout: Span | None = ...,
    run_config: RunConfig | None = ...,
) -> Callable[[Handler], Operation]: ...


def operation(
    function: Handler | None = None,
    /,
    *,
    version: str = "1",
    name: str | None = None,
    retry: int | RetryPolicy | None = None,
    timeout: Span | None = None,
    run_config: RunConfig | None = None,
) -> Any:
    """Make a function an operation with the single state ``main``.

    :param version: raise it when what it records under its keys changes
    :param retry: how often the whole function may be tried again; its steps stay recorded
    :param timeout: how long an attempt may take, waits included (seconds or a timedelta); code ``state_timed_out``
    """

    def make(handler: Handler) -> Operation:
        policy = RetryPolicy(max_attempts=retry + 1) if isinstance(retry, int) else retry
        state = State.of(handler, (), (), policy, "Pure", None, name=MAIN, timeout=timeout)
        made = Operation(name or handler.__name__, version=version, run_config=run_config)
        made.place = Place.of_function(handler)
        made.declare(state)
        REGISTRY.settle(made)
        return made

    return make if function is None else make(function)


def _names(given: Iterable[str]) -> tuple[str, ...]:
    """Return names; a single one may be given as it is."""
    return (given,) if isinstance(given, str) else tuple(given)


def _hint_of(parameter: inspect.Parameter) -> Any:
    return Any if parameter.annotation is inspect.Parameter.empty else parameter.annotation


def _field_of(parameter: inspect.Parameter) -> Any:
    if parameter.default is inspect.Parameter.empty:
        return dataclasses.field()
    if type(parameter.default).__hash__ is not None:
        return dataclasses.field(default=parameter.default)
    return dataclasses.field(default_factory=lambda: deepcopy(parameter.default))


def code_of(function: Callable[..., Any]) -> str:
    """Return a digest of what a function does; shown to people, never compared across releases."""
    code = getattr(function, "__code__", None)
    parts = _code_parts(code) if isinstance(code, CodeType) else [repr(type(function))]
    return hashlib.sha256("\n".join(parts).encode("utf-8", "backslashreplace")).hexdigest()


def _code_parts(code: CodeType) -> list[str]:
    """Return what a piece of code consists of, without lines, paths and addresses."""
    parts = [code.co_code.hex(), repr(code.co_names)]
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            parts += _code_parts(constant)
        else:
            parts.append(repr(sorted(map(repr, constant))) if isinstance(constant, frozenset) else repr(constant))
    return parts
