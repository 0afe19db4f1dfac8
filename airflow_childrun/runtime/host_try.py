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

    @property
    def label(self) -> str:
        """The task instance, for people."""
        index = f"[{self.map_index}]" if self.map_index >= 0 else ""
        return f"{self.dag_id}.{self.task_id}{index} {self.dag_run_id}"

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
    :param run_after: from when on the DAG run was due, in microseconds UTC: the same for all its life; 0 = unknown
    """

    ti_id: UUID
    try_number: int
    max_tries: int
    clear_number: int
    dag_run_start: int
    run_after: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the fields of a ``host_try`` event."""
        return {
            "ti_id": str(self.ti_id),
            "try_number": self.try_number,
            "max_tries": self.max_tries,
            "clear_number": self.clear_number,
            "dag_run_start": self.dag_run_start,
            "run_after": self.run_after,
        }


def kind_of(last: Mapping[str, Any] | None, now: TryFacts) -> Kind:
    """Say what a try is, seen from the last one that the host run recorded.

    One case looks like a clear: a DAG run that was deleted and made again with an equal ``run_after``, as backfills do, whose
    task died before it wrote anything and was then cleared.
    """
    if last is None:
        return "first"
    before = UUID(last["ti_id"])
    if now.ti_id == before:
        return "same"
    if now.ti_id < before:
        return "stale"
    later_start = now.dag_run_start > last["dag_run_start"]
    is_other_run = last.get("run_after", now.run_after) != now.run_after
    was_not_cleared = later_start and now.clear_number <= last["clear_number"]
    if is_other_run or was_not_cleared or now.try_number <= last["try_number"]:
        return "recreated"
    return "retry" if now.max_tries == last["max_tries"] else "clear"


@dataclass(frozen=True, slots=True)
class Listed:
    """A key as a try lists it: the generation it is to have, and the run which that one continues.

    :param as_is: its child was asked for in other words, and is taken all the same (``on_clear="reuse"``)
    :param awaited: it names a slot that the try awaits, instead of a child that the try asks for
    """

    key: str
    generation: int
    continues: UUID | None = None
    as_is: bool = False
    awaited: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the entry of a ``host_try`` event."""
        entry: dict[str, Any] = {"key": self.key, "generation": self.generation}
        if self.continues is not None:
            entry["continues"] = str(self.continues)
        flags = {"as_is": self.as_is, "awaited": self.awaited}
        return {**entry, **{name: True for name, is_set in flags.items() if is_set}}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Listed:
        """Read an entry back."""
        continues = entry.get("continues")
        return cls(
            entry["key"],
            entry["generation"],
            None if continues is None else UUID(continues),
            as_is=bool(entry.get("as_is")),
            awaited=bool(entry.get("awaited")),
        )


@dataclass(frozen=True, slots=True)
class Known:
    """The newest generation of a slot.

    :param differs: in what this try asks for something else than the child was spawned with; empty = in nothing
    :param is_cleaned_up: its ``on_cancel`` was entered: there is nothing to go on from
    :param is_due: its retry policy still has an attempt for it: whoever drives opens that when its time has come
    """

    row: RunRow
    differs: str = ""
    is_cleaned_up: bool = False
    is_due: bool = False

    @property
    def is_done(self) -> bool:
        """Whether it completed."""
        return self.row.status == "Completed"

    @property
    def is_unwell(self) -> bool:
        """Whether it ended otherwise than well."""
        return self.row.is_terminal and not self.is_done

    @property
    def resumes(self) -> UUID | None:
        """Which run the next generation continues; None = it starts afresh."""
        return None if self.is_cleaned_up else self.row.run_id


def listed_of(last: Mapping[str, Any] | None, *, awaited: bool = False) -> list[Listed]:
    """Return the list of a recorded try: of the children that it asked for, or of the slots that it awaited."""
    entries = [] if last is None else [Listed.from_json(entry) for entry in last["keys"]]
    return [entry for entry in entries if entry.awaited == awaited]


def has_returned(last: Mapping[str, Any] | None) -> bool:
    """Whether a recorded try came to its end and returned to Airflow: a task whose children completed may fail all the same."""
    return last is not None and bool(last.get("returned"))


def plan_keys(
    kind: Kind,
    last: Sequence[Listed],
    keys: Sequence[str],
    known: Mapping[str, Known],
    on_clear: OnClear,
    *,
    returned: bool,
) -> list[Listed]:
    """Return the list of this try: in the order of ``keys``; of a retry, the list of the try before it.

    :param keys: what this try asks for
    :param known: by key, the newest generation of each slot that has one
    :param returned: whether the last try returned: only then was the task green
    :raises HostError: codes ``host_list_changed``, ``child_run_conflict``: a retry must ask for what it asked before
    """
    if kind in ("first", "recreated"):
        return [Listed(key, known[key].row.generation if key in known else 1) for key in keys]
    if kind == "clear":
        return _plan_clear(last, keys, known, on_clear, returned=returned)
    return _plan_retry(kind, last, keys, known)


def _plan_retry(kind: Kind, last: Sequence[Listed], keys: Sequence[str], known: Mapping[str, Known]) -> list[Listed]:
    before = {entry.key: entry for entry in last}
    asked = set(keys)
    strangers = {key: index for index, key in enumerate(keys) if key not in before}
    if strangers:
        raise _list_changed("not in it", strangers, kind)
    lost = {
        entry.key: index for index, entry in enumerate(last) if entry.key not in asked and _starts_afresh(entry, known)
    }
    if lost:
        raise _list_changed("gone from it before being spawned", lost, kind)
    changed = [entry.key for entry in last if entry.key in asked and _contradicts(entry, known)]
    if changed:
        told = [f"{key} ({known[key].differs})" for key in changed]
        raise HostError(
            "a retry completes what the try before it began, but its request differs for "
            f"{_count(changed, 'child', 'children')}: {_some(told)}. Bring the former request back, or clear the task",
            code="child_run_conflict",
            details={"keys": changed[:20]},
        )
    return [_retried(entry, known, again=kind == "retry") for entry in last]


def _starts_afresh(entry: Listed, known: Mapping[str, Known]) -> bool:
    """Whether the listed generation does not exist yet and will be made of this try's request."""
    return action_of(entry, known) in ("spawn", "respawn")


