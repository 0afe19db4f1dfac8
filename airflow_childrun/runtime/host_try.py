"""What a try of an Airflow task means for its children: pure decisions, from the last try, this one and the slots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

from airflow_childrun.errors import HostError
from airflow_childrun.ids import named_id
from airflow_childrun.store.api import RunRow

Kind = Literal["first", "same", "retry", "clear", "stale", "recreated"]
OnClear = Literal["auto", "resume_failed", "reuse", "respawn"]
ON_CLEAR: tuple[OnClear, ...] = ("auto", "resume_failed", "reuse", "respawn")
Action = Literal["spawn", "take", "continue", "respawn"]


@dataclass(frozen=True, slots=True)
class HostCoordinates:
    """Where a task instance stands: the only place that knows what makes two tries the same task.

    :param region: what beside the map index tells instances of one task apart (later Airflow versions)
    """

    deployment_id: str
    dag_id: str
    dag_run_id: str
    task_id: str
    map_index: int = -1
    region: str | None = None

    def run_id(self, generation: int = 1) -> UUID:
        """Return the id of the host run."""
        parts: list[Any] = [self.deployment_id, self.dag_id, self.dag_run_id, self.task_id, self.map_index]
        parts += [self.region] if self.region is not None else []
        parts += [{"generation": generation}] if generation > 1 else []
        return named_id("task_instance", parts)

    def root_run_id(self) -> UUID:
        """Return the id of the tree: that of the DAG run."""
        return named_id("dag_run", [self.deployment_id, self.dag_id, self.dag_run_id])


@dataclass(frozen=True, slots=True)
class TryFacts:
    """What Airflow says of a try.

    :param ti_id: new with every retry and clear (UUIDv7: later ones are greater)
    :param max_tries: changes with a clear of the task, and only then
    :param clear_number: of the DAG run: every clear in it raises it
    :param dag_run_start: when the DAG run started, in microseconds UTC; later after a clear or a re-creation
    """

    ti_id: UUID
    try_number: int
    max_tries: int
    clear_number: int
    dag_run_start: int

    def to_json(self) -> dict[str, Any]:
        """Return the fields of a ``host_try`` event."""
        return {
            "ti_id": str(self.ti_id),
            "try_number": self.try_number,
            "max_tries": self.max_tries,
            "clear_number": self.clear_number,
            "dag_run_start": self.dag_run_start,
        }


def kind_of(last: Mapping[str, Any] | None, now: TryFacts) -> Kind:
    """Say what a try is, seen from the last one that the host run recorded."""
    if last is None:
        return "first"
    before = UUID(last["ti_id"])
    if now.ti_id == before:
        return "same"
    if now.ti_id < before:
        return "stale"
    later_start = now.dag_run_start > last["dag_run_start"]
    if (later_start and now.clear_number <= last["clear_number"]) or now.try_number <= last["try_number"]:
        return "recreated"
    return "retry" if now.max_tries == last["max_tries"] else "clear"


@dataclass(frozen=True, slots=True)
class Listed:
    """A key as a try lists it: the generation it is to have, and the run which that one continues."""

    key: str
    generation: int
    continues: UUID | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the entry of a ``host_try`` event."""
        entry: dict[str, Any] = {"key": self.key, "generation": self.generation}
        return entry if self.continues is None else {**entry, "continues": str(self.continues)}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Listed:
        """Read an entry back."""
        continues = entry.get("continues")
        return cls(entry["key"], entry["generation"], None if continues is None else UUID(continues))


@dataclass(frozen=True, slots=True)
class Known:
    """The newest generation of a slot, and whether this try asks for the same as it did."""

    row: RunRow
    same_request: bool


def listed_of(last: Mapping[str, Any] | None) -> list[Listed]:
    """Return the list of a recorded try."""
    return [] if last is None else [Listed.from_json(entry) for entry in last["keys"]]


