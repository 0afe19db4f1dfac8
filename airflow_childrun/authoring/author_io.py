"""``io``: what a handler has of the world. Everything recorded through it is asked once and known ever after."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from types import FunctionType
from typing import Any, TypeVar
from weakref import WeakSet

from airflow_childrun.authoring.encoder import decode, encode, hints_of
from airflow_childrun.authoring.handles import ChildError, ChildHandle, ChildResult, Spawnable
from airflow_childrun.authoring.steps import Looks, StepCall, as_policy
from airflow_childrun.engine.ports import IoCall, IoProvider, Recorder, Within
from airflow_childrun.errors import InputError
from airflow_childrun.model.config import ChildRetryPolicy, Duration, RetryPolicy, RunConfig, Span
from airflow_childrun.model.requests import AWAIT, SPAWN, AwaitRequest, SpawnRequest

R = TypeVar("R")


class Io:
    """The ``io`` of one handler, for its thread alone.

    Keys of steps, children and sleeps live under the handler's state: ``<state>/<key>``, by default
    ``<state>/<name>#<n>``. Only the raw :meth:`call` takes its key as it is.

    :param airflow: dag_id, run_id, logical date and data interval, as recorded when the run was spawned; None outside Airflow
    """

    def __init__(
        self, provider: IoProvider, recorder: Recorder, state: str, airflow: Mapping[str, Any] | None = None
    ) -> None:
        self._provider = provider
        self._recorder = recorder
        self._state = state
        self._counts: Counter[str] = Counter()
        self.airflow = airflow

    def call(self, namespace: str, request: Any, fact_key: str | None = None, *, allow_keys: Iterable[str] = ()) -> Any:
        """Ask a transport; with a fact key, once.

        :raises IoError: what the world, or the way to it, has against the request
        """
        body = encode(request, f"the request to {namespace}")
        return self._provider.call(IoCall(namespace, body, fact_key, frozenset(allow_keys))).response

    def record_value(self, key: str, value: Any) -> str:
        """Record a value under a key and return its artifact id.

        :raises OtherIoError: code ``fact_payload_conflict``, if another value stands there
        """
        return self._provider.record_value(self._key(key), encode(value, f"the value of {key!r}"))

    def get_recorded_fact(self, key: str) -> str | None:
        """Return the artifact id of the answer recorded under a full key, or None."""
        return self._provider.find_fact(key)

    def now_millis(self) -> int:
        """Return the time, recorded, in milliseconds since 1970-01-01 UTC."""
        return self._provider.now_millis()

    def random_bytes(self, size: int) -> bytes:
        """Return random bytes, recorded."""
        return self._provider.random_bytes(size)

    def emit(self, name: str, payload: Any = None) -> None:
        """Write an event of your own into the run's stream.

        :raises OtherRunError: codes ``secrets_detected``, ``domain_event_invalid``
        :raises InputError: code ``argument_invalid``, if the name is no text
        """
        if type(name) is not str:
            raise InputError(f"the name of an event is {name!r}; give a text", code="argument_invalid")
        self._recorder.emit(name, encode(payload, f"the event {name!r}"))

    def step(
        self,
        function: Callable[..., R],
        *args: Any,
        key: str | None = None,
        retry: int | RetryPolicy | Looks = 0,
        allow_keys: Iterable[str] = (),
        **kwargs: Any,
    ) -> R:
        """Call a function once, and return what it returned ever after.

        :param key: names the call where its position must not
        :param retry: how often it may be tried again after an exception, with growing waits, or a whole policy
        :param allow_keys: names of keys in the result that the secret policy lets through
        :raises OtherIoError: code ``step_failed``, once no further try is left; recorded, so raised again on re-entry
        :raises InputError: codes ``value_not_encodable``, if the arguments cannot be recorded; ``step_unnamed``,
            ``step_async``
        """
        name = _name_of(function)
        full_key = self._key(key, name)
        request = (
            encode([list(args), kwargs], f"the arguments of step {name!r}")
            if kwargs
            else encode(list(args), f"the arguments of step {name!r}")
        )
        watch = retry.watch if isinstance(retry, Looks) else None
        local = StepCall(function, args, kwargs, name, full_key, as_policy(retry), watch)
        call = IoCall(name, request, full_key, frozenset(allow_keys), local=local)
        response = self._provider.call(call).response
        result: R = decode(response, hints_of(function).get("return"), f"what step {name!r} returned")
        return result

    def spawn(
        self,
        operation: Spawnable,
        input: Any = None,
        *,
        key: str | None = None,
        config: Any = None,
        run_config: RunConfig | None = None,
        timeout: Span | None = None,
        child_retry_policy: int | ChildRetryPolicy | None = None,
    ) -> ChildHandle:
        """Spawn a child run; it works from now on beside this one.

        :param timeout: how long it may take from now on, in seconds or as a timedelta; then it ends as Failed, code
            ``run_timed_out``, and what it spawned is asked to end
        :param child_retry_policy: how often it may be tried again as a whole after it has failed, with growing waits, or a
            whole policy; whoever awaits it is told of the last attempt alone
        :raises OtherIoError: codes ``child_run_engine_failed``, ``child_run_conflict``
        :raises InputError: if the input does not fit the operation
        """
        full_key = self._key(key, operation.name)
        call = _spawn_call(full_key, operation, input, config, run_config, timeout, child_retry_policy)
        answer = self._provider.call(call).response
        return _handle(answer, operation, full_key)

    def await_child(
        self, child: ChildHandle, operation: Spawnable | None = None, *, timeout: Span | None = None
    ) -> ChildResult:
        """Wait for a child of this run to end, holding no slot.

        :param operation: whose return type the output is to have
        :param timeout: how long to wait at most, in seconds or as a timedelta; the child goes on all the same, and may be
            awaited again
        :raises AwaitTimeoutError: code ``await_timed_out``, recorded, so raised again on re-entry
        """
        if timeout is None:
            return self._await_all([child], operation)[0]
        number = self._counts[child.key]
        self._counts[child.key] += 1
        within = Within(f"{child.key}/timer#{number}", Duration.of(timeout, "the timeout of an await").us)
        answer = self._provider.call(_await_call(child)._replace(within=within))
        return read_result(answer.response, operation)

    def map(
        self,
        operation: Spawnable,
        inputs: Iterable[Any],
        *,
        key: str | Callable[[Any], Any] | None = None,
        config: Any = None,
        run_config: RunConfig | None = None,
        timeout: Span | None = None,
        child_retry_policy: int | ChildRetryPolicy | None = None,
        max_concurrency: int | None = None,
    ) -> list[ChildResult]:
        """Run an operation once per element, all side by side, and return how each ended, in the order of the elements.

        :param key: a function of the element, or a field's name, that names the child; by default its position does
        :param timeout: how long each child may take from now on, in seconds or as a timedelta; then it ends as Failed,
            code ``run_timed_out``
        :param child_retry_policy: how often a child may be tried again as a whole, as for :meth:`spawn`
        :param max_concurrency: how many children of this operation and run work at a time, whichever processes drive them;
            they begin in the order of the elements
        :raises InputError: if two elements have the same key, or an input does not fit
        """
        if max_concurrency is not None and (type(max_concurrency) is not int or max_concurrency < 1):
            raise InputError(
                f"max_concurrency is {max_concurrency!r}; it takes an integer >= 1", code="argument_invalid"
            )
        elements = list(inputs)
        keys = self._keys_of(operation, elements, key)
        calls = []
        for index, (element, full_key) in enumerate(zip(elements, keys, strict=True)):
            with in_element(index, f"io.map({operation.name})"):
                calls.append(
                    _spawn_call(
                        full_key, operation, element, config, run_config, timeout, child_retry_policy, max_concurrency
                    )
                )
        answers = self._provider.call_many(calls) if calls else []
        children = [_handle(answer.response, operation, at) for answer, at in zip(answers, keys, strict=True)]
        return self._await_all(children, operation)

    def sleep(self, span: Span, *, key: str | None = None) -> None:
        """Wait durably, seconds or a timedelta: a crash neither forgets nor repeats the wait; no slot is held."""
        seconds = span.total_seconds() if isinstance(span, timedelta) else span
        self._provider.sleep(self._key(key, "sleep"), round(seconds * 1_000_000))

    def idempotency_token(self, key: str) -> str:
        """Return a token to send along with the outside call of the step ``key``: the same after a crash."""
        return self._provider.idempotency_token(self._key(key))

    def _await_all(self, children: Sequence[ChildHandle], operation: Spawnable | None) -> list[ChildResult]:
        calls = [_await_call(child) for child in children]
        answers = self._provider.call_many(calls) if calls else []
        return [read_result(answer.response, operation) for answer in answers]

    def _keys_of(
        self, operation: Spawnable, elements: Sequence[Any], key: str | Callable[[Any], Any] | None
    ) -> list[str]:
        if key is None:
            return [self._key(None, operation.name) for _ in elements]
        names = [name_element(element, key, index) for index, element in enumerate(elements)]
        twice = next((name for name, count in Counter(names).items() if count > 1), None)
        if twice is not None:
            raise InputError(
                f"two elements of io.map({operation.name}) have the key {twice!r}; choose a key that tells them apart",
                code="child_key_duplicate",
            )
        return [self._key(f"{operation.name}/{name}") for name in names]

    def _key(self, key: str | None, name: str = "") -> str:
        if key is not None:
            return f"{self._state}/{key}"
        number = self._counts[name]
        self._counts[name] += 1
        return f"{self._state}/{name}#{number}"


@contextmanager
def in_element(index: int, where: str) -> Iterator[None]:
    """Say in an input's error which of many elements it is about."""
    try:
        yield
    except InputError as error:
        info = error.info
        raise InputError(f"element {index} of {where}: {info.message}", code=info.code, details=info.details) from None


