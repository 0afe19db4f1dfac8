"""Appending is a linearizable compare-and-set: concurrent writers, connections cut around COMMIT, the history checked.

The model is a register that holds a stream; ``append at n`` succeeds if and only if the stream has n events. What writers
saw (invoked, ok, refused, unknown) must fit one order of all appends that respects real time.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

import pytest
from sqlalchemy import make_url

from airflow_childrun.canonical import decode_stored
from airflow_childrun.errors import UnavailableError
from airflow_childrun.store.api import Commit, Committed, Conflict, RunStep
from airflow_childrun.store.sql.migrate import upgrade
from airflow_childrun.store.sql.store import SqlStore
from airflow_childrun.store.verify import verify_run
from airflow_childrun.testing.store_harness import artifact, commit_of, creation, event, head_of, must, new_id, start
from tests.fault.test_commit_outcome import Proxy, _hang_up

pytestmark = pytest.mark.fault
SEED = int(os.environ.get("CHILDRUN_SEED", "1"))
WRITERS, APPENDS = 4, 40
CUT_EVERY = 4


@dataclass
class Operation:
    """What one writer did: an append, from its first submission to the last answer that it got."""

    marker: int
    expected: int
    invoked: float
    returned: float = 0.0
    outcome: Literal["ok", "refused", "unknown"] = "unknown"
    head: int | None = None


class Writer:
    """A writer on a connection of its own, which is cut now and then."""

    def __init__(self, url: str, run_id: UUID, number: int) -> None:
        target = make_url(url)
        assert target.host
        self.proxy = Proxy(target.host, target.port or 5432)
        self.store = SqlStore(target.set(host="127.0.0.1", port=self.proxy.port))
        self.history: list[Operation] = []
        self._run_id = run_id
        self._number = number
        self._chance = random.Random(f"{SEED} {number}")

    def write(self) -> None:
        for at in range(APPENDS):
            self._append(self._number * 1000 + at)

    def _append(self, marker: int) -> None:
        head = self._look()
        if self._chance.randrange(CUT_EVERY) == 0:
            word = self._chance.choice(
                [b"COMMIT\0", b"COMMIT\0", b"INSERT INTO childrun_event", b"UPDATE childrun_run"]
            )
            self.proxy.cut_at(word, forwarded=word == b"COMMIT\0" and self._chance.random() < 0.6)
        operation = Operation(marker, head, time.monotonic())
        self.history.append(operation)
        commit = commit_of(RunStep(self._run_id, head, None, (event("mark", n=marker),)))
        persists = self._chance.random() < 0.7
        answer = self._submit(commit)
        while answer is None and persists:
            answer = self._submit(commit)
        operation.returned = time.monotonic()
        if isinstance(answer, Committed):
            operation.outcome, operation.head = "ok", answer.heads[self._run_id].seq
        elif isinstance(answer, Conflict):
            assert answer.head is not None
            operation.outcome, operation.head = "refused", answer.head.seq

    def _look(self) -> int:
        while True:
            with contextlib.suppress(UnavailableError):
                return head_of(self.store, self._run_id).seq

    def _submit(self, commit: Commit) -> Committed | Conflict | None:
        try:
            return self.store.commit([commit])[0]
        except UnavailableError:
            return None

    def close(self) -> None:
        self.store.close()
        self.proxy.close()


def impossible(history: list[Operation], stream: list[int]) -> Iterator[str]:
    """Say what in a history no register can have done. ``stream``: the markers of events 2, 3, ..."""
    place = {marker: seq for seq, marker in enumerate(stream, 2)}
    if len(place) != len(stream):
        yield "a commit happened twice"
    for one in history:
        happened = place.get(one.marker)
        if one.outcome == "ok" and (happened != one.expected + 1 or happened != one.head):
            yield f"{one} was acknowledged, and stands at {happened}"
        if one.outcome == "refused" and happened is not None:
            yield f"{one} was refused, and stands at {happened}"
        if one.outcome == "unknown" and happened not in (None, one.expected + 1):
            yield f"{one} stands at {happened}"
        earlier = max(
            (two.head or 0 for two in history if two.outcome == "ok" and two.returned < one.invoked), default=1
        )
        if one.outcome != "unknown" and (one.head or 0) < earlier:
            yield f"{one} saw an older stream than {earlier}, which had been acknowledged before"
        possible = max((place.get(two.marker, 1) for two in history if two.invoked < one.returned), default=1)
        if one.outcome != "unknown" and (one.head or 0) > possible:
            yield f"{one} saw an event that nobody had written yet"


def test_the_checker_sees_what_no_register_does() -> None:
    """A lost acknowledged append, a doubled one, a refused one that stands, and a stale answer are all found."""
    ok = Operation(1, 1, 0.0, 1.0, "ok", 2)
    assert list(impossible([ok], [1])) == []
    assert list(impossible([ok], []))
    assert list(impossible([ok], [1, 1]))
    assert list(impossible([ok, Operation(2, 1, 2.0, 3.0, "refused", 2)], [1, 2]))
    assert list(impossible([ok, Operation(2, 1, 2.0, 3.0, "refused", 1)], [1]))


def test_concurrent_appends_over_broken_connections_are_linearizable(postgres_url: str) -> None:
    """Every acknowledged append stands once where it said; whoever asks again is told; nobody sees an older stream."""
    upgrade(postgres_url)
    direct = SqlStore(postgres_url)
    run_id = start(direct)
    writers = [Writer(postgres_url, run_id, number) for number in range(1, WRITERS + 1)]
    threads = [threading.Thread(target=writer.write, daemon=True) for writer in writers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    events = direct.read_events(run_id)
    stream = [decode_stored(one.body)["Domain"]["payload"]["n"] for one in events[1:]]
    history = [one for writer in writers for one in writer.history]
    assert list(impossible(history, stream)) == []
    outcomes = [one.outcome for one in history]
    assert outcomes.count("ok") > APPENDS / 2
    assert outcomes.count("refused") > 0
    assert sum(writer.proxy.cuts for writer in writers) > WRITERS
    broken = {"seq_gap", "hash_mismatch"} & {finding.code for finding in verify_run(direct, run_id)}
    assert not broken
    for writer in writers:
        writer.close()
    direct.close()


class LateProxy(Proxy):
    """Keeps back what holds a word, and what follows; the client is cut off at once, the server gets it when told."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(host, port)
        self.held = threading.Event()
        self.let_go = threading.Event()

    def _to_server(self, client: socket.socket, server: socket.socket, deaf: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                if self._word is not None and self._word in data:
                    self._word = None
                    self.cuts += 1
                    _hang_up(client)
                    self.held.set()
                    self.let_go.wait(30)
                    server.sendall(data)
                    server.shutdown(socket.SHUT_WR)
                    return
                server.sendall(data)
        _hang_up(client, server)


class Submission:
    """A commit that is submitted once, in a thread of its own; ``answer`` None = unknown."""

    def __init__(self, store: SqlStore, commit: Commit) -> None:
        self._store = store
        self._commit = commit
        self.answer: Any = None
        self._thread = threading.Thread(target=self._submit, daemon=True)
        self._thread.start()

    def _submit(self) -> None:
        with contextlib.suppress(UnavailableError):
            (self.answer,) = self._store.commit([self._commit])

    def join(self) -> None:
        self._thread.join(20)
        assert not self._thread.is_alive()


@pytest.mark.parametrize("kind", ["append", "spawn", "root"])
@pytest.mark.parametrize("word", [b"COMMIT\0", b"UPDATE childrun_run", b"INSERT INTO childrun_"])
def test_a_commit_that_comes_late_happens_once_and_is_told(postgres_url: str, kind: str, word: bytes) -> None:
    """The first submission reaches the server only while the second one is on its way, or after it."""
    upgrade(postgres_url)
    target = make_url(postgres_url)
    assert target.host
    proxy, direct = LateProxy(target.host, target.port or 5432), SqlStore(postgres_url)
    through = SqlStore(target.set(host="127.0.0.1", port=proxy.port))
    run_id, child = start(direct), new_id()
    append = RunStep(run_id, 1, 0, (event("one"), event("two")))
    steps = {"append": (append,), "spawn": (append, creation(child, parent=run_id)), "root": (creation(child),)}[kind]
    commit = commit_of(*steps, artifacts=(artifact(run_id, b"late"),))
    if kind == "root" and word.startswith(b"UPDATE"):
        word = b"INSERT INTO childrun_run"  # a new run is moved by nothing
    proxy.cut_at(word, forwarded=False)
    submissions = [Submission(through, commit)]
    proxy.held.wait(3)  # a commit that goes as one statement sends no COMMIT of its own
    submissions.append(Submission(direct, commit))
    time.sleep(0.3)
    proxy.let_go.set()
    for submission in submissions:
        submission.join()
    first = must(submissions[1].answer)
    time.sleep(0.2)  # for a first one that comes after the second
    assert must(direct.commit([commit])[0]) == first
    assert submissions[0].answer in (None, first)
    assert proxy.cuts or word == b"COMMIT\0"
    for step in steps:
        events = direct.read_events(step.run_id)
        assert len(events) == step.expected_head + len(step.events)
        assert {one.commit_id for one in events[step.expected_head :]} == {commit.commit_id}
        assert head_of(direct, step.run_id).seq == first.heads[step.run_id].seq
    through.close()
    direct.close()
    proxy.close()
