"""IO of a live attempt: asks the world, and makes each answer durable before the handler sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from airflow_childrun.canonical import canonical_json_bytes
from airflow_childrun.engine.attempt import describe, storable
from airflow_childrun.engine.fact_io import FACT_PAYLOAD, FactIo, Scene, decode_answer, io_error, token
from airflow_childrun.engine.facts import Fact
from airflow_childrun.engine.ports import Completing, Extras, IoCall, IoResult, Reply, Superseded, Transport, Waits
from airflow_childrun.errors import AwaitTimeoutError, ErrorInfo, IoError, OtherIoError, StorageError, StoreInterrupt
from airflow_childrun.model.events import FACT_FAILED, FACT_RECORDED, DomainEvent
from airflow_childrun.store.api import Artifact, InboxPost, RunStep

TRANSPORT_RAISED = "transport_raised"


class Sources(Protocol):
    """Where values that no transport gives come from."""

    def now_us(self) -> int:
        """Return the wall clock in microseconds UTC."""

    def random_bytes(self, size: int) -> bytes:
        """Return random bytes."""


def _to_blame(call: IoCall, error: IoError) -> IoCall:
    """Return the call that failed: where an await's time was over it is the timer's, since the child's end is yet to come."""
    if call.within is None or not isinstance(error, AwaitTimeoutError):
        return call
    return call._replace(fact_key=call.within.key)


