"""The child-run transport: a run spawns child runs and awaits them through two namespaces of its IO."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from airflow_childrun.engine.ports import IoCall, Journal, Reply, Superseded, Within
from airflow_childrun.engine.prepare import Lineage, PlanResolver, Prepared, Request, prepare_run
from airflow_childrun.errors import ChildRunError, IoError, MissingFactKeyError, OtherIoError
from airflow_childrun.ids import child_run_id, uuid_of
from airflow_childrun.model.events import CHILD_RUN_COMPLETED, CHILD_RUN_SPAWNED, DomainEvent
from airflow_childrun.model.requests import AWAIT, SPAWN, AwaitRequest, SpawnRequest, SpawnResponse, read_await_request
from airflow_childrun.secret_policy import SecretPolicy
from airflow_childrun.store.api import Cap, RunRow
from airflow_childrun.transports.child_requests import (
    Wanted,
    await_digest,
    child_mismatch,
    child_request_digest,
    conflict,
    engine_failed,
    read_wanted,
    spawn_digest,
)
from airflow_childrun.transports.child_retries import ChildRetries
from airflow_childrun.transports.nursery import Nursery
from airflow_childrun.transports.registry import LiveIoEnv
from airflow_childrun.transports.v1_gaps import linkage_of


class ChildRunTransport:
    """Serves one attempt of a parent.

    :param max_depth: how deep runs may nest
    """

    def __init__(
        self,
        env: LiveIoEnv,
        *,
        journal: Journal,
        nursery: Nursery,
        resolver: PlanResolver,
        policy: SecretPolicy,
        max_depth: int,
    ) -> None:
        self._identity = env.identity
        self._state_id = env.state_id
        self._journal = journal
        self._nursery = nursery
        self._resolver = resolver
        self._policy = policy
        self._max_depth = max_depth
        self._retries = ChildRetries(journal, nursery, env.identity)
        # Requests are read and checked when they are bound, right before they are performed.
        self._read: dict[str, tuple[IoCall, Wanted]] = {}
        self._awaited: dict[str, tuple[Any, AwaitRequest]] = {}

    def request_digest(self, call: IoCall) -> str:
        """Bind a spawn to what could change its result, an await to its child."""
        if call.namespace == AWAIT:
            return await_digest(self._await_of(call))
        if call.namespace != SPAWN:
            return child_request_digest(call, self._identity, self._policy)
        wanted = read_wanted(call.asked, self._policy)
        if call.fact_key is not None:
            self._read[call.fact_key] = call, wanted
        return spawn_digest(wanted, self._identity)

    def mismatch(self, call: IoCall, recorded: Any) -> IoError:
        """Say what differs between the recorded spawn and this one."""
        return child_mismatch(call, recorded, self._policy)

    def prepare(self, calls: Sequence[IoCall]) -> None:
        """Do for many calls at once what each would do alone: look for existing children, wait for their ends."""
        keys = [call.fact_key for call in calls if call.namespace == SPAWN and call.fact_key is not None]
        if keys:
            self._nursery.look_up([child_run_id(self._identity.chain_id, key) for key in keys])
        awaits = [self._await_of(call) for call in calls if call.namespace == AWAIT]
        for compact in {request.compact for request in awaits}:
            ids = [uuid_of(request.child_run_id) for request in awaits if request.compact == compact]
            self._nursery.gather(ids, self._retries.settle, compact=compact)

    def perform(self, call: IoCall, superseded: Superseded | None = None) -> Reply:
        """Spawn or await.

        :raises IoError: see :meth:`_spawn` and :meth:`_await`
        """
        if call.namespace not in (SPAWN, AWAIT):
            raise OtherIoError("unknown io namespace", code="io_unknown_namespace")
        if call.fact_key is None:
            raise MissingFactKeyError("missing fact key for child-run call")
        if call.namespace == SPAWN:
            known, wanted = self._read.pop(call.fact_key, (None, None))
            if wanted is None or known is not call:
                wanted = read_wanted(call.asked, self._policy)
            return self._spawn(call.fact_key, wanted, superseded)
        request = self._await_of(call)
        self._awaited.pop(call.fact_key, None)
        return self._await(request, call.within)

    def _await_of(self, call: IoCall) -> AwaitRequest:
        """Read the request of an await, once."""
        known, request = self._awaited.get(call.fact_key or "", (None, None))
        if request is None or known is not call.request:
            request = read_await_request(call.asked)
            if call.fact_key is not None:
                self._awaited[call.fact_key] = call.request, request
        return request

    def _spawn(self, key: str, wanted: Wanted, superseded: Superseded | None) -> Reply:
        """Build the child; it comes into being with its parent's fact.

        :raises OtherIoError: codes ``child_run_engine_failed``, ``child_run_conflict``, ``child_run_depth_exceeded``
        """
        if self._identity.depth >= self._max_depth:
            raise OtherIoError(
                f"child runs nest {self._max_depth} deep at most; raise [childrun] max_depth if this is meant",
                code="child_run_depth_exceeded",
            )
        slot_id = child_run_id(self._identity.chain_id, key)
        generation = 1 if superseded is None else self._next_generation(slot_id)
        run_id = child_run_id(self._identity.chain_id, key, generation)
        existing = self._nursery.find_run(run_id)
        if existing is not None:
            return self._adopt(existing, wanted)
        prepared = self._prepare(wanted, self._lineage(run_id, key, generation))
        most = wanted.request.max_concurrency
        cap = None if most is None else Cap(self._identity.run_id, wanted.request.op_id, most)
        return Reply(
            self._response(run_id, wanted.manifest_id),
            linkage=(spawned_event(self._identity.run_id, run_id, wanted.manifest_id, key, generation),),
            steps=(prepared.step,),
            artifacts=prepared.artifacts,
            after=lambda: self._nursery.hand_over(run_id, cap),
        )

    def complete(self, call: IoCall, recorded: Any) -> Reply | None:
        """Make up for a crash of the original right after the fact: a lost linkage event, a child that never started.

        :raises OtherIoError: code ``child_run_engine_failed``
        """
        key = call.fact_key or ""
        event = linkage_of(call.namespace, recorded, key)
        if event is None:
            return None
        lost = () if self._nursery.is_linked(key) else (event,)
        run_id = UUID(recorded["child_run_id"])
        if call.namespace == AWAIT or self._nursery.find_run(run_id) is not None:
            return Reply(None, linkage=lost, after=lambda: self._nursery.hand_over(run_id)) if lost else None
        wanted = read_wanted(call.asked, self._policy)
        if wanted.manifest_id != recorded["child_manifest_id"]:
            return None
        prepared = self._prepare(wanted, self._lineage(run_id, key, 1))
        return Reply(
            None,
            linkage=lost,
            steps=(prepared.step,),
            artifacts=prepared.artifacts,
            after=lambda: self._nursery.hand_over(run_id),
        )

    def _lineage(self, run_id: UUID, key: str, generation: int) -> Lineage:
        return Lineage(
            run_id=run_id,
            root_run_id=self._identity.root_run_id,
            depth=self._identity.depth + 1,
            slot_id=child_run_id(self._identity.chain_id, key),
            generation=generation,
            parent_run_id=self._identity.run_id,
            slot_owner_id=self._identity.chain_id,
            fact_key=key,
            state_id=self._state_id,
        )

    def _next_generation(self, slot_id: UUID) -> int:
        """Wait for the end of the newest generation: another opens only over a terminal one."""
        newest = self._nursery.newest_generation(slot_id)
        return self._nursery.wait_terminal(newest.run_id).generation + 1

    def _prepare(self, wanted: Wanted, lineage: Lineage) -> Prepared:
        request = Request(
            manifest=wanted.manifest,
            is_checked=True,
            initial_context=wanted.request.initial_context,
            parent_close_policy=wanted.request.parent_close_policy or "abandon",
            airflow=self._identity.airflow,
            deadline_at=self._deadline(wanted.request),
            child_retry_policy=wanted.request.child_retry_policy,
            max_concurrency=wanted.request.max_concurrency,
        )
        try:
            return prepare_run(request, lineage, self._resolver, self._policy)
        except ChildRunError as error:
            raise engine_failed(error) from None

    def _deadline(self, request: SpawnRequest) -> int | None:
        """Return when the child has to have ended: its own timeout, within its parent's deadline."""
        own = None if request.timeout is None else self._nursery.now_us() + request.timeout.us
        return min((at for at in (own, self._identity.deadline_at) if at is not None), default=None)

    def _adopt(self, existing: RunRow, wanted: Wanted) -> Reply:
        """Take a child that exists already, as a crash of the original engine could leave it."""
        if existing.manifest_id != wanted.manifest_id:
            raise conflict("manifest id")
        if existing.initial_snapshot_id != wanted.snapshot_id:
            raise conflict("initial context")
        run_id = existing.run_id
        return Reply(
            self._response(run_id, wanted.manifest_id),
            linkage=(spawned_event(self._identity.run_id, run_id, wanted.manifest_id, None, 1),),
            after=lambda: self._nursery.hand_over(run_id),
        )

    def _response(self, run_id: UUID, manifest: str) -> dict[str, Any]:
        return SpawnResponse(
            parent_run_id=str(self._identity.run_id), child_run_id=str(run_id), child_manifest_id=manifest
        ).to_json()

    def _await(self, request: AwaitRequest, within: Within | None) -> Reply:
        """Wait for the end of one's own child, or of its newest generation.

        :raises AwaitTimeoutError: if the time is over first
        :raises OtherIoError: codes ``child_run_engine_failed``, ``child_run_conflict``, ``child_run_foreign``,
            ``child_run_task_failed``
        """
        named = self._nursery.find_run(uuid_of(request.child_run_id))
        if named is None:
            raise OtherIoError(
                f"the child run {request.child_run_id} does not exist; only a spawn makes one",
                code="child_run_engine_failed",
                category="Storage",
            )
        if not self._nursery.is_own_child(named):
            raise OtherIoError(
                f"run {request.child_run_id} is no child of this run; a run awaits only its own children",
                code="child_run_foreign",
            )
        if named.manifest_id != request.child_manifest_id:
            raise conflict("manifest id")
        newest = self._nursery.newest_generation(named.slot_id)
        if newest.status in ("Failed", "Cancelled") and self._nursery.must_heal(newest):
            newest = self._retries.succeed(newest, None)
        row = self._last(newest, within.until_us if within else None)
        answer = self._nursery.end_of(row, compact=request.compact)
        linkage = completed_event(row)
        meta = {"status": row.status, "head_seq": row.head.seq, "head_hash": row.head.hash}
        meta |= {"timer": within.key} if within else {}
        return Reply(answer, meta={**meta, "child_run_id": str(row.run_id)}, linkage=(linkage,))

    def _last(self, row: RunRow, until_us: int | None) -> RunRow:
        """Wait for the end of a child's last attempt."""
        while True:
            if not row.is_terminal:
                row = self._nursery.wait_terminal(row.run_id, until_us)
            following = self._retries.follow(row, until_us) if row.status == "Failed" else None
            if following is None:
                return row
            row = following


def spawned_event(parent: UUID, child: UUID, manifest: str, key: str | None, generation: int) -> DomainEvent:
    """Return the linkage event of a spawn: the three fields of V1, and which generation if not the first."""
    payload: dict[str, Any] = {
        "parent_run_id": str(parent),
        "child_run_id": str(child),
        "child_manifest_id": manifest,
    }
    if generation > 1:
        payload["generation"] = generation
        if key is not None:
            payload["fact_key"] = key
    return DomainEvent(CHILD_RUN_SPAWNED, payload)


def completed_event(row: RunRow) -> DomainEvent:
    """Return the linkage event of an await."""
    payload = {
        "child_run_id": str(row.run_id),
        "status": row.status,
        "final_snapshot_id": row.final_snapshot_id,
    }
    return DomainEvent(CHILD_RUN_COMPLETED, payload)
