"""From what an author hands to an operator to the children that are wanted: elements, their keys, their manifests."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from airflow_childrun.authoring.author_io import in_element, name_element
from airflow_childrun.authoring.encoder import encode
from airflow_childrun.authoring.handles import Spawnable
from airflow_childrun.canonical import canonical_json_bytes
from airflow_childrun.engine.prepare import check_context
from airflow_childrun.errors import ContextError, InputError, InvalidIdError
from airflow_childrun.ids import key_digest
from airflow_childrun.model.config import ChildRetryPolicy, Duration, RunConfig
from airflow_childrun.model.manifest import build_manifest, manifest_id
from airflow_childrun.model.requests import ClosePolicy
from airflow_childrun.runtime.host_tree import WantedChild
from airflow_childrun.secret_policy import SecretPolicy

ChildKey = str | Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class SpawnOrder:
    """What a task wants to have run.

    :param single: one input, whose child has ``single_key``, by default the operation's name, as key; else one child per
        element
    :param child_timeout: how long each child may take from its spawn on
    :param parent_close_policy: what becomes of the children when the task fails for good or is told to stop
    :param child_retry_policy: how often each is tried again as a whole
    :param max_concurrency: how many of them work at a time, whichever processes drive them
    """

    operation: Spawnable
    elements: Sequence[Any]
    single: bool = False
    child_key: ChildKey | None = None
    op_config: Any = None
    initial_context: Any = None
    run_config: RunConfig | None = None
    single_key: str | None = None
    child_timeout: Duration | None = None
    max_concurrency: int | None = None
    child_retry_policy: ChildRetryPolicy | None = None
    parent_close_policy: ClosePolicy = "cancel"

    @property
    def key_name(self) -> str:
        """What keys begin with: what is run, as its author calls it."""
        # A DAG that is to be run stands for an operation that is the same for all DAGs.
        return str(getattr(self.operation, "dag_id", self.operation.name))


def check_inputs(inputs: Any) -> list[Any]:
    """Return a list of elements.

    :raises InputError: code ``inputs_not_a_list``, with a hint for text and objects
    """
    if isinstance(inputs, str | bytes):
        raise InputError(
            "inputs is text, which would make one child per letter: give a list, or input= for one child. A template "
            "gives text too: pass the output of the task that makes the list, as in inputs=customers.output",
            code="inputs_not_a_list",
        )
    if isinstance(inputs, Mapping):
        raise InputError(
            "inputs is an object: give a list of elements, or input= for one child whose input is this object",
            code="inputs_not_a_list",
        )
    if inputs is None:
        raise InputError(
            "inputs is None: the task or template that makes the list gave nothing. Have it return a list; an empty one spawns "
            "no children and succeeds",
            code="inputs_not_a_list",
        )
    try:
        return list(inputs)
    except TypeError:
        raise InputError(
            f"inputs is of type {type(inputs).__name__}: give a list of elements, or input= for one child",
            code="inputs_not_a_list",
        ) from None


def check_child_key(child_key: Any) -> None:
    """Refuse what can name no element.

    :raises InputError: code ``child_key_invalid``
    """
    if child_key is not None and not isinstance(child_key, str) and not callable(child_key):
        raise InputError(
            f"child_key is of type {type(child_key).__name__}: give a field's name, or a function of the element",
            code="child_key_invalid",
        )


def wanted_children(order: SpawnOrder, policy: SecretPolicy) -> list[WantedChild]:
    """Return the children that an order asks for, in its order.

    :raises InputError: codes ``child_key_required``, ``child_key_duplicate``, ``child_key_missing``,
        ``child_key_invalid``, ``input_invalid``
    :raises ContextError: what is wrong with the initial context
    """
    encoded = _encoded(order)
    keys = _keys(order, encoded)
    _check_keys(keys, policy)
    config = encode(order.op_config, f"the config of {order.operation.name}")
    context = encode(order.initial_context, "initial_context")
    snapshot_id = hashlib.sha256(_context_bytes(context, policy)).hexdigest()
    run_config = order.run_config or order.operation.run_config
    wanted = []
    for key, element in zip(keys, encoded, strict=True):
        manifest = build_manifest(
            order.operation.name, order.operation.version, op_config=config, input=element, run_config=run_config
        )
        timeout_us = order.child_timeout.us if order.child_timeout else None
        wanted.append(
            WantedChild(
                key,
                manifest,
                manifest_id(manifest),
                context,
                snapshot_id,
                order.parent_close_policy,
                timeout_us=timeout_us,
                max_concurrency=order.max_concurrency,
                child_retry_policy=order.child_retry_policy,
            )
        )
    return wanted


def _encoded(order: SpawnOrder) -> list[Any]:
    if order.single:
        return [order.operation.encode_input(element) for element in order.elements]
    encoded = []
    for index, element in enumerate(order.elements):
        with in_element(index, "inputs"):
            encoded.append(order.operation.encode_input(element))
    return encoded


def _check_keys(keys: Sequence[str], policy: SecretPolicy) -> None:
    """Refuse names that cannot be stored, before anything is."""
    for index, key in enumerate(keys):
        if policy.is_secret_text(key):
            raise InputError(
                f"the child_key of element {index} looks like a secret, and keys are stored: name it otherwise",
                code="child_key_invalid",
            )
        try:
            key_digest(key)
        except InvalidIdError as error:
            raise InputError(
                f"the child_key of element {index} cannot be stored: {error.info.message}", code="child_key_invalid"
            ) from None


def _context_bytes(context: Any, policy: SecretPolicy) -> bytes:
    try:
        return check_context(context, policy)
    except ContextError as error:
        raise InputError(error.info.message, code=error.code, details=error.info.details) from None


def _keys(order: SpawnOrder, encoded: Sequence[Any]) -> list[str]:
    name = order.key_name
    if order.single and order.child_key is None:
        return [order.single_key or name]
    if order.child_key is None:
        return _content_keys(name, encoded)
    named = [name_element(element, order.child_key, index) for index, element in enumerate(order.elements)]
    for key, count in Counter(named).items():
        if count > 1:
            raise InputError(
                f"{count} elements of inputs have the key {key!r}; choose a child_key that tells them apart",
                code="child_key_duplicate",
            )
    return [f"{name}/{key}" for key in named]


def _content_keys(name: str, encoded: Sequence[Any]) -> list[str]:
    """Name plain elements by what they are, and by which occurrence of it."""
    seen: Counter[str] = Counter()
    keys = []
    for index, element in enumerate(encoded):
        if isinstance(element, dict):
            raise InputError(
                f"element {index} of inputs is an object: name a field (or give a function) that identifies it, as in "
                'child_key="id"; otherwise a changed field would be another child',
                code="child_key_required",
            )
        digest = hashlib.sha256(canonical_json_bytes([name, element])).hexdigest()[:16]
        keys.append(f"{name}/{digest}#{seen[digest]}")
        seen[digest] += 1
    return keys