def _contradicts(entry: Listed, known: Mapping[str, Known]) -> bool:
    """Whether a child that stays, or that is continued, was spawned with another request."""
    return not entry.as_is and not _starts_afresh(entry, known) and bool(known[entry.key].differs)


def _retried(entry: Listed, known: Mapping[str, Known], *, again: bool) -> Listed:
    """Keep an entry, or continue its child if that ended otherwise than well in the listed generation."""
    if entry.key not in known or known[entry.key].row.generation < entry.generation:
        return entry
    child = known[entry.key]
    if again and child.is_unwell and not child.is_due:
        return Listed(entry.key, child.row.generation + 1, child.resumes, as_is=entry.as_is)
    return Listed(entry.key, child.row.generation, as_is=entry.as_is)


def _plan_clear(
    last: Sequence[Listed], keys: Sequence[str], known: Mapping[str, Known], on_clear: OnClear, *, returned: bool
) -> list[Listed]:
    wanted = {*keys, *(entry.key for entry in last)}
    pending = {entry.key for entry in last if _starts_afresh(entry, known)}
    was_green = returned and bool(last) and not pending and all(known[key].is_done for key in wanted if key in known)
    if on_clear == "respawn" or (on_clear == "auto" and was_green):
        pending = wanted
    return [_cleared(key, known.get(key), on_clear, fresh=key in pending) for key in keys]


def _cleared(key: str, child: Known | None, on_clear: OnClear, *, fresh: bool) -> Listed:
    if child is None:
        return Listed(key, 1)
    row = child.row
    if on_clear == "reuse":
        return Listed(key, row.generation, as_is=bool(child.differs))
    if fresh or child.differs:
        return Listed(key, row.generation + 1)
    if child.is_unwell:
        return Listed(key, row.generation + 1, child.resumes)
    return Listed(key, row.generation)


def action_of(entry: Listed, known: Mapping[str, Known]) -> Action:
    """Say what has to be done so that an entry's generation exists."""
    if entry.key not in known:
        return "spawn"
    if known[entry.key].row.generation >= entry.generation:
        return "take"
    return "respawn" if entry.continues is None else "continue"


def _list_changed(what: str, places: Mapping[str, int], kind: Kind) -> HostError:
    """Name the elements by key and by place: a key that is a digest tells people nothing."""
    if kind == "same":
        advice = "A task spawns one list of children: hand all of them over in one call"
    else:
        advice = "Make the source of the list repeatable, or clear the task to take the new list"
    subject = "a try has one list of children" if kind == "same" else "a retry completes the list of the try before it"
    told = _some([f"{key} (element {index})" for key, index in places.items()])
    number = f"{len(places)} elements are" if len(places) > 1 else "one element is"
    keys = list(places)[:20]
    return HostError(
        f"{subject}, but {number} {what}: {told}. {advice}", code="host_list_changed", details={"keys": keys}
    )


def _count(keys: Sequence[str], one: str, many: str) -> str:
    return f"{len(keys)} {many}" if len(keys) > 1 else f"one {one}"


def _some(keys: Sequence[str]) -> str:
    shown = ", ".join(keys[:5])
    return f"{shown} and {len(keys) - 5} more" if len(keys) > 5 else shown  # noqa: PLR2004
