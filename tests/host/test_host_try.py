"""Pure decisions: what a try is to the one before it, and what it makes of the list of children."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid5

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_childrun.errors import HostError
from airflow_childrun.model.config import RunConfig
from airflow_childrun.model.manifest import build_manifest
from airflow_childrun.runtime.host_diff import manifest_differences, places_that_differ
from airflow_childrun.runtime.host_try import (
    HostCoordinates,
    Kind,
    Known,
    Listed,
    OnClear,
    TryFacts,
    action_of,
    kind_of,
    listed_of,
    plan_keys,
)
from airflow_childrun.store.api import GENESIS_HASH, Head, RunRow, RunStatus
from tests.host.kit import AirflowTask

HOST = UUID(int=7)

# ------------------------------------------------------------------------------------------- what a try is to the last


KINDS: list[tuple[str, Callable[[AirflowTask], AirflowTask], Kind]] = [
    ("the same try comes back, as from a deferral", lambda task: task, "same"),
    ("retry", lambda task: task.retry(), "retry"),
    ("second retry", lambda task: task.retry().retry(), "retry"),
    ("clear of the task", lambda task: task.clear(), "clear"),
    ("clear while it runs", lambda task: task.clear(), "clear"),
    ("clear of the whole run: the task is cleared with it", lambda task: task.clear().clear_sibling(), "clear"),
    ("clear before the retry that was due", lambda task: task.retry().clear(), "clear"),
    ("two clears, of which the first never ran", lambda task: task.clear().clear(), "clear"),
    ("clear of a sibling, then this task retries", lambda task: task.clear_sibling().retry(), "retry"),
    ("clear of a sibling while this try goes on", lambda task: task.clear_sibling(), "same"),
    ("DAG run deleted and made again by hand", lambda task: task.recreate(), "recreated"),
    ("made again after retries", lambda task: task.retry().retry().recreate(), "recreated"),
    ("made again after a clear", lambda task: task.clear().recreate(), "recreated"),
    ("made again twice", lambda task: task.recreate().recreate(), "recreated"),
    ("made again, and its first try died before it wrote", lambda task: task.recreate().retry(), "recreated"),
]


@pytest.mark.parametrize(("happens", "kind"), [row[1:] for row in KINDS], ids=[row[0] for row in KINDS])
def test_kind_follows_from_the_last_try(happens: Callable[[AirflowTask], AirflowTask], kind: Kind) -> None:
    """Each row of spec G1 and L is told from what Airflow says."""
    before = AirflowTask()
    assert kind_of(before.facts.to_json(), happens(before).facts) == kind


def test_a_dag_run_of_another_date_is_another_run_whatever_was_cleared_in_it() -> None:
    """Triggered anew under the same id, its first try died before it wrote, and then it was cleared."""
    before = AirflowTask()
    facts = before.recreate().clear().facts
    assert kind_of(before.facts.to_json(), facts) == "clear", "all but the date is as after a clear"
    assert kind_of({**before.facts.to_json(), "run_after": 1}, replace(facts, run_after=2)) == "recreated"


def test_a_history_without_dates_is_read_as_before() -> None:
    """An older release's try had no ``run_after``."""
    before = AirflowTask()
    recorded = {name: value for name, value in before.facts.to_json().items() if name != "run_after"}
    assert kind_of(recorded, replace(before.clear().facts, run_after=2)) == "clear"


def test_first_try_has_none_before() -> None:
    assert kind_of(None, AirflowTask().facts) == "first"


def test_backfill_makes_a_run_again_with_equal_dates() -> None:
    """Run id, run_after, try number, max_tries and clear_number are as at first: only start and ti_id are younger."""
    before = AirflowTask(dag_run_id="backfill__2026-01-01T00:00:00+00:00")
    again = before.recreate()
    assert again.coordinates == before.coordinates
    assert replace(again.facts, ti_id=before.facts.ti_id, dag_run_start=before.facts.dag_run_start) == before.facts
    assert kind_of(before.facts.to_json(), again.facts) == "recreated"


