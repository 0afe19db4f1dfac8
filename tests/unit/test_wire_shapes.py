"""What outlives a process: V1's shapes to the letter, unknown fields tolerated on read, strictness on write."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from pydantic import ValidationError

from airflow_childrun.errors import CorruptionError, InputError, OtherIoError
from airflow_childrun.model.config import ChildRetryPolicy, Duration, Exponential, Fixed, RetryPolicy, RunConfig
from airflow_childrun.model.events import (
    Continues,
    DomainEvent,
    Event,
    Failure,
    Parent,
    RunCompleted,
    RunStarted,
    StateCompleted,
    StateEntered,
    StateFailed,
    Summary,
    event_from_json,
    event_to_json,
)
from airflow_childrun.model.manifest import build_manifest
from airflow_childrun.model.requests import (
    AwaitRequest,
    AwaitResponse,
    Cause,
    CompactResult,
    SpawnRequest,
    SpawnResponse,
    read_await_request,
    read_spawn_request,
)
from airflow_childrun.model.wire import Wire

ID = "78b85994-fad4-5e3f-abda-66681a2c91d6"
DIGEST = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
STATE = "op.main.a"
CAUSE = Cause(state_id=STATE, code="c", category="Unknown", retryable=True, message="m", attempt=1)
RETRIES = RetryPolicy(
    max_attempts=3, backoff=Exponential(base_delay=Duration(secs=1), max_delay=Duration(secs=60)), jitter_percent=5
)
CONFIG = RunConfig(retry_policy=RETRIES, skip_tags=("impure",))
SPAWN = SpawnRequest(op_id="op", op_version="1", run_config=CONFIG)
AWAIT = AwaitRequest(child_run_id=ID, child_manifest_id=DIGEST)

EVENTS: list[Event] = [
    RunStarted(op_id="op", manifest_id=DIGEST, initial_snapshot_id=DIGEST),
    RunStarted(
        op_id="op",
        manifest_id=DIGEST,
        initial_snapshot_id=DIGEST,
        engine=1,
        op_version="1",
        parent=Parent(run_id=ID, fact_key="k", slot_owner_id=ID),
        continues=Continues(run_id=ID, seq=3, hash=DIGEST),
        child_retry_policy=ChildRetryPolicy(max_attempts=2),
        generation=2,
    ),
    StateEntered(state_id=STATE, attempt=0, base_snapshot_id=DIGEST, deadline_at=5),
    StateFailed(state_id=STATE, error=Failure(state_id=STATE, info={"code": "c"}), retry_at=7),
    StateCompleted(state_id=STATE, context_snapshot_id=DIGEST, summary=Summary(seq=4, id=DIGEST)),
    DomainEvent(name="fact_recorded", payload={"key": "k", "payload_id": DIGEST, "meta": {}}),
    RunCompleted(status="Completed", final_snapshot_id=DIGEST),
]
MODELS: list[Wire] = [
    RETRIES,
    RetryPolicy(backoff=Fixed(delay=Duration(secs=1))),
    ChildRetryPolicy(max_attempts=2, mode="afresh", non_retryable=("a",)),
    CONFIG,
    build_manifest("op", "1", op_config={"rate": 1}, input={"i": 0}, run_config=CONFIG),
    SPAWN,
    SpawnRequest(op_id="op", op_version="1", run_config=CONFIG, timeout=Duration(secs=5), parent_close_policy="cancel"),
    SpawnResponse(parent_run_id=ID, child_run_id=ID, child_manifest_id=DIGEST),
    AWAIT,
    AwaitResponse(child_run_id=ID, status="Failed", final_snapshot_id=None, final_snapshot=None, cause=CAUSE),
    CompactResult(child_run_id=ID, status="Completed", final_snapshot_id=DIGEST, output=1),
    *(event for event in EVENTS if isinstance(event, Wire)),
]


def from_tomorrow(model: Wire) -> Any:
    """Write a model as a later release would, that knows another field at every level."""
    written = deepcopy(model.to_json())
    fields = written
    tag = getattr(model, "tag", None)
    if tag in written:
        fields = written[tag]
    for name in type(model).model_fields:
        if isinstance(getattr(model, name), Wire) and name in fields:
            fields[name] = from_tomorrow(getattr(model, name))
    fields["field_of_tomorrow"] = {"a": [1]}
    return written


def name_of(model: Any) -> str:
    return type(model).__name__


@pytest.mark.parametrize("model", MODELS, ids=name_of)
def test_a_field_of_a_later_release_is_no_error(model: Wire) -> None:
    """At every level: images roll in any order, and the elder ones go on reading what the younger ones write."""
    assert from_tomorrow(model) != model.to_json()
    assert type(model).from_json(from_tomorrow(model)) == model


@pytest.mark.parametrize("event", EVENTS, ids=name_of)
def test_an_event_of_a_later_release_is_read(event: Event) -> None:
    ((kind, body),) = event_to_json(event).items()
    later: Any = {**body, "field_of_tomorrow": 1}
    if isinstance(event, Wire):
        later = {getattr(event, "tag", ""): from_tomorrow(event)}
    assert event_from_json({kind: body}) == event_from_json({kind: later, "envelope_of_tomorrow": 1}) == event


@pytest.mark.parametrize("cls", [RunConfig, RetryPolicy, ChildRetryPolicy], ids=lambda cls: cls.__name__)
def test_a_field_that_an_author_invents_is_an_error(cls: type[Wire]) -> None:
    """What a release reads with patience it does not take from a person: a slip of the pen would do nothing, unseen."""
    with pytest.raises(InputError, match="here does not fit: skip_tag: Extra inputs are not permitted"):
        cls.from_author({"skip_tag": []}, "here")


@pytest.mark.parametrize(
    ("cls", "fields"),
    [
        (RetryPolicy, {"max_attempts": "3"}),
        (RetryPolicy, {"max_attempts": 1.0}),
        (RetryPolicy, {"max_attempts": True}),
        (RetryPolicy, {"max_attempts": -1}),
        (Duration, {"secs": 0, "nanos": 10**9}),
        (RunConfig, {"replay_missing_fact_retryable": 1}),
        (AwaitRequest, {"child_run_id": ID}),
        (StateEntered, {"state_id": STATE, "attempt": "0", "base_snapshot_id": DIGEST}),
        (RunCompleted, {"status": "completed"}),
    ],
    ids=str,
)
def test_a_known_field_of_another_type_is_an_error(cls: type[Wire], fields: dict[str, Any]) -> None:
    """No value is bent into shape, neither when it is written nor when it is read."""
    with pytest.raises(ValidationError):
        cls(**fields)
    with pytest.raises(ValidationError):
        cls.from_json(fields)


def test_what_v1_could_say_is_written_as_v1_wrote_it() -> None:
    """Names, order and nulls; nothing of ours unless it says something."""
    config = {
        "io_mode": "Live",
        "retry_policy": {"max_attempts": 1, "backoff": {"Fixed": {"delay": {"secs": 0, "nanos": 0}}}},
        "event_profile": "Normal",
        "execution_mode": "Sequential",
        "context_checkpointing": "AfterEveryState",
        "replay_missing_fact_retryable": False,
        "skip_tags": [],
        "nix_flake_allowlist": ["github:willyrgf/mfm"],
    }
    spawn = {
        "kind": "child_run_spawn_v1",
        "op_id": "op",
        "op_version": "1",
        "op_config": None,
        "input": None,
        "run_config": config,
        "initial_context": None,
    }
    await_ = {"kind": "child_run_await_v1", "child_run_id": ID, "child_manifest_id": DIGEST}
    spawned = {"parent_run_id": ID, "child_run_id": ID, "child_manifest_id": DIGEST}
    answer = {"child_run_id": ID, "status": "Completed", "final_snapshot_id": DIGEST, "final_snapshot": {}}
    assert RunConfig().to_json() == config
    assert SpawnRequest(op_id="op", op_version="1", run_config=RunConfig()).to_json() == spawn
    assert AWAIT.to_json() == await_
    assert SpawnResponse.from_json(spawned).to_json() == spawned
    assert AwaitResponse.from_json(answer).to_json() == answer
    started = {"op_id": "op", "manifest_id": DIGEST, "initial_snapshot_id": DIGEST}
    assert event_to_json(EVENTS[0]) == {"Kernel": {"RunStarted": started}}


def test_a_changed_copy_of_a_config_is_written_as_it_is() -> None:
    """What a config has been written as once is not what its copy is written as."""
    config = RunConfig()
    assert config.to_json()["io_mode"] == "Live"
    assert config.model_copy(update={"io_mode": "Replay"}).to_json()["io_mode"] == "Replay"
    assert config.to_json()["io_mode"] == "Live"
    assert config == RunConfig()


@pytest.mark.parametrize(
    "body", [{"payload": 1}, {"name": 1}, {"name": "a", "payload_ref": 1}, ["name"], None], ids=str
)
def test_a_domain_event_of_another_shape_is_none(body: Any) -> None:
    with pytest.raises(CorruptionError) as caught:
        event_from_json({"Domain": body})
    assert caught.value.code == "event_malformed"


@pytest.mark.parametrize("kind", ["child_run_spawn_v2", "", None, 1, "child_run_await_v1"], ids=str)
def test_a_request_of_another_version_is_refused(kind: Any) -> None:
    """A V2 may mean something else by the same fields."""
    with pytest.raises(OtherIoError) as caught:
        read_spawn_request({**SPAWN.to_json(), "kind": kind})
    assert caught.value.code == "child_run_request_invalid"
    if kind != "child_run_await_v1":
        with pytest.raises(OtherIoError):
            read_await_request({**AWAIT.to_json(), "kind": kind})
    assert read_spawn_request(from_tomorrow(SPAWN)) == SPAWN
    assert read_await_request(from_tomorrow(AWAIT)) == AWAIT