def name_element(element: Any, key: str | Callable[[Any], Any], index: int) -> str:
    """Return the name that a key function or a field gives an element.

    :raises InputError: codes ``child_key_missing``, if the element has no such field, or the function raises;
        ``child_key_invalid``, if what names it is neither text nor a number
    """
    if callable(key):
        try:
            name = key(element)
        except Exception as error:
            raise InputError(
                f"the key function raised {type(error).__name__} for element {index}; give each element what it looks for",
                code="child_key_missing",
            ) from error
        return _as_key(name, index)
    found = element.get(key) if isinstance(element, Mapping) else getattr(element, key, None)
    if found is None:
        raise InputError(
            f"element {index} has no field {key!r} to be named by, or None in it", code="child_key_missing"
        )
    return _as_key(found, index)


def _as_key(name: Any, index: int) -> str:
    """Return the text of what names an element: two equal objects may differ as text, and None names nobody."""
    encoded = encode(name, f"the key of element {index}")
    if not isinstance(encoded, str | int | float):
        kind = {type(None): "None", dict: "an object"}.get(type(encoded), "a list")
        raise InputError(f"the key of element {index} is {kind}: give text or a number", code="child_key_invalid")
    return str(encoded)


def read_result(answer: Mapping[str, Any], operation: Spawnable | None) -> ChildResult:
    """Return a recorded compact answer as a result, its output by the operation's return type."""
    cause = answer.get("cause")
    error = None
    if cause is not None:
        error = ChildError(cause["code"], cause["message"], cause["retryable"], cause["state_id"])
    output = answer["output"]
    if operation is not None and answer["status"] == "Completed":
        output = operation.decode_output(output)
    return ChildResult(answer["child_run_id"], answer["status"], output, answer["final_snapshot_id"], error)