@pytest.mark.parametrize(
    "happens", [AirflowTask.retry, AirflowTask.clear, AirflowTask.recreate], ids=["retry", "clear", "re-creation"]
)
def test_an_older_try_is_stale(happens: Callable[[AirflowTask], AirflowTask]) -> None:
    before = AirflowTask()
    assert kind_of(happens(before).facts.to_json(), before.facts) == "stale"


@given(st.lists(st.sampled_from(["retry", "clear", "clear_sibling", "recreate"]), max_size=8))
def test_whatever_happens_the_older_try_is_stale_and_the_newer_is_not(events: list[str]) -> None:
    """Order is told by ti_id alone, whatever else was counted up or back."""
    task = AirflowTask()
    for event in events:
        after: AirflowTask = getattr(task, event)()
        if after.number > task.number:
            assert kind_of(after.facts.to_json(), task.facts) == "stale"
            assert kind_of(task.facts.to_json(), after.facts) in ("retry", "clear", "recreated")
        task = after


def test_host_ids_tell_places_and_generations_apart_and_forget_tries() -> None:
    """Neither ti_id, try number nor run type stand in a key; map index, run, deployment and generation do."""
    at = HostCoordinates("here", "dag", "run", "task")
    others = [
        replace(at, deployment_id="there"),
        replace(at, dag_id="other"),
        replace(at, dag_run_id="other"),
        replace(at, task_id="other"),
        replace(at, map_index=0),
        replace(at, region="a:0"),
    ]
    assert len({at.run_id(), at.run_id(2), at.run_id(3), *(other.run_id() for other in others)}) == 9
    assert AirflowTask().retry().clear().coordinates.run_id() == AirflowTask().coordinates.run_id()
    assert replace(at, task_id="other").root_run_id() == at.root_run_id()


# ------------------------------------------------------------------------------------------------------------ the list


def known(key: str, status: RunStatus = "Completed", generation: int = 1, differs: str = "") -> Known:
    """Return a slot whose newest generation is in a status."""
    run_id = uuid5(HOST, f"{key}/{generation}")
    row = RunRow(
        run_id=run_id,
        kind="operation",
        parent_run_id=HOST,
        root_run_id=HOST,
        depth=1,
        slot_id=uuid5(HOST, key),
        generation=generation,
        op_id="op",
        op_version="1",
        manifest_id="",
        initial_snapshot_id="",
        status=status,
        head=Head(1, GENESIS_HASH, 1, 0),
        checkpoint_seq=1,
        checkpoint_hash="",
        checkpoint_snapshot_id="",
        final_snapshot_id=None,
        error_code=None,
        deadline_at=None,
        wake_at=None,
        created_at=0,
        updated_at=0,
        ended_at=None,
        lease_session_id=None,
        lease_expires_at=None,
        airflow=None,
        plan_id=None,
    )
    return Known(row, differs)


def there(**statuses: RunStatus) -> dict[str, Known]:
    return {key: known(key, status) for key, status in statuses.items()}


def plain(listed: Sequence[Listed]) -> list[tuple[str, int, bool]]:
    """Return key, generation, and whether it goes on with another run."""
    return [(entry.key, entry.generation, entry.continues is not None) for entry in listed]


A, B, C = Listed("a", 1), Listed("b", 1), Listed("c", 1)


def test_a_first_try_lists_what_it_is_given() -> None:
    assert plan_keys("first", [], ["b", "a"], {}, "auto", returned=True) == [B, A]


def test_a_retry_reuses_awaits_continues_and_spawns() -> None:
    """Finished reused, running awaited, failed and cancelled continued, unspawned spawned."""
    slots = there(a="Completed", b="Running", c="Failed", d="Cancelled", e="Pending")
    last = [Listed(key, 1) for key in "abcdef"]
    listed = plan_keys("retry", last, list("abcdef"), slots, "auto", returned=True)
    assert plain(listed) == [
        ("a", 1, False),
        ("b", 1, False),
        ("c", 2, True),
        ("d", 2, True),
        ("e", 1, False),
        ("f", 1, False),
    ]
    assert [action_of(entry, slots) for entry in listed] == ["take", "take", "continue", "continue", "take", "spawn"]
    assert listed[2].continues == slots["c"].row.run_id


