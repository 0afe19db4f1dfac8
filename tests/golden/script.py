"""The recorded scripts: operations whose configuration is a program, and the interpreter that runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from airflow_childrun.engine.context import Context, NamespacedContext
from airflow_childrun.engine.ports import IoCall, IoProvider, Recorder
from airflow_childrun.errors import IoError, OperationError, StateError
from airflow_childrun.model.config import DEFAULT_FLAKE_ALLOWLIST
from airflow_childrun.model.manifest import MAIN_STEP, RunManifest
from airflow_childrun.model.plan import Edge, ExecutionPlan, StateMeta, StateNode
from airflow_childrun.model.requests import AWAIT, AWAIT_KIND, SPAWN, SPAWN_KIND
from tests.golden.recording import V1_AWAIT_FIELDS
from tests.golden.world import World

OPERATIONS = ("script", "other")
VERSION = "1"
_STRANGE = {"float": 1.5, "secret": "password=123", "secret_object": {"password": "p"}}


def run_config_of(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the recordings' run configuration, with what a scenario changes in it."""
    default: dict[str, Any] = {
        "io_mode": "Live",
        "retry_policy": {"max_attempts": 1, "backoff": {"Fixed": {"delay": {"secs": 0, "nanos": 0}}}},
        "event_profile": "Normal",
        "execution_mode": "Sequential",
        "context_checkpointing": "AfterEveryState",
        "replay_missing_fact_retryable": False,
        "skip_tags": [],
        "nix_flake_allowlist": list(DEFAULT_FLAKE_ALLOWLIST),
    }
    return default | dict(given or {})


class ScriptResolver:
    """Makes a plan of a script; knows two names for the same interpreter, each in version 1."""

    def __init__(self, world: World) -> None:
        self._world = world

    def resolve(self, manifest: RunManifest) -> ExecutionPlan:
        """Return the plan of a script.

        :raises OperationError: if it is another operation or another version
        :raises InvalidPlanError: if the script makes no valid plan
        """
        if manifest.op_id not in OPERATIONS or manifest.op_version != VERSION:
            raise OperationError(f"there is no operation {manifest.op_id} {manifest.op_version}")
        prefix = f"{manifest.op_id}.{MAIN_STEP}."
        script = manifest.op_config
        return ExecutionPlan(
            manifest.op_id,
            manifest.op_version,
            tuple(self._state(prefix, state) for state in script["states"]),
            tuple(Edge(prefix + source, prefix + target) for source, target in script["edges"]),
        )

    def _state(self, prefix: str, state: Mapping[str, Any]) -> StateNode:
        def handler(context: Context, io: IoProvider, recorder: Recorder) -> None:
            own = NamespacedContext(context, prefix)
            for instruction in state["do"]:
                Interpreter(own, io, recorder, self._world).run(expand(instruction))

        return StateNode(prefix + state["name"], handler, StateMeta(tags=tuple(state.get("tags", ()))))


def expand(value: Any) -> Any:
    """Return an instruction with its placeholders filled in; ``{"$$": x}`` becomes ``{"$": x}``."""
    if isinstance(value, dict):
        if set(value) == {"$"}:
            return _STRANGE[value["$"]]
        if set(value) == {"$$"}:
            return {"$": value["$$"]}
        return {key: expand(item) for key, item in value.items()}
    if isinstance(value, list):
        return [expand(item) for item in value]
    return value


class Interpreter:
    """Runs instructions in one attempt of a state."""

    def __init__(self, context: Context, io: IoProvider, recorder: Recorder, world: World) -> None:
        self._context = context
        self._io = io
        self._recorder = recorder
        self._world = world

    def run(self, instruction: Mapping[str, Any]) -> None:
        """Run one instruction ``{name: arguments}``."""
        ((name, arguments),) = instruction.items()
        runs: Mapping[str, Callable[[Any], None]] = {
            "write": lambda a: self._store(a["to"], a["value"]),
            "delete": self._context.delete,
            "copy": lambda a: self._store(a["to"], self._context.read(a["from"])),
            "dump": lambda a: self._store(a["to"], self._context.dump()),
            "call": self._call,
            "record": self._record,
            "lookup": lambda a: self._store(a["to"], self._io.find_fact(a["key"])),
            "now": lambda a: self._store(a["to"], self._io.now_millis()),
            "random": lambda a: self._store(a["to"], self._io.random_bytes(a["n"]).hex()),
            "emit": lambda a: self._recorder.emit(a["name"], a["payload"]),
            "fail": self._fail,
            "spawn": self._spawn,
            "await": self._await,
        }
        runs[name](arguments)

    def _call(self, a: Mapping[str, Any]) -> None:
        def ask() -> None:
            result = self._io.call(IoCall(a["namespace"], a["request"], a["key"]))
            self._store(a["to"], result.response)
            self._store(a.get("payload_id_to"), result.recorded_payload_id)

        self._catching(a, ask)

    def _record(self, a: Mapping[str, Any]) -> None:
        self._catching(a, lambda: self._store(a["to"], self._io.record_value(a["key"], a["value"])))

    def _spawn(self, a: Mapping[str, Any]) -> None:
        request = {
            "kind": SPAWN_KIND,
            "op_id": a.get("op_id") or OPERATIONS[0],
            "op_version": a.get("op_version") or VERSION,
            "op_config": a["op_config"],
            "input": a["input"],
            "run_config": run_config_of(a.get("run_config")),
            "initial_context": a.get("initial_context"),
        }
        self._catching(a, lambda: self._store(a["to"], self._io.call(IoCall(SPAWN, request, a["key"])).response))

    def _await(self, a: Mapping[str, Any]) -> None:
        handle = self._context.read(a["child"])
        if not isinstance(handle, dict):
            self._store(a.get("catch_to"), "no_handle")
            return
        request = {"kind": AWAIT_KIND, **{name: handle[name] for name in ("child_run_id", "child_manifest_id")}}

        def ask() -> None:
            response = self._io.call(IoCall(AWAIT, request, a["key"])).response
            self._store(a["to"], {name: response[name] for name in V1_AWAIT_FIELDS})

        self._catching(a, ask)

    def _fail(self, a: Mapping[str, Any]) -> None:
        count, times = self._world.count(a.get("id", "always")), a.get("times")
        if times is not None and count > times:
            return
        raise StateError(
            a.get("message", "scripted failure"),
            code=a.get("code", "scripted"),
            category="OffChain",
            retryable=a.get("retryable", False),
            details=a.get("details"),
        )

    def _catching(self, a: Mapping[str, Any], ask: Callable[[], None]) -> None:
        """Ask, and store an IO error where the script catches it; elsewhere it is the state's error."""
        try:
            ask()
        except IoError as error:
            caught = {"code": error.code, "kind": error.kind, "retryable": error.retryable}
            if a.get("catch_to") is None:
                raise StateError(
                    f"io error {error.kind}", code=error.code, category="Rpc", retryable=error.retryable
                ) from None
            self._store(a["catch_to"], caught)

    def _store(self, to: str | None, value: Any) -> None:
        if to is not None:
            self._context.write(to, value)
