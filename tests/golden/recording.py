"""Recordings as data: what is in one, what of an event is compared, and whether a recording agrees with itself."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from airflow_childrun.canonical import artifact_id, canonical_json_bytes
from airflow_childrun.ids import child_run_id
from airflow_childrun.model.events import FACT_FAILED, INBOX_CONSUMED, ORPHAN_RECOVERED, WAIT_OPENED

V1_AWAIT_FIELDS = ("child_run_id", "status", "final_snapshot_id", "final_snapshot")
V1_SPAWN_FIELDS = ("parent_run_id", "child_run_id", "child_manifest_id")
LINKAGE = {"child_run_spawned": V1_SPAWN_FIELDS, "child_run_completed": V1_AWAIT_FIELDS[:3]}
LEFT_OUT = frozenset({FACT_FAILED, WAIT_OPENED, INBOX_CONSUMED})
OUR_WORDING = frozenset({"secrets_detected"})
"""Codes whose message the engine words itself: what it says is not compared."""

KINDS = frozenset({"Manifest", "ContextSnapshot", "FactPayload"})
RESUME, RESUME_AGAIN = "-- resume --", "-- resume again --"
ID = re.compile("[0-9a-f]{64}")
_RUN_STARTED_V1 = ("op_id", "manifest_id", "initial_snapshot_id")

Scenario = Mapping[str, Any]
Bodies = Mapping[str, bytes]
Line = Sequence[Any]
"""An event as it is compared: its kind, then its values."""


@dataclass(frozen=True)
class Side:
    """Streams by run id, and the bytes behind the ids in them."""

    streams: Mapping[str, Sequence[Any]]
    bodies: Bodies

    def lines(self, run_id: str) -> list[Line]:
        """Return the events of a run as they are compared."""
        return [kept for event in self.streams.get(run_id, ()) if (kept := _kept(event, self.bodies)) is not None]


def topmost(scenario: Scenario) -> UUID:
    """Return the id of the topmost run; one of our choosing where the original never made one."""
    return UUID(scenario["runs"][0]["run_id"]) if scenario["runs"] else UUID(int=1)


def body_of(item: Mapping[str, Any]) -> bytes:
    """Return the bytes of a recorded artifact."""
    if "hex" in item:
        return bytes.fromhex(item["hex"])
    text: str = item["text"]
    return text.encode()


def recorded(scenario: Scenario, runs: str = "runs") -> Side:
    """Return the recording's end, or with ``at_crash`` what its crash left."""
    streams = {run["run_id"]: [envelope["event"] for envelope in run["events"]] for run in scenario.get(runs, ())}
    return Side(streams, {item["id"]: body_of(item) for item in scenario["artifacts"]})


def facts_of(events: Iterable[Any]) -> Iterator[Any]:
    """Yield the payload of each ``fact_recorded``."""
    for event in events:
        if event.get("Domain", {}).get("name") == "fact_recorded":
            yield event["Domain"]["payload"]


def value_of(payload_id: str, bodies: Bodies) -> Any:
    """Return the JSON behind an id; None for bytes that are no JSON."""
    try:
        return json.loads(bodies.get(payload_id, b"null"))
    except ValueError:
        return None


def linkage_of(payload_id: str, bodies: Bodies) -> tuple[str, Any] | None:
    """Return name and payload of the linkage event that belongs to a fact; None if it is neither spawn nor await."""
    value = value_of(payload_id, bodies)
    if isinstance(value, dict):
        if set(value) == set(V1_SPAWN_FIELDS):
            return "child_run_spawned", value
        if set(value) >= set(V1_AWAIT_FIELDS):
            return "child_run_completed", {name: value[name] for name in V1_AWAIT_FIELDS[:3]}
    return None


def spawns_of(events: Iterable[Any], bodies: Bodies) -> Iterator[tuple[str, str]]:
    """Yield key and child of each spawn fact."""
    for fact in facts_of(events):
        linkage = linkage_of(fact["payload_id"], bodies)
        if linkage is not None and linkage[0] == "child_run_spawned":
            yield fact["key"], linkage[1]["child_run_id"]


def _kept(event: Any, bodies: Bodies) -> Line | None:
    """Return what of an event is compared; None if it is left out."""
    if "Domain" in event:
        domain = event["Domain"]
        if domain["name"] in LEFT_OUT:
            return None
        if domain["name"] == "fact_recorded":
            return ["fact", domain["payload"]["key"], _payload_id(domain["payload"]["payload_id"], bodies)]
        payload = domain["payload"]
        if domain["name"] in LINKAGE:
            payload = {name: payload[name] for name in LINKAGE[domain["name"]]}
        return ["event", domain["name"], payload, *([domain["payload_ref"]] if domain["payload_ref"] else [])]
    ((variant, body),) = event["Kernel"].items()
    if variant == "RunStarted":
        return [variant, *(body[name] for name in _RUN_STARTED_V1)]
    if variant == "StateEntered":
        return [variant, body["state_id"], body["attempt"], body["base_snapshot_id"]]
    if variant == "StateCompleted":
        return [variant, body["state_id"], body["context_snapshot_id"]]
    if variant == "RunCompleted":
        return [variant, body["status"], body["final_snapshot_id"]]
    return _failure(variant, body)