def test_the_same_try_continues_nothing() -> None:
    """A return from a deferral takes what is there."""
    listed = plan_keys("same", [A], ["a"], there(a="Failed"), "auto", returned=True)
    assert plain(listed) == [("a", 1, False)]


def test_a_retry_names_strangers_and_what_was_lost() -> None:
    with pytest.raises(
        HostError, match=r"2 elements are not in it: x \(element 1\), y \(element 2\)\. Make the source"
    ) as strangers:
        plan_keys("retry", [A], ["a", "x", "y"], {}, "auto", returned=True)
    assert strangers.value.code == "host_list_changed"
    with pytest.raises(HostError, match=r"one element is gone from it before being spawned: b \(element 1\)") as lost:
        plan_keys("retry", [A, B], ["a"], there(a="Completed"), "auto", returned=True)
    assert lost.value.code == "host_list_changed"


def test_a_retry_keeps_what_was_spawned_though_its_element_is_gone() -> None:
    listed = plan_keys("retry", [A, B], ["a"], there(a="Completed", b="Failed"), "auto", returned=True)
    assert plain(listed) == [("a", 1, False), ("b", 2, True)]


def test_a_retry_of_an_empty_list_takes_no_elements() -> None:
    assert plan_keys("retry", [], [], {}, "auto", returned=True) == []
    with pytest.raises(HostError, match="one element is not in it: a"):
        plan_keys("retry", [], ["a"], {}, "auto", returned=True)


def test_a_second_list_in_one_try_is_told_what_to_do() -> None:
    with pytest.raises(HostError, match="hand all of them over in one call"):
        plan_keys("same", [A], ["b"], {}, "auto", returned=True)


def test_a_retry_that_asks_for_something_else_is_a_conflict_naming_what() -> None:
    slots = {"a": known("a", "Failed", differs="input at $.amount"), "b": known("b")}
    with pytest.raises(HostError, match=r"one child: a \(input at \$\.amount\)") as raised:
        plan_keys("retry", [A, B], ["a", "b"], slots, "auto", returned=True)
    assert raised.value.code == "child_run_conflict"
    assert raised.value.info.details == {"keys": ["a"]}


@pytest.mark.parametrize("on_clear", ["auto", "resume_failed", "reuse", "respawn"])
def test_a_clear_spawns_what_is_new(on_clear: OnClear) -> None:
    listed = plan_keys("clear", [A], ["b", "c"], {}, on_clear, returned=True)
    assert plain(listed) == [("b", 1, False), ("c", 1, False)]


RED = there(a="Completed", b="Failed", c="Running", d="Cancelled")
GREEN = there(a="Completed", b="Completed")

CLEARS: list[tuple[OnClear, dict[str, Known], list[tuple[str, int, bool]]]] = [
    ("auto", RED, [("a", 1, False), ("b", 2, True), ("c", 1, False), ("d", 2, True)]),
    ("auto", GREEN, [("a", 2, False), ("b", 2, False)]),
    ("resume_failed", RED, [("a", 1, False), ("b", 2, True), ("c", 1, False), ("d", 2, True)]),
    ("resume_failed", GREEN, [("a", 1, False), ("b", 1, False)]),
    ("reuse", RED, [("a", 1, False), ("b", 1, False), ("c", 1, False), ("d", 1, False)]),
    ("reuse", GREEN, [("a", 1, False), ("b", 1, False)]),
    ("respawn", RED, [("a", 2, False), ("b", 2, False), ("c", 2, False), ("d", 2, False)]),
    ("respawn", GREEN, [("a", 2, False), ("b", 2, False)]),
]


@pytest.mark.parametrize(("on_clear", "slots", "expected"), CLEARS)
def test_a_clear_follows_on_clear(
    on_clear: OnClear, slots: dict[str, Known], expected: list[tuple[str, int, bool]]
) -> None:
    last = [Listed(key, 1) for key in slots]
    assert plain(plan_keys("clear", last, list(slots), slots, on_clear, returned=True)) == expected


