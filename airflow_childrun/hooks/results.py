"""What comes out of a task: plain dicts, small enough for XCom, and one clear error for children that did not complete."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal
from uuid import UUID

from airflow_childrun.authoring.operation import MAIN
from airflow_childrun.canonical import canonical_json_bytes
from airflow_childrun.errors import ChildRunFailedError, HostError
from airflow_childrun.runtime.ends import ends_of
from airflow_childrun.store.api import RunRow, Store

Results = Literal["values", "references"]
FailureMode = Literal["raise", "return"]
SHOWN = 10
NO_NAMES: Mapping[str, str] = {}
_HANDLES = (
    "pass what SpawnChildRunOperator returned, one handle or a list of them; the lists of a mapped task go to "
    "AwaitChildRunOperator.partial(...).expand(child_runs=...)"
)


def handle_of(row: RunRow, key: str, conn_id: str, runner_dag_id: str | None = None) -> dict[str, Any]:
    """Return the handle of a child: names its slot, for this task or another one to await.

    :param runner_dag_id: the DAG whose runs drive it, if that is not left to whoever awaits it
    """
    elsewhere = {} if runner_dag_id is None else {"runner_dag_id": runner_dag_id}
    return {
        "child_run_id": str(row.run_id),
        "slot_id": str(row.slot_id),
        "root_run_id": str(row.root_run_id),
        "key": key,
        "operation": row.op_id,
        "version": row.op_version,
        "childrun_conn_id": conn_id,
        **elsewhere,
    }


def results_of(
    store: Store, rows: Sequence[RunRow], keys: Sequence[str], conn_id: str, results: Results
) -> list[dict[str, Any]]:
    """Return handles with how their children ended: ``status``, ``output`` (``values`` only), ``final_snapshot_id``, ``error``."""
    answers = ends_of(store, rows, compact=True)
    found = []
    for row, key in zip(rows, keys, strict=True):
        answer = answers[row.run_id]
        result = {
            **handle_of(row, key, conn_id),
            "status": row.status,
            "generation": row.generation,
            "final_snapshot_id": row.final_snapshot_id,
            "error": answer.get("cause"),
        }
        found.append({**result, "output": answer["output"]} if results == "values" else result)
    return found


def check_size(found: Sequence[Mapping[str, Any]], limit: int, results: Results) -> None:
    """Refuse results that are too large for XCom.

    :raises HostError: code ``xcom_too_large``, naming the switch; the children and their results stay stored
    """
    size = len(canonical_json_bytes(list(found)))
    if size <= limit:
        return
    remedy = (
        'Set results="references" on this task, clear it, and read what you need with ChildRunHook.read_output(handle)'
        if results == "values"
        else "They are references already: raise [childrun] xcom_max_bytes and clear this task, or give parts of the list to "
        "several tasks, as .partial(...).expand(inputs=...) does"
    )
    raise HostError(
        f"the results of {len(found)} children take {size} bytes in XCom, more than the {limit} allowed. {remedy}. The "
        'children have ended and are kept; unless by on_clear="respawn", a clear repeats no call of theirs',
        code="xcom_too_large",
    )


def check_ends(results: Sequence[Mapping[str, Any]], names: Mapping[str, str] = NO_NAMES) -> None:
    """Raise if children did not complete.

    :param names: by child run id, how people know a child, where its key tells them little
    :raises ChildRunFailedError: code ``child_run_failed``; retryable if a retry of the task may help
    """
    bad = [result for result in results if result["status"] != "Completed"]
    if not bad:
        return
    lines = [f"  {names.get(result['child_run_id'], result['key'])}: {_reason(result)}" for result in bad[:SHOWN]]
    if len(bad) > SHOWN:
        lines.append(f"  and {len(bad) - SHOWN} more")
    final = all(result["error"] is not None and not result["error"]["retryable"] for result in bad)
    advice = (
        "None of these errors goes away by trying again: mend the cause, then clear the task."
        if final
        else "A retry or a clear of this task goes on from their last checkpoints; what completed is not run again."
    )
    raise ChildRunFailedError(
        f"{len(bad)} of {len(results)} child runs did not complete:\n" + "\n".join(lines) + f"\n{advice}",
        retryable=not final,
        details={"children": [result["child_run_id"] for result in bad]},
    )


def _reason(result: Mapping[str, Any]) -> str:
    error = result["error"]
    if error is None:
        return str(result["status"])
    state = str(error["state_id"] or MAIN).rpartition(".")[2]
    where = "" if state == MAIN else f" in state {state}"
    return f"{result['status']}{where} [{error['code']}] {error['message']}"


def check_handles(child_runs: Any) -> list[Any]:
    """Return a list of what stands for children: one handle makes a list of one.

    :raises HostError: code ``handle_invalid``
    """
    if isinstance(child_runs, Mapping):
        return [child_runs]
    if not isinstance(child_runs, Iterable) or isinstance(child_runs, str | bytes):
        is_none = child_runs is None
        raise HostError(
            "child_runs is None: the task that spawns returned nothing, or was skipped. An empty list awaits nobody"
            if is_none
            else f"child_runs is of type {type(child_runs).__name__}: {_HANDLES}",
            code="handle_invalid",
        )
    return list(child_runs)


def read_handle(value: Any) -> dict[str, Any]:
    """Check that something is a handle or a result.

    :raises HostError: code ``handle_invalid``
    """
    if not isinstance(value, Mapping) or not {"child_run_id", "slot_id", "root_run_id"} <= value.keys():
        raise HostError(
            f"a value of type {type(value).__name__} is no handle of a child run: {_HANDLES}",
            code="handle_invalid",
        )
    try:
        UUID(value["slot_id"])
        UUID(value["child_run_id"])
    except (ValueError, TypeError, AttributeError):
        raise HostError("a handle's ids must be UUIDs", code="handle_invalid") from None
    return dict(value)
