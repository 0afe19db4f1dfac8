"""The recorded calls against a fresh child-run transport, made against ours: no parent is stored, no fact answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any
from uuid import UUID

from airflow_childrun.canonical import artifact_id, canonical_json_bytes
from airflow_childrun.engine.fact_io import Scene
from airflow_childrun.engine.facts import FactIndex
from airflow_childrun.engine.history import RunHistory
from airflow_childrun.engine.live_io import LiveIo
from airflow_childrun.engine.ports import NO_EXTRAS, Extras, IoCall, RunIdentity, Watch
from airflow_childrun.errors import IoError
from airflow_childrun.ids import child_run_id
from airflow_childrun.model.events import Event
from airflow_childrun.runtime.engine import ExecutionEngine
from airflow_childrun.runtime.house import House
from airflow_childrun.runtime.nursery import RunNursery
from airflow_childrun.store.api import Artifact, Commit
from airflow_childrun.transports.child_runs import ChildRunTransport
from airflow_childrun.transports.registry import LiveIoEnv, Router, TransportRegistry
from tests.golden.compare import compare_streams, error_text
from tests.golden.recording import ID, Side, check_streams, recorded
from tests.golden.rules import REFUSED_LEAVES_NOTHING, Explained
from tests.golden.stage import Backend, Stage, error_json, wait_until_idle
from tests.golden.world import World


def compare_transport(case: Mapping[str, Any], backend: Backend, explained: Explained) -> list[str]:
    """Make the calls one after the other, and compare the answers and what is left behind."""
    with closing(Stage(backend.new_store(), World(), [], [])) as stage:
        engine = stage.new_engine()
        answers = [_answer(engine, UUID(case["parent_run_id"]), call) for call in case["calls"]]
        wait_until_idle(engine)
        streams, artifacts = stage.streams(), stage.artifacts()
    found = [
        f"answer {number}: {_text(wanted)} -> {_text(got)}"
        for number, (wanted, got) in enumerate(zip(case["answers"], answers, strict=True), 1)
        if _text(wanted) != _text(got)
    ]
    before = recorded(case)
    for answer in case["answers"]:
        named = ID.findall(canonical_json_bytes(answer).decode())
        found += [
            f"the recording: an answer names {key}, which is no artifact" for key in named if key not in before.bodies
        ]
    after = Side(streams, {key: body for key, (_, body) in artifacts.items()})
    found += [*check_streams(case), *compare_streams(before, after, explained)]
    mentioned = str(before.streams)
    for item in case["artifacts"]:
        if artifacts.get(item["id"], ("", b""))[0] != item["kind"]:
            if item["id"] in mentioned:
                found.append(f"- artifact {item['kind']} {item['id']}")
            else:
                explained.rows.add(REFUSED_LEAVES_NOTHING)
    return [_named(line, case) for line in found]


def _text(answer: Mapping[str, Any]) -> str:
    return f"ok {canonical_json_bytes(answer['ok']).decode()}" if "ok" in answer else error_text(answer["error"])


def _named(line: str, case: Mapping[str, Any]) -> str:
    """Write the parent and its children by name."""
    parent = case["parent_run_id"]
    keys = [call["fact_key"] for call in case["calls"] if call["fact_key"] is not None]
    for run_id, name in (
        {parent: "parent"} | {str(child_run_id(UUID(parent), key)): f"parent/{key}" for key in keys}
    ).items():
        line = line.replace(run_id, name)
    return ID.sub("*", line)


def _answer(engine: ExecutionEngine, parent: UUID, call: Mapping[str, Any]) -> dict[str, Any]:
    """Make one call as the first one of its parent."""
    house = engine.house
    identity = RunIdentity(parent, parent, parent, 0)
    journal = _ParentlessJournal(parent, house)
    nursery = RunNursery(
        house,
        RunHistory(parent, parent),
        engine.supervisor.hand_over,
        lambda run_id, until_us: engine.supervisor.wait(run_id, None, until_us),
        lambda run_ids, until_us: set(),
    )
    factories = TransportRegistry([*house.transports.all().values(), _ChildRuns(house, journal, nursery)])
    router = Router(factories, LiveIoEnv(identity, "script.main.caller", 0))
    scene = Scene(identity, "script.main.caller", FactIndex(), journal, house.policy)
    io = LiveIo(scene, router, house.sources, _NoWaits())
    try:
        return {"ok": io.call(IoCall(call["namespace"], call["request"], call["fact_key"])).response}
    except IoError as error:
        return {"error": error_json(error)}


class _ChildRuns:
    """Makes the transport under test."""

    def __init__(self, house: House, journal: _ParentlessJournal, nursery: RunNursery) -> None:
        self._house = house
        self._journal = journal
        self._nursery = nursery

    def namespace_group(self) -> str:
        return "machine.child_run"

    def make(self, env: LiveIoEnv) -> ChildRunTransport:
        return ChildRunTransport(
            env,
            journal=self._journal,
            nursery=self._nursery,
            resolver=self._house.resolver,
            policy=self._house.policy,
            max_depth=self._house.limits.max_depth,
        )


class _ParentlessJournal:
    """Stores what a call does to other runs; the parent's own stream is not there."""

    def __init__(self, root_run_id: UUID, house: House) -> None:
        self._root_run_id = root_run_id
        self._house = house

    def append(self, events: Sequence[Event], extras: Extras = NO_EXTRAS) -> None:
        if extras.steps:
            self._house.store.commit(
                [Commit(self._house.entropy.new_id(), extras.steps, extras.artifacts, extras.posts)]
            )

    def read_artifact(self, artifact_id: str) -> bytes:
        return self._house.store.get_artifacts(self._root_run_id, [artifact_id])[artifact_id]

    def artifact(self, kind: str, body: bytes) -> Artifact:
        return Artifact(self._root_run_id, artifact_id(body), kind, body)

    def before_call(self) -> None:
        """Allow every call."""


class _NoWaits:
    """The recorded calls wait for nothing."""

    def open(self, key: str, delay_us: int) -> int:
        raise AssertionError(key)

    def find(self, key: str) -> tuple[int, int] | None:
        return None

    def pause(self, key: str, number: int, delay_us: int, watch: Watch | None = None) -> None:
        raise AssertionError(key)

    def resume(self, until_us: int, watch: Watch | None = None) -> None:
        raise AssertionError(until_us)

    def jitter(self, delay_us: int, percent: int) -> int:
        return delay_us