def test_clearing_a_green_task_runs_all_again_in_whatever_order_and_length() -> None:
    """A reordered, shortened or extended list is still that of a green task."""
    for keys in (["b", "a"], ["a"], ["a", "b", "c"]):
        listed = plan_keys("clear", [A, B], keys, GREEN, "auto", returned=True)
        assert {entry.key: entry.generation for entry in listed} == {key: 1 if key == "c" else 2 for key in keys}
        assert [entry.key for entry in listed] == keys


def test_clearing_a_task_that_failed_after_its_children_repeats_nothing() -> None:
    """Its results were too large, say: no child is to blame, and every call that they made is known."""
    listed = plan_keys("clear", [A, B], ["a", "b"], GREEN, "auto", returned=False)
    assert plain(listed) == [("a", 1, False), ("b", 1, False)]


def test_clearing_a_red_task_repeats_nothing_that_completed_though_the_failed_element_is_gone() -> None:
    slots = there(a="Completed", b="Failed")
    assert plain(plan_keys("clear", [A, B], ["a"], slots, "auto", returned=True)) == [("a", 1, False)]


def test_a_clear_starts_changed_requests_afresh_unless_they_are_to_be_reused() -> None:
    slots = {"a": known("a", "Failed", differs="input"), "b": known("b", "Failed")}
    for on_clear in ("auto", "resume_failed"):
        listed = plan_keys("clear", [A, B], ["a", "b"], slots, on_clear, returned=True)
        assert plain(listed) == [("a", 2, False), ("b", 2, True)]
    reused = plan_keys("clear", [A, B], ["a", "b"], slots, "reuse", returned=True)
    assert reused == [Listed("a", 1, as_is=True), B]
    # What a clear took as it was, its retries take too.
    assert plan_keys("retry", reused, ["a", "b"], slots, "auto", returned=True)[0].as_is


def test_a_clear_continues_what_an_earlier_clear_had_dropped() -> None:
    """After a clear with an empty list, the next clear finds the children of the first list."""
    slots = {"a": known("a", "Cancelled"), "b": known("b")}
    assert plain(plan_keys("clear", [], ["a", "b"], slots, "auto", returned=True)) == [("a", 2, True), ("b", 1, False)]


def test_a_clear_keeps_the_promise_of_one_that_was_killed() -> None:
    """A clear had listed both afresh and died before the second: clearing again does not take the old result."""
    slots = {"a": known("a", generation=2), "b": known("b")}
    last = [Listed("a", 2), Listed("b", 2)]
    assert plain(plan_keys("clear", last, ["a", "b"], slots, "auto", returned=True)) == [
        ("a", 2, False),
        ("b", 2, False),
    ]


def test_a_retry_of_a_killed_clear_starts_afresh_what_the_clear_had_listed() -> None:
    """Also with the changed request because of which it starts afresh."""
    slots = {"a": known("a", differs="input"), "b": known("b", "Failed")}
    last = [Listed("a", 2), Listed("b", 2, slots["b"].row.run_id)]
    listed = plan_keys("retry", last, ["a", "b"], slots, "auto", returned=True)
    assert listed == last
    assert [action_of(entry, slots) for entry in listed] == ["respawn", "continue"]


def test_a_retry_of_a_killed_clear_cannot_start_afresh_what_it_is_not_given() -> None:
    with pytest.raises(HostError, match="gone from it before being spawned: a"):
        plan_keys("retry", [Listed("a", 2)], [], {"a": known("a")}, "auto", returned=True)


# ---------------------------------------------------------------------------------------------------------- properties

STATUSES: list[RunStatus] = ["Pending", "Running", "Completed", "Failed", "Cancelled"]
KEYS = list("abcdefgh")
slots_of = st.dictionaries(
    st.sampled_from(KEYS), st.tuples(st.sampled_from(STATUSES), st.integers(1, 3)), max_size=len(KEYS)
).map(lambda found: {key: known(key, status, generation) for key, (status, generation) in found.items()})
on_clears = st.sampled_from(["auto", "resume_failed", "reuse", "respawn"])
lists = st.lists(st.sampled_from(KEYS), unique=True)