def plan_keys(
    kind: Kind,
    last: Sequence[Listed],
    keys: Sequence[str],
    known: Mapping[str, Known],
    on_clear: OnClear,
) -> list[Listed]:
    """Return the list of this try, in the order of ``keys``.

    :param keys: what this try asks for
    :param known: by key, the newest generation of each slot that has one
    :raises HostError: codes ``host_list_changed``, ``child_run_conflict``: a retry must ask for what it asked before
    """
    if kind in ("first", "recreated") or not last:
        return [_as_it_is(key, known) for key in keys]
    if kind == "clear":
        return _plan_clear(keys, known, on_clear)
    return _plan_retry(kind, last, keys, known)


def _as_it_is(key: str, known: Mapping[str, Known]) -> Listed:
    return Listed(key, known[key].row.generation if key in known else 1)


def _plan_retry(kind: Kind, last: Sequence[Listed], keys: Sequence[str], known: Mapping[str, Known]) -> list[Listed]:
    before = {entry.key: entry for entry in last}
    strangers = [key for key in keys if key not in before]
    if strangers:
        raise HostError(
            f"a retry completes the list of the try before it, but {len(strangers)} elements are not in it: "
            f"{_some(strangers)}. Make the list's source repeatable, or clear the task to take the new list",
            code="host_list_changed",
            details={"keys": strangers[:20]},
        )
    lost = [entry.key for entry in last if entry.key not in set(keys) and entry.key not in known]
    if lost:
        raise HostError(
            f"a retry completes the list of the try before it, but {len(lost)} elements that were not spawned yet are "
            f"gone from it: {_some(lost)}. Make the list's source repeatable, or clear the task",
            code="host_list_changed",
            details={"keys": lost[:20]},
        )
    changed = [key for key in keys if key in known and not known[key].same_request]
    if changed:
        raise HostError(
            f"a retry asks for something else under {len(changed)} keys than the try before it: {_some(changed)}. The "
            "operation, its version, configuration, input or run_config differs; bring it back, or clear the task",
            code="child_run_conflict",
            details={"keys": changed[:20]},
        )
    return [_retried(before[entry.key], known, again=kind == "retry") for entry in last]


def _retried(entry: Listed, known: Mapping[str, Known], *, again: bool) -> Listed:
    """Keep an entry, or continue its child if that ended otherwise than well in the listed generation."""
    if entry.key not in known:
        return entry
    row = known[entry.key].row
    if row.generation < entry.generation:
        return entry
    if again and row.is_terminal and row.status != "Completed":
        return Listed(entry.key, row.generation + 1, row.run_id)
    return Listed(entry.key, row.generation)


def _plan_clear(keys: Sequence[str], known: Mapping[str, Known], on_clear: OnClear) -> list[Listed]:
    old = [known[key] for key in keys if key in known]
    all_done = all(child.row.status == "Completed" and child.same_request for child in old)
    fresh = on_clear == "respawn" or (on_clear == "auto" and all_done and len(old) == len(keys))
    return [_cleared(key, known.get(key), on_clear, fresh=fresh) for key in keys]


def _cleared(key: str, child: Known | None, on_clear: OnClear, *, fresh: bool) -> Listed:
    if child is None:
        return Listed(key, 1)
    row = child.row
    if on_clear == "reuse":
        return Listed(key, row.generation)
    if fresh or not child.same_request:
        return Listed(key, row.generation + 1)
    if row.is_terminal and row.status != "Completed":
        return Listed(key, row.generation + 1, row.run_id)
    return Listed(key, row.generation)


def action_of(entry: Listed, known: Mapping[str, Known]) -> Action:
    """Say what has to be done so that an entry's generation exists."""
    if entry.key not in known:
        return "spawn"
    if known[entry.key].row.generation >= entry.generation:
        return "take"
    return "respawn" if entry.continues is None else "continue"


def _some(keys: Sequence[str]) -> str:
    shown = ", ".join(keys[:5])
    return f"{shown} and {len(keys) - 5} more" if len(keys) > 5 else shown  # noqa: PLR2004
