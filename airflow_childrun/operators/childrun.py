"""Operators: spawn child runs, and await them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from airflow_childrun._airflow import Context
from airflow_childrun.authoring.handles import Spawnable
from airflow_childrun.authoring.operation import Operation
from airflow_childrun.authoring.registry import REGISTRY
from airflow_childrun.errors import InputError
from airflow_childrun.hooks.dag_runs import RETURN_VALUE, DagChild, check_dag_child
from airflow_childrun.hooks.dispatching import DispatchMode, check_runner, read_dispatch
from airflow_childrun.hooks.elements import ChildKey, SpawnOrder, check_child_key, check_inputs
from airflow_childrun.hooks.operations import load_shared_operations
from airflow_childrun.hooks.results import FailureMode, Results
from airflow_childrun.hooks.settings import read_settings
from airflow_childrun.model.config import ChildRetryPolicy, RunConfig, Span
from airflow_childrun.model.requests import ClosePolicy
from airflow_childrun.operators.deferring import DeferringOperator, span_of
from airflow_childrun.runtime.dispatch import OnRunnerLost
from airflow_childrun.runtime.host import OnPlanChange
from airflow_childrun.runtime.host_try import ON_CLEAR

DEFAULT_RETRIES = 2
"""Airflow's own default of 0 would make one lost worker final; here a retry only goes on where the try before ended."""


class _Unset:
    """Tells an argument that was not given from None."""

    def __repr__(self) -> str:
        return "UNSET"


UNSET: Any = _Unset()


class ChildRunOperator(DeferringOperator):
    """What the operators share."""

    ui_color = "#d7ecff"

    def __init__(
        self,
        *,
        results: Results = "values",
        failure_mode: FailureMode = "raise",
        retries: int | None = DEFAULT_RETRIES,
        **kwargs: Any,
    ) -> None:
        # Named in the signature, where Airflow looks for what default_args and .partial() may fill in.
        super().__init__(retries=retries, **kwargs)
        _one_of("results", results, ("values", "references"))
        _one_of("failure_mode", failure_mode, ("raise", "return"))
        self.results = results
        self.failure_mode = failure_mode

    def _how(self, context: Context) -> dict[str, Any]:
        """Return how to wait, and what to return."""
        return {"results": self.results, "failure_mode": self.failure_mode, "policy": self._policy(context)}


