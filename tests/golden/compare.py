"""What the original did against what ours did: differences as lines that name each run by its place in the tree.

A line begins with the part of the performance: ``anew`` (the script run from the start, and what follows on our own
history) or ``imported`` (the original's history, resumed). Whole values are compared; in the lines, ids of runs are written
as their place (``root``, ``root/<fact key>``) and ids of content as ``*``: what is behind them stands beside them.
"""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from airflow_childrun.canonical import canonical_json_bytes
from tests.golden import rules
from tests.golden.perform import Performance
from tests.golden.recording import (
    ID,
    RESUME,
    Bodies,
    Line,
    Scenario,
    Side,
    checkpoint_of,
    recorded,
    spawns_of,
    topmost,
)
from tests.golden.rules import Explained


def compare_anew(scenario: Scenario, ours: Performance, explained: Explained) -> list[str]:
    """Compare the script run anew, and resumed on our own history, with the recording."""
    comparison = Comparison(scenario, ours, explained)
    calls = scenario["world_calls"]
    found = comparison.outcomes()
    if scenario.get("fail_counters_at_crash", {}) != ours.counters["start"]:
        found.append(f"fail counters: {scenario['fail_counters_at_crash']} -> {ours.counters['start']}")
    if "at_crash" in scenario and ours.crashed is None:
        found += comparison.beginnings(recorded(scenario, "at_crash"))
        found += comparison.calls(calls[: calls.index(RESUME)])
    else:
        if ours.crashed is not None:
            at_crash = Side(ours.crashed, ours.side().bodies)
            found += [
                f"at the crash, {line}" for line in compare_streams(recorded(scenario, "at_crash"), at_crash, explained)
            ]
        found += compare_streams(recorded(scenario), ours.side(), explained) + comparison.calls(calls)
    found += comparison.replays() + comparison.artifacts(found) + ours.unverified
    rules.check_linkage(ours.side(), {}, explained)
    return comparison.named("anew", found)


def compare_imported(scenario: Scenario, ours: Performance, explained: Explained) -> list[str]:
    """Compare the original's history, resumed by ours, with what the original made of it."""
    comparison = Comparison(scenario, ours, explained)
    calls = scenario["world_calls"]
    found = comparison.outcomes() + compare_streams(recorded(scenario), ours.side(), explained)
    found += comparison.calls(calls[calls.index(RESUME) :]) + comparison.replays(imported=True)
    found += ours.unverified
    rules.check_linkage(ours.side(), recorded(scenario, "at_crash").streams, explained)
    return comparison.named("imported", found)


def compare_streams(before: Side, after: Side, explained: Explained) -> list[str]:
    """Compare every stream, and the contexts at their ends."""
    found: list[str] = []
    for run_id in dict.fromkeys([*before.streams, *after.streams]):
        old = before.lines(run_id)
        new = rules.without_regained_linkage(old, after.lines(run_id), before.bodies, explained)
        new = rules.without_extra_attempts(old, new, before, explained)
        found += [f"{run_id} {line}" for line in _diff(old, new)]
        found += [f"{run_id} {line}" for line in _contexts(old, new, before.bodies, after.bodies)]
    return found


class Comparison:
    """One performance against its recording."""

    def __init__(self, scenario: Scenario, ours: Performance, explained: Explained) -> None:
        self._scenario = scenario
        self._ours = ours
        self._explained = explained
        self._names = _names(scenario, ours)

    def named(self, part: str, found: Iterable[str]) -> list[str]:
        """Return the lines with names for ids, and what the general rows promise but was not kept."""
        rules.check_causes(self._ours.side(), self._explained)
        broken, self._explained.broken = self._explained.broken, []
        return [f"{part} {self._named(line)}" for line in (*found, *broken)]

    def outcomes(self) -> list[str]:
        """Compare ``start``, ``resume`` and ``resume_again``."""
        found: list[str] = []
        for name, got in self._ours.outcomes.items():
            wanted = outcome_text(self._scenario.get(name))
            if wanted != outcome_text(got):
                found.append(f"{name}: {wanted} -> {outcome_text(got)}")
        return found

    def beginnings(self, crashed: Side) -> list[str]:
        """Compare what the original's crash left with how ours begins."""
        found: list[str] = []
        for run_id in crashed.streams:
            old = crashed.lines(run_id)
            new = self._ours.side().lines(run_id)
            new = rules.without_regained_linkage(old, new, crashed.bodies, self._explained)
            found += [f"before the crash, {run_id} {line}" for line in _diff(old, new[: len(old)])]
        return found

    def calls(self, before: Iterable[Any]) -> list[str]:
        """Compare what reached the world between one start of an engine and the next; children run side by side."""
        old, new = list(_asked(before)), list(_asked(self._ours.calls))
        by_line, side = dict(old), self._ours.side()
        was, now = Counter(line for line, _ in old), Counter(line for line, _ in new)
        found = [
            f"- {line}"
            for line in sorted((was - now).elements())
            if not rules.explain_missing_call(by_line[line], side, self._explained)
        ]
        return found + [f"+ {line}" for line in sorted((now - was).elements())]

    def replays(self, *, imported: bool = False) -> list[str]:
        """Compare each replay with the run's own end; one that cannot come there must say in which state it stops."""
        side = self._ours.side()
        found: list[str] = []
        for run_id, got in self._ours.replays.items():
            lines = side.lines(run_id)
            wanted = _first_unkeyed(lines, side.bodies) or checkpoint_of(lines)
            came = f"error in {got['state_id']}" if "error" in got else got["final_snapshot_id"]
            if came != wanted and not (
                imported
                and "error" in got
                and rules.explain_replay(self._scenario, run_id, got["state_id"], self._explained)
            ):
                found.append(f"replay of {run_id}: {wanted} -> {came}")
        return found

    def artifacts(self, found: Sequence[str]) -> list[str]:
        """Return what the original's events name and ours did not store, but for what a difference has named already."""
        side, end = self._ours.side(), recorded(self._scenario)
        stored = {key: kind for key, (kind, _) in self._ours.artifacts.items()}
        told = {line[2]: "FactPayload" for run_id in side.streams for line in side.lines(run_id) if line[0] == "fact"}
        kinds = told | stored
        # What no event names, the original stored before it refused it; what a difference names is not looked at again.
        mentioned, named = canonical_json_bytes(dict(end.streams)).decode(), "".join(found)
        return [
            f"- artifact {item['kind']} {item['id']}"
            for item in self._scenario["artifacts"]
            if kinds.get(item["id"], item["kind"] if item["id"] not in mentioned else None) != item["kind"]
            if item["id"] in kinds or item["id"] not in named
        ]

    def _named(self, line: str) -> str:
        for run_id, name in self._names.items():
            line = line.replace(run_id, name)
        return ID.sub("*", line)


