"""Purging a tree while another task of its DAG run begins: what has begun stays whole."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy
from sqlalchemy import event

from airflow_childrun.store.api import Artifact, Moves
from airflow_childrun.store.sql.address import parse_address
from airflow_childrun.store.sql.migrate import upgrade
from airflow_childrun.store.sql.store import SqlStore
from airflow_childrun.testing.store_harness import append, artifact, creation, must, new_id, submit
from tests.engine.kit import Background, eventually

pytestmark = pytest.mark.fault
HOUR = 3_600_000_000
WAITING = sqlalchemy.text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")


@dataclass
class Tree:
    """A tree that is over, and two processes: one purges, in the other a task of the same DAG run begins."""

    purger: SqlStore
    beginner: SqlStore
    root: UUID
    old: UUID
    new: UUID
    shared: Artifact

    def purge(self, idle_since: int) -> int | None:
        return self.purger.delete_tree(self.root, idle_since)

    def begin(self) -> Any:
        """Begin a run that has no parent, and whose artifact is there."""
        return must(
            submit(self.beginner, creation(self.new, root=self.root, kind="task_instance"), artifacts=(self.shared,))
        )

    def somebody_waits(self) -> bool:
        with self.purger.database.engine().connect() as connection:
            return bool(connection.scalar(WAITING))

    def check_whole(self) -> None:
        assert len(self.beginner.read_events(self.new)) == 1
        assert self.beginner.get_artifacts(self.root, [self.shared.id]) == {self.shared.id: self.shared.body}


@pytest.fixture
def tree(postgres_url: str) -> Iterator[Tree]:
    upgrade(postgres_url)
    store, other = SqlStore(parse_address(postgres_url)), SqlStore(parse_address(postgres_url))
    root, old = new_id(), new_id()
    shared = artifact(root, b"{}", "Snapshot")
    must(submit(store, creation(old, root=root), artifacts=(shared,)))
    append(store, old, "end", moves=Moves(status="Completed", final_snapshot_id=shared.id))
    yield Tree(store, other, root, old, new_id(), shared)
    store.close()
    other.close()


@pytest.mark.parametrize("first", ["DELETE FROM childrun_event", "DELETE FROM childrun_artifact"])
def test_a_run_that_begins_in_a_tree_while_it_is_purged_stays_whole(tree: Tree, first: str) -> None:
    """It waits until the tree is gone, and then writes again what it needs."""
    begun: list[Background] = []

    def meanwhile(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if statement.startswith(first) and not begun:
            begun.append(Background(tree.begin))
            eventually(tree.somebody_waits)

    event.listen(tree.purger.database.engine(), "before_cursor_execute", meanwhile)
    assert tree.purge(tree.purger.now_us() + HOUR) == 1
    begun[0].join()
    assert tree.purger.find_run(tree.old) is None
    tree.check_whole()


def test_a_tree_in_which_a_run_is_just_beginning_is_not_purged(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its commit has written everything, and is on its way: whoever purges waits for it, and leaves the tree alone."""
    dialect = tree.beginner.database.dialect
    written, go_on = threading.Event(), threading.Event()
    commit: Callable[..., None] = dialect.commit

    def write_and_pause(connection: Any, work: Any) -> None:
        for writing, rows in work:
            dialect.write_rows(connection, writing, rows)
        written.set()
        assert go_on.wait(30)
        commit(connection)

    monkeypatch.setattr(dialect, "write_and_commit", write_and_pause)
    idle_since = tree.purger.now_us()
    beginning = Background(tree.begin)
    assert written.wait(30)
    purging = Background(tree.purge, idle_since)
    eventually(tree.somebody_waits)
    go_on.set()
    beginning.join()
    assert purging.join() is None
    assert tree.purger.find_run(tree.old) is not None
    tree.check_whole()