def _failure(variant: str, body: Any) -> Line | None:
    info = body["error"]["info"]
    if body.get("recovered") or info["code"] == ORPHAN_RECOVERED:
        return None
    if info["code"] in OUR_WORDING:
        info = {**info, "message": "(worded by the engine)"}
    return [variant, body["state_id"], {**body["error"], "info": info}, body["failure_snapshot_id"]]


def _payload_id(payload_id: str, bodies: Bodies) -> str:
    """Return the id of a fact's payload; for an await that carries a cause, that of the original's fields alone."""
    value = value_of(payload_id, bodies)
    if not isinstance(value, dict) or set(value) != {*V1_AWAIT_FIELDS, "cause"}:
        return payload_id
    return artifact_id(canonical_json_bytes({name: value[name] for name in V1_AWAIT_FIELDS}))


# ------------------------------------------------------------------------------------------ does it agree with itself?


def check_recording(scenario: Scenario) -> list[str]:
    """Say where a scenario contradicts itself: its streams, its last outcome, who called the world."""
    found = [*check_streams(scenario), *_check_outcome(scenario, recorded(scenario))]
    known = {run["run_id"] for run in scenario["runs"]}
    for call in scenario["world_calls"]:
        if isinstance(call, dict) and call["run_id"] not in known:
            found.append(f"the recording: a call came from {call['run_id']}, which is no run")
        elif isinstance(call, str) and call not in (RESUME, RESUME_AGAIN):
            found.append(f"the recording: {call!r} stands among the calls")
    return found


def check_streams(case: Mapping[str, Any]) -> Iterator[str]:
    """Say where streams and artifacts contradict themselves: ids name what is there, ends are checkpoints."""
    for item in case["artifacts"]:
        body = body_of(item)
        if artifact_id(body) != item["id"]:
            yield f"the recording: artifact {item['id']} has other bytes than its id says"
        if item["kind"] not in KINDS or (item["kind"] == "Manifest") != body.startswith(b'{"build":'):
            yield f"the recording: artifact {item['id']} is no {item['kind']}"
    for name in ("at_crash", "runs"):
        side = recorded(case, name)
        for run in case.get(name, ()):
            for line in (*_check_envelopes(run, side), *_check_checkpoints(run["run_id"], side)):
                yield f"the recording: {line}"


def _check_envelopes(run: Any, side: Side) -> Iterator[str]:
    for number, envelope in enumerate(run["events"], 1):
        if (envelope["seq"], envelope["run_id"], envelope["ts_millis"]) != (number, run["run_id"], None):
            yield f"event {number} of run {run['run_id']} stands elsewhere"
        for key in ID.findall(canonical_json_bytes(envelope["event"]).decode()):
            if key not in side.bodies:
                yield f"event {number} of run {run['run_id']} names {key}, which is no artifact"
    events = side.streams[run["run_id"]]
    for event in events:
        domain = event.get("Domain", {})
        if domain.get("name") == "fact_recorded" and (domain["payload"]["meta"], domain["payload_ref"]) != ({}, None):
            yield f"the fact {domain['payload']['key']} of run {run['run_id']} has a meta or a reference"
    for key, child in spawns_of(events, side.bodies):
        if child != str(child_run_id(UUID(run["run_id"]), key)):
            yield f"child {child} does not follow from {run['run_id']} and the key {key!r}"


def _check_checkpoints(run_id: str, side: Side) -> Iterator[str]:
    """Follow the checkpoint: attempts start at it, and the end is it."""
    checkpoint = None
    for line in side.lines(run_id):
        if line[0] == "RunStarted":
            checkpoint = line[3]
        elif line[0] == "StateEntered" and line[3] != checkpoint:
            yield f"{line[1]} of run {run_id} does not begin at the checkpoint"
        elif line[0] == "StateCompleted":
            checkpoint = line[2]
        elif line[0] == "RunCompleted" and line[2] != checkpoint:
            yield f"run {run_id} does not end at its checkpoint"


def _check_outcome(scenario: Scenario, end: Side) -> Iterator[str]:
    """Check that the last outcome is what the topmost stream says."""
    name = next(name for name in ("resume_again", "resume", "start") if name in scenario)
    outcome = scenario[name].get("ok")
    if outcome is None:
        return
    lines = end.lines(str(topmost(scenario)))
    said = (outcome["run_id"], outcome["phase"], outcome["final_snapshot_id"])
    if said != (str(topmost(scenario)), phase_of(lines), checkpoint_of(lines)):
        yield f"the recording: {name} is not how the run ended"


def phase_of(lines: Sequence[Line]) -> str:
    """Return a run's phase."""
    return str(lines[-1][1]) if lines[-1][0] == "RunCompleted" else "Running"


def checkpoint_of(lines: Sequence[Line]) -> str:
    """Return a run's last good snapshot."""
    return str(next((line[2] for line in reversed(lines) if line[0] == "StateCompleted"), lines[0][3]))