def _names(scenario: Scenario, ours: Performance) -> dict[str, str]:
    """Return the place in the tree of every run, by id."""
    names = {str(topmost(scenario)): "root"}
    for side in (recorded(scenario), ours.side()):
        for run_id, events in side.streams.items():
            for key, child in spawns_of(events, side.bodies):
                names.setdefault(child, f"{names.get(run_id, run_id)}/{key}")
    return names


def _diff(before: Sequence[Line], after: Sequence[Line]) -> Iterator[str]:
    """Yield ``- event`` and ``+ event`` for what only one of two streams has."""
    old, new = [_written(line) for line in before], [_written(line) for line in after]
    for tag, i1, i2, j1, j2 in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if tag != "equal":
            yield from (f"- {line}" for line in old[i1:i2])
            yield from (f"+ {line}" for line in new[j1:j2])


def _written(line: Line) -> str:
    return " ".join(part if isinstance(part, str) else canonical_json_bytes(part).decode() for part in line)


def _contexts(before: Sequence[Line], after: Sequence[Line], old_bodies: Bodies, new_bodies: Bodies) -> Iterator[str]:
    """Yield the keys of the last snapshot that differ."""
    old, new = _last_context(before, old_bodies), _last_context(after, new_bodies)
    for key in sorted(old.keys() | new.keys()):
        if (key in old, old.get(key)) != (key in new, new.get(key)):
            was = canonical_json_bytes(old[key]).decode() if key in old else "absent"
            now = canonical_json_bytes(new[key]).decode() if key in new else "absent"
            yield f"context {key}: {was} -> {now}"


def _last_context(lines: Sequence[Line], bodies: Bodies) -> Mapping[str, Any]:
    snapshot_id = next((line[2] for line in reversed(lines) if line[0] == "StateCompleted"), None)
    found: Mapping[str, Any] = json.loads(bodies.get(str(snapshot_id), b"{}"))
    return found


def outcome_text(value: Any) -> str:
    """Write an outcome: what is compared of an error is variant, code, category and whether it may be retried."""
    if value is None:
        return "not made"
    if "ok" in value:
        return f"{value['ok']['phase']} of {value['ok']['run_id']} at {value['ok']['final_snapshot_id']}"
    return error_text(value["error"])


def error_text(info: Any) -> str:
    """Write an error by variant, code, category and whether it may be retried."""
    names = []
    while "code" not in info:
        ((name, info),) = info.items()
        names.append(name)
    retryable = ", retryable" if info["retryable"] else ""
    return f"{'.'.join(names)} {info['code']} ({info['category']}{retryable})"


def _asked(calls: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """Yield each call as a line that says before which start of an engine it came, and itself."""
    leg = "start"
    for call in calls:
        if isinstance(call, str):
            leg = call.strip("- ")
        else:
            request = canonical_json_bytes(call["request"]).decode()
            who = f"{call['run_id']} {call['state_id']} {call['attempt']}"
            yield f"call at {leg} by {who}: {call['namespace']} {call['fact_key']} {request}", call


def _first_unkeyed(lines: Sequence[Line], bodies: Bodies) -> str | None:
    """Return where replay must stop: at the first state that completed after asking the world without a key."""
    manifest = json.loads(bodies[lines[0][2]])
    config, script = manifest["run_config"], manifest["input_params"]["pipeline"]["steps"][0]["op_config"]
    asking = {
        f"{lines[0][1]}.main.{state['name']}"
        for state in script["states"]
        if not set(state.get("tags", ())) & set(config["skip_tags"])
        and any("call" in step and step["call"]["key"] is None for step in state["do"])
    }
    completed = (line[1] for line in lines if line[0] == "StateCompleted" and line[1] in asking)
    first = next(completed, None) if config["io_mode"] == "Live" else None
    return None if first is None else f"error in {first}"
