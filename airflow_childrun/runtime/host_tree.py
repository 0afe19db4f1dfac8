"""What a host run asks of the store: its slots, their newest generations, and the steps that open new ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from airflow_childrun.canonical import artifact_id, canonical_json_bytes
from airflow_childrun.engine.decide import close_orphan
from airflow_childrun.engine.fact_io import FACT_PAYLOAD
from airflow_childrun.engine.ports import RunIdentity
from airflow_childrun.engine.prepare import Lineage, Prepared, Request, prepare_run
from airflow_childrun.ids import child_run_id
from airflow_childrun.model.config import ChildRetryPolicy
from airflow_childrun.model.events import FACT_RECORDED, DomainEvent, Event, RunCompleted
from airflow_childrun.model.manifest import RunManifest
from airflow_childrun.model.requests import ClosePolicy, SpawnResponse
from airflow_childrun.runtime.child_retry import Again, next_attempt
from airflow_childrun.runtime.closing import orphan_posts
from airflow_childrun.runtime.generations import find_cleaned_up, next_generation
from airflow_childrun.runtime.histories import load_history, read_manifest, read_start
from airflow_childrun.runtime.host_diff import manifest_differences
from airflow_childrun.runtime.host_try import Known
from airflow_childrun.runtime.house import House
from airflow_childrun.store.api import Artifact, InboxPost, RunRow, RunStep, Store, TakeLease
from airflow_childrun.store.codec import encode_event
from airflow_childrun.store.projection import moves_of
from airflow_childrun.transports.child_runs import spawned_event


@dataclass(frozen=True, slots=True)
class WantedChild:
    """An element of a host's list: what is to be run under which key.

    :param snapshot_id: artifact id of the initial context
    :param timeout_us: how long it may take from its spawn on, or None
    :param max_concurrency: how many of the host's children of its operation work at a time, or None
    :param child_retry_policy: how often it is tried as a whole, or None
    """

    key: str
    manifest: RunManifest
    manifest_id: str
    initial_context: Any
    snapshot_id: str
    parent_close_policy: ClosePolicy = "cancel"
    timeout_us: int | None = None
    max_concurrency: int | None = None
    child_retry_policy: ChildRetryPolicy | None = None


@dataclass(frozen=True, slots=True)
class Opening:
    """Events of the host and steps on other streams that make a generation exist.

    :param run_id: the generation
    """

    run_id: UUID
    events: tuple[Event, ...]
    steps: tuple[RunStep, ...]
    artifacts: tuple[Artifact, ...]
    posts: tuple[InboxPost, ...] = ()


def known_of(
    store: Store, host_id: UUID, wanted: Sequence[WantedChild], newest: Mapping[UUID, RunRow]
) -> dict[str, Known]:
    """Return what exists of the wanted children, and in what it was asked for differently.

    :raises StorageError: if what was asked for cannot be read
    """
    pairs = [(child, row) for child in wanted if (row := newest.get(child_run_id(host_id, child.key))) is not None]
    changed = {row.run_id: row for child, row in pairs if row.manifest_id != child.manifest_id}
    recorded = {
        run_id: read_manifest(store, row.root_run_id, load_history(store, run_id).start)
        for run_id, row in changed.items()
    }
    cleaned_up = find_cleaned_up(store, (row for _, row in pairs))
    known: dict[str, Known] = {}
    for child, row in pairs:
        if row.run_id in recorded:
            differs = manifest_differences(recorded[row.run_id], child.manifest)
        else:
            differs = "" if _initial_snapshot(store, row) == child.snapshot_id else "initial_context"
        known[child.key] = Known(
            row, differs, is_cleaned_up=row.run_id in cleaned_up, is_due=next_attempt(store, row) is not None
        )
    return known


def _initial_snapshot(store: Store, row: RunRow) -> str:
    """Return the context that a slot's chain of generations began with."""
    snapshot_id, run_id, generation = row.initial_snapshot_id, row.run_id, row.generation
    while generation > 1:
        continues = read_start(store, run_id).continues
        if continues is None:
            break
        run_id, generation = UUID(continues.run_id), generation - 1
        before = store.get_runs([run_id])[run_id]
        snapshot_id = before.initial_snapshot_id
    return snapshot_id


