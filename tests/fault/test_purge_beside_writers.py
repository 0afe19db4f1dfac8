"""Purging a tree while another task of its DAG run begins: what has begun stays whole."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import event

from airflow_childrun.store.api import Moves
from airflow_childrun.store.sql.address import parse_address
from airflow_childrun.store.sql.migrate import upgrade
from airflow_childrun.store.sql.store import SqlStore
from airflow_childrun.testing.store_harness import append, artifact, creation, must, new_id, submit

pytestmark = pytest.mark.fault
HOUR = 3_600_000_000


@pytest.mark.parametrize("first", ["DELETE FROM childrun_event", "DELETE FROM childrun_artifact"])
def test_a_run_that_begins_in_a_tree_while_it_is_purged_stays_whole(postgres_url: str, first: str) -> None:
    """It locks no row of the tree, and shares its artifacts; the purge leaves the tree for another time."""
    upgrade(postgres_url)
    store, other = SqlStore(parse_address(postgres_url)), SqlStore(parse_address(postgres_url))
    tree, old, new = new_id(), new_id(), new_id()
    shared = artifact(tree, b"{}", "Snapshot")
    must(submit(store, creation(old, root=tree), artifacts=(shared,)))
    append(store, old, "end", moves=Moves(status="Completed", final_snapshot_id=shared.id))
    begun: list[Any] = []

    def begin(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if statement.startswith(first) and not begun:
            begun.append(must(submit(other, creation(new, root=tree, kind="task_instance"), artifacts=(shared,))))

    event.listen(store.database.engine(), "before_cursor_execute", begin)
    assert store.delete_tree(tree, store.now_us() + HOUR) is None
    assert begun
    assert len(other.read_events(new)) == 1
    assert other.get_artifacts(tree, [shared.id])
    assert other.find_run(old) is not None
    store.close()
    other.close()
