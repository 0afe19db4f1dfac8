"""``check_reentry`` lets good handlers pass, and says of each kind of bad one what is wrong with it."""

from __future__ import annotations

import random
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest

from airflow_childrun.authoring.operation import operation
from airflow_childrun.testing.operations import OperationTester
from airflow_childrun.testing.reentry import ReentryError

PLACE: dict[str, Path] = {}
ENTRIES: list[int] = []


def load(item: Any) -> list[Any]:
    """Stand for a call."""
    return [item]


def send(item: Any) -> None:
    """Stand for another."""


def make_directory() -> str:
    """Return a place that only this machine has."""
    return tempfile.mkdtemp()


@operation(version="1", name="reentry_good", retry=1)
def good(io: Any, item: int) -> list[Any]:
    """Everything that io has, as it is meant to be used."""
    loaded = io.step(load, item, retry=2)
    io.sleep(60)
    io.record_value("value", io.now_millis())
    io.step(send, io.random_bytes(2).hex(), key="send")
    ends = io.map(leaf, [1, 2, 3], key=str)
    return [loaded, [end.output for end in ends]]


@operation(version="1", name="reentry_leaf")
def leaf(io: Any, number: int) -> Any:
    """Call twice."""
    return [io.step(load, number), io.call("proof.a", number, f"raw{number}")]


@operation(version="1", name="reentry_key")
def key_of_chance(io: Any, item: int) -> None:
    """Name a step by chance."""
    io.step(load, item)
    io.step(send, item, key=f"send-{random.random()}")


@operation(version="1", name="reentry_request")
def request_of_chance(io: Any, item: int) -> None:
    """Send something else each time, and hide the error."""
    io.step(load, item)
    try:
        io.step(send, random.random(), key="send")
    except Exception:
        io.emit("hidden")


@operation(version="1", name="reentry_order")
def order_of_chance(io: Any, item: int) -> None:
    """Take another way each time."""
    ENTRIES.append(item)
    io.step(load, item, key="a" if len(ENTRIES) % 2 else "b")
    io.step(send, item)


@operation(version="1", name="reentry_finally_io")
def io_in_finally(io: Any, item: int) -> None:
    """Ask the world while unwinding."""
    try:
        io.step(load, item)
    finally:
        io.step(send, item, key="clean up")


@operation(version="1", name="reentry_finally")
def lock_in_finally(io: Any, item: int) -> None:
    """Hold a lock that a killed process does not give back."""
    (PLACE["lock"] / "lock").mkdir()
    try:
        io.step(load, item)
    finally:
        (PLACE["lock"] / "lock").rmdir()


@operation(version="1", name="reentry_unfinished")
def undone_by_finally(io: Any, item: int) -> str:
    """Undo in finally what the next entry needs."""
    io.step(make_file, item)
    try:
        io.step(send, item)
        return (PLACE["shared"] / "file").read_text()
    finally:
        (PLACE["shared"] / "file").unlink()


def make_file(item: int) -> None:
    """Write where every machine can read."""
    (PLACE["shared"] / "file").write_text(str(item))


@operation(version="1", name="reentry_path")
def path_of_a_machine(io: Any, item: int) -> list[str]:
    """Hand a local path from step to step."""
    return [file.name for file in Path(io.step(make_directory)).iterdir()]


@operation(version="1", name="reentry_machine")
def file_of_a_machine(io: Any, item: int) -> str:
    """Leave a file behind beside the record."""
    file = Path(tempfile.gettempdir()) / "loaded"
    io.step(write_here, item)
    io.step(send, item)
    return file.read_text()


def write_here(item: int) -> None:
    """Write where only this machine reads, and return nothing of it."""
    (Path(tempfile.gettempdir()) / "loaded").write_text(str(item))


@operation(version="1", name="reentry_count")
def result_of_entries(io: Any, item: int) -> int:
    """Return how often it was entered."""
    ENTRIES.append(item)
    io.step(load, item)
    return len(ENTRIES)


@pytest.fixture(autouse=True)
def places(tmp_path: Path) -> None:
    for name in ("lock", "shared"):
        PLACE[name] = tmp_path / name
        PLACE[name].mkdir()
    ENTRIES.clear()


def test_a_good_handler_passes_whatever_it_uses(childrun: OperationTester) -> None:
    """Two attempts of the parent and three children: each IO a place to crash and to give up, each call one to lose."""
    childrun.fake("proof", {"ok": True})
    childrun.fake(send, answers=[ConnectionError("down"), None])
    report = childrun.check_reentry(good, 7, how="crash")
    assert report.ended == report.ios == 6 + 8 + 3 * 2
    assert childrun.check_reentry(good, 7).ended == 20 + 20 + 9
    assert childrun.calls == []


def test_a_failing_operation_must_fail_the_same_way(childrun: OperationTester) -> None:
    childrun.fake(load, ValueError("never"))
    childrun.fake("proof", 1)
    assert childrun.check_reentry(leaf, 1).ios == 1


BAD: dict[str, tuple[Any, list[str]]] = {
    "a key of chance": (
        key_of_chance,
        [
            r"at IO 2 of 2 of state 'main' of reentry_key: step 'main/send-[\d.e-]+' \(its answer was recorded",
            r"asked under another key: IO 2, step, had the key 'main/send-[\d.e-]+' and now has 'main/send-",
        ],
    ),
    "a request of chance": (
        request_of_chance,
        [
            r"at IO 2 of 2.*asked something else under the same key: IO 2, step 'main/send', was send with \[0\.\d+",
            r"and is now send with \[0\.",
        ],
    ),
    "another way": (order_of_chance, [r"IO 1, step, had the key 'main/[ab]' and now has 'main/[ab]'"]),
    "io in finally": (io_in_finally, [r"at IO 1 of 2.*used io again: step 'main/clean up'. Clean-up does not belong"]),
    "a lock in finally": (
        lock_in_finally,
        [r"at IO 1 of 1.*no `finally` ran\).*did not come to its IO 1.*FileExistsError.*Clean-up does not belong"],
    ),
    "undone by finally": (
        undone_by_finally,
        [r"at IO 2 of 2.*the handler was unwound\).*ended Failed.*FileNotFoundError"],
    ),
    "a local path": (
        path_of_a_machine,
        [r"recorded a path of the machine it ran on, under the key 'main/make_directory#0'"],
    ),
    "a local file": (
        file_of_a_machine,
        [r"the run ended Failed.*FileNotFoundError.*undisturbed, it ended Completed"],
    ),
    "a result that counts": (result_of_entries, [r"the output of reentry_count was \d+; undisturbed, it was \d+"]),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_handler_is_told_what_is_wrong(childrun: OperationTester, name: str) -> None:
    """The message names the IO, its key, and what differed."""
    handler, patterns = BAD[name]
    with pytest.raises(ReentryError) as found:
        childrun.check_reentry(handler, 1)
    for pattern in patterns:
        assert re.search(pattern, str(found.value)), str(found.value)
