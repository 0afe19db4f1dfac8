"""What the store contract needs from whoever tests a store, and short ways to write commits."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from uuid import UUID

from airflow_childrun.canonical import canonical_json_bytes
from airflow_childrun.clock import SystemEntropy
from airflow_childrun.store.api import (
    Artifact,
    Commit,
    Committed,
    Conflict,
    Head,
    InboxPost,
    NewEvent,
    NewRun,
    Owner,
    RunStep,
    Store,
    TakeLease,
)

DIGEST_A = "a" * 64
DIGEST_B = "b" * 64

T = TypeVar("T")


class StoreHarness(ABC):
    """A store under test.

    :ivar store: the store; empty, with its tables made
    :ivar ttl_us: how long sessions of the tests live; short where time cannot be turned by hand
    """

    store: Store
    ttl_us: int = 60_000_000

    @abstractmethod
    def advance(self, us: int) -> None:
        """Let the store's time pass."""

    @abstractmethod
    def corrupt_artifact(self, root_run_id: UUID, artifact_id: str) -> None:
        """Change the stored bytes of an artifact behind the store's back."""

    def another_store(self) -> Store:
        """Return a second store on the same data, as another process has it."""
        return self.store


def new_id() -> UUID:
    """Return a fresh id."""
    return SystemEntropy().new_id()


def event(name: str = "note", **payload: Any) -> NewEvent:
    """Build a domain event."""
    return NewEvent(canonical_json_bytes({"Domain": {"name": name, "payload": payload, "payload_ref": None}}))


def artifact(root_run_id: UUID, body: bytes, kind: str = "Output") -> Artifact:
    """Build an artifact with the id of its bytes."""
    return Artifact(root_run_id, hashlib.sha256(body).hexdigest(), kind, body)


def new_run(run_id: UUID, *, parent: UUID | None = None, root: UUID | None = None, **changes: Any) -> NewRun:
    """Build the row of a new run; ``changes`` are fields of :class:`NewRun`."""
    row = NewRun(
        kind="operation",
        parent_run_id=parent,
        root_run_id=root or parent or run_id,
        depth=1 if parent else 0,
        slot_id=run_id,
        generation=1,
        op_id="op",
        op_version="1",
        manifest_id=DIGEST_A,
        initial_snapshot_id=DIGEST_B,
    )
    return row._replace(**changes)


def creation(run_id: UUID, *, lease: TakeLease | None = None, **fields: Any) -> RunStep:
    """Build the step that creates a run with one event."""
    return RunStep(run_id, 0, None, (event("started"),), create=new_run(run_id, **fields), lease=lease)


def commit_of(*steps: RunStep, **fields: Any) -> Commit:
    """Build a commit; ``fields`` are those of :class:`Commit`."""
    fields.setdefault("commit_id", new_id())
    return Commit(steps=steps, **fields)


def submit(store: Store, *steps: RunStep, **fields: Any) -> Committed | Conflict:
    """Submit one commit alone."""
    (result,) = store.commit([commit_of(*steps, **fields)])
    return result


def must(result: Committed | Conflict) -> Committed:
    """Return the result of a commit that must have happened."""
    assert isinstance(result, Committed), result
    return result


def refused(result: Committed | Conflict) -> Conflict:
    """Return the result of a commit that must not have happened."""
    assert isinstance(result, Conflict), result
    return result


def start(store: Store, run_id: UUID | None = None, **fields: Any) -> UUID:
    """Create a run and return its id."""
    run_id = run_id or new_id()
    must(submit(store, creation(run_id, **fields)))
    return run_id


def append(store: Store, run_id: UUID, *names: str, **fields: Any) -> Head:
    """Append events to a run, wherever it stands, and return its new head; ``fields`` are those of the step."""
    row = store.find_run(run_id)
    assert row is not None
    events = tuple(event(name) for name in names)
    step = RunStep(run_id, row.head.seq, row.head.epoch, events, **fields)
    return must(submit(store, step)).heads[run_id]


def post_to(run_id: UUID, kind: str = "cancel") -> InboxPost:
    """Build a request to a run."""
    return InboxPost(run_id, new_id(), kind, canonical_json_bytes({"kind": kind}))


def opened(harness: StoreHarness, key: str = "", incarnation: int = 0) -> UUID:
    """Open a session and return its id."""
    return harness.store.open_session(new_id(), Owner("test", key, incarnation), harness.ttl_us).session_id


def head_of(store: Store, run_id: UUID) -> Head:
    """Return where a run stands."""
    row = store.find_run(run_id)
    assert row is not None
    return row.head


def at_once(count: int, work: Callable[[int], T]) -> list[T]:
    """Run ``work`` in ``count`` threads and return what each returned."""
    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(work, range(count)))
