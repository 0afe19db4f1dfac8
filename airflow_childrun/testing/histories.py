"""Bringing in histories that the original engine wrote (V1): streams and artifacts as plain data, into any store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from airflow_childrun.canonical import canonical_json_bytes, decode_stored
from airflow_childrun.clock import Entropy, SystemEntropy
from airflow_childrun.engine.history import fold
from airflow_childrun.errors import ConcurrencyError, CorruptionError, InvalidHistoryError, NotFoundError
from airflow_childrun.model.events import CHILD_RUN_SPAWNED, DomainEvent, Event, RunStarted, event_from_json
from airflow_childrun.model.manifest import RunManifest
from airflow_childrun.store.api import Artifact, Commit, Conflict, NewEvent, NewRun, RunStep, Store
from airflow_childrun.store.codec import encode_event
from airflow_childrun.store.projection import moves_of


@dataclass(frozen=True, slots=True)
class _Stream:
    """A run as it was written: its events, and the same ones typed."""

    run_id: UUID
    raw: tuple[Any, ...]
    events: tuple[Event, ...]
    started: RunStarted


def import_history(
    store: Store,
    runs: Sequence[Mapping[str, Any]],
    artifacts: Iterable[Mapping[str, Any]],
    entropy: Entropy | None = None,
) -> UUID:
    """Store one tree of V1 runs, all or nothing, and return the id of its topmost run.

    The events keep their bytes' meaning and their numbers; times and hashes are those of the import. Nobody owns the runs
    afterwards: whoever resumes the topmost one goes on where the history ends.

    :param runs: the topmost run first, each ``{"run_id", "events": [{"seq", "event", ...}, ...]}``; a run without events
        is left out
    :param artifacts: each ``{"id", "kind", "text"}``, or ``"hex"`` instead of ``"text"`` for bytes that are no text
    :raises InvalidHistoryError: if no engine can have written one of the streams; nothing was stored then
    :raises NotFoundError: code ``manifest_not_found``, if a run's manifest is not among the artifacts
    :raises CorruptionError: if an artifact has other bytes than its id says
    :raises ConcurrencyError: code ``run_already_exists``
    """
    streams = [_read_stream(run) for run in runs if run["events"]]
    root = streams[0].run_id
    bodies = {item["id"]: (item["kind"], _body_of(item)) for item in artifacts}
    parents = _parents(streams)
    commit = Commit(
        (entropy or SystemEntropy()).new_id(),
        tuple(_step(stream, root, parents, bodies) for stream in streams),
        tuple(Artifact(root, key, kind, body) for key, (kind, body) in bodies.items()),
    )
    (answer,) = store.commit([commit])
    if isinstance(answer, Conflict):
        raise ConcurrencyError(
            f"the run {answer.run_id} exists already; import into another store", code="run_already_exists"
        )
    return root


def _read_stream(run: Mapping[str, Any]) -> _Stream:
    """Read one run and refuse what no engine can have written.

    :raises InvalidHistoryError: naming the run and the event
    """
    run_id = UUID(run["run_id"])
    raw = tuple(envelope["event"] for envelope in run["events"])
    events = tuple(event_from_json(event) for event in raw)
    numbers = [envelope["seq"] for envelope in run["events"]]
    history = fold(run_id, zip(numbers, events, strict=True))
    if history.start.engine is not None:
        raise InvalidHistoryError(
            f"run {run_id} was written by this engine, not by the original; move its store instead of importing it",
            code="not_a_v1_history",
        )
    return _Stream(run_id, raw, events, history.start)


def _parents(streams: Sequence[_Stream]) -> dict[UUID, UUID]:
    """Return who spawned whom. A V1 child cannot spawn, so whom no linkage names is a child of the topmost run."""
    parents = {stream.run_id: streams[0].run_id for stream in streams[1:]}
    for stream in streams:
        parents |= {child: stream.run_id for child in _spawned(stream.events) if child in parents}
    return parents


def _spawned(events: Iterable[Event]) -> Iterator[UUID]:
    for event in events:
        if isinstance(event, DomainEvent) and event.name == CHILD_RUN_SPAWNED:
            yield UUID(event.payload["child_run_id"])


def _depth(run_id: UUID, parents: Mapping[UUID, UUID]) -> int:
    depth = 0
    while run_id in parents:
        run_id, depth = parents[run_id], depth + 1
    return depth


def _step(
    stream: _Stream, root: UUID, parents: Mapping[UUID, UUID], bodies: Mapping[str, tuple[str, bytes]]
) -> RunStep:
    """Return what creates one run with all its events."""
    new = NewRun(
        kind="operation",
        parent_run_id=parents.get(stream.run_id),
        root_run_id=root,
        depth=_depth(stream.run_id, parents),
        slot_id=stream.run_id,
        generation=1,
        op_id=stream.started.op_id,
        op_version=_manifest_of(stream, bodies).op_version,
        manifest_id=stream.started.manifest_id,
        initial_snapshot_id=stream.started.initial_snapshot_id,
    )
    events = tuple(
        # The raw event, so that fields which this release does not know are kept.
        NewEvent(canonical_json_bytes(raw), encode_event(event).fact)
        for raw, event in zip(stream.raw, stream.events, strict=True)
    )
    return RunStep(stream.run_id, 0, None, events, moves_of(stream.events), create=new)


def _manifest_of(stream: _Stream, bodies: Mapping[str, tuple[str, bytes]]) -> RunManifest:
    manifest_id = stream.started.manifest_id
    if manifest_id not in bodies:
        raise NotFoundError(
            f"the manifest {manifest_id} of run {stream.run_id} is not among the artifacts", code="manifest_not_found"
        )
    try:
        return RunManifest.from_json(decode_stored(bodies[manifest_id][1]))
    except ValueError:
        raise CorruptionError(
            f"the manifest {manifest_id} has no shape of a manifest", code="manifest_deserialize_failed"
        ) from None


def _body_of(item: Mapping[str, Any]) -> bytes:
    if "hex" in item:
        return bytes.fromhex(item["hex"])
    text: str = item["text"]
    return text.encode()
