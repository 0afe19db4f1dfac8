"""The original's replay: the handlers of completed states again, over recorded facts alone; kept here to check recordings.

It differs from ours: skipped states are run too, errors were never recorded, requests are not compared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from airflow_childrun.canonical import artifact_id, canonical_json_bytes
from airflow_childrun.engine.context import StagedContext
from airflow_childrun.engine.ports import IoCall, IoResult
from airflow_childrun.errors import MissingFactError, MissingFactKeyError, StateError
from airflow_childrun.model.manifest import RunManifest
from tests.golden.recording import Bodies, Scenario, facts_of, recorded
from tests.golden.script import ScriptResolver
from tests.golden.world import World


def check_replays(scenario: Scenario, counters: Mapping[str, int]) -> list[str]:
    """Replay every recorded run as the original did; return where the recording says otherwise.

    :param counters: of scripted failures, as the scenario's end left them
    """
    world, side = World(counters), recorded(scenario)
    found: list[str] = []
    for entry in scenario.get("replay", ()):
        result = _replay(side.streams[entry["run_id"]], side.bodies, entry["run_id"], world)
        if result != entry["result"]:
            found.append(f"the recording: the replay of {entry['run_id']} gives {result}, not {entry['result']}")
    return found


def _replay(events: Sequence[Any], bodies: Bodies, run_id: str, world: World) -> Any:
    started = events[0]["Kernel"]["RunStarted"]
    manifest = RunManifest.from_json(json.loads(bodies[started["manifest_id"]]))
    facts: dict[str, str] = {}
    for fact in facts_of(events):
        facts.setdefault(fact["key"], fact["payload_id"])
    snapshot_id = started["initial_snapshot_id"]
    context = json.loads(bodies[snapshot_id])
    completed = _completed(events)
    plan = ScriptResolver(world).resolve(manifest) if completed else None
    for state_id, attempt in completed:
        node = plan.state(state_id) if plan else None
        if node is None:
            return {"error": "no such state", "state_id": state_id}
        staged = StagedContext(context)
        retryable = manifest.run_config.replay_missing_fact_retryable
        try:
            node.handler(
                staged,
                _FactsAlone(facts, bodies, f"run:{run_id}|state:{state_id}|attempt:{attempt}", retryable),
                _Mute(),
            )
        except StateError as error:
            return {
                "error": {"info": {**error.info.to_json(), "details": None}, "state_id": None},
                "state_id": state_id,
            }
        context = staged.dump()
        snapshot_id = artifact_id(canonical_json_bytes(context))
    return {"final_snapshot_id": snapshot_id}


def _completed(events: Sequence[Any]) -> list[tuple[str, int]]:
    """Return state and attempt of every completion, in order."""
    attempts: dict[str, int] = {}
    done: list[tuple[str, int]] = []
    for event in events:
        for variant, body in event.get("Kernel", {}).items():
            if variant == "StateEntered":
                attempts[body["state_id"]] = body["attempt"]
            elif variant == "StateCompleted":
                done.append((body["state_id"], attempts[body["state_id"]]))
    return done


class _Mute:
    """Records nothing."""

    def emit(self, name: str, payload: Any) -> None:
        """Forget."""


class _FactsAlone:
    """IO that answers from the facts of a stream."""

    def __init__(self, facts: Mapping[str, str], bodies: Bodies, place: str, retryable: bool) -> None:
        self._facts = facts
        self._bodies = bodies
        self._place = place
        self._retryable = retryable
        self._ordinal = 0

    def call(self, call: IoCall) -> IoResult:
        if call.fact_key is None:
            raise MissingFactKeyError
        return IoResult(json.loads(self._bodies[self._find(call.fact_key)]), self._facts[call.fact_key])

    def call_many(self, calls: Sequence[IoCall]) -> list[IoResult]:
        return [self.call(call) for call in calls]

    def record_value(self, key: str, value: Any) -> str:
        return self._find(key)

    def find_fact(self, key: str) -> str | None:
        return self._facts.get(key)

    def now_millis(self) -> int:
        return int(json.loads(self._bodies[self._derived("now_millis")]))

    def random_bytes(self, size: int) -> bytes:
        return self._bodies[self._derived("random_bytes")]

    def sleep(self, key: str, delay_us: int) -> None:
        """Wait for nothing."""

    def idempotency_token(self, key: str) -> str:
        raise NotImplementedError

    def _derived(self, kind: str) -> str:
        key = f"mfm:{kind}|{self._place}|ord:{self._ordinal}"
        self._ordinal += 1
        return self._find(key)

    def _find(self, key: str) -> str:
        if key not in self._facts:
            raise MissingFactError(retryable=self._retryable)
        return self._facts[key]
