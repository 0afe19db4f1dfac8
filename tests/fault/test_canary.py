"""A canary that is planted wherever an author, an operator or the world can put it, and must be found nowhere.

Nowhere: in no byte of the database's files, no line of the log, no result and no error that a caller sees.
"""

from __future__ import annotations

import base64
import logging
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from airflow_childrun.authoring.operation import Operation, operation
from airflow_childrun.authoring.registry import RegistryResolver
from airflow_childrun.errors import ChildRunError, TransportError
from airflow_childrun.model.config import CustomName, Duration, Fixed, RetryPolicy, RunConfig
from airflow_childrun.model.manifest import build_manifest
from airflow_childrun.model.requests import SPAWN, SpawnRequest
from airflow_childrun.runtime.closing import cancel_run
from airflow_childrun.runtime.ends import end_of
from airflow_childrun.runtime.engine import ExecutionEngine
from airflow_childrun.runtime.house import House
from airflow_childrun.secret_policy import SecretPolicy, standard, strict
from airflow_childrun.store.sql.migrate import upgrade
from airflow_childrun.store.sql.store import SqlStore
from airflow_childrun.transports.registry import FunctionTransport, TransportRegistry

pytestmark = pytest.mark.fault
CANARY = "c4n4ry7Zq2vXw9LmT5"
PRESETS: dict[str, tuple[str, Callable[[], SecretPolicy]]] = {
    "registered": (CANARY, lambda: standard(lambda: [CANARY])),
    "by pattern": (f"Bearer {CANARY}", standard),
    "strict": (f"the password: {CANARY}", strict),
}
AT_ONCE = RetryPolicy(max_attempts=2, backoff=Fixed(delay=Duration()))
planted: list[str] = []
"""The text that holds the canary, for operations, which know it as they would know a password."""


def hand_out() -> Any:
    return {"answer": [planted[0]]}


def take(given: str) -> int:
    return len(given)


def fail() -> None:
    raise ConnectionError(f"the server refused {planted[0]}")


def fail_deeply() -> None:
    try:
        fail()
    except ConnectionError as error:
        raise TransportError("no answer", details={"sent": planted[0]}) from error


@operation(version="1")
def canary_nest(io: Any, value: Any) -> str:
    return "a harmless child"


def spawn_request(config: RunConfig) -> tuple[str, Any, str]:
    request = SpawnRequest(op_id="canary_nest", op_version="1", input=1, run_config=config)
    return SPAWN, request.to_json(), "raw spawn"


PLANTS: dict[str, Callable[[Any], Any]] = {
    "a step's result": lambda io: io.step(hand_out),
    "a step's argument": lambda io: io.step(take, planted[0]),
    "a step's exception": lambda io: io.step(fail),
    "a step's exception, tried again": lambda io: io.step(fail, retry=AT_ONCE),
    "the cause and the details of an error": lambda io: io.step(fail_deeply),
    "an error's code": lambda io: (_ for _ in ()).throw(TransportError("no answer", code=planted[0])),
    "a handler's exception": lambda io: fail(),
    "a handler's exception with a cause": lambda io: fail_deeply(),
    "a step's key": lambda io: io.step(take, "x", key=planted[0]),
    "a recorded value": lambda io: io.record_value("value", {"found": planted[0]}),
    "an event": lambda io: io.emit("seen", {"text": planted[0]}),
    "an event's name": lambda io: io.emit(planted[0], {}),
    "the output": lambda io: planted[0],
    "an output's key": lambda io: {planted[0]: 1},
    "a child's input": lambda io: io.spawn(canary_nest, {"field": planted[0]}),
    "a child's config": lambda io: io.spawn(canary_nest, 1, config={"field": planted[0]}),
    "a child's skip tag": lambda io: io.call(*spawn_request(RunConfig(skip_tags=(planted[0],)))),
    "a child's key": lambda io: io.spawn(canary_nest, 1, key=planted[0]),
    "a mapped input": lambda io: io.map(canary_nest, ["fine", planted[0]]),
    "a mapped key": lambda io: io.map(canary_nest, [1, 2], key=lambda number: f"{number} {planted[0]}"),
    "a request": lambda io: io.call("world", {"text": planted[0]}, "request"),
    "an answer": lambda io: io.call("world", "echo", "answer"),
    "a transport's exception": lambda io: io.call("world", "fail", "failure"),
    "a group of exceptions": lambda io: (_ for _ in ()).throw(ExceptionGroup("two", [ValueError(planted[0])])),
}


def _plant(name: str) -> Operation:
    made = Operation(f"canary_{list(PLANTS).index(name)}", version="1")

    @made.state
    def main(io: Any) -> Any:
        return PLANTS[name](io)

    return made


