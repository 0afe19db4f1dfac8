"""The original's recordings under pytest, and the proof that a falsified one is noticed."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from airflow_childrun.canonical import artifact_id
from airflow_childrun.clock import SystemClock
from airflow_childrun.errors import ConcurrencyError, CorruptionError, InvalidHistoryError, NotFoundError
from airflow_childrun.store.memory import MemoryStore
from airflow_childrun.store.verify import verify_tree
from airflow_childrun.testing.histories import import_history
from tests.golden import table
from tests.golden.__main__ import main
from tests.golden.check import Finding, judge, kind_of, read
from tests.golden.perform import perform_imported
from tests.golden.stage import Backend, MemoryBackend, SqliteBackend

HERE = Path(__file__).parent
FILES = ("runs.jsonl", "random.jsonl", "transport.jsonl", "canonical.jsonl", "ids.jsonl")
CASES = {str(case.get("name") or case.get("about")): case for name in FILES[:3] for case in read(HERE / name)}
COUNTS = {
    "runs.jsonl": {"equal": 67, "in the table": 25},
    "random.jsonl": {"equal": 26, "in the table": 14},
    "transport.jsonl": {"equal": 21, "in the table": 3},
    "canonical.jsonl": {"equal": 216, "in the table": 28},
    "ids.jsonl": {"equal": 28},
}


@pytest.fixture(params=["memory", "SQLite"])
def backend(request, tmp_path) -> Backend:
    return MemoryBackend() if request.param == "memory" else SqliteBackend(tmp_path)


def judged(case: Any, backend: Backend | None = None) -> Finding:
    kind = kind_of(case)
    assert kind is not None
    return judge(kind, case, backend or MemoryBackend())


# --- the recordings


@pytest.mark.parametrize("name", FILES)
def test_every_recording_is_equal_or_in_the_table(name: str) -> None:
    """The counts are pinned, so that a scenario cannot slip from equal into the table; on SQLite: `python -m tests.golden`."""
    counts: dict[str, int] = {}
    for case in read(HERE / name):
        finding = judged(case)
        assert not finding.lines, f"{finding.name}: {finding.lines}"
        counts[finding.verdict] = counts.get(finding.verdict, 0) + 1
    assert counts == COUNTS[name]


def test_the_table_names_no_scenario_that_is_not_recorded() -> None:
    assert {name for row in table.ROWS for name in row.scenarios} <= CASES.keys()


# --- falsified recordings


def root(case: Any) -> list[Any]:
    events: list[Any] = case["runs"][0]["events"]
    return events


def kernel(case: Any, variant: str, run: int = 0) -> Any:
    return next(
        e["event"]["Kernel"][variant] for e in case["runs"][run]["events"] if variant in e["event"].get("Kernel", {})
    )


def domain(case: Any, name: str) -> Any:
    return next(e["event"]["Domain"] for e in root(case) if e["event"].get("Domain", {}).get("name") == name)


def renumbered(events: list[Any]) -> None:
    for number, envelope in enumerate(events, 1):
        envelope["seq"] = number


def without_event(case: Any, position: int) -> None:
    del root(case)[position]
    renumbered(root(case))


def with_event_twice(case: Any, position: int) -> None:
    root(case).insert(position, copy.deepcopy(root(case)[position]))
    renumbered(root(case))


def other_snapshot(case: Any) -> None:
    """Change what a state wrote, consistently: bytes, id, and every mention of the id."""
    item = next(i for i in case["artifacts"] if i["id"] == kernel(case, "StateCompleted")["context_snapshot_id"])
    body = item["text"].replace('"script.main.x":1', '"script.main.x":2')
    text = (
        json.dumps(case)
        .replace(item["id"], artifact_id(body.encode()))
        .replace(json.dumps(item["text"]), json.dumps(body))
    )
    case.clear()
    case.update(json.loads(text))


FALSIFIED: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "phase": ("one_state", lambda case: case["start"]["ok"].update(phase="Failed")),
    "phase of a resume": ("crash_after_event_5", lambda case: case["resume"]["ok"].update(phase="Failed")),
    "run id": ("one_state", lambda case: case["start"]["ok"].update(run_id="68381813-9981-4b48-9d16-a211351f5073")),
    "snapshot, consistently": ("fails", other_snapshot),
    "final snapshot": (
        "fails",
        lambda case: kernel(case, "RunCompleted").update(final_snapshot_id=case["artifacts"][1]["id"]),
    ),
    "attempt": ("retries_exhausted", lambda case: kernel(case, "StateEntered").update(attempt=1)),
    "state": ("diamond", lambda case: kernel(case, "StateEntered").update(state_id="script.main.z")),
    "status": ("child_fails", lambda case: kernel(case, "RunCompleted", 1).update(status="Completed")),
    "error code": ("fails", lambda case: kernel(case, "StateFailed")["error"]["info"].update(code="another")),
    "error message": (
        "error_details_dropped",
        lambda case: kernel(case, "StateFailed")["error"]["info"].update(message="x"),
    ),
    "retryable": (
        "retries_exhausted",
        lambda case: kernel(case, "StateFailed")["error"]["info"].update(retryable=False),
    ),
    "a missing event": ("events_normal", lambda case: without_event(case, 2)),
    "an event too many": ("events_normal", lambda case: with_event_twice(case, 2)),
    "an event's payload": ("events_normal", lambda case: root(case)[2]["event"]["Domain"].update(payload={"other": 1})),
    "fact key": ("facts", lambda case: domain(case, "fact_recorded")["payload"].update(key="k9")),
    "payload id": (
        "facts",
        lambda case: domain(case, "fact_recorded")["payload"].update(payload_id=case["artifacts"][3]["id"]),
    ),
    "child id in linkage": (
        "parent_two_children",
        lambda case: domain(case, "child_run_spawned")["payload"].update(child_run_id=case["runs"][2]["run_id"]),
    ),
    "child's stream": ("parent_two_children", lambda case: case["runs"].pop()),
    "lost linkage of another child": (
        "parent_crash_after_event_3",
        lambda case: domain(case, "child_run_spawned")["payload"].update(child_run_id=case["runs"][1]["run_id"]),
    ),
    "a world call less": ("facts", lambda case: case["world_calls"].pop(0)),
    "a world call more": ("facts", lambda case: case["world_calls"].append(case["world_calls"][0])),
    "a world call's request": ("facts", lambda case: case["world_calls"][1].update(request=[1, 2])),
    "a call after the crash": ("stop_after_handler", lambda case: case["world_calls"].reverse()),
    "crashed stream": ("crash_after_event_5", lambda case: case["at_crash"][0]["events"].pop()),
    "fail counters": ("crash_after_event_9", lambda case: case["fail_counters_at_crash"].update(always=7)),
    "replay": ("three_in_a_chain", lambda case: case["replay"][0]["result"].update(final_snapshot_id="0" * 64)),
    "start error": ("plan_empty", lambda case: case["start"]["error"]["InvalidPlan"].update(code="invalid_plan")),
    "start error's variant": (
        "plan_empty",
        lambda case: case["start"].update(error={"Other": case["start"]["error"]["InvalidPlan"]}),
    ),
    "script": ("one_state", lambda case: case["given"]["op_config"]["states"][0]["do"].pop()),
    "table: what the original did": ("handler_writes_secret", lambda case: without_event(case, 2)),
    "table: the state error": (
        "secret_event",
        lambda case: kernel(case, "StateFailed")["error"]["info"].update(code="x"),
    ),
    "table: one attempt more, but not retryable": (
        "random_34",
        lambda case: root(case)[-2]["event"]["Kernel"]["StateFailed"]["error"]["info"].update(retryable=False),
    ),
    "transport answer": (
        "a plain spawn",
        lambda case: case["answers"][0]["ok"].update(child_run_id=case["parent_run_id"]),
    ),
    "transport code": ("op_id with a dash", lambda case: case["answers"][0]["error"]["Other"].update(code="x")),
    "transport artifact": ("a plain spawn", lambda case: case["artifacts"][2].update(text='{"sum":19}')),
}


@pytest.mark.parametrize("what", FALSIFIED)
def test_a_falsified_recording_is_noticed(what: str) -> None:
    name, falsify = FALSIFIED[what]
    case = copy.deepcopy(CASES[name])
    assert not judged(case).lines
    falsify(case)
    assert judged(case).lines


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, (*path, key))
    else:
        yield path


def changed(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    return "x" if value is None else value[:-1] + ("0" if value[-1:] != "0" else "1")


LONG = "parent_crash_after_event_3"


@pytest.mark.parametrize(
    ("name", "each"),
    [
        ("handler_writes_secret", 1),
        ("stop_after_handler", 1),
        ("random_34", 2),
        pytest.param("random_34", 1, marks=pytest.mark.soak),
        (LONG, 8),
        pytest.param(LONG, 1, marks=pytest.mark.soak),  # a minute and a half
    ],
)
def test_every_single_value_that_is_changed_is_noticed(name: str, each: int) -> None:
    """But for the wording of the original engine's own errors, which nobody compares.

    :param each: one in so many is changed
    """
    told = {"message", "details"}
    parts = ("start", "resume", "runs", "at_crash", "world_calls", "artifacts", "fail_counters_at_crash", "replay")
    paths = [path for part in parts for path in leaves(CASES[name].get(part), (part,)) if part in CASES[name]]
    unnoticed = []
    for path in paths[::each]:
        if (path[0] == "start" and told & set(path)) or (path[0] == "resume" and told & set(path)):
            continue
        case = copy.deepcopy(CASES[name])
        place: Any = case
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = changed(place[path[-1]])
        if not judged(case).lines:
            unnoticed.append(path)
    assert unnoticed == []


@pytest.mark.parametrize(
    "falsified",
    [
        {"text": '{"b":1,"a":2}', "canonical": '{"a":2,"b":1}', "id": "0" * 64},
        {"text": '{"b":1,"a":2}', "canonical": '{"b":1,"a":2}', "id": artifact_id(b'{"b":1,"a":2}')},
        {"text": "1", "error": "float"},
        {"text": "1.5", "error": "secret"},
        {"text": '"bearer "', "error": "float"},
        {"text": "[1]", "error": "not_json"},
        {"text": "a", "op_id": False, "state_id": False},
        {"text": "a.b.c", "op_id": False, "state_id": False},
    ],
    ids=str,
)
def test_a_falsified_identity_is_noticed(falsified: Any) -> None:
    assert judged(falsified).lines


# --- the command


def test_the_command_exits_with_1_and_says_what_differs(tmp_path, capsys) -> None:
    case = copy.deepcopy(CASES["one_state"])
    case["start"]["ok"]["phase"] = "Failed"
    (tmp_path / "more.jsonl").write_text(json.dumps(CASES["facts"]) + "\n" + json.dumps(case) + '\n{"a":1}\n')
    assert main([str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "more.jsonl, memory, one_state: anew start: Failed of root at * -> Completed of root at *" in printed
    assert "more.jsonl:3: no form of a recording that is known" in printed
    assert "SQLite: 2 scenarios: 1 equal, 0 in the table, 1 different" in printed


def test_the_command_exits_with_2_where_nothing_is_recorded(tmp_path) -> None:
    assert main([str(tmp_path)]) == 2


# --- importing


def imported(case: Any, change: Callable[[Any], Any] = lambda case: None) -> MemoryStore:
    case = copy.deepcopy(case)
    change(case)
    store = MemoryStore(SystemClock())
    import_history(store, case["at_crash"], case["artifacts"])
    return store


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "at_crash" in case])
def test_an_imported_history_is_one_tree_that_verifies(name: str) -> None:
    case = CASES[name]
    store = imported(case)
    top, *children = [run["run_id"] for run in case["at_crash"] if run["events"]]
    rows = {str(row.run_id): row for row in store.get_runs(map(UUID, [top, *children])).values()}
    assert {str(row.root_run_id) for row in rows.values()} == {top}
    assert [(str(rows[child].parent_run_id), rows[child].depth) for child in children] == [(top, 1)] * len(children)
    assert verify_tree(store, UUID(top)) == []


def tampered_artifact(case: Any) -> None:
    case["artifacts"][0]["text"] += " "


def written_by_us(case: Any) -> None:
    case["at_crash"][0]["events"][0]["event"]["Kernel"]["RunStarted"]["engine"] = 1


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (tampered_artifact, CorruptionError),
        (written_by_us, InvalidHistoryError),
        (lambda case: case["artifacts"].pop(0), NotFoundError),
        (lambda case: case["at_crash"][0]["events"].pop(0), InvalidHistoryError),
        (lambda case: case["at_crash"][0]["events"].pop(1), InvalidHistoryError),
    ],
)
def test_what_no_engine_wrote_is_not_imported(change: Callable[[Any], Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        imported(CASES["crash_after_event_5"], change)


def test_a_history_is_imported_once() -> None:
    case = CASES["crash_after_event_5"]
    store = imported(case)
    with pytest.raises(ConcurrencyError, match="exists already"):
        import_history(store, case["at_crash"], case["artifacts"])


# --- crashes of the original at places that nobody recorded


def crashes_anywhere() -> Iterator[str]:
    """Yield the scenarios that complete alike in both engines, and need no counters to go on."""
    for name, case in CASES.items():
        if "given" in case and "at_crash" not in case and table.lines_of(name) is None:
            live = case["given"].get("run_config", {}).get("io_mode", "Live") == "Live"
            if (
                live
                and case["start"].get("ok", {}).get("phase") == "Completed"
                and '"fail"' not in json.dumps(case["given"])
            ):
                yield name


@pytest.mark.parametrize("name", list(crashes_anywhere()))
def test_a_v1_history_cut_anywhere_ends_as_it_did(name: str) -> None:
    case = CASES[name]
    for length in range(1, len(root(case))):
        cut = copy.deepcopy(case)
        cut["at_crash"] = copy.deepcopy(cut["runs"])
        del cut["at_crash"][0]["events"][length:]
        done = perform_imported(cut, MemoryBackend())
        assert done.outcomes["resume"] == case["start"], f"cut after event {length}"
        assert done.unverified == []


def test_row01_a_child_that_never_started_gets_its_own_context() -> None:
    """The original would start it with an empty one."""
    case = copy.deepcopy(CASES["child_initial_context"])
    case["at_crash"] = copy.deepcopy(case["runs"][:1])
    del case["at_crash"][0]["events"][4:]
    assert perform_imported(case, MemoryBackend()).outcomes["resume"] == case["start"]


def test_row16_children_that_a_minimal_history_never_named_are_awaited() -> None:
    case = copy.deepcopy(CASES["parent_minimal_profile"])
    case["at_crash"] = copy.deepcopy(case["runs"])
    del case["at_crash"][0]["events"][6:]
    assert perform_imported(case, MemoryBackend()).outcomes["resume"] == case["start"]


def test_replay_leaves_out_a_state_that_a_v1_history_skipped() -> None:
    """Its event does not say that it was skipped; running the handler would ask for a fact that is not there."""
    case = copy.deepcopy(CASES["skip_tags"])
    case["at_crash"] = copy.deepcopy(case["runs"])
    del case["at_crash"][0]["events"][6:]
    end = case["start"]["ok"]
    assert perform_imported(case, MemoryBackend()).replays == {
        end["run_id"]: {"final_snapshot_id": end["final_snapshot_id"]}
    }
