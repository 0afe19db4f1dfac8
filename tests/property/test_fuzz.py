"""Bad input: whatever comes from outside is answered with a typed error, never with a traceback of another kind."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from airflow_childrun import AwaitChildRunOperator, SpawnChildRunOperator
from airflow_childrun.authoring.operation import Operation, operation
from airflow_childrun.canonical import canonical_json_bytes, decode_outside, decode_stored
from airflow_childrun.cli.main import main
from airflow_childrun.engine.history import fold_chain
from airflow_childrun.engine.inbox import standing_request
from airflow_childrun.errors import ChildRunError
from airflow_childrun.hooks.elements import SpawnOrder, check_inputs, wanted_children
from airflow_childrun.hooks.results import read_handle
from airflow_childrun.ids import child_run_id
from airflow_childrun.model.config import RunConfig
from airflow_childrun.model.events import event_from_json
from airflow_childrun.model.manifest import RunManifest, build_manifest
from airflow_childrun.model.requests import AwaitRequest, SpawnRequest, read_await_request
from airflow_childrun.secret_policy import standard
from airflow_childrun.store.api import InboxEntry, RunFilter, StoredEvent
from airflow_childrun.store.codec import decode_event
from airflow_childrun.store.memory import MemoryStore
from airflow_childrun.store.sql.address import parse_address
from airflow_childrun.store.sql.migrate import upgrade
from airflow_childrun.store.sql.store import SqlStore
from airflow_childrun.testing.clock import ManualClock
from airflow_childrun.transports.child_requests import read_wanted
from tests.property.hostile import RUN_ID, anything, deep, mutated
from tests.property.strategies import json_values, texts

POLICY = standard()
DIGEST = "ab" * 32
CONFIG = RunConfig().to_json()
SPAWN = SpawnRequest(op_id="fuzzed", op_version="1", run_config=RunConfig(), input={"a": [1]}).to_json()
AWAIT = AwaitRequest(child_run_id=RUN_ID, child_manifest_id=DIGEST, compact=True).to_json()
MANIFEST = build_manifest("fuzzed", "1", input=[1], run_config=RunConfig()).to_json()
HANDLE = {"child_run_id": RUN_ID, "slot_id": RUN_ID, "root_run_id": RUN_ID, "key": "k", "operation": "fuzzed"}
INFO = {"code": "c", "category": "Rpc", "retryable": True, "message": "m", "details": None}
META = {"request_digest": DIGEST, "status": "Completed", "supersedes": 1}
STATE = "fuzzed.main.s"
EVENTS: list[Any] = [
    {"Kernel": {"RunStarted": {"op_id": "fuzzed", "manifest_id": DIGEST, "initial_snapshot_id": DIGEST, "engine": 1}}},
    {"Kernel": {"StateEntered": {"state_id": STATE, "attempt": 0, "base_snapshot_id": DIGEST}}},
    {"Domain": {"name": "fact_recorded", "payload": {"key": "k", "payload_id": DIGEST, "meta": META}}},
    {"Domain": {"name": "fact_failed", "payload": {"key": "f", "error": {**INFO, "kind": "Other"}, "meta": META}}},
    {"Domain": {"name": "child_run_spawned", "payload": {"parent_run_id": RUN_ID, "child_run_id": RUN_ID}}},
    {"Domain": {"name": "wait_opened", "payload": {"key": "w", "try": 1, "until": 5}}},
    {"Domain": {"name": "inbox_consumed", "payload": {"n": 1, "kind": "cancel", "reason": "r"}}},
    {"Domain": {"name": "host_try", "payload": {"keys": [{"key": "k", "generation": 1}], "try_number": 1}}},
    {"Kernel": {"StateFailed": {"state_id": STATE, "error": {"state_id": STATE, "info": INFO}, "retry_at": 7}}},
    {"Kernel": {"StateEntered": {"state_id": STATE, "attempt": 1, "base_snapshot_id": DIGEST}}},
    {"Kernel": {"StateCompleted": {"state_id": STATE, "context_snapshot_id": DIGEST}}},
    {"Kernel": {"RunCompleted": {"status": "Completed", "final_snapshot_id": DIGEST}}},
]


OF_BOTH = ["results", "failure_mode", "deferrable", "poll_interval", "end_from_trigger", "childrun_conn_id"]
OF_BOTH += ["max_concurrency", "await_timeout"]
OF_SPAWN = ["operation", "op_id", "op_version", "dag_id", "result_task_id", "result_key", "airflow_api_conn_id"]
OF_SPAWN += ["parent_close_policy", "input", "inputs", "child_key", "op_config", "initial_context", "run_config"]
OF_SPAWN += ["child_timeout", "child_retry_policy", "on_clear", "on_plan_change", "wait_for_completion", "dispatch"]
OF_SPAWN += ["runner_dag_id", "batch_size", "on_runner_lost"]


@operation(version="1")
def fuzzed(io: Any, a: int, b: dict[str, list[float]] | None = None) -> int:
    """Never runs."""
    return a


@operation(version="1")
def fuzzed_plain(io: Any, value: Any) -> int:
    """Never runs."""
    return 1


def decoding(data: bytes) -> None:
    """Check that what is decoded encodes to bytes that decode to the same."""
    value = decode_outside(data)
    assert decode_stored(canonical_json_bytes(value)) == decode_outside(canonical_json_bytes(value))


def stored_event(data: bytes) -> None:
    decode_event(StoredEvent(UUID(RUN_ID), 1, 1, data, DIGEST, UUID(RUN_ID), 0))


def history(chosen: list[Any]) -> None:
    """Fold what can be read of a stream."""
    events = [event_from_json(value) for value in chosen]
    fold_chain([(UUID(RUN_ID), list(enumerate(events, 1)))])


def manifest(value: Any) -> None:
    """Read, and write again as canonical bytes."""
    with contextlib.suppress(ValidationError):
        RunManifest.from_json(value).canonical_bytes()


def config(value: Any) -> None:
    RunConfig.from_author(value, "run_config")


def children(given: tuple[Operation, Any, Any, Any, Any, bool]) -> None:
    """Check what an operator was given, as the task does before anything is stored."""
    chosen, inputs, key, context, op_config, single = given
    elements = [inputs] if single else check_inputs(inputs)
    order = SpawnOrder(chosen, elements, single, key, op_config, context)
    wanted_children(order, POLICY)


def operators(given: tuple[dict[str, Any], list[tuple[str, Any]]]) -> None:
    """Write a task into a DAG file."""
    good, strange = given
    kind: Any = AwaitChildRunOperator if "child_runs" in good else SpawnChildRunOperator
    names = OF_BOTH if "child_runs" in good else OF_BOTH + OF_SPAWN
    kind(task_id="t", **{**good, **{name: value for name, value in strange if name in names}})


def inbox(bodies: list[tuple[str, bytes]]) -> None:
    standing_request([InboxEntry(UUID(RUN_ID), n, UUID(RUN_ID), *body, 1) for n, body in enumerate(bodies, 1)])


def cursor(text: str) -> None:
    STORES[0].find_runs(RunFilter(), text)
    STORES[1].find_runs(RunFilter(), text)


def key(text: str) -> None:
    child_run_id(UUID(RUN_ID), text)


def command(words: list[str]) -> None:
    """Exit with 0, 1 or 2."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            status: Any = main(words)
        except SystemExit as left:
            status = left.code
    assert status in (0, 1, 2), (words, status)
    assert "Traceback" not in out.getvalue(), words