def _spawn_call(
    full_key: str,
    operation: Spawnable,
    element: Any,
    config: Any,
    run_config: RunConfig | None,
    timeout: Span | None,
    child_retry_policy: int | ChildRetryPolicy | None,
    max_concurrency: int | None = None,
) -> IoCall:
    request = SpawnRequest(
        op_id=operation.name,
        op_version=operation.version,
        op_config=encode(config, f"the config of {operation.name}"),
        input=operation.encode_input(element),
        run_config=run_config or operation.run_config,
        parent_close_policy="cancel",
        timeout=None if timeout is None else Duration.of(timeout, f"the timeout of {operation.name}"),
        child_retry_policy=ChildRetryPolicy.of(child_retry_policy, f"the child_retry_policy of {operation.name}"),
        max_concurrency=max_concurrency,
    )
    return IoCall(SPAWN, request.to_json(), full_key, model=request)


def _await_call(child: ChildHandle) -> IoCall:
    request = AwaitRequest(child_run_id=child.child_run_id, child_manifest_id=child.child_manifest_id, compact=True)
    return IoCall(AWAIT, request.to_json(), f"{child.key}/end", model=request)


def _handle(answer: Mapping[str, Any], operation: Spawnable, key: str) -> ChildHandle:
    return ChildHandle(answer["child_run_id"], answer["child_manifest_id"], operation.name, operation.version, key)


_SYNCHRONOUS: WeakSet[Callable[..., Any]] = WeakSet()
"""Functions that were looked at before."""


def _name_of(function: Callable[..., Any]) -> str:
    name = getattr(function, "__name__", None)
    if not name or name == "<lambda>":
        raise InputError(
            "a step needs a function with a name, since its name is its key; define one with def", code="step_unnamed"
        )
    if type(function) is FunctionType and function in _SYNCHRONOUS:
        return str(name)
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise InputError(
            f"the step {name!r} is async; make it a plain def (which may call asyncio.run), and several at once children",
            code="step_async",
        )
    if type(function) is FunctionType:
        _SYNCHRONOUS.add(function)
    return str(name)
