"""What a parent's transport asks of the runtime: look at children, have them driven, wait for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

from airflow_childrun.canonical import decode_stored
from airflow_childrun.engine.history import RunHistory
from airflow_childrun.engine.ports import RunIdentity
from airflow_childrun.engine.prepare import Lineage, create_step
from airflow_childrun.errors import ChildRunError, OtherIoError, StorageError, StoreInterrupt
from airflow_childrun.ids import child_run_id
from airflow_childrun.model.events import Continues, Parent, RunStarted, StateEntered, StateFailed
from airflow_childrun.model.requests import AwaitResponse, Cause, CompactResult
from airflow_childrun.runtime.histories import load_history
from airflow_childrun.runtime.house import House
from airflow_childrun.store.api import RunFilter, RunRow, RunStep, Store
from airflow_childrun.store.codec import decode_event, decode_events
from airflow_childrun.transports.child_runs import ChildEnd


class RunNursery:
    """The children of one driven run.

    :param hand_over: gives a run to the process's supervisor
    :param wait: waits for a run's end, holding no slot
    """

    def __init__(
        self,
        house: House,
        history: RunHistory,
        hand_over: Callable[[UUID], None],
        wait: Callable[[UUID], RunRow],
    ) -> None:
        self._house = house
        self._history = history
        self._wait = wait
        self.hand_over = hand_over

    def find_run(self, run_id: UUID) -> RunRow | None:
        """Return a run's row."""
        return self._house.find_run(run_id)

    def newest_generation(self, slot_id: UUID) -> RunRow:
        """Return the newest generation of a slot."""
        return self._house.patience.attempt(lambda: newest_generation(self._house.store, slot_id))

    def wait_terminal(self, run_id: UUID) -> RunRow:
        """Wait, holding no slot, until a run has ended.

        :raises OtherIoError: code ``child_run_task_failed``, if nobody can drive it
        """
        try:
            return self._wait(run_id)
        except StorageError as error:
            raise StoreInterrupt(str(error), error) from error
        except ChildRunError as error:
            raise OtherIoError(
                f"child run {run_id} cannot be driven here: {error.info.message} [{error.code}]",
                code="child_run_task_failed",
                retryable=error.retryable,
                details={"code": error.code},
            ) from error

    def end_of(self, row: RunRow, *, compact: bool) -> ChildEnd:
        """Return how a terminal run ended."""
        return self._house.patience.attempt(lambda: end_of(self._house.store, row, compact=compact))

    def continuation(self, row: RunRow, opener: RunIdentity) -> tuple[UUID, RunStep]:
        """Return id and creating step of the generation that continues a terminal one."""
        return self._house.patience.attempt(lambda: continuation(self._house.store, row, opener))

    def must_heal(self, row: RunRow) -> bool:
        """Whether this run continues another and has not opened this slot's next generation yet."""
        if self._history.segment == 0:
            return False
        own = (child for child in self._history.children if child.at[0] == self._history.segment)
        return all(child.child_run_id != row.run_id for child in own)

    def is_own_child(self, row: RunRow) -> bool:
        """Whether this run, or one that it continues, spawned the run."""
        return any(
            child.child_run_id in (row.run_id, row.slot_id) or row.parent_run_id == self._history.run_id
            for child in self._history.children
        )


def newest_generation(store: Store, slot_id: UUID) -> RunRow:
    """Return the newest generation of a slot."""
    page = store.find_runs(RunFilter(slot_ids=frozenset({slot_id})), limit=1000)
    return max(page.rows, key=lambda row: row.generation)


def output_of(store: Store, row: RunRow, snapshot: Any) -> Any:
    """Return a run's output: what its last state returned, as its final snapshot holds it; None without plan or snapshot."""
    started = decode_event(store.read_events(row.run_id, 1, 1)[0])
    if not isinstance(started, RunStarted) or started.plan_id is None or not isinstance(snapshot, dict):
        return None
    body = store.get_artifacts(row.root_run_id, [started.plan_id]).get(started.plan_id)
    states = decode_stored(body)["states"] if body else []
    return snapshot.get(states[-1]["name"]) if states else None


def read_final_snapshot(store: Store, row: RunRow) -> Any:
    """Return the final snapshot of a run, or None."""
    if row.final_snapshot_id is None:
        return None
    body = store.get_artifacts(row.root_run_id, [row.final_snapshot_id]).get(row.final_snapshot_id)
    return None if body is None else decode_stored(body)


def end_of(store: Store, row: RunRow, *, compact: bool) -> ChildEnd:
    """Return the await's answer for a terminal run: V1's four fields, or the compact ones; the cause if it did not complete."""
    snapshot = read_final_snapshot(store, row)
    status: Any = row.status
    cause = None if row.status == "Completed" else find_cause(store, row)
    answer: AwaitResponse | CompactResult
    if compact:
        output = output_of(store, row, snapshot) if row.status == "Completed" else None
        answer = CompactResult(
            child_run_id=str(row.run_id),
            status=status,
            final_snapshot_id=row.final_snapshot_id,
            output=output,
            cause=cause,
        )
    else:
        answer = AwaitResponse(
            child_run_id=str(row.run_id),
            status=status,
            final_snapshot_id=row.final_snapshot_id,
            final_snapshot=snapshot,
            cause=cause,
        )
    return ChildEnd(row, answer.to_json())


def find_cause(store: Store, row: RunRow) -> Cause | None:
    """Return why a run failed: its last failed attempt, as it was recorded."""
    attempt: int | None = None
    cause: Cause | None = None
    for _, event in decode_events(store.read_events(row.run_id, max(1, row.head.seq - 200))):
        if isinstance(event, StateEntered):
            attempt = event.attempt
        if isinstance(event, StateFailed) and event.is_real:
            info = event.error.error
            cause = Cause(
                state_id=event.state_id,
                code=info.code,
                category=info.category,
                retryable=info.retryable,
                message=info.message,
                attempt=attempt,
            )
    return cause


def continuation(store: Store, row: RunRow, opener: RunIdentity) -> tuple[UUID, RunStep]:
    """Return id and creating step of the next generation, which continues a terminal run at its last checkpoint.

    :raises NotFoundError: code ``run_not_found``
    """
    history = load_history(store, row.run_id)
    before = history.start
    parent = before.parent or Parent(
        run_id=str(opener.run_id), fact_key="", slot_owner_id=str(opener.chain_id), state_id=None
    )
    key, owner = parent.fact_key, UUID(parent.slot_owner_id)
    generation = row.generation + 1
    run_id = child_run_id(owner, key, generation)
    started = before.model_copy(
        update={
            "engine": before.engine or 1,
            "op_version": row.op_version,
            "initial_snapshot_id": history.checkpoint_id,
            "parent": parent.model_copy(update={"run_id": str(opener.run_id)}),
            "root_run_id": str(row.root_run_id),
            "generation": generation,
            "continues": Continues(run_id=str(row.run_id), seq=row.head.seq, hash=row.head.hash),
        }
    )
    lineage = Lineage(
        run_id=run_id,
        root_run_id=row.root_run_id,
        depth=row.depth,
        slot_id=row.slot_id,
        generation=generation,
        parent_run_id=opener.run_id,
        slot_owner_id=owner,
        fact_key=key,
    )
    return run_id, create_step(started, lineage)