class TreeKeeper:
    """Builds what a host run's commits do to its children."""

    def __init__(self, house: House, host_id: UUID, root_run_id: UUID, airflow: Mapping[str, Any]) -> None:
        self._house = house
        self._host_id = host_id
        self._root = root_run_id
        self._airflow = airflow

    def spawn(self, child: WantedChild, generation: int = 1) -> Opening:
        """Open a generation that starts afresh; everything that can be refused is refused here.

        :raises ChildRunError: see :func:`~airflow_childrun.engine.prepare.prepare_run`
        """
        prepared = self._prepare(child, generation)
        run_id = prepared.step.run_id
        linkage = spawned_event(self._host_id, run_id, child.manifest_id, child.key, generation)
        if generation > 1:
            return Opening(run_id, (linkage,), (prepared.step,), prepared.artifacts)
        response = SpawnResponse(
            parent_run_id=str(self._host_id), child_run_id=str(run_id), child_manifest_id=child.manifest_id
        )
        body = canonical_json_bytes(response.to_json())
        payload = Artifact(self._root, artifact_id(body), FACT_PAYLOAD, body)
        digest = artifact_id(canonical_json_bytes([child.manifest_id, child.snapshot_id, str(self._host_id)]))
        fact = {"key": child.key, "payload_id": payload.id, "meta": {"request_digest": digest}}
        recorded = DomainEvent(name=FACT_RECORDED, payload=fact)
        return Opening(run_id, (recorded, linkage), (prepared.step,), (payload, *prepared.artifacts))

    def check(self, child: WantedChild, generation: int) -> None:
        """Refuse what a spawn would refuse, before anything is stored."""
        self._prepare(child, generation)

    def resume(self, row: RunRow, again: Again | None = None) -> Opening:
        """Open the generation that continues a terminal run, or starts afresh what was cleaned up.

        :param again: which attempt under its retry policy it is; None: the first one
        :raises NotFoundError: code ``run_not_found``
        :raises ChildRunError: why an operation that is to start afresh cannot
        """
        identity = RunIdentity(self._host_id, self._host_id, self._root, 0)
        opened = next_generation(self._house, row, identity, again)
        linkage = self._linkage(row, opened.run_id, row.generation + 1)
        return Opening(opened.run_id, (linkage,), (opened.step,), opened.artifacts)

    def end(self, row: RunRow, why: str) -> tuple[tuple[RunStep, ...], tuple[InboxPost, ...]]:
        """Return what ends a run which nobody may go on with, and asks its children to end; nothing if it has ended."""
        if row.is_terminal:
            return (), ()
        history = load_history(self._house.store, row.run_id)
        events: list[Event] = list(close_orphan(history, lapsed=False, limit=0))
        events.append(RunCompleted(status="Cancelled", final_snapshot_id=history.checkpoint_id, reason={"code": why}))
        lease = TakeLease(self._house.keeper.session_id())
        encoded = tuple(encode_event(event) for event in events)
        step = RunStep(row.run_id, row.head.seq, row.head.epoch, encoded, moves_of(events), lease=lease)
        return (step,), tuple(orphan_posts(self._house, history, f"its parent was {why}"))

    def _linkage(self, row: RunRow, run_id: UUID, generation: int) -> DomainEvent:
        event = spawned_event(self._host_id, run_id, row.manifest_id, None, generation)
        return event._replace(payload={**event.payload, "slot_id": str(row.slot_id)})

    def _prepare(self, child: WantedChild, generation: int) -> Prepared:
        request = Request(
            child.manifest,
            child.initial_context,
            parent_close_policy=child.parent_close_policy,
            airflow=self._airflow,
            deadline_at=None if child.timeout_us is None else self._house.store.now_us() + child.timeout_us,
            max_concurrency=child.max_concurrency,
            child_retry_policy=child.child_retry_policy,
        )
        lineage = Lineage(
            run_id=child_run_id(self._host_id, child.key, generation),
            root_run_id=self._root,
            depth=1,
            slot_id=child_run_id(self._host_id, child.key),
            generation=generation,
            parent_run_id=self._host_id,
            slot_owner_id=self._host_id,
            fact_key=child.key,
        )
        return prepare_run(request, lineage, self._house.cradle, self._house.policy)
