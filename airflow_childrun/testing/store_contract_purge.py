"""The contract of a store: what is deleted, and what never is."""

from __future__ import annotations

from uuid import UUID

from airflow_childrun.store.api import InboxPost, Moves, RunStep, Store
from airflow_childrun.testing.store_harness import (
    StoreHarness,
    append,
    artifact,
    event,
    must,
    new_id,
    refused,
    start,
    submit,
)

HOUR = 3_600_000_000


def _end(store: Store, run_id: UUID) -> None:
    row = store.find_run(run_id)
    assert row is not None
    moves = Moves(status="Completed")
    must(submit(store, RunStep(row.run_id, row.head.seq, row.head.epoch, (event("end"),), moves)))


def _idle(store: Store, since: int, limit: int = 100) -> list[UUID]:
    """Return all idle trees, page by page; a store under test may hold those of other tests."""
    found: list[UUID] = []
    while page := store.find_idle_trees(since, found[-1] if found else None, limit):
        assert len(page) <= limit
        found += page
    return found


class PurgeContract:
    """Whole trees, over and idle; nothing else."""

    def test_a_tree_that_is_over_is_deleted_whole(self, store: Store, harness: StoreHarness) -> None:
        """Nothing of a deleted tree is left, and nothing of another one is touched."""
        root = start(store)
        child = start(store, parent=root)
        body = artifact(root, b'{"kept":"until now"}')
        row = store.find_run(root)
        assert row is not None
        step = RunStep(root, row.head.seq, row.head.epoch, (event(),))
        must(submit(store, step, artifacts=(body,)))
        store.post([InboxPost(child, new_id(), "cancel", b"{}")])
        _end(store, child)
        _end(store, root)
        kept = start(store)
        _end(store, kept)
        harness.advance(1000)
        now = store.now_us() + HOUR
        assert {root, kept} <= set(_idle(store, now))
        assert store.delete_tree(root, now) == 2
        assert store.get_runs([root, child]) == {}
        assert store.read_events(root) == []
        assert store.read_inbox(child) == []
        assert store.get_artifacts(root, [body.id]) == {}
        assert kept in _idle(store, now)
        assert root not in _idle(store, now)
        assert store.delete_tree(root, now) is None

    def test_a_tree_with_an_open_run_stays(self, store: Store) -> None:
        """A tree with an operation that has not ended is never deleted."""
        root = start(store)
        start(store, parent=root)
        _end(store, root)
        now = store.now_us() + HOUR
        assert root not in _idle(store, now)
        assert store.delete_tree(root, now) is None
        assert store.find_run(root) is not None

    def test_a_tree_in_which_something_happened_since_stays(self, store: Store, harness: StoreHarness) -> None:
        """A tree that moved after the given time is never deleted."""
        root = start(store)
        before = store.now_us()
        harness.advance(1000)
        _end(store, root)
        assert root not in _idle(store, before)
        assert store.delete_tree(root, before) is None

    def test_a_host_run_does_not_keep_its_tree(self, store: Store) -> None:
        """A host run, which never ends, does not keep its tree."""
        tree = new_id()
        host = start(store, root=tree, kind="task_instance")
        child = start(store, root=tree, parent=host)
        _end(store, child)
        now = store.now_us() + HOUR
        assert tree in _idle(store, now)
        assert store.delete_tree(tree, now) == 2

    def test_idle_trees_come_page_by_page(self, store: Store) -> None:
        """Pages are ordered by id and overlap nowhere."""
        roots = sorted(start(store) for _ in range(5))
        for root in roots:
            _end(store, root)
        now = store.now_us() + HOUR
        found = _idle(store, now, limit=2)
        assert found == sorted(found)
        assert [root for root in found if root in roots] == roots

    def test_a_writer_who_comes_after_finds_the_run_missing(self, store: Store) -> None:
        """A late writer is told that the run is gone."""
        root = start(store)
        head = append(store, root, "more")
        _end(store, root)
        store.delete_tree(root, store.now_us() + HOUR)
        assert refused(submit(store, RunStep(root, head.seq + 1, head.epoch, (event(),)))).reason == "missing"

    def test_a_slot_can_be_used_again_after_its_tree_is_gone(self, store: Store) -> None:
        """A deleted slot is free."""
        root = start(store)
        _end(store, root)
        store.delete_tree(root, store.now_us() + HOUR)
        assert start(store, root) == root
