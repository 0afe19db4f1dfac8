"""IO of a handler: recorded once, answered from the record ever after. Live and replay differ only in what is not recorded.

What asks the world is in ``live_io``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid5

from airflow_childrun.canonical import artifact_id, canonical_json_bytes, decode_stored
from airflow_childrun.engine.facts import Fact, FactIndex
from airflow_childrun.engine.ports import (
    Binding,
    IoCall,
    IoResult,
    Journal,
    RunIdentity,
)
from airflow_childrun.errors import (
    AwaitTimeoutError,
    CanonicalError,
    ChildRunError,
    ErrorInfo,
    IoError,
    MissingFactError,
    MissingFactKeyError,
    OtherIoError,
    RateLimitedError,
    SecretsDetectedError,
    TransportError,
)
from airflow_childrun.ids import GENERATION_SEPARATOR, check_fact_key
from airflow_childrun.model.requests import AWAIT
from airflow_childrun.secret_policy import SecretPolicy
from airflow_childrun.store.codec import request_digest

FACT_PAYLOAD = "FactPayload"
TRANSPORT_RAISED = "transport_raised"

_KINDS: dict[str, type[IoError]] = {
    cls.kind: cls
    for cls in (
        MissingFactKeyError,
        MissingFactError,
        TransportError,
        RateLimitedError,
        AwaitTimeoutError,
        OtherIoError,
    )
}


@dataclass(frozen=True, slots=True)
class Scene:
    """What the IO of one attempt stands on."""

    identity: RunIdentity
    state_id: str
    facts: FactIndex
    journal: Journal
    policy: SecretPolicy


class FactIo:
    """What both kinds of IO share: keys are checked, then what is recorded under them is returned."""

    def __init__(self, scene: Scene, binding: Binding) -> None:
        self._scene = scene
        self._binding = binding
        self._ordinal = 0

    @property
    def airflow(self) -> Mapping[str, Any] | None:
        """What Airflow said of the topmost run, or None outside of Airflow."""
        return self._scene.identity.airflow

    def call(self, call: IoCall) -> IoResult:
        """Ask the world once; see :class:`~airflow_childrun.engine.ports.IoProvider`."""
        if call.fact_key is None:
            return self._unkeyed(call)
        digest, found = self._look(call, call.fact_key)
        return self._obtain([(call, digest)])[0] if found is None else found

    def call_many(self, calls: Sequence[IoCall]) -> list[IoResult]:
        """Ask the world several times; the answers become durable together.

        :raises IoError: what is recorded or refused for the first call that fails
        """
        results: dict[str, IoResult] = {}
        missing: dict[str, tuple[IoCall, str]] = {}
        for call in calls:
            key = call.fact_key
            if key is None:
                raise MissingFactKeyError("calls that become durable together need a fact key each")
            digest, found = self._look(call, key)
            if key in missing:
                if missing[key][1] != digest:
                    raise request_mismatch(call)
            elif found is None:
                missing[key] = (call, digest)
            else:
                results[key] = found
        if missing:
            results.update(zip(missing, self._obtain(list(missing.values())), strict=True))
        return [results[call.fact_key or ""] for call in calls]

    def _look(self, call: IoCall, key: str) -> tuple[str, IoResult | None]:
        """Return the digest of a request that may be made, and what is recorded for it."""
        self._check_key(key)
        self._check_timer(call)
        digest = self._digest(call)
        return digest, self._recorded(key, digest, call)

    def _check_timer(self, call: IoCall) -> None:
        """Raise once more that an await took too long: what came of the child since then is the next await's answer."""
        if call.within is not None:
            self._check_key(call.within.key)
            fact = self._scene.facts.find(call.within.key)
            if fact is not None and fact.error is not None:
                raise _error_of(fact)

    def record_value(self, key: str, value: Any) -> str:
        """Record a value under a key and return its artifact id.

        :raises OtherIoError: code ``fact_payload_conflict``, if another value stands under the key
        """
        self._check_key(key)
        fact = self._scene.facts.find(key)
        body = self._payload(key, value)
        if fact is None:
            return self._record(key, body, request_digest("record_value", None))
        if fact.error is not None:
            raise _error_of(fact)
        recorded = fact.payload_id or ""
        if fact.request_digest is not None and recorded != artifact_id(body):
            if self._may_supersede(fact):
                return self._record(key, body, request_digest("record_value", None))
            raise OtherIoError(
                f"another value is recorded under the key {key!r}; give the new value another key",
                code="fact_payload_conflict",
                category="Storage",
            )
        return recorded

    def find_fact(self, key: str) -> str | None:
        """Return the artifact id of the answer recorded under a key, or None."""
        fact = self._scene.facts.find(key)
        return None if fact is None else fact.payload_id

    def now_millis(self) -> int:
        """Return the recorded time in milliseconds since 1970-01-01 UTC."""
        value = decode_stored(self._derived("now_millis", self._fresh_time))
        if not isinstance(value, int) or isinstance(value, bool):
            raise OtherIoError("the recorded time is not a whole number", code="fact_payload_invalid")
        return value

    def random_bytes(self, size: int) -> bytes:
        """Return recorded random bytes."""
        body = self._derived("random_bytes", lambda: self._fresh_bytes(size))
        if len(body) != size:
            raise OtherIoError(
                f"{len(body)} random bytes are recorded here, {size} were asked for", code="fact_payload_invalid"
            )
        return body

    def idempotency_token(self, key: str) -> str:
        """Return the token of the outside call under a key; see :class:`~airflow_childrun.engine.ports.IoProvider`."""
        number = self._scene.facts.supersessions(key)
        return str(token(self._scene.identity.chain_id, key, number))

    def _derived(self, kind: str, fresh: Callable[[], bytes]) -> bytes:
        scene = self._scene
        key = f"mfm:{kind}|run:{scene.identity.chain_id}|state:{scene.state_id}|ord:{self._ordinal}"
        self._ordinal += 1
        fact = scene.facts.find(key)
        if fact is not None and fact.payload_id is not None:
            return scene.journal.read_artifact(fact.payload_id)
        body = fresh()
        self._record(key, body, request_digest(kind, None))
        return body

    def _recorded(self, key: str, digest: str, call: IoCall) -> IoResult | None:
        """Return what is recorded under a key for this request; None if nothing is, or if it is to be replaced."""
        fact = self._scene.facts.find(key)
        if fact is None:
            return None
        if fact.request_digest is not None and fact.request_digest != digest:
            if self._may_supersede(fact):
                return None
            raise self._mismatch(fact, call)
        if fact.error is not None:
            raise _error_of(fact)
        body = self._scene.journal.read_artifact(fact.payload_id or "")
        result = IoResult(decode_answer(body), fact.payload_id)
        if fact.request_digest is None:
            if self._is_forgotten_end(call, result.response):
                return None
            self._complete(call, result.response)
        return result

    def _is_forgotten_end(self, call: IoCall, recorded: Any) -> bool:
        """Whether V1 recorded the end of a child that this run has to look at anew; its linkage may have been lost."""
        if call.namespace != AWAIT or not isinstance(recorded, Mapping) or not isinstance(recorded.get("status"), str):
            return False
        facts, key = self._scene.facts, call.fact_key or ""
        facts.note_end(key, recorded["status"])
        return facts.has_forgotten(key)

    def _complete(self, call: IoCall, recorded: Any) -> None:
        """Make up for what V1 left undone beside a recorded answer."""

    def _check_key(self, key: str) -> None:
        if self._scene.policy.is_secret_text(key):
            raise OtherIoError("the fact key looks like a secret; name the fact otherwise", code="secrets_detected")
        try:
            check_fact_key(key)
        except ChildRunError as error:
            raise OtherIoError(error.info.message, code=error.code, category="ParsingInput") from None

    def _payload(self, key: str, value: Any, allow_keys: frozenset[str] = frozenset()) -> bytes:
        """Return the bytes to record.

        :raises OtherIoError: codes ``secrets_detected``, ``fact_payload_not_canonical``
        """
        try:
            self._scene.policy.check(value, f"what is to be recorded under {key!r}", allow_keys)
            return canonical_json_bytes(value)
        except SecretsDetectedError as error:
            raise OtherIoError(error.info.message, code=error.code, details=error.info.details) from None
        except CanonicalError as error:
            raise OtherIoError(
                f"what is to be recorded under {key!r} is not canonical JSON: {error.info.message}",
                code="fact_payload_not_canonical",
                category="ParsingInput",
                details=error.info.details,
            ) from None

    def _mismatch(self, fact: Fact, call: IoCall) -> IoError:
        if call.local is not None:
            return request_mismatch(call)
        recorded = (
            None if fact.payload_id is None else decode_answer(self._scene.journal.read_artifact(fact.payload_id))
        )
        return self._binding.mismatch(call, recorded)

    def sleep(self, key: str, delay_us: int) -> None:
        """Wait durably."""
        raise NotImplementedError

    def _unkeyed(self, call: IoCall) -> IoResult:
        raise NotImplementedError

    def _obtain(self, calls: Sequence[tuple[IoCall, str]]) -> list[IoResult]:
        raise NotImplementedError

    def _record(self, key: str, body: bytes, digest: str) -> str:
        raise NotImplementedError

    def _digest(self, call: IoCall) -> str:
        if call.local is None:
            return self._binding.request_digest(call)
        return bound_digest(call)

    def _may_supersede(self, fact: Fact) -> bool:
        raise NotImplementedError

    def _fresh_time(self) -> bytes:
        raise NotImplementedError

    def _fresh_bytes(self, size: int) -> bytes:
        raise NotImplementedError


