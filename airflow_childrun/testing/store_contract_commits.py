"""The contract of ``Store.commit``: heads, epochs, identity, batches."""

from __future__ import annotations

import hashlib

import pytest

from airflow_childrun.errors import CorruptionError, OtherStorageError
from airflow_childrun.store.api import (
    GENESIS_HASH,
    Committed,
    Conflict,
    Head,
    Moves,
    ReleaseLease,
    RunStep,
    Store,
    TakeLease,
)
from airflow_childrun.store.chain import event_hash
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
    new_run,
    opened,
    post_to,
    refused,
    start,
    submit,
)

WRITERS = 32


class CommitContract:
    """Commits happen or not, once, and say so."""

    def test_a_stream_grows_by_whole_commits(self, store: Store) -> None:
        """An empty stream has no events; one event, then two at once; a range gives exactly the events asked for."""
        run_id = new_id()
        assert store.read_events(run_id) == []
        assert store.find_run(run_id) is None
        first = must(submit(store, creation(run_id)))
        assert first.heads[run_id].seq == 1
        second = must(submit(store, RunStep(run_id, 1, 0, (event("two"), event("three")))))
        assert second.heads[run_id].seq == 3
        (two,) = store.read_events(run_id, 2, 2)
        assert (two.seq, two.body, two.recorded_at) == (2, event("two").body, second.recorded_at)

    def test_every_hash_follows_from_the_one_before(self, store: Store) -> None:
        """The chain can be recomputed from what is stored, from the genesis hash to the head."""
        run_id = start(store)
        append(store, run_id, "two", "three")
        append(store, run_id, "four")
        previous = GENESIS_HASH
        for stored in store.read_events(run_id):
            digest = hashlib.sha256(stored.body).hexdigest()
            previous = event_hash(run_id, stored.seq, stored.recorded_at, previous, digest)
            assert stored.hash == previous
        assert head_of(store, run_id).hash == previous

    def test_a_stale_head_conflicts_and_changes_nothing(self, store: Store) -> None:
        """Compare-and-set: who does not know the last event appends nothing."""
        run_id = start(store)
        head = append(store, run_id, "two")
        assert submit(store, RunStep(run_id, 1, 0, (event("other"),))) == Conflict(run_id, "head", head)
        assert head_of(store, run_id) == head
        assert len(store.read_events(run_id)) == 2

    def test_a_head_from_the_future_conflicts(self, store: Store) -> None:
        """Nobody leaves a gap in a stream."""
        run_id = start(store)
        assert refused(submit(store, RunStep(run_id, 5, 0, (event(),)))).reason == "head"

    def test_a_stale_epoch_conflicts(self, harness: StoreHarness, store: Store) -> None:
        """Fencing: the old owner's commit is refused although it knows the head."""
        run_id = start(store, lease=TakeLease(opened(harness)))
        append(store, run_id, lease=ReleaseLease())
        append(store, run_id, lease=TakeLease(opened(harness)))
        conflict = refused(submit(store, RunStep(run_id, 1, 1, (event(),))))
        assert (conflict.reason, conflict.head) == ("epoch", head_of(store, run_id))

    def test_without_an_epoch_the_head_alone_decides(self, harness: StoreHarness, store: Store) -> None:
        """A writer that holds no lease fences by compare-and-set alone."""
        run_id = start(store, lease=TakeLease(opened(harness)))
        assert must(submit(store, RunStep(run_id, 1, None, (event(),)))).heads[run_id].epoch == 1

    def test_a_step_on_a_missing_run_conflicts(self, store: Store) -> None:
        """A step without ``create`` makes no run."""
        run_id = new_id()
        assert submit(store, RunStep(run_id, 0, None, (event(),))) == Conflict(run_id, "missing", None)
        assert store.find_run(run_id) is None

    def test_creating_a_run_that_exists_conflicts(self, store: Store) -> None:
        """The second creator learns where the run stands."""
        run_id = start(store)
        assert submit(store, creation(run_id)) == Conflict(run_id, "exists", head_of(store, run_id))

    def test_a_generation_of_a_slot_exists_once(self, store: Store) -> None:
        """Two runs cannot be the same generation of one slot."""
        first, second, third = new_id(), new_id(), new_id()
        start(store, first, slot_id=first, generation=1)
        assert submit(store, creation(second, slot_id=first)) == Conflict(second, "exists", None)
        assert start(store, third, slot_id=first, generation=2) == third

    def test_a_commit_is_all_or_nothing(self, store: Store) -> None:
        """If one step is refused, no stream, artifact, inbox or row of the commit changes."""
        good, bad, fresh = start(store), start(store), new_id()
        found = artifact(good, b"never stored")
        result = submit(
            store,
            RunStep(good, 1, 0, (event(),), Moves(status="Running")),
            creation(fresh),
            RunStep(bad, 9, 0, (event(),)),
            artifacts=(found,),
            posts=(post_to(good),),
        )
        assert refused(result).run_id == bad
        assert head_of(store, good).seq == 1
        assert store.find_run(fresh) is None
        assert store.get_artifacts(good, [found.id]) == {}
        assert store.read_inbox(good) == []

    def test_one_commit_moves_two_streams(self, store: Store) -> None:
        """Spawn is atomic: the parent's event and the child's run come together, at one time."""
        parent, child = start(store), new_id()
        result = must(submit(store, RunStep(parent, 1, 0, (event("spawned"),)), creation(child, parent=parent)))
        assert {run_id: head.seq for run_id, head in result.heads.items()} == {parent: 2, child: 1}
        assert store.read_events(child)[0].recorded_at == store.read_events(parent, 2)[0].recorded_at

    def test_a_bad_member_harms_no_other(self, store: Store) -> None:
        """Each commit of a batch stands for itself, and the answers come in the order of the questions."""
        runs = [start(store) for _ in range(4)]
        results = store.commit(
            [
                commit_of(RunStep(run_id, 7 if at == 1 else 1, 0, (event(),)), artifacts=(artifact(run_id, b"same"),))
                for at, run_id in enumerate(runs)
            ]
        )
        assert [type(result) for result in results] == [Committed, Conflict, Committed, Committed]
        assert [head_of(store, run_id).seq for run_id in runs] == [2, 1, 2, 2]
        assert store.find_artifact_kinds(runs[1]) == {}

    def test_a_member_that_creates_a_taken_slot_harms_no_other(self, store: Store) -> None:
        """What a decision from rows cannot see is found out by trying each member alone."""
        first, second, other = start(store), new_id(), start(store)
        results = store.commit(
            [
                commit_of(creation(second, slot_id=first)),
                commit_of(RunStep(other, 1, 0, (event(),))),
            ]
        )
        assert results[0] == Conflict(second, "exists", None)
        assert must(results[1]).heads[other].seq == 2

    def test_a_run_stands_once_in_a_batch(self, store: Store) -> None:
        """Two steps for one run are refused before anything is stored."""
        run_id, other = start(store), start(store)
        batch = [commit_of(RunStep(one, 1, 0, (event(),))) for one in (other, run_id, run_id)]
        with pytest.raises(OtherStorageError, match="commit_invalid"):
            store.commit(batch)
        assert head_of(store, other).seq == 1

    def test_a_run_is_created_with_its_first_event(self, store: Store) -> None:
        """No row without a stream."""
        run_id = new_id()
        with pytest.raises(OtherStorageError, match="commit_invalid"):
            submit(store, RunStep(run_id, 0, None, create=new_run(run_id)))
        assert store.find_run(run_id) is None

    def test_an_artifact_with_a_wrong_id_is_refused(self, store: Store) -> None:
        """Bytes are never stored under an id that is not theirs."""
        run_id = start(store)
        wrong = artifact(run_id, b"bytes")._replace(id=DIGEST_A)
        with pytest.raises(CorruptionError):
            submit(store, RunStep(run_id, 1, 0, (event(),)), artifacts=(wrong,))
        assert head_of(store, run_id).seq == 1

    def test_an_empty_batch_is_answered_emptily(self, store: Store) -> None:
        """Nothing asked, nothing done."""
        assert store.commit([]) == []

    def test_a_large_batch_is_one_call(self, store: Store) -> None:
        """A hundred commits, each with an artifact, all happen."""
        runs = [start(store) for _ in range(100)]
        results = store.commit(
            [
                commit_of(RunStep(run_id, 1, 0, (event(), event())), artifacts=(artifact(run_id, b"%d" % at),))
                for at, run_id in enumerate(runs)
            ]
        )
        assert [must(result).heads[run_id].seq for result, run_id in zip(results, runs, strict=True)] == [3] * 100

    # ------------------------------------------------------------------------------------------- identity of a commit

    def test_an_identical_commit_is_answered_with_its_original_result(
        self, harness: StoreHarness, store: Store
    ) -> None:
        """Outcome unknown: submitted again, here or by another process, it is not done twice."""
        run_id = new_id()
        create = commit_of(creation(run_id, lease=TakeLease(opened(harness))))
        go_on = commit_of(RunStep(run_id, 1, 1, (event(), event())), artifacts=(artifact(run_id, b"x"),))
        original = [store.commit([create])[0], store.commit([go_on])[0]]
        assert [store.commit([create])[0], store.commit([go_on])[0]] == original
        assert [harness.another_store().commit([one])[0] for one in (create, go_on)] == original
        assert head_of(store, run_id).seq == 3

    def test_the_original_result_is_given_after_later_events(self, harness: StoreHarness, store: Store) -> None:
        """Others may have gone on, and the lease may have changed hands, before the answer is asked for again."""
        run_id = start(store)
        commit = commit_of(RunStep(run_id, 1, 0, (event(), event())))
        (original,) = store.commit([commit])
        append(store, run_id, "later", lease=TakeLease(opened(harness)))
        assert store.commit([commit]) == [original]
        assert head_of(store, run_id).seq == 4

    def test_another_commit_does_not_pass_for_it(self, store: Store) -> None:
        """Heads taken by another commit are a conflict, however much alike the two are."""
        run_id = start(store)
        step = RunStep(run_id, 1, 0, (event(),))
        must(submit(store, step))
        assert refused(submit(store, step)).reason == "head"

    def test_a_commit_over_two_streams_is_recognised(self, store: Store) -> None:
        """A spawn submitted again finds both streams moved by itself."""
        parent, child = start(store), new_id()
        commit = commit_of(RunStep(parent, 1, 0, (event(),)), creation(child, parent=parent))
        (original,) = store.commit([commit])
        append(store, child, "on")
        assert store.commit([commit]) == [original]

    def test_a_commit_without_events_is_recognised(self, harness: StoreHarness, store: Store) -> None:
        """Taking a lease leaves its identity on the run row: submitted again, the epoch is not raised again."""
        run_id = start(store)
        commit = commit_of(RunStep(run_id, 1, 0, lease=TakeLease(opened(harness))))
        (original,) = store.commit([commit])
        assert must(original).heads[run_id].epoch == 1
        assert store.commit([commit]) == [original]
        append(store, run_id, "later")
        assert store.commit([commit]) == [original]
        assert head_of(store, run_id).epoch == 1

    def test_posts_of_an_identical_commit_are_not_doubled(self, store: Store) -> None:
        """The entries, and which of them came too late, are those of the first time."""
        run_id, ended, running = start(store), start(store), start(store)
        append(store, ended, "end", moves=Moves(status="Completed"))
        posts = (post_to(ended), post_to(running))
        commit = commit_of(RunStep(run_id, 1, 0, (event(),)), posts=posts)
        (original,) = store.commit([commit])
        assert must(original).rejected_posts == (posts[0].post_id,)
        append(store, running, "end", moves=Moves(status="Completed"))
        assert store.commit([commit]) == [original]
        assert [entry.n for entry in store.read_inbox(running)] == [1]

    # ---------------------------------------------------------------------------------------------------------- moves

    def test_moves_change_what_they_name(self, store: Store) -> None:
        """None leaves a column as it is; 0 clears ``wake_at`` and "" clears ``error_code``."""
        run_id = start(store)
        before = store.find_run(run_id)
        append(store, run_id, "fail", moves=Moves(status="Running", error_code="boom", wake_at=77))
        row = store.find_run(run_id)
        assert row is not None
        assert before is not None
        assert (row.status, row.error_code, row.wake_at) == ("Running", "boom", 77)
        assert (row.checkpoint_seq, row.checkpoint_hash) == (before.checkpoint_seq, before.checkpoint_hash)
        head = append(store, run_id, "nothing")
        after = store.find_run(run_id)
        assert after is not None
        assert after == row._replace(head=head, updated_at=after.updated_at)
        append(store, run_id, "clear", moves=Moves(error_code="", wake_at=0))
        row = store.find_run(run_id)
        assert row is not None
        assert (row.status, row.error_code, row.wake_at) == ("Running", None, None)

    def test_the_checkpoint_is_one_of_the_commits_events(self, store: Store) -> None:
        """``checkpoint_at`` counts the commit's events; before any, the first event is the checkpoint."""
        run_id = start(store)
        row = store.find_run(run_id)
        assert row is not None
        assert (row.checkpoint_seq, row.checkpoint_hash) == (1, row.head.hash)
        assert row.checkpoint_snapshot_id == row.initial_snapshot_id
        append(store, run_id, "two", "three", "four", moves=Moves(checkpoint_at=1, checkpoint_snapshot_id=DIGEST_A))
        row = store.find_run(run_id)
        assert row is not None
        third = store.read_events(run_id, 3, 3)[0]
        assert (row.checkpoint_seq, row.checkpoint_hash, row.checkpoint_snapshot_id) == (3, third.hash, DIGEST_A)

    def test_the_end_is_dated(self, store: Store) -> None:
        """A terminal status brings the final snapshot and the time of the end."""
        run_id = start(store)
        append(store, run_id, "end", moves=Moves(status="Failed", final_snapshot_id=DIGEST_B, error_code="boom"))
        row = store.find_run(run_id)
        assert row is not None
        assert row.is_terminal
        assert (row.final_snapshot_id, row.error_code) == (DIGEST_B, "boom")
        assert row.ended_at == store.read_events(run_id, 2)[0].recorded_at == row.updated_at

    # ---------------------------------------------------------------------------------------------------- concurrency

    def test_of_many_writers_exactly_one_wins_each_seq(self, store: Store) -> None:
        """32 threads append to one run until each has won once: no seq is taken twice, none is left out."""
        run_id = start(store)

        def write(_: int) -> Head:
            while True:
                seq = head_of(store, run_id).seq
                result = submit(store, RunStep(run_id, seq, 0, (event(),)))
                if isinstance(result, Committed):
                    return result.heads[run_id]

        heads = at_once(WRITERS, write)
        assert sorted(head.seq for head in heads) == list(range(2, WRITERS + 2))
        events = store.read_events(run_id)
        assert [stored.seq for stored in events] == list(range(1, WRITERS + 2))
        assert {head.seq: head.hash for head in heads} == {one.seq: one.hash for one in events[1:]}

    def test_of_many_creators_exactly_one_wins(self, store: Store) -> None:
        """Whoever comes second learns that the run exists; none fails."""
        run_id = new_id()
        results = at_once(WRITERS, lambda _: submit(store, creation(run_id)))
        reasons = [result.reason for result in results if isinstance(result, Conflict)]
        assert reasons == ["exists"] * (WRITERS - 1)
        assert len(store.read_events(run_id)) == 1

    def test_many_put_the_same_bytes_at_once(self, store: Store) -> None:
        """32 commits bring one artifact: all succeed, and it is there once."""
        root = start(store)
        runs = [start(store, parent=root) for _ in range(WRITERS)]
        found = artifact(root, b"the same bytes")
        results = at_once(WRITERS, lambda at: submit(store, RunStep(runs[at], 1, 0, (event(),)), artifacts=(found,)))
        assert all(isinstance(result, Committed) for result in results)
        assert store.get_artifacts(root, [found.id]) == {found.id: b"the same bytes"}

    def test_batches_that_cross_do_not_block_each_other(self, store: Store) -> None:
        """Batches over the same runs in opposite orders, with the same artifacts: every member is answered."""
        root = start(store)
        runs = [start(store, parent=root) for _ in range(8)]
        shared = [artifact(root, b"%d" % at) for at in range(8)]

        def write(at: int) -> list[Committed | Conflict]:
            order = -1 if at % 2 else 1
            return store.commit(
                [
                    commit_of(RunStep(run_id, 1, 0, (event(),)), artifacts=tuple(shared[::order]))
                    for run_id in runs[::order]
                ]
            )

        results = [result for batch in at_once(8, write) for result in batch]
        assert sum(isinstance(result, Committed) for result in results) == len(runs)
        assert {head_of(store, run_id).seq for run_id in runs} == {2}
