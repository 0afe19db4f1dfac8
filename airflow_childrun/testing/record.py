"""What a run has recorded, for a test to look at."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from airflow_childrun.authoring.author_io import read_result
from airflow_childrun.authoring.handles import ChildError, Spawnable
from airflow_childrun.engine.fact_io import decode_answer
from airflow_childrun.errors import ErrorInfo
from airflow_childrun.model.events import ENGINE_NAMES, FACT_FAILED, FACT_RECORDED, DomainEvent, StateEntered
from airflow_childrun.runtime.ends import end_of
from airflow_childrun.runtime.histories import read_start
from airflow_childrun.store.api import RunRow, Store
from airflow_childrun.store.codec import decode_events


@dataclass(frozen=True)
class RunRecord:
    """A run as it stands in the store.

    :param status: ``Completed``, ``Failed``, ``Cancelled``; ``Running`` or ``Waiting`` of one whose process has left
    :param output: what the operation returned, by its type hint; None unless it completed
    :param error: why it failed: code, message, retryable, state
    :param facts: the recorded answers by key, in the order in which they were recorded
    :param errors: the recorded errors by key
    :param states: how often each state was entered, by its name
    :param events: the kinds of all events, in order
    :param emitted: (name, payload) of what ``io.emit`` wrote
    :param children: the runs that it spawned, in order
    """

    run_id: UUID
    operation: str
    key: str | None
    status: str
    output: Any
    error: ChildError | None
    facts: dict[str, Any]
    errors: dict[str, ErrorInfo]
    states: dict[str, int]
    events: list[str]
    emitted: list[tuple[str, Any]]
    children: list[RunRecord] = field(repr=False)

    @property
    def completed(self) -> bool:
        """Whether the run did what it was to do."""
        return self.status == "Completed"

    @property
    def steps(self) -> list[str]:
        """The keys under which something is recorded, answers and errors, without those of children."""
        spawned = {child.key for child in self.children}
        mine = (key for key in (*self.facts, *self.errors) if not key.startswith("mfm:"))
        return [key for key in mine if key not in spawned and key.removesuffix("/end") not in spawned]

    def child(self, key: str) -> RunRecord:
        """Return the child that was spawned under a key; the end of the key will do.

        :raises LookupError: if there is none, or more than one
        """
        found = [each for each in self.children if each.key == key or (each.key or "").endswith(f"/{key}")]
        if len(found) != 1:
            known = ", ".join(str(each.key) for each in self.children) or "none"
            raise LookupError(f"{len(found)} children of {self.operation} have the key {key!r}; there are: {known}")
        return found[0]


def read_record(store: Store, row: RunRow, operation: Spawnable | None = None) -> RunRecord:
    """Read a run and everything below it.

    :param operation: whose return type the output is to have
    """
    events = [event for _, event in decode_events(store.read_events(row.run_id))]
    domain = [event for event in events if isinstance(event, DomainEvent)]
    result = read_result(end_of(store, row, compact=True), operation) if row.is_terminal else None
    facts = {event.payload["key"]: _answer(store, row, event) for event in domain if event.name == FACT_RECORDED}
    errors = {event.payload["key"]: _error(event) for event in domain if event.name == FACT_FAILED}
    entered = (event.state_id.rpartition(".")[2] for event in events if isinstance(event, StateEntered))
    children = [child for child in store.children_of(row.run_id) if child.run_id != row.run_id]
    return RunRecord(
        run_id=row.run_id,
        operation=row.op_id,
        key=_key_of(store, row),
        status=row.status,
        output=result.output if result else None,
        error=result.error if result else None,
        facts=facts,
        errors=errors,
        states=dict(Counter(entered)),
        events=[event.name if isinstance(event, DomainEvent) else event.tag for event in events],
        emitted=[(event.name, event.payload) for event in domain if event.name not in ENGINE_NAMES],
        children=[read_record(store, child) for child in children],
    )


def _answer(store: Store, row: RunRow, event: DomainEvent) -> Any:
    id_ = event.payload["payload_id"]
    body = store.get_artifacts(row.root_run_id, [id_])[id_]
    is_bytes = event.payload["key"].startswith("mfm:random_bytes")
    return body if is_bytes else decode_answer(body)


def _error(event: DomainEvent) -> ErrorInfo:
    error = event.payload["error"]
    return ErrorInfo(error["code"], error["category"], error["retryable"], error["message"], error.get("details"))


def _key_of(store: Store, row: RunRow) -> str | None:
    parent = read_start(store, row.run_id).parent
    return None if parent is None else parent.fact_key