class ReplayIo(FactIo):
    """Answers from the record alone; what is not recorded is an error.

    :param retryable: whether a missing fact may be asked for again (``replay_missing_fact_retryable``)

    """

    def __init__(self, scene: Scene, binding: Binding, *, retryable: bool = False) -> None:
        super().__init__(scene, binding)
        self._retryable = retryable

    def _unkeyed(self, call: IoCall) -> IoResult:
        raise MissingFactKeyError(f"replay cannot answer a call to {call.namespace} without a fact key")

    def _may_supersede(self, fact: Fact) -> bool:  # noqa: ARG002 - replay replaces nothing
        return False

    def _obtain(self, calls: Sequence[tuple[IoCall, str]]) -> list[IoResult]:
        raise self._missing(calls[0][0].fact_key or "")

    def sleep(self, key: str, delay_us: int) -> None:
        """Replay waits for nothing."""

    def _record(self, key: str, body: bytes, digest: str) -> str:  # noqa: ARG002 - nor does it record
        raise self._missing(key)

    def _fresh_time(self) -> bytes:
        raise self._missing("now_millis")

    def _fresh_bytes(self, size: int) -> bytes:  # noqa: ARG002 - nor is anything new
        raise self._missing("random_bytes")

    def _missing(self, key: str) -> MissingFactError:
        return MissingFactError(
            f"no fact is recorded under the key {key!r}", retryable=self._retryable, details={"key": key}
        )


