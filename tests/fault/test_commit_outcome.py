"""Connections that break around COMMIT: the store says that it does not know, and the identical commit settles it."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import make_url

from airflow_childrun.errors import UnavailableError
from airflow_childrun.store.api import Commit, Committed, RunStep, TakeLease
from airflow_childrun.store.sql.migrate import upgrade
from airflow_childrun.store.sql.store import SqlStore
from airflow_childrun.store.verify import verify_run
from airflow_childrun.testing.store_harness import (
    append,
    artifact,
    commit_of,
    creation,
    event,
    head_of,
    must,
    new_id,
    start,
)

pytestmark = pytest.mark.fault


class Proxy:
    """Stands between psycopg and PostgreSQL, and cuts the connection at a word of the conversation.

    ``word`` is looked for in what the client sends. ``forwarded`` False: the server never gets it. True: the server gets
    it and answers, but the client never sees the answer.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._word: bytes | None = None
        self._forwarded = False
        self.cuts = 0
        self.accepted = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_at(self, word: bytes, *, forwarded: bool) -> None:
        """Arm the proxy for one cut."""
        self._word, self._forwarded = word, forwarded

    def cut_all(self) -> None:
        """Break every connection that stands, as a restart of the server does."""
        for pair in self._pairs:
            _hang_up(*pair)
        self._pairs.clear()

    def close(self) -> None:
        _hang_up(self._listener)
        self.cut_all()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                self.accepted += 1
                self._pairs.append((client, server))
                answered = threading.Event()
                threading.Thread(target=self._to_server, args=(client, server, answered), daemon=True).start()
                threading.Thread(target=self._to_client, args=(client, server, answered), daemon=True).start()

    def _to_server(self, client: socket.socket, server: socket.socket, deaf: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                if self._word is not None and self._word in data:
                    self._word = None
                    self.cuts += 1
                    if not self._forwarded:
                        break
                    deaf.set()
                server.sendall(data)
        if not deaf.is_set():
            _hang_up(client, server)

    def _to_client(self, client: socket.socket, server: socket.socket, deaf: threading.Event) -> None:
        with contextlib.suppress(OSError):
            heard = b""
            while data := server.recv(65536):
                if deaf.is_set():
                    heard += data
                    if b"COMMIT\0" in heard or b"SELECT 1\0" in heard:
                        break
                    continue
                client.sendall(data)
        _hang_up(client, server)


def _hang_up(*sockets: socket.socket) -> None:
    for one in sockets:
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()


@pytest.fixture
def proxy(postgres_url: str) -> Iterator[Proxy]:
    url = make_url(postgres_url)
    assert url.host
    proxy = Proxy(url.host, url.port or 5432)
    yield proxy
    proxy.close()


@pytest.fixture
def direct(postgres_url: str) -> Iterator[SqlStore]:
    """Give a store that looks past the proxy."""
    upgrade(postgres_url)
    store = SqlStore(postgres_url)
    yield store
    store.close()


@pytest.fixture
def store(postgres_url: str, proxy: Proxy, direct: SqlStore) -> Iterator[SqlStore]:
    """Give a store that speaks through the proxy."""
    store = SqlStore(make_url(postgres_url).set(host="127.0.0.1", port=proxy.port))
    yield store
    store.close()


def _batch(store: SqlStore, size: int) -> list[Commit]:
    """Build commits of all kinds: appending with artifacts, spawning, taking a lease without events."""
    commits = []
    for at in range(size):
        run_id, child = start(store), new_id()
        found = artifact(run_id, b"%d" % at)
        steps = [RunStep(run_id, 1, 0, (event("one"), event("two")))]
        if at % 3 == 1:
            steps.append(creation(child, parent=run_id))
        if at % 3 == 2:
            steps = [RunStep(run_id, 1, 0, lease=TakeLease(None))]
        commits.append(commit_of(*steps, artifacts=(found,)))
    return commits


CUTS = {
    "before the first row is written": (b"INSERT INTO childrun_artifact", False),
    "in the middle of the rows": (b"UPDATE childrun_run", False),
    "before COMMIT reaches the server": (b"COMMIT\0", False),
    "after the server answered COMMIT": (b"COMMIT\0", True),
}


@pytest.mark.parametrize("size", [2, 7])
@pytest.mark.parametrize("cut", CUTS)
def test_a_commit_with_unknown_outcome_happens_exactly_once(
    store: SqlStore, direct: SqlStore, proxy: Proxy, cut: str, size: int
) -> None:
    """Submitted again unchanged, it happens now, or answers with the result that it had; never twice."""
    word, forwarded = CUTS[cut]
    commits = _batch(store, size)
    before = [head_of(direct, commit.steps[0].run_id) for commit in commits]
    proxy.cut_at(word, forwarded=forwarded)
    with pytest.raises(UnavailableError):
        store.commit(commits)
    assert proxy.cuts == 1
    between = [head_of(direct, commit.steps[0].run_id) for commit in commits]
    assert (between != before) == forwarded
    results = [must(result) for result in store.commit(commits)]
    for commit, result in zip(commits, results, strict=True):
        for step in commit.steps:
            events = direct.read_events(step.run_id)
            assert len(events) == step.expected_head + len(step.events)
            assert head_of(direct, step.run_id) == result.heads[step.run_id]
            assert all(one.recorded_at == result.recorded_at for one in events[step.expected_head :])
    if forwarded:
        assert [
            result.heads[commit.steps[0].run_id] for commit, result in zip(commits, results, strict=True)
        ] == between
    assert store.commit(commits) == results


@pytest.mark.parametrize("forwarded", [False, True])
def test_a_lone_commit_with_unknown_outcome_is_settled_at_once(
    store: SqlStore, direct: SqlStore, proxy: Proxy, forwarded: bool
) -> None:
    """An owner's commit is one statement: the store submits it again itself, and it happens once."""
    run_id = start(store)
    commit = commit_of(RunStep(run_id, 1, 0, (event("one"), event("two"))), artifacts=(artifact(run_id, b"one"),))
    proxy.cut_at(b"WITH t AS", forwarded=forwarded)
    result = must(store.commit([commit])[0])
    assert proxy.cuts == 1
    assert head_of(direct, run_id) == result.heads[run_id]
    assert [one.commit_id for one in direct.read_events(run_id)][1:] == [commit.commit_id] * 2
    assert not {"seq_gap", "hash_mismatch"} & {finding.code for finding in verify_run(direct, run_id)}
    assert store.commit([commit]) == [result]


def test_another_commit_in_between_is_a_conflict(store: SqlStore, direct: SqlStore, proxy: Proxy) -> None:
    """If the commit did not happen and somebody else took the head, submitting again says so and changes nothing."""
    run_id = start(store)
    commit = commit_of(RunStep(run_id, 1, None, (event("mine"),)))
    proxy.cut_at(b"COMMIT\0", forwarded=False)
    with pytest.raises(UnavailableError):
        store.commit([commit])
    head = append(direct, run_id, "theirs")
    (result,) = store.commit([commit])
    assert not isinstance(result, Committed)
    assert (result.reason, result.head) == ("head", head)


def test_a_late_commit_is_recognised_after_others_went_on(store: SqlStore, direct: SqlStore, proxy: Proxy) -> None:
    """If the commit did happen, later events of others do not hide that."""
    run_id = start(store)
    commit = commit_of(RunStep(run_id, 1, None, (event("mine"),)))
    proxy.cut_at(b"COMMIT\0", forwarded=True)
    with pytest.raises(UnavailableError):
        store.commit([commit])
    mine = head_of(direct, run_id)
    append(direct, run_id, "theirs")
    assert must(store.commit([commit])[0]).heads[run_id] == mine


def test_stale_connections_are_replaced_unnoticed(store: SqlStore, proxy: Proxy) -> None:
    """After a restart of the server, reads, commits, posts and renewals go on: nothing had been sent yet."""
    run_id = start(store)
    for use in (
        lambda: head_of(store, run_id),
        lambda: append(store, run_id, "on"),
        lambda: store.renew_session(new_id(), 1000),
        store.now_us,
    ):
        proxy.cut_all()
        use()
    assert head_of(store, run_id).seq == 2


@pytest.mark.parametrize(
    ("names", "asked"), [(("on",), b"UPDATE"), (("on", "and on"), b"FOR UPDATE")], ids=["one", "two"]
)
def test_a_cut_while_locking_is_repaired_at_once(
    store: SqlStore, proxy: Proxy, names: tuple[str, ...], asked: bytes
) -> None:
    """Before anything was written the store itself tries once more."""
    run_id = start(store)
    proxy.cut_at(asked, forwarded=False)
    assert append(store, run_id, *names).seq == 1 + len(names)
    assert proxy.cuts == 1


def test_a_database_that_is_gone_is_unavailable(store: SqlStore, proxy: Proxy) -> None:
    """No hang, no raw driver error; the message names the place and no password."""
    run_id = start(store)
    proxy.close()
    for use in (lambda: store.find_run(run_id), lambda: append(store, run_id, "on"), lambda: start(store)):
        with pytest.raises(UnavailableError) as caught:
            use()
        assert f"127.0.0.1:{proxy.port}" in str(caught.value)
        assert str(store.database.url.password) not in str(caught.value)


_WRITER = """
import sys
from uuid import UUID
from airflow_childrun.store.api import RunStep
from airflow_childrun.store.sql.store import SqlStore
from airflow_childrun.testing.store_harness import artifact, event, must, submit
store, run_id, seq = SqlStore(sys.argv[1]), UUID(sys.argv[2]), int(sys.argv[3])
while True:
    step = RunStep(run_id, seq, None, (event("n", n=seq), event("m", n=seq)))
    seq = must(submit(store, step, artifacts=(artifact(run_id, b"%d" % seq),))).heads[run_id].seq
    print(seq, flush=True)
"""


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
def test_a_killed_writer_leaves_whole_commits(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """SIGKILL at any moment: what was acknowledged is there, nothing is half there, and the next writer goes on."""
    url = f"sqlite:///{tmp_path / 'store.db'}" if backend == "sqlite" else request.getfixturevalue("postgres_url")
    upgrade(url)
    store = SqlStore(url)
    run_id: UUID = start(store)
    for acknowledgements in (1, 7, 20):
        command = [sys.executable, "-c", _WRITER, url, str(run_id), str(head_of(store, run_id).seq)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout
            acknowledged = [int(writer.stdout.readline()) for _ in range(acknowledgements)][-1]
            writer.send_signal(signal.SIGKILL)
        append(store, run_id, "next writer")
        head = head_of(store, run_id)
        events = store.read_events(run_id)
        assert acknowledged < head.seq == len(events)
        assert [one.seq for one in events] == list(range(1, head.seq + 1))
        by_commit = [one.commit_id for one in events]
        assert all(by_commit.count(one) == 2 for one in by_commit if by_commit.count(one) != 1)
        broken = {"seq_gap", "hash_mismatch"} & {finding.code for finding in verify_run(store, run_id)}
        assert not broken
    store.close()
