"""The garbage collector is paused while a long history is read, by however many threads, and never stays off."""

from __future__ import annotations

import gc
import multiprocessing
import threading
from collections.abc import Iterator
from uuid import uuid4

import pytest

from airflow_childrun.engine.prepare import Lineage, create_step
from airflow_childrun.model.events import Event, RunStarted
from airflow_childrun.runtime import histories
from airflow_childrun.runtime.collector import collector_paused
from airflow_childrun.runtime.histories import load_history
from airflow_childrun.store.api import Commit
from airflow_childrun.store.memory import MemoryStore
from airflow_childrun.testing.clock import ManualClock

LONGEST_S = 20


@pytest.fixture(autouse=True)
def collector_on() -> Iterator[None]:
    """Begin and end with a collector that is on."""
    gc.enable()
    yield
    was_on = gc.isenabled()
    gc.enable()
    assert was_on


def test_it_is_off_inside_and_on_again_behind() -> None:
    with collector_paused():
        assert not gc.isenabled()
        with collector_paused():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_nothing_is_paused_where_nothing_needs_it() -> None:
    with collector_paused(is_needed=False):
        assert gc.isenabled()


def test_an_error_ends_the_pause() -> None:
    with pytest.raises(KeyError), collector_paused():
        raise KeyError
    assert gc.isenabled()


def test_who_has_switched_it_off_keeps_it_off() -> None:
    gc.disable()
    with collector_paused():
        assert not gc.isenabled()
    assert not gc.isenabled()
    gc.enable()


def test_the_last_of_several_threads_ends_the_pause() -> None:
    inside, go_on = threading.Event(), threading.Event()

    def pause() -> None:
        with collector_paused():
            inside.set()
            assert go_on.wait(LONGEST_S)

    other = threading.Thread(target=pause)
    with collector_paused():
        other.start()
        assert inside.wait(LONGEST_S)
    assert not gc.isenabled()
    go_on.set()
    other.join(LONGEST_S)
    assert gc.isenabled()


def test_a_process_that_is_forked_meanwhile_collects() -> None:
    """The thread that asked for the pause is not in it, and could not end it."""
    answers = multiprocessing.get_context("fork").SimpleQueue()

    def look() -> None:
        before = gc.isenabled()
        with collector_paused():
            answers.put((before, gc.isenabled()))

    with collector_paused():
        child = multiprocessing.get_context("fork").Process(target=look)
        child.start()
        assert answers.get() == (True, False)
        child.join(LONGEST_S)
    assert child.exitcode == 0
    assert gc.isenabled()


def seen_while_read() -> tuple[bool, bool]:
    """Return whether the collector was on while a run of one event was read, and behind it."""
    store, run_id = MemoryStore(ManualClock()), uuid4()
    digest = "0" * 64
    started = RunStarted(op_id="an_operation", manifest_id=digest, initial_snapshot_id=digest, root_run_id=str(run_id))
    store.commit([Commit(uuid4(), (create_step(started, Lineage(run_id, run_id)),))])
    seen: list[bool] = []

    def watch(history: object, event: Event) -> None:
        seen.append(gc.isenabled())

    load_history(store, run_id, watch)
    return seen[0], gc.isenabled()


def test_a_short_history_pauses_nothing() -> None:
    assert seen_while_read() == (True, True)


def test_a_history_of_more_than_a_page_pauses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(histories, "PAGE", 1)
    assert seen_while_read() == (False, True)