@given(slots_of, lists)
def test_a_retry_never_opens_a_generation_over_a_completed_child(slots: dict[str, Known], keys: list[str]) -> None:
    last = [Listed(key, slots[key].row.generation if key in slots else 1) for key in keys]
    for entry in plan_keys("retry", last, keys, slots, "auto", returned=True):
        child = slots.get(entry.key)
        if child is not None and child.is_done:
            assert action_of(entry, slots) == "take"
            assert entry.generation == child.row.generation


@given(slots_of, lists, on_clears)
def test_a_killed_try_is_completed_by_the_next_with_the_same_list(
    slots: dict[str, Known], keys: list[str], on_clear: OnClear
) -> None:
    """However many of a clear's children were made before it died, the retry opens the others, and these alone."""
    cleared = plan_keys("clear", [Listed(key, 1) for key in slots], keys, slots, on_clear, returned=True)
    for made in range(len(cleared) + 1):
        now = dict(slots)
        for entry in cleared[:made]:
            if action_of(entry, slots) != "take":
                now[entry.key] = known(entry.key, "Pending", entry.generation)
        retried = plan_keys("retry", cleared, keys, now, "auto", returned=True)
        assert [entry.key for entry in retried] == keys
        for before, after in zip(cleared, retried, strict=True):
            taken_unwell = action_of(before, slots) == "take" and slots[before.key].is_unwell
            assert after.generation == before.generation + taken_unwell


@given(slots_of, lists, on_clears)
def test_a_clear_lists_each_key_once_and_opens_one_generation_at_most(
    slots: dict[str, Known], keys: list[str], on_clear: OnClear
) -> None:
    last = [Listed(key, child.row.generation) for key, child in slots.items()]
    listed = plan_keys("clear", last, keys, slots, on_clear, returned=True)
    assert [entry.key for entry in listed] == keys
    for entry in listed:
        newest = slots[entry.key].row.generation if entry.key in slots else 0
        assert newest <= entry.generation <= newest + 1
        if entry.continues is not None:
            assert slots[entry.key].is_unwell
        if on_clear == "reuse" and entry.key in slots:
            assert action_of(entry, slots) == "take"


@given(slots_of, lists, on_clears)
def test_a_list_survives_being_written_down(slots: dict[str, Known], keys: list[str], on_clear: OnClear) -> None:
    listed = plan_keys("clear", [], keys, slots, on_clear, returned=True)
    awaited = [replace(entry, awaited=True) for entry in listed]
    event = {"keys": [entry.to_json() for entry in [*listed, *awaited]]}
    assert listed_of(event) == listed
    assert listed_of(event, awaited=True) == awaited
    assert listed_of(None) == []


# ------------------------------------------------------------------------------------------------------ what differs


def test_what_differs_is_told_by_place_never_by_value() -> None:
    before = build_manifest("op", "1", input={"id": 1, "amount": 5, "old": 1}, run_config=RunConfig())
    after = build_manifest(
        "op",
        "2",
        op_config="top secret",
        input={"id": 1, "amount": 7, "new": 1},
        run_config=RunConfig(skip_tags=("x",)),
    )
    told = manifest_differences(before, after)
    assert told == "version, op_config, input at $.amount, $.new, $.old, run_config at $.skip_tags"
    assert "secret" not in told


@pytest.mark.parametrize(
    ("before", "after", "places"),
    [
        (1, 1, []),
        (1, 1.0, ["$"]),
        (True, 1, ["$"]),
        ([1, 2], [1, 3], ["$[1]"]),
        ([1, 2], [1], ["$"]),
        ({"a": {"b": [1]}}, {"a": {"b": [2]}}, ["$.a.b[0]"]),
    ],
)
def test_places_that_differ(before: Any, after: Any, places: list[str]) -> None:
    assert places_that_differ(before, after) == places


def test_facts_are_written_as_the_event_has_them() -> None:
    facts = TryFacts(UUID(int=1), 1, 2, 3, 4, 5)
    assert facts.to_json() == {
        "ti_id": "00000000-0000-0000-0000-000000000001",
        "try_number": 1,
        "max_tries": 2,
        "clear_number": 3,
        "dag_run_start": 4,
        "run_after": 5,
    }
