"""In what two requests for one child differ: places alone, never values, which may be secret."""

from __future__ import annotations

from typing import Any

from airflow_childrun.canonical import json_path
from airflow_childrun.model.manifest import RunManifest

MOST = 3
"""How many places are told."""


def manifest_differences(recorded: RunManifest, wanted: RunManifest) -> str:
    """Say in what a manifest differs from the recorded one, such as ``input at $.amount``."""
    parts: list[tuple[str, Any, Any]] = [
        ("operation", recorded.op_id, wanted.op_id),
        ("version", recorded.op_version, wanted.op_version),
        ("op_config", recorded.op_config, wanted.op_config),
        ("input", recorded.input, wanted.input),
        ("run_config", recorded.run_config.to_json(), wanted.run_config.to_json()),
    ]
    told = [_told(name, places_that_differ(before, now)) for name, before, now in parts if before != now]
    return ", ".join(told) or "manifest"


def _told(name: str, places: list[str]) -> str:
    if places == ["$"]:
        return name
    shown = ", ".join(places[:MOST])
    return f"{name} at {shown}" + (f" and {len(places) - MOST} more places" if len(places) > MOST else "")


def places_that_differ(before: Any, now: Any) -> list[str]:
    """Return the JSON paths at which two values differ, in the order of their keys."""
    found: list[str] = []
    _compare(before, now, [], found)
    return found


def _compare(before: Any, now: Any, trail: list[str | int], found: list[str]) -> None:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            if key in before and key in now:
                _compare(before[key], now[key], [*trail, key], found)
            else:
                found.append(json_path([*trail, key]))
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for index, (one, other) in enumerate(zip(before, now, strict=True)):
            _compare(one, other, [*trail, index], found)
    elif type(before) is not type(now) or before != now:
        found.append(json_path(trail))