OPERATIONS = {name: _plant(name) for name in PLANTS}


def answer(call: Any, env: Any) -> Any:
    """Be a world that knows the secret, and does not keep it."""
    if call.request == "fail":
        raise RuntimeError(f"refused: {planted[0]}")
    return {"echo": planted[0]} if call.request == "echo" else "heard"


@pytest.fixture(params=PRESETS)
def engine(
    request: pytest.FixtureRequest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> Iterator[ExecutionEngine]:
    caplog.set_level(logging.DEBUG)
    text, policy = PRESETS[request.param]
    planted[:] = [text]
    url = f"sqlite:///{tmp_path / 'store.db'}"
    upgrade(url)
    transports = TransportRegistry([FunctionTransport("world", answer)])
    made = ExecutionEngine(House(SqlStore(url), RegistryResolver(), policy(), transports))
    yield made
    made.close()
    made.house.store.close()


def found_in(text: str | bytes) -> bool:
    body = text.encode() if isinstance(text, str) else text
    spellings = [CANARY.encode(), CANARY.encode("utf-16-le"), CANARY[::-1].encode(), CANARY.encode().hex().encode()]
    spellings += [base64.b64encode(CANARY.encode())[:-4]]
    return any(spelling in body for spelling in spellings)


def check_nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture, *seen: str) -> None:
    for file in tmp_path.glob("store.db*"):
        assert not found_in(file.read_bytes()), f"in {file.name}"
    assert not found_in(caplog.text), "in the log"
    for text in seen:
        assert not found_in(text), f"in {text}"


@pytest.mark.parametrize("name", PLANTS)
def test_what_a_handler_knows_is_found_nowhere(
    engine: ExecutionEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """Wherever the author lets it slip: what cannot be recorded is refused, and the refusal does not repeat it."""
    result = engine.start(build_manifest(OPERATIONS[name].name, "1", input=None, run_config=RunConfig()))
    row = engine.house.find_run(result.run_id)
    assert row is not None
    told = str([end_of(engine.house.store, row, compact=compact) for compact in (True, False)])
    check_nowhere(tmp_path, caplog, str(result), told)
    if name not in {"a step's argument", "a request", "a handler's exception"}:
        assert row.status == "Failed" or "Failed" in told, "nobody noticed"


@pytest.mark.parametrize("place", ["input", "config", "initial context", "skip tag", "event profile", "reason"])
def test_what_an_operator_gives_is_found_nowhere(
    engine: ExecutionEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    """Inputs, configurations, contexts and reasons are refused before anything is stored."""
    with pytest.raises(ChildRunError) as caught:
        _operate(engine, place)
    check_nowhere(tmp_path, caplog, "".join(traceback.format_exception(caught.value)))


def _operate(engine: ExecutionEngine, place: str) -> None:
    value: Any = {"field": [planted[0]]}
    given = {"input": value if place == "input" else 1, "op_config": value if place == "config" else None}
    texts: dict[str, dict[str, Any]] = {
        "skip tag": {"skip_tags": (planted[0],)},
        "event profile": {"event_profile": CustomName(Custom=planted[0])},
    }
    made = build_manifest("canary_nest", "1", run_config=RunConfig(**texts.get(place, {})), **given)
    run_id = engine.create(made, value if place == "initial context" else None)
    cancel_run(engine.house, run_id, planted[0])


def test_the_password_of_the_database_is_found_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    """Neither the error of a database that does not answer nor its causes, nor what a store says of itself, repeats it."""
    caplog.set_level(logging.DEBUG)
    store = SqlStore(f"postgresql://someone:{CANARY}@127.0.0.1:1/nowhere")
    with pytest.raises(ChildRunError) as caught:
        store.find_run(UUID(int=1))
    seen = [
        "".join(traceback.format_exception(caught.value)),
        repr(store),
        str(store.database.url),
        str(caught.value.info),
    ]
    assert not any(map(found_in, seen))
    with pytest.raises(ChildRunError) as caught:
        SqlStore(f"no dialect://someone:{CANARY}@nowhere")
    assert not found_in("".join(traceback.format_exception(caught.value)))
    assert not found_in(caplog.text)


def test_a_canary_that_nobody_calls_secret_is_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The search itself works: without a policy's word for it, the text stands in the file."""
    planted[:] = [CANARY]
    url = f"sqlite:///{tmp_path / 'store.db'}"
    upgrade(url)
    engine = ExecutionEngine(House(SqlStore(url), RegistryResolver(), standard()))
    engine.start(build_manifest(OPERATIONS["a step's result"].name, "1", input=None, run_config=RunConfig()))
    engine.close()
    engine.house.store.close()
    with pytest.raises(AssertionError, match=r"store\.db"):
        check_nowhere(tmp_path, caplog)