class SpawnChildRunOperator(ChildRunOperator):
    """Spawn child runs of an operation, and wait for them: retried, it goes on where it stopped.

    :param operation: what to run; or ``op_id`` and ``op_version`` of one that is registered elsewhere
    :param dag_id: in place of an operation: a DAG, whose runs are the children (templated)
    :param result_task_id: of a DAG: the task whose XCom is a child's output
    :param result_key: the key of that XCom
    :param airflow_api_conn_id: of a DAG: connection to Airflow's REST API; with it, DAG runs are ended and partly cleared, too
    :param parent_close_policy: what becomes of the children when this task fails for good or is told to stop: ``cancel``,
        or, with ``dispatch="dag_run"``, ``abandon``. Of a DAG: ``abandon``, or, with ``airflow_api_conn_id``, ``cancel``
    :param input: the input of a single child (templated); of a DAG, the conf of its run
    :param inputs: a list: one child per element (templated); a string or an object is refused
    :param child_key: names an element: a field, or a function of it; required for elements that are objects
    :param op_config: the operation's configuration (templated)
    :param initial_context: context to begin with, under full keys ``<operation>.main.<key>`` (templated)
    :param run_config: how the children are executed: retries of states, skip tags and so on
    :param on_clear: what a clear does to children that exist: ``auto`` goes on with what is not completed and runs all
        again if everything is; ``resume_failed``, ``reuse``, ``respawn`` (templated; ``dag_run.conf["childrun"]`` wins)
    :param child_timeout: how long each child may take from its spawn on (seconds or a timedelta); then it ends as Failed,
        code ``run_timed_out``
    :param child_retry_policy: how often a child that has failed is tried again as a whole, with waits of 1, 2, 4 ... 60
        seconds, or a whole :class:`~airflow_childrun.model.config.ChildRetryPolicy` (as a dictionary, too)
    :param on_plan_change: what happens to an unfinished child whose operation has changed its states: ``fail``, ``respawn``
    :param wait_for_completion: False returns handles, for an :class:`AwaitChildRunOperator` downstream
    :param dispatch: ``inline``: this task drives the children; ``dag_run``: DAG runs of a runner DAG do, see
        :func:`~airflow_childrun.operators.runner.childrun_runner_dag`
    :param runner_dag_id: the runner DAG
    :param batch_size: how many children one DAG run drives
    :param on_runner_lost: what is done when such a DAG run is over, or gone, before its children have ended:
        ``redispatch``, ``fail``
    :param results: ``values`` returns outputs, ``references`` leaves them in the store
    :param failure_mode: ``raise`` fails the task if a child did not complete, ``return`` lets the author look
    :param childrun_conn_id: connection of type ``childrun``
    :param max_concurrency: how many children work at the same time
    :param await_timeout: how long a try waits for the children at most (seconds or a timedelta); then it fails, code
        ``await_timed_out``, and leaves them as they are: its retry goes on with them
    """

    template_fields: Sequence[str] = ("input", "inputs", "op_config", "initial_context", "on_clear", "child_dag_id")
    template_fields_renderers: ClassVar[dict[str, str]] = {
        "input": "json",
        "inputs": "json",
        "op_config": "json",
        "initial_context": "json",
    }

    def __init__(  # noqa: PLR0913 - Airflow reads an operator's arguments off its signature
        self,
        *,
        operation: Operation | None = None,
        op_id: str | None = None,
        op_version: str | None = None,
        dag_id: str | None = None,
        result_task_id: str | None = None,
        result_key: str = RETURN_VALUE,
        airflow_api_conn_id: str | None = None,
        parent_close_policy: ClosePolicy | None = None,
        input: Any = UNSET,
        inputs: Any = UNSET,
        child_key: str | Callable[[Any], Any] | None = None,
        op_config: Any = None,
        initial_context: dict[str, Any] | None = None,
        run_config: RunConfig | dict[str, Any] | None = None,
        child_timeout: Span | None = None,
        child_retry_policy: int | dict[str, Any] | ChildRetryPolicy | None = None,
        on_clear: str = "auto",
        on_plan_change: OnPlanChange = "fail",
        wait_for_completion: bool = True,
        dispatch: DispatchMode = "inline",
        runner_dag_id: str | None = None,
        batch_size: int = 1,
        on_runner_lost: OnRunnerLost = "redispatch",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        _check_operation(operation, op_id, op_version, dag_id)
        self.dag_child = DagChild(dag_id or "", result_task_id, result_key, airflow_api_conn_id)
        usual = check_dag_child(self.dag_child, parent_close_policy if dag_id else None)
        self.parent_close_policy: ClosePolicy = parent_close_policy or usual
        self.dispatch = read_dispatch(dispatch, runner_dag_id, batch_size, on_runner_lost)
        check_runner(self.dispatch, self.parent_close_policy, dag_id)
        _check_one_of_inputs(input, inputs)
        if not _is_template(on_clear):
            _one_of("on_clear", on_clear, ON_CLEAR)
        _one_of("on_plan_change", on_plan_change, ("fail", "respawn"))
        check_child_key(child_key)
        self.operation, self.op_id, self.op_version, self.child_dag_id = operation, op_id, op_version, dag_id
        self._single = inputs is UNSET
        self.input, self.inputs = (None if given is UNSET else given for given in (input, inputs))
        self.child_key: ChildKey | None = child_key
        self.op_config, self.initial_context = op_config, initial_context
        self.run_config = None if run_config is None else RunConfig.from_author(run_config, "run_config")
        self.child_retry_policy = _retry_policy(child_retry_policy, dispatch)
        self.child_timeout = span_of("child_timeout", child_timeout)
        self.on_clear, self.wait_for_completion = on_clear, wait_for_completion
        self.on_plan_change: OnPlanChange = on_plan_change

    def _work(self, context: Context, *, come_back: bool) -> Any:
        """Spawn, and wait unless told otherwise; one result or handle for ``input``, a list for ``inputs``."""
        found = self._open_hook().come_back(context, **self._how(context)) if come_back else self._spawn(context)
        return found[0] if self._single else found

    def _is_single(self) -> bool:
        return self._single

    def _spawn(self, context: Context) -> list[dict[str, Any]]:
        elements = [self.input] if self._single else check_inputs(self.inputs)
        order = SpawnOrder(
            operation=self._find_operation(),
            elements=elements,
            single=self._single,
            child_key=self.child_key,
            op_config=self.op_config,
            initial_context=self.initial_context,
            run_config=self.run_config,
            child_timeout=self.child_timeout,
            parent_close_policy=self.parent_close_policy,
            max_concurrency=self.max_concurrency,
            child_retry_policy=self.child_retry_policy,
        )
        policies: dict[str, Any] = {"on_clear": self.on_clear, "on_plan_change": self.on_plan_change}
        policies["dispatch"] = self.dispatch
        if not self.wait_for_completion and self.child_dag_id is None:
            self._check_await_downstream()
        if not self.wait_for_completion:
            return self._open_hook().spawn(context, order, **policies)
        return self._open_hook().spawn_and_await(context, order, **policies, **self._how(context))

    def _find_operation(self) -> Spawnable:
        if self.operation is not None:
            return self.operation
        if self.child_dag_id is not None:
            return replace(self.dag_child, dag_id=self.child_dag_id)
        load_shared_operations(read_settings())
        dag = self.get_dag()
        found = REGISTRY.find(self.op_id or "", self.op_version or "", None if dag is None else dag.fileloc)
        if not isinstance(found, Operation):
            raise InputError(f"{self.op_id} {self.op_version} is no operation")
        return found

    def _check_await_downstream(self) -> None:
        """Refuse to spawn children that nobody would ever drive."""
        if self.dispatch is not None or any(_awaits(task) for task in self.get_flat_relatives(upstream=False)):
            return
        raise InputError(
            f"task {self.task_id!r} has wait_for_completion=False, but no AwaitChildRunOperator stands downstream: its "
            "children would never run. Add one, or leave wait_for_completion on",
            code="nobody_awaits",
        )


class AwaitChildRunOperator(ChildRunOperator):
    """Drive and await children that a ``SpawnChildRunOperator`` spawned, and return how each ended.

    :param child_runs: one handle or a list, as the spawning task returned it (templated)
    :param results: ``values`` returns outputs, ``references`` leaves them in the store
    :param failure_mode: ``raise`` fails the task if a child did not complete, ``return`` lets the author look
    :param childrun_conn_id: connection of type ``childrun``
    :param max_concurrency: how many children work at the same time
    :param await_timeout: how long a try waits for the children at most (seconds or a timedelta); then it fails, code
        ``await_timed_out``, and leaves them as they are: its retry goes on with them
    """

    template_fields: Sequence[str] = ("child_runs",)
    template_fields_renderers: ClassVar[dict[str, str]] = {"child_runs": "json"}

    def __init__(self, *, child_runs: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.child_runs = child_runs

    def _work(self, context: Context, *, come_back: bool) -> Any:  # noqa: ARG002 - every try looks at all that it awaits
        """Wait; one result for one handle, a list for a list."""
        found = self._open_hook().await_runs(context, self.child_runs, **self._how(context))
        return found[0] if self._is_single() else found

    def _is_single(self) -> bool:
        return isinstance(self.child_runs, Mapping)


def _check_operation(operation: Any, op_id: str | None, op_version: str | None, dag_id: str | None) -> None:
    if operation is None and not (op_id and op_version) and not dag_id:
        raise InputError(
            "give operation=, or op_id= and op_version= of a registered one, or dag_id=", code="operation_missing"
        )
    if operation is not None and (op_id or op_version):
        raise InputError("give operation= or op_id= and op_version=, not both", code="operation_twice")
    if dag_id and (operation is not None or op_id or op_version):
        raise InputError("give an operation or dag_id=, not both", code="operation_twice")
    if operation is not None and not isinstance(operation, Operation):
        raise InputError(
            f"operation is of type {type(operation).__name__}: decorate the function with @operation",
            code="operation_invalid",
        )


def _check_one_of_inputs(input: Any, inputs: Any) -> None:
    if input is not UNSET and inputs is not UNSET:
        raise InputError("give input= for one child or inputs= for several, not both", code="input_and_inputs")
    if isinstance(inputs, str | bytes | dict) and not _is_template(inputs):
        check_inputs(inputs)


def _one_of(name: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise InputError(f"{name} is {value!r}; it takes {', '.join(choices)}", code="argument_invalid")


def _retry_policy(given: int | dict[str, Any] | ChildRetryPolicy | None, dispatch: str) -> ChildRetryPolicy | None:
    if given is not None and dispatch == "dag_run":
        raise InputError(
            'child_retry_policy goes with dispatch="inline": what DAG runs drive is tried again by retries of states '
            "(run_config) or of the task",
            code="argument_invalid",
        )
    return ChildRetryPolicy.of(given, "child_retry_policy")


def _awaits(task: Any) -> bool:
    """Whether a task, mapped or not, is one that awaits child runs."""
    return issubclass(getattr(task, "operator_class", type(task)), AwaitChildRunOperator)


def _is_template(value: Any) -> bool:
    return isinstance(value, str) and ("{{" in value or "{%" in value)