class LiveIo(FactIo):
    """Asks the world, and makes each answer durable before the handler sees it."""

    def __init__(self, scene: Scene, transport: Transport, sources: Sources, waits: Waits) -> None:
        super().__init__(scene, transport)
        self._transport = transport
        self._sources = sources
        self._waits = waits
        self._replacing: dict[str, int] = {}

    def _unkeyed(self, call: IoCall) -> IoResult:
        self._scene.journal.before_call()
        return IoResult(self._transport.perform(call).response, None)

    def _may_supersede(self, fact: Fact) -> bool:
        return self._scene.facts.may_supersede(fact)

    def _complete(self, call: IoCall, recorded: Any) -> None:
        reply = self._transport.complete(call, recorded) if isinstance(self._transport, Completing) else None
        if reply is not None:
            self._scene.journal.append(reply.linkage, Extras(reply.artifacts, reply.steps, reply.posts))
            if reply.after is not None:
                reply.after()

    def _obtain(self, calls: Sequence[tuple[IoCall, str]]) -> list[IoResult]:
        """Perform, then record all answers in one commit; an error is recorded with the answers before it."""
        recorded: list[DomainEvent] = []
        replies: list[tuple[Reply, Artifact]] = []
        failure: IoError | None = None
        if len(calls) > 1:
            self._prepare([call for call, _ in calls if call.local is None])
        for call, digest in calls:
            try:
                reply, payload = self._perform(call)
            except IoError as error:
                info = self._scene.policy.redact_info(storable(error.info))
                recorded.append(self._failed_event(_to_blame(call, error), digest, error.kind, info))
                failure = io_error(error.kind, info)
                failure.__cause__ = error
                break
            replies.append((reply, payload))
            recorded.append(self._recorded_event(call, digest, reply, payload.id))
            recorded += reply.linkage
        if recorded:
            self._append(recorded, replies)
        if failure is not None:
            raise failure
        return [IoResult(decode_answer(payload.body), payload.id) for _, payload in replies]

    def _prepare(self, calls: Sequence[IoCall]) -> None:
        try:
            self._transport.prepare(calls)
        except StorageError as error:
            raise StoreInterrupt(str(error), error) from error

    def _perform(self, call: IoCall) -> tuple[Reply, Artifact]:
        """Ask, and turn whatever is raised into what can be recorded, or into an Interrupt.

        :raises IoError: what the handler is told, the first time as on replay
        """
        scene = self._scene
        scene.journal.before_call()
        if call.within is not None:
            until_us = self._waits.open(call.within.key, call.within.delay_us)
            call = call._replace(within=replace(call.within, until_us=until_us))
        try:
            reply = self._ask(call, call.fact_key or "")
        except IoError:
            raise
        except StorageError as error:
            raise StoreInterrupt(str(error), error) from error
        except Exception as error:
            info = describe(error, TRANSPORT_RAISED)
            raise OtherIoError(
                info.message, code=info.code, category=info.category, retryable=info.retryable
            ) from error
        return reply, scene.journal.artifact(
            FACT_PAYLOAD, self._payload(call.fact_key or "", reply.response, call.allow_keys)
        )

    def _ask(self, call: IoCall, key: str) -> Reply:
        superseded = self._superseded(key)
        if superseded is not None:
            self._replacing[key] = superseded.number
        if call.local is not None:
            return Reply(call.local(self._waits))
        return self._transport.perform(call, superseded)

    def idempotency_token(self, key: str) -> str:
        """Return the token of the call under a key; of the new call, while it replaces a fact."""
        if key in self._replacing:
            return str(token(self._scene.identity.chain_id, key, self._replacing[key]))
        return super().idempotency_token(key)

    def _superseded(self, key: str) -> Superseded | None:
        """Return the living fact under a key, which this call replaces since its request is another."""
        fact = self._scene.facts.find(key)
        if fact is None:
            return None
        body = self._scene.journal.read_artifact(fact.payload_id) if fact.payload_id else b"null"
        return Superseded(self._scene.facts.next_supersession(key), decode_answer(body))

    def _append(self, events: list[DomainEvent], replies: list[tuple[Reply, Artifact]]) -> None:
        artifacts: list[Artifact] = []
        steps: list[RunStep] = []
        posts: list[InboxPost] = []
        for reply, payload in replies:
            artifacts.append(payload)
            artifacts += reply.artifacts
            steps += reply.steps
            posts += reply.posts
        self._scene.journal.append(events, Extras(tuple(artifacts), tuple(steps), tuple(posts)))
        for reply, _ in replies:
            if reply.after is not None:
                reply.after()

    def _recorded_event(self, call: IoCall, digest: str, reply: Reply, payload_id: str) -> DomainEvent:
        key = call.fact_key or ""
        meta = {"request_digest": digest, **reply.meta, **self._supersedes(key)}
        return DomainEvent(FACT_RECORDED, {"key": key, "payload_id": payload_id, "meta": meta})

    def _failed_event(self, call: IoCall, digest: str, kind: str, info: ErrorInfo) -> DomainEvent:
        key = call.fact_key or ""
        return DomainEvent(
            name=FACT_FAILED,
            payload={
                "key": key,
                "request_digest": digest,
                "error": {"kind": kind, **info.to_json()},
                "meta": {"request_digest": digest, "kind": kind, **self._supersedes(key)},
            },
        )

    def _supersedes(self, key: str) -> dict[str, int]:
        number = self._scene.facts.supersession_of_next(key)
        return {"supersedes": number} if number else {}

    def _record(self, key: str, body: bytes, digest: str) -> str:
        artifact = self._scene.journal.artifact(FACT_PAYLOAD, body)
        meta = {"request_digest": digest, **self._supersedes(key)}
        payload = {"key": key, "payload_id": artifact.id, "meta": meta}
        event = DomainEvent(FACT_RECORDED, payload)
        self._scene.journal.append([event], Extras(artifacts=(artifact,)))
        return artifact.id

    def sleep(self, key: str, delay_us: int) -> None:
        """Wait durably; a wait that is over is not waited again."""
        self._check_key(key)
        opened = self._waits.find(key)
        if opened is None:
            self._waits.pause(key, 1, delay_us)
        else:
            self._waits.resume(opened[1])

    def _fresh_time(self) -> bytes:
        return canonical_json_bytes(self._sources.now_us() // 1000)

    def _fresh_bytes(self, size: int) -> bytes:
        return self._sources.random_bytes(size)
