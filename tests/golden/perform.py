"""One scenario, performed by our engine: run anew, crashed and resumed, and resumed from the original's own history."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from airflow_childrun.model.config import RunConfig
from airflow_childrun.model.manifest import RunManifest, build_manifest
from airflow_childrun.store.verify import verify_tree
from airflow_childrun.testing.histories import import_history
from tests.golden.recording import RESUME, RESUME_AGAIN, Scenario, Side, facts_of, recorded, topmost
from tests.golden.script import OPERATIONS, VERSION, run_config_of
from tests.golden.stage import Backend, Stage
from tests.golden.world import World


@dataclass
class Performance:
    """What came of it.

    :param outcomes: of ``start``, ``resume`` and ``resume_again``, as far as they were made
    :param counters: of scripted failures, once by outcome
    :param crashed: the streams as a crash of ours left them, if there was one
    :param streams: by run id, the events at the end
    :param calls: what reached the world, with the recordings' markers
    :param artifacts: by id, kind and bytes
    :param replays: by run id, snapshot or error
    :param unverified: what ``verify`` finds wrong with the trees at the end
    """

    outcomes: dict[str, Any] = field(default_factory=dict)
    counters: dict[str, dict[str, int]] = field(default_factory=dict)
    crashed: dict[str, list[Any]] | None = None
    streams: dict[str, list[Any]] = field(default_factory=dict)
    calls: list[Any] = field(default_factory=list)
    artifacts: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    replays: dict[str, Any] = field(default_factory=dict)
    unverified: list[str] = field(default_factory=list)

    def side(self) -> Side:
        """Return our end."""
        return Side(self.streams, {key: body for key, (_, body) in self.artifacts.items()})


def perform_anew(scenario: Scenario, backend: Backend) -> Performance:
    """Run the script from the start, under the recorded run id.

    Where a handler's end is the place of the crash, our own history crashes there and is resumed; a run that has ended is
    resumed where the recording does.
    """
    given, run_id, done = scenario["given"], topmost(scenario), Performance()
    with closing(_stage(scenario, backend, World())) as stage:
        stops = bool(given.get("stop_after_handler"))
        manifest = _manifest(given)
        done.outcomes["start"] = stage.perform(
            lambda engine: engine.start(manifest, given.get("initial_context"), run_id), run_id if stops else None
        )
        done.counters["start"] = stage.world.counters()
        if stops:
            done.crashed = stage.streams()
        if stops or (given.get("resume") and "at_crash" not in scenario):
            _resume(scenario, stage, done)
        return _finish(stage, done)


def perform_imported(scenario: Scenario, backend: Backend) -> Performance:
    """Resume the history as the original's crash left it."""
    done = Performance()
    with closing(_stage(scenario, backend, World(scenario["fail_counters_at_crash"]))) as stage:
        import_history(stage.store, scenario["at_crash"], scenario["artifacts"])
        _resume(scenario, stage, done)
        return _finish(stage, done)


def _resume(scenario: Scenario, stage: Stage, done: Performance) -> None:
    run_id, given = topmost(scenario), scenario["given"]
    stage.world.calls.append(RESUME)
    stop = run_id if given.get("stop_on_resume") else None
    done.outcomes["resume"] = stage.perform(lambda engine: engine.resume(run_id), stop)
    if given.get("resume_again"):
        stage.world.calls.append(RESUME_AGAIN)
        done.outcomes["resume_again"] = stage.perform(lambda engine: engine.resume(run_id))


def _finish(stage: Stage, done: Performance) -> Performance:
    done.counters["end"] = stage.world.counters()
    done.calls = list(stage.world.calls)
    done.streams = stage.streams()
    done.artifacts = stage.artifacts()
    done.replays = stage.replays()
    done.unverified = [
        f"verify: {finding}"
        for root_run_id in {row.root_run_id for row in stage.rows()}
        for finding in verify_tree(stage.store, root_run_id)
    ]
    return done


def _manifest(given: Mapping[str, Any]) -> RunManifest:
    return build_manifest(
        OPERATIONS[0],
        VERSION,
        op_config=given["op_config"],
        input=given.get("input"),
        run_config=RunConfig.from_json(run_config_of(given.get("run_config"))),
    )


def _stage(scenario: Scenario, backend: Backend, world: World) -> Stage:
    """Make a stage on which time and chance are the recording's, where it drew on them."""
    side = recorded(scenario)
    drawn = [fact for events in side.streams.values() for fact in facts_of(events)]
    times = [side.bodies[fact["payload_id"]] for fact in drawn if fact["key"].startswith("mfm:now_millis|")]
    randoms = [side.bodies[fact["payload_id"]] for fact in drawn if fact["key"].startswith("mfm:random_bytes|")]
    return Stage(backend.new_store(), world, [int(time) for time in times], randoms)
