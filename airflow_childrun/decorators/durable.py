"""``@task.durable``: a TaskFlow function whose ``io.step(...)`` calls are recorded, and survive the task's retries."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar

from airflow_childrun._airflow import BaseDecoratedOperator, Context, current_default_args, task_decorator_factory
from airflow_childrun.authoring.operation import Operation, operation
from airflow_childrun.errors import OperationError
from airflow_childrun.hooks.coordinates import read_on_clear
from airflow_childrun.hooks.elements import SpawnOrder
from airflow_childrun.operators.childrun import DEFAULT_RETRIES, ChildRunOperator

KEY = "main"
OPERATION = "childrun_operation"


class DurableDecoratedOperator(BaseDecoratedOperator, ChildRunOperator):
    """Runs a function as the child ``main`` of its task: retried, it goes on after its last recorded step.

    :param on_clear: what a clear does to a run that exists; see
        :class:`~airflow_childrun.operators.childrun.SpawnChildRunOperator`
    """

    custom_operator_name = "@task.durable"
    template_fields: Sequence[str] = ("op_args", "op_kwargs", "on_clear")
    template_fields_renderers: ClassVar[dict[str, str]] = {"op_args": "py", "op_kwargs": "py"}

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        on_clear: str = "auto",
        **kwargs: Any,
    ) -> None:
        super().__init__(python_callable=python_callable, op_args=op_args, op_kwargs=op_kwargs, **kwargs)
        self.operation: Operation = vars(python_callable)[OPERATION]
        self.on_clear = on_clear

    def execute(self, context: Context) -> Any:
        """Run the function durably and return what it returns."""
        return self._run(context, come_back=False)

    def _work(self, context: Context, *, come_back: bool) -> Any:
        policy = self._policy(context)
        if come_back:
            (result,) = self._open_hook().come_back(context, policy=policy)
            return result["output"]
        bound = inspect.signature(self.python_callable).bind(*self.op_args, **self.op_kwargs)
        bound.apply_defaults()
        fields = self.operation.input_fields()
        given = dict(bound.arguments)
        value = next(iter(given.values())) if len(fields) == 1 else (given or None)
        order = SpawnOrder(self.operation, [value], single=True, single_key=KEY)
        clear = read_on_clear(self.on_clear, {})
        (result,) = self._open_hook().spawn_and_await(context, order, on_clear=clear, policy=policy)
        return result["output"]


def durable_task(python_callable: Callable[..., Any] | None = None, *, version: str = "1", **kwargs: Any) -> Any:
    """Make a function with a parameter ``io`` a task: ``@task.durable`` or ``@task.durable(version="2")``.

    :param version: raise it when what the function records under its keys changes
    :param kwargs: arguments of the task, such as ``on_clear``, ``childrun_conn_id`` or ``retries``: by default those of the
        DAG around it, or 2
    :raises OperationError: code ``invalid_handler``, if the function has no parameter ``io``
    """

    def make(function: Callable[..., Any]) -> Any:
        # TaskFlow's expand() asks no operator for its defaults.
        kwargs.setdefault("retries", current_default_args().get("retries", DEFAULT_RETRIES))
        return task_decorator_factory(
            seen_by_airflow(function, version), decorated_operator_class=DurableDecoratedOperator, **kwargs
        )

    return make if python_callable is None else make(python_callable)


def seen_by_airflow(function: Callable[..., Any], version: str) -> Callable[..., Any]:
    """Return what TaskFlow sees of a function: everything but ``io``, which only its run can give.

    :raises OperationError: code ``invalid_handler``, if the function has no parameter ``io``
    """
    signature = inspect.signature(function)
    if "io" not in signature.parameters:
        raise OperationError(
            f"{function.__name__!r} has no parameter io: a durable task records what it does through io.step(...)",
            code="invalid_handler",
        )
    made = operation(version=version)(function)

    @functools.wraps(function)
    def seen(*args: Any, **kwargs: Any) -> Any:  # noqa: ARG001 - whatever the arguments
        raise OperationError(f"{function.__name__} is a durable task: its DAG runs it", code="operation_called")

    left = [parameter for name, parameter in signature.parameters.items() if name != "io"]
    vars(seen).update({OPERATION: made, "__signature__": signature.replace(parameters=left)})
    return seen
