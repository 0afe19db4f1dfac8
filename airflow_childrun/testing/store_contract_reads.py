"""The contract of what a store gives back: events, facts, artifacts, inboxes, runs."""

from __future__ import annotations

from uuid import UUID

import pytest

from airflow_childrun.errors import CorruptionError, InputError
from airflow_childrun.store.api import (
    AirflowCoordinates,
    FactEntry,
    FactRow,
    Moves,
    NewEvent,
    RunFilter,
    RunStep,
    Store,
)
from airflow_childrun.testing.store_harness import (
    DIGEST_A,
    DIGEST_B,
    StoreHarness,
    append,
    artifact,
    at_once,
    commit_of,
    creation,
    event,
    head_of,
    must,
    new_id,
    post_to,
    start,
    submit,
)


def _put(store: Store, run_id: UUID, *bodies: bytes, kind: str = "Output") -> list[str]:
    """Put artifacts into the tree of a root run and return their ids."""
    found = tuple(artifact(run_id, body, kind) for body in bodies)
    must(submit(store, RunStep(run_id, head_of(store, run_id).seq, None, (event(),)), artifacts=found))
    return [one.id for one in found]


def _all_pages(store: Store, where: RunFilter, limit: int, *, newest_first: bool = False) -> list[UUID]:
    """Return the ids of every page in turn."""
    found: list[UUID] = []
    cursor = None
    while True:
        page = store.find_runs(where, cursor, limit, newest_first=newest_first)
        assert len(page.rows) <= limit
        found += [row.run_id for row in page.rows]
        cursor = page.cursor
        if cursor is None:
            return found