STORES: list[Any] = []
URL: list[str] = []


@pytest.fixture(scope="module", autouse=True)
def stores(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Make an empty store of each kind, for what is looked up in one."""
    url = f"sqlite:///{Path(tmp_path_factory.mktemp('fuzz')) / 'store.db'}"
    upgrade(parse_address(url))
    store = SqlStore(parse_address(url))
    STORES[:] = [MemoryStore(ManualClock()), store]
    URL[:] = [url]
    yield
    store.close()


def near_json() -> st.SearchStrategy[bytes]:
    """Return JSON with a few bytes changed."""

    def spoil(value: Any, at: int, what: bytes) -> bytes:
        body = canonical_json_bytes(value)
        place = at % (len(body) + 1)
        return body[:place] + what + body[place + 1 :]

    nested = st.integers(90, 3000).map(lambda depth: canonical_json_bytes(1).join([b"[" * depth, b"]" * depth]))
    return st.builds(spoil, json_values(), st.integers(0, 200), st.binary(max_size=3)) | nested | st.binary(max_size=40)


def words() -> st.SearchStrategy[list[str]]:
    """Return command lines: real commands and options with odd values, always at a throwaway store."""
    text = texts(8).filter(lambda word: not word.startswith("-")) | st.sampled_from(
        [
            "",
            RUN_ID,
            RUN_ID[:6],
            "%",
            "_",
            "0",
            "-5",
            "9" * 30,
            "1e9",
            "30d",
            "0h",
            "99999999999w",
            "a b",
            "'; --",
            "\ud800",
        ]
    )
    places: list[list[str]] = [
        ["runs", "list"], ["runs", "show"], ["runs", "events"], ["runs", "tree"], ["cancel"], ["purge"], ["recover"],
        ["verify"], ["check"], ["migrate", "--check"], ["runs"], ["nonsense"], [],
    ]  # fmt: skip
    flags = ["--json", "--all", "--root", "--dry-run", "--nonsense"]
    valued = ["--status", "--kind", "--operation", "--parent", "--dag-id", "--dag-run-id", "--limit", "--width"]
    valued += ["--older-than", "--reason", "--schema", "--conn-id"]
    option = st.sampled_from(flags).map(lambda flag: [flag]) | st.tuples(st.sampled_from(valued), text).map(list)
    parts = st.lists(option | text.map(lambda word: [word]), max_size=4)
    url = st.sampled_from([True] * 9 + [False]).flatmap(
        lambda real: (
            st.just(URL[0]) if real else st.sampled_from(["", "x", "sqlite://", "mysql://a", "postgresql+x://", "://"])
        )
    )
    return st.tuples(st.sampled_from(places), parts, url).map(
        lambda found: [*found[0], *(word for part in found[1] for word in part), "--url", found[2]]
    )


def orders() -> st.SearchStrategy[Any]:
    keys = st.none() | texts() | st.sampled_from([str, lambda element: element["id"], lambda element: object(), len])
    inputs = anything() | st.lists(mutated({"a": 1, "b": {"x": [1.5]}, "id": "k"}), max_size=4)
    return st.tuples(
        st.sampled_from([fuzzed, fuzzed_plain]), inputs, keys, anything() | st.none(), anything(), st.booleans()
    )


def tasks() -> st.SearchStrategy[Any]:
    """Return good arguments of an operator, and strange ones."""
    runner = {"operation": fuzzed, "dispatch": "dag_run", "runner_dag_id": "runner"}
    good: list[dict[str, Any]] = [{"operation": fuzzed}, {"dag_id": "other"}, runner, {"child_runs": []}]
    values = anything() | st.sampled_from(["{{ x }}", "inline", "dag_run", "cancel", "abandon", fuzzed, len, 10**30])
    return st.tuples(
        st.sampled_from(good), st.lists(st.tuples(st.sampled_from(OF_BOTH + OF_SPAWN), values), max_size=3)
    )


def streams() -> st.SearchStrategy[list[Any]]:
    """Return streams with events left out, doubled, changed."""
    whole = st.just(EVENTS).flatmap(mutated).filter(lambda value: isinstance(value, list))
    return whole | st.lists(st.sampled_from(EVENTS), max_size=8).map(lambda some: [EVENTS[0], *some])


Target = tuple[Callable[[], st.SearchStrategy[Any]], Callable[[Any], Any]]
TARGETS: dict[str, Target] = {
    "canonical JSON": (near_json, decoding),
    "stored event": (lambda: near_json() | st.sampled_from(EVENTS).flatmap(mutated).map(_bytes_of), stored_event),
    "stream": (streams, history),
    "event": (lambda: anything() | st.sampled_from(EVENTS).flatmap(mutated), event_from_json),
    "spawn request": (lambda: anything() | mutated(SPAWN), lambda value: read_wanted(value, POLICY)),
    "await request": (lambda: anything() | mutated(AWAIT), read_await_request),
    "run config": (lambda: anything() | mutated(CONFIG), config),
    "manifest": (lambda: anything() | mutated(MANIFEST), manifest),
    "inputs": (orders, children),
    "operator": (tasks, operators),
    "handle": (lambda: anything() | mutated(HANDLE), read_handle),
    "inbox": (
        lambda: st.lists(st.tuples(st.sampled_from(["cancel", "close", "withdraw", "?"]), near_json()), max_size=4),
        inbox,
    ),
    "cursor": (lambda: texts() | st.builds("{}-{}".format, st.integers(), st.just(UUID(RUN_ID).hex)), cursor),
    "fact key": (lambda: texts(40), key),
    "command line": (words, command),
}


def _bytes_of(value: Any) -> bytes:
    try:
        return canonical_json_bytes(value)
    except ChildRunError:
        return b"{}"


def check_fuzzed(name: str, examples: int) -> None:
    """Try a target many times."""
    strategy, check = TARGETS[name]

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(strategy())
    def run(value: Any) -> None:
        with contextlib.suppress(ChildRunError):
            check(value)

    run()


@pytest.mark.parametrize("name", TARGETS)
def test_bad_input_is_answered_with_typed_errors(name: str) -> None:
    check_fuzzed(name, 60 if name == "command line" else 150)


@pytest.mark.soak
@pytest.mark.parametrize("name", TARGETS)
def test_a_hundred_thousand_bad_inputs_are_answered_with_typed_errors(name: str) -> None:
    check_fuzzed(name, 700 if name == "command line" else 7_650)


@pytest.mark.parametrize("depth", [99, 100, 101, 900, 5_000])
def test_nested_input_is_refused_or_taken_but_never_overflows_the_stack(depth: int) -> None:
    for check in (lambda value: children((fuzzed_plain, [value], None, None, None, False)), read_handle):
        with contextlib.suppress(ChildRunError):
            check(deep(depth))
    with contextlib.suppress(ChildRunError):
        read_wanted({**SPAWN, "input": deep(depth)}, POLICY)
    with contextlib.suppress(ChildRunError):
        decode_outside(b"[" * depth + b"]" * depth)