def token(chain_id: UUID, key: str, number: int) -> UUID:
    """Return the idempotency token of the call under ``key``, ``number`` times replaced."""
    return uuid5(chain_id, GENERATION_SEPARATOR.join(("token", hashlib.sha256(key.encode()).hexdigest(), str(number))))


def bound_digest(call: IoCall) -> str:
    """Return the digest of namespace and request.

    :raises OtherIoError: code ``fact_request_not_canonical``
    """
    try:
        return request_digest(call.namespace, call.request)
    except CanonicalError as error:
        raise OtherIoError(
            f"the request to {call.namespace} is not canonical JSON: {error.info.message}",
            code="fact_request_not_canonical",
            category="ParsingInput",
            details=error.info.details,
        ) from None


def request_mismatch(call: IoCall) -> OtherIoError:
    """Return the error for a key that answers another request."""
    return OtherIoError(
        f"the key {call.fact_key!r} answers another request to {call.namespace}; the code between steps must ask the "
        "same under the same key on every try, so give the new request another key",
        code="fact_request_mismatch",
        category="ParsingInput",
    )


def _error_of(fact: Fact) -> IoError:
    info = fact.error
    if info is None:
        raise AssertionError(fact.key)
    return io_error(str(fact.meta.get("kind")), info)


def io_error(kind: str, info: ErrorInfo) -> IoError:
    """Return a recorded error as it is raised."""
    cls = _KINDS.get(kind, OtherIoError)
    return cls(info.message, code=info.code, category=info.category, retryable=info.retryable, details=info.details)


def decode_answer(body: bytes) -> Any:
    """Return what a recorded answer holds.

    :raises OtherIoError: code ``fact_payload_decode_failed``
    """
    try:
        return decode_stored(body)
    except CanonicalError:
        raise OtherIoError(
            "a recorded answer is not JSON; run `childrun verify`", code="fact_payload_decode_failed"
        ) from None