class ReadContract:
    """What was stored comes back as it was."""

    # ---------------------------------------------------------------------------------------------------------- events

    @pytest.mark.parametrize(
        ("bounds", "expected"),
        [
            ({}, [1, 2, 3, 4, 5]),
            ({"from_seq": 4}, [4, 5]),
            ({"from_seq": 2, "to_seq": 4}, [2, 3, 4]),
            ({"from_seq": 3, "to_seq": 3}, [3]),
            ({"from_seq": 0, "to_seq": 2}, [1, 2]),
            ({"from_seq": -5, "limit": 1}, [1]),
            ({"from_seq": 2, "limit": 2}, [2, 3]),
            ({"from_seq": 2, "to_seq": 2, "limit": 9}, [2]),
            ({"from_seq": 4, "to_seq": 3}, []),
            ({"from_seq": 6}, []),
        ],
    )
    def test_a_range_has_both_its_ends(self, store: Store, bounds: dict[str, int], expected: list[int]) -> None:
        """Both ends are inclusive, the order is ascending, and a range may lie outside the stream."""
        run_id = start(store)
        append(store, run_id, "two", "three", "four", "five")
        assert [stored.seq for stored in store.read_events(run_id, **bounds)] == expected

    @pytest.mark.parametrize(
        ("names", "expected"), [((), [1]), (("b",), [1, 2]), (("b", "c"), [1, 2, 3]), (("b", "c", "d", "e"), [1, 4, 5])]
    )
    def test_both_ends_of_many_streams_are_read_at_once(
        self, store: Store, names: tuple[str, ...], expected: list[int]
    ) -> None:
        """The first event and the last two, each once; an unknown run is left out."""
        some, other = start(store), start(store)
        if names:
            append(store, some, *names)
        ends = store.read_ends([some, other, new_id()])
        assert [stored.seq for stored in ends[some]] == expected
        assert ends[some] == [stored for stored in store.read_events(some) if stored.seq in expected]
        assert ends.keys() == {some, other}

    def test_events_come_back_byte_for_byte(self, store: Store) -> None:
        """Whatever the bytes are: the store reads nothing into them."""
        run_id = start(store)
        bodies = [b"", b"\x00\xff", "ä€😀".encode(), b"x" * 100_000]
        commit = commit_of(RunStep(run_id, 1, 0, tuple(NewEvent(body) for body in bodies)))
        store.commit([commit])
        stored = store.read_events(run_id, 2)
        assert [one.body for one in stored] == bodies
        assert {one.commit_id for one in stored} == {commit.commit_id}

    # ------------------------------------------------------------------------------------------------------- artifacts

    def test_artifacts_come_back_under_the_digest_of_their_bytes(self, store: Store) -> None:
        """Round trip, the empty one included."""
        run_id = start(store)
        bodies = [b"", b"one", b"\x00" * 70_000]
        ids = _put(store, run_id, *bodies)
        assert store.get_artifacts(run_id, ids) == dict(zip(ids, bodies, strict=True))

    def test_the_same_bytes_under_two_kinds_are_one_artifact(self, store: Store) -> None:
        """Identity is content; what is there stays as it is."""
        run_id = start(store)
        assert _put(store, run_id, b"same", kind="Output") == _put(store, run_id, b"same", kind="Manifest")
        assert list(store.find_artifact_kinds(run_id).values()) == ["Output"]

    def test_what_is_missing_is_left_out(self, store: Store) -> None:
        """Unknown ids, and texts that are no ids, give nothing."""
        run_id = start(store)
        (known,) = _put(store, run_id, b"known")
        found = store.get_artifacts(run_id, [known, DIGEST_A, "no id", known.upper(), ""])
        assert found == {known: b"known"}
        assert store.get_artifacts(run_id, []) == {}

    def test_artifacts_are_shared_in_a_tree_and_nowhere_else(self, store: Store) -> None:
        """A child's artifact belongs to the tree; another tree does not see it."""
        root, stranger = start(store), start(store)
        child = new_id()
        found = artifact(root, b"shared")
        must(submit(store, creation(child, parent=root), artifacts=(found,)))
        assert store.get_artifacts(root, [found.id]) == {found.id: b"shared"}
        assert store.get_artifacts(child, [found.id]) == {}
        assert store.get_artifacts(stranger, [found.id]) == {}
        assert store.find_artifact_kinds(stranger) == {}

    def test_many_artifacts_are_read_at_once(self, store: Store) -> None:
        """More ids than one statement takes."""
        run_id = start(store)
        ids = _put(store, run_id, *(b"%d" % at for at in range(1200)))
        assert len(store.get_artifacts(run_id, ids)) == 1200

    def test_a_changed_artifact_is_found_out(self, harness: StoreHarness, store: Store) -> None:
        """Bytes are verified on every read; the others can still be read."""
        run_id = start(store)
        good, bad = _put(store, run_id, b"good", b"bad")
        harness.corrupt_artifact(run_id, bad)
        with pytest.raises(CorruptionError, match=bad) as caught:
            store.get_artifacts(run_id, [good, bad])
        assert caught.value.code == "artifact_content_address_mismatch"
        assert store.get_artifacts(run_id, [good]) == {good: b"good"}

    # ----------------------------------------------------------------------------------------------------------- facts

    def test_the_index_of_facts_keeps_every_fact(self, store: Store) -> None:
        """A later fact under a key stands behind the earlier one; a V1 fact has no request."""
        run_id = start(store)
        rows = [
            FactRow(DIGEST_A, DIGEST_B, DIGEST_A, failed=False),
            FactRow(DIGEST_B, DIGEST_B, None, failed=False),
            FactRow(DIGEST_A, None, DIGEST_B, failed=True),
        ]
        events = [NewEvent(event().body, row) for row in rows]
        must(submit(store, RunStep(run_id, 1, 0, (events[0], event(), *events[1:]))))
        entries = [
            FactEntry(run_id, seq, row.key_digest, row.payload_id, row.request_digest, row.failed)
            for seq, row in zip((2, 4, 5), rows, strict=True)
        ]
        assert store.get_facts(run_id) == entries
        assert store.get_facts(run_id, [DIGEST_A]) == [entries[0], entries[2]]
        assert store.get_facts(run_id, [DIGEST_A, DIGEST_B]) == entries
        assert store.get_facts(run_id, ["c" * 64, "no digest"]) == []
        assert store.get_facts(run_id, []) == []
        assert store.get_facts(new_id()) == []

    # ----------------------------------------------------------------------------------------------------------- inbox

    def test_entries_are_numbered_without_gaps(self, store: Store) -> None:
        """Alone, several at once, or in somebody's commit: n counts per run, and the head tells how far."""
        run_id, other = start(store), start(store)
        posts = [post_to(run_id) for _ in range(4)]
        assert store.post(posts[:1]) == {posts[0].post_id: 1}
        assert store.post(posts[1:3]) == {posts[1].post_id: 2, posts[2].post_id: 3}
        must(submit(store, RunStep(other, 1, 0, (event(),)), posts=tuple(posts[3:])))
        entries = store.read_inbox(run_id)
        assert [(entry.n, entry.post_id, entry.body) for entry in entries] == [
            (n, post.post_id, post.body) for n, post in enumerate(posts, 1)
        ]
        assert [entry.n for entry in store.read_inbox(run_id, after=2)] == [3, 4]
        assert head_of(store, run_id).inbox_seq == 4
        assert append(store, run_id, "seen").inbox_seq == 4
        assert head_of(store, other).inbox_seq == 0

    def test_posting_is_idempotent(self, store: Store) -> None:
        """The same post again answers with its number, even after the run has ended."""
        run_id = start(store)
        first, second = post_to(run_id), post_to(run_id)
        store.post([first, second])
        append(store, run_id, "end", moves=Moves(status="Cancelled"))
        assert store.post([second, first]) == {first.post_id: 1, second.post_id: 2}
        assert len(store.read_inbox(run_id)) == 2

    def test_what_comes_too_late_is_rejected(self, store: Store) -> None:
        """A terminal run and a run that is not there take no requests; the others of the call are taken."""
        ended, running = start(store), start(store)
        append(store, ended, "end", moves=Moves(status="Completed"))
        late, lost, good = post_to(ended), post_to(new_id()), post_to(running)
        assert store.post([late, lost, good]) == {late.post_id: None, lost.post_id: None, good.post_id: 1}
        assert store.read_inbox(ended) == []
        result = must(submit(store, RunStep(running, 1, 0, (event(),)), posts=(late, post_to(running), lost)))
        assert result.rejected_posts == (late.post_id, lost.post_id)
        assert result.heads[running].inbox_seq == 2

    def test_a_terminal_commit_wins_over_posts(self, store: Store) -> None:
        """A run that ends in a commit takes no request of the same commit."""
        run_id = start(store)
        post = post_to(run_id)
        end = RunStep(run_id, 1, 0, (event(),), Moves(status="Completed"))
        assert must(submit(store, end, posts=(post,))).rejected_posts == (post.post_id,)

    def test_many_post_at_once(self, store: Store) -> None:
        """32 threads post to one run while it appends: every entry has its own number."""
        run_id = start(store)
        posts = [post_to(run_id) for _ in range(32)]
        numbers = at_once(len(posts), lambda at: store.post([posts[at]])[posts[at].post_id])
        assert sorted(number for number in numbers if number is not None) == list(range(1, 33))
        assert store.post([]) == {}

    # ------------------------------------------------------------------------------------------------------------ runs

    def test_rows_are_found_by_id(self, store: Store) -> None:
        """Those that exist, and only those."""
        first, second = start(store), start(store)
        found = store.get_runs([first, new_id(), second, first])
        assert set(found) == {first, second}
        assert found[first] == store.find_run(first)
        assert store.get_runs([]) == {}

    def test_a_row_tells_what_the_run_was_created_with(self, store: Store) -> None:
        """Every field of a new run stands in its row."""
        root, parent, run_id, slot = start(store), new_id(), new_id(), new_id()
        place = AirflowCoordinates("dag", "manual__1", "task", 7)
        fields = {"root": root, "depth": 3, "slot_id": slot, "generation": 4, "op_id": "other", "op_version": "2"}
        start(store, run_id, parent=parent, plan_id="c" * 64, deadline_at=99, airflow=place, **fields)
        row = store.find_run(run_id)
        assert row is not None
        assert (row.parent_run_id, row.root_run_id, row.depth) == (parent, root, 3)
        assert (row.slot_id, row.generation, row.op_id, row.op_version) == (slot, 4, "other", "2")
        assert (row.manifest_id, row.initial_snapshot_id, row.plan_id) == (DIGEST_A, DIGEST_B, "c" * 64)
        assert (row.deadline_at, row.airflow, row.status, row.kind) == (99, place, "Pending", "operation")
        assert row.created_at == row.updated_at == store.read_events(run_id)[0].recorded_at
        assert (row.ended_at, row.wake_at, row.error_code, row.final_snapshot_id) == (None, None, None, None)

    def test_children_come_in_order_of_creation(self, harness: StoreHarness, store: Store) -> None:
        """All generations that the run spawned, and no grandchildren."""
        root = start(store)
        children = []
        for _ in range(5):
            children.append(start(store, parent=root))
            harness.advance(1000)
        start(store, parent=children[0], root=root)
        assert [row.run_id for row in store.children_of(root)] == children
        assert store.children_of(new_id()) == []

    def test_filters_must_all_hold(self, store: Store) -> None:
        """Each field of the filter alone, and two together."""
        root = start(store)
        slot = new_id()
        host = start(store, parent=root, kind="task_instance", airflow=AirflowCoordinates("dag", "run", "task", -1))
        done = start(store, parent=root, op_id="done")
        append(store, done, "end", moves=Moves(status="Completed"))
        slotted = start(store, parent=done, root=root, slot_id=slot)
        start(store)
        cases = {
            RunFilter(root_run_id=root): {root, host, done, slotted},
            RunFilter(root_run_id=root, kind="task_instance"): {host},
            RunFilter(root_run_id=root, statuses=frozenset({"Completed", "Failed"})): {done},
            RunFilter(parent_run_id=done): {slotted},
            RunFilter(slot_ids=frozenset({slot, new_id()})): {slotted},
            RunFilter(slot_ids=frozenset()): set(),
            RunFilter(root_run_id=root, op_id="done"): {done},
            RunFilter(root_run_id=root, dag_id="dag"): {host},
            RunFilter(root_run_id=root, dag_run_id="run", task_id="task"): {host},
            RunFilter(root_run_id=root, dag_id="dag", task_id="other"): set(),
            RunFilter(root_run_id=root, op_id="done", statuses=frozenset({"Pending"})): set(),
            RunFilter(statuses=frozenset()): set(),
            RunFilter(op_id="done"): {done},
            RunFilter(id_range=(host, host)): {host},
            RunFilter(id_range=(host, host), root_run_id=done): set(),
        }
        for where, expected in cases.items():
            assert {row.run_id for row in store.find_runs(where).rows} == expected, where

    @pytest.mark.parametrize("limit", [1, 3, 7, 8, 100])
    def test_pages_cover_everything_once(self, harness: StoreHarness, store: Store, limit: int) -> None:
        """Runs of one commit share their time of creation: the id decides, and no page loses or repeats one."""
        root = start(store)
        harness.advance(1000)
        children = [new_id() for _ in range(7)]
        must(submit(store, RunStep(root, 1, 0, (event(),)), *(creation(one, parent=root) for one in children)))
        assert _all_pages(store, RunFilter(root_run_id=root), limit) == [root, *sorted(children)]

    @pytest.mark.parametrize("limit", [1, 3, 7, 8, 100])
    def test_pages_go_back_from_the_newest(self, harness: StoreHarness, store: Store, limit: int) -> None:
        """The reverse order of all pages is the order of all pages, whatever stands in the filter and in the statuses."""
        root = start(store)
        harness.advance(1000)
        children = [new_id() for _ in range(7)]
        must(submit(store, RunStep(root, 1, 0, (event(),)), *(creation(one, parent=root) for one in children)))
        append(store, children[2], "end", moves=Moves(status="Failed"))
        for where in (RunFilter(root_run_id=root), RunFilter(op_id=store.get_runs([root])[root].op_id)):
            forth, back = (_all_pages(store, where, limit, newest_first=reverse) for reverse in (False, True))
            assert forth[-8:] == [root, *sorted(children)]
            assert back == forth[::-1]

    def test_runs_are_found_by_a_range_of_their_ids(self, store: Store) -> None:
        """Both ends belong to it, and order and pages are those of every search."""
        ids = sorted(new_id() for _ in range(6))
        for run_id in reversed(ids):
            start(store, run_id=run_id)
        where = RunFilter(id_range=(ids[1], ids[4]))
        found = _all_pages(store, where, 3)
        assert sorted(set(found) & set(ids)) == ids[1:5]
        assert all(ids[1] <= run_id <= ids[4] for run_id in found)
        assert _all_pages(store, where, 3, newest_first=True) == found[::-1]
        first = UUID(ids[0].hex[:8].ljust(32, "0")), UUID(ids[0].hex[:8].ljust(32, "f"))
        assert [row.run_id for row in store.find_runs(RunFilter(id_range=first)).rows] == ids[:1]
        assert store.find_runs(RunFilter(id_range=(ids[4], ids[1]))).rows == ()

    def test_a_foreign_cursor_is_refused(self, store: Store) -> None:
        """A cursor comes from a page, and is not made by hand."""
        with pytest.raises(InputError, match="cursor"):
            store.find_runs(RunFilter(), "nonsense")

    # ----------------------------------------------------------------------------------------------------------- store

    def test_time_goes_on(self, harness: StoreHarness, store: Store) -> None:
        """The store's time stands on its events."""
        before = store.now_us()
        harness.advance(1000)
        run_id = start(store)
        harness.advance(1000)
        assert before < store.read_events(run_id)[0].recorded_at < store.now_us()

    def test_a_closed_store_opens_again(self, store: Store) -> None:
        """Closing gives back connections, not data."""
        run_id = start(store)
        store.close()
        assert head_of(store, run_id).seq == 1
        store.close()
        store.close()
