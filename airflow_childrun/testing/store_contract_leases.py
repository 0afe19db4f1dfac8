"""The contract of sessions and leases."""

from __future__ import annotations

import pytest

from airflow_childrun.errors import OtherStorageError
from airflow_childrun.store.api import (
    Cap,
    Committed,
    Conflict,
    Moves,
    Owner,
    ReleaseLease,
    RunFilter,
    RunStep,
    Store,
    TakeLease,
)
from airflow_childrun.testing.store_harness import (
    StoreHarness,
    append,
    at_once,
    commit_of,
    creation,
    event,
    head_of,
    must,
    new_id,
    opened,
    refused,
    start,
    submit,
)


class LeaseContract:
    """A run has one owner at a time, and the store knows who is alive."""

    def test_a_free_run_is_taken(self, harness: StoreHarness, store: Store) -> None:
        """The epoch rises by one, and the row names the owner and when its session is over."""
        run_id = start(store)
        session = store.open_session(new_id(), Owner("me"), harness.ttl_us)
        head = append(store, run_id, lease=TakeLease(session.session_id))
        row = store.find_run(run_id)
        assert row is not None
        assert head.epoch == 1
        assert (row.lease_session_id, row.lease_expires_at) == (session.session_id, session.expires_at)

    def test_a_run_is_created_with_its_owner(self, harness: StoreHarness, store: Store) -> None:
        """Creation and lease are one commit, and the first event carries the epoch after it."""
        session_id, run_id = opened(harness), new_id()
        result = must(submit(store, creation(run_id, lease=TakeLease(session_id))))
        assert result.heads[run_id].epoch == 1
        assert store.read_events(run_id)[0].epoch == 1

    def test_events_carry_the_epoch_after_the_step(self, harness: StoreHarness, store: Store) -> None:
        """Who takes a lease and appends in one commit appends as the new owner."""
        run_id = start(store)
        append(store, run_id, "mine", lease=TakeLease(opened(harness)))
        append(store, run_id, "still mine")
        append(store, run_id, "given back", lease=ReleaseLease())
        assert [stored.epoch for stored in store.read_events(run_id)] == [0, 1, 1, 1]

    def test_a_held_run_is_not_taken(self, harness: StoreHarness, store: Store) -> None:
        """A living owner keeps its run, and nothing of the commit happens."""
        run_id = start(store, lease=TakeLease(opened(harness)))
        head = head_of(store, run_id)
        take = RunStep(run_id, 1, 1, (event(),), lease=TakeLease(opened(harness)))
        assert submit(store, take) == Conflict(run_id, "lease", head)
        assert head_of(store, run_id) == head

    def test_the_same_session_takes_its_run_again(self, harness: StoreHarness, store: Store) -> None:
        """The epoch rises all the same."""
        session_id = opened(harness)
        run_id = start(store, lease=TakeLease(session_id))
        assert append(store, run_id, lease=TakeLease(session_id)).epoch == 2

    def test_an_expired_owner_is_taken_over(self, harness: StoreHarness, store: Store) -> None:
        """The row still names the late owner, so that the new one knows it did not release; then it is fenced off."""
        late = opened(harness)
        run_id = start(store, lease=TakeLease(late))
        harness.advance(harness.ttl_us + 1)
        row = store.find_run(run_id)
        assert row is not None
        assert (row.lease_session_id, row.lease_expires_at) == (late, None)
        assert append(store, run_id, lease=TakeLease(opened(harness))).epoch == 2
        assert refused(submit(store, RunStep(run_id, 1, 1, (event(),)))).reason == "epoch"

    def test_a_higher_incarnation_takes_over_at_once(self, harness: StoreHarness, store: Store) -> None:
        """The same task instance came back: its earlier try is over from that moment on."""
        first = opened(harness, "ti", 1)
        run_id = start(store, lease=TakeLease(first))
        second = opened(harness, "ti", 2)
        assert append(store, run_id, lease=TakeLease(second)).epoch == 2
        assert store.renew_session(first, harness.ttl_us) is None
        assert store.renew_session(second, harness.ttl_us) is not None

    @pytest.mark.parametrize(("key", "incarnation"), [("ti", 1), ("ti", 0), ("other", 9), ("", 9)])
    def test_nobody_else_is_superseded(self, harness: StoreHarness, key: str, incarnation: int) -> None:
        """Neither the same or a lower incarnation, nor another key, nor the empty one, ends a session."""
        store = harness.store
        first = opened(harness, "ti", 1)
        run_id = start(store, lease=TakeLease(first))
        other = opened(harness, key, incarnation)
        assert refused(submit(store, RunStep(run_id, 1, 1, lease=TakeLease(other)))).reason == "lease"
        assert store.renew_session(first, harness.ttl_us) is not None

    def test_empty_keys_never_supersede(self, harness: StoreHarness, store: Store) -> None:
        """Without a key there is no telling who comes back."""
        first = opened(harness, "", 1)
        opened(harness, "", 2)
        assert store.renew_session(first, harness.ttl_us) is not None

    def test_a_run_that_has_ended_has_no_owner(self, harness: StoreHarness, store: Store) -> None:
        """Also where the commit that ends it is the first of its owner's, and takes the lease."""
        run_id = start(store)
        append(store, run_id, "end", lease=TakeLease(opened(harness)), moves=Moves(status="Cancelled"))
        row = store.find_run(run_id)
        assert row is not None
        assert (row.lease_session_id, row.head.epoch) == (None, 1)

    def test_a_released_run_is_free(self, harness: StoreHarness, store: Store) -> None:
        """The owner goes, the epoch stays."""
        run_id = start(store, lease=TakeLease(opened(harness)))
        assert append(store, run_id, lease=ReleaseLease()).epoch == 1
        row = store.find_run(run_id)
        assert row is not None
        assert (row.lease_session_id, row.lease_expires_at) == (None, None)
        assert append(store, run_id, lease=TakeLease(opened(harness))).epoch == 2

    def test_a_closed_session_frees_its_runs(self, harness: StoreHarness, store: Store) -> None:
        """Who closes its session has given everything back; closing again, or a stranger's, does nothing."""
        session_id = opened(harness)
        run_id = start(store, lease=TakeLease(session_id))
        for closed in (session_id, session_id, new_id()):
            store.close_session(closed)
        row = store.find_run(run_id)
        assert row is not None
        assert (row.lease_session_id, row.lease_expires_at) == (None, None)
        assert append(store, run_id, lease=TakeLease(opened(harness))).epoch == 2

    def test_a_host_lease_has_no_session_and_no_end(self, store: Store) -> None:
        """``TakeLease(None)`` only raises the epoch; the next one raises it again."""
        run_id = start(store, kind="task_instance")
        assert append(store, run_id, "try", lease=TakeLease(None)).epoch == 1
        row = store.find_run(run_id)
        assert row is not None
        assert (row.lease_session_id, row.lease_expires_at) == (None, None)
        assert append(store, run_id, "try", lease=TakeLease(None)).epoch == 2
        assert refused(submit(store, RunStep(run_id, 3, 1, (event(),)))).reason == "epoch"

    def test_of_many_takers_exactly_one_wins(self, harness: StoreHarness, store: Store) -> None:
        """A lease has one owner, however many ask at once."""
        run_id = start(store)
        sessions = [opened(harness) for _ in range(16)]

        def take(at: int) -> object:
            return submit(store, RunStep(run_id, 1, 0, lease=TakeLease(sessions[at])))

        results = at_once(len(sessions), take)
        assert sum(not isinstance(result, Conflict) for result in results) == 1
        assert head_of(store, run_id).epoch == 1

    def test_a_renewed_session_lives_on(self, harness: StoreHarness, store: Store) -> None:
        """Each renewal counts from its own moment, by the store's time."""
        session = store.open_session(new_id(), Owner("me"), harness.ttl_us)
        assert session.expires_at == session.now + harness.ttl_us
        harness.advance(harness.ttl_us // 2)
        renewed = store.renew_session(session.session_id, harness.ttl_us)
        assert renewed is not None
        assert renewed.expires_at == renewed.now + harness.ttl_us > session.expires_at

    def test_a_session_that_is_over_stays_so(self, harness: StoreHarness, store: Store) -> None:
        """Expired, closed or never opened: no renewal brings it to life, and none opens it again."""
        expired, closed = opened(harness), opened(harness)
        store.close_session(closed)
        harness.advance(harness.ttl_us + 1)
        for session_id in (expired, closed, new_id()):
            assert store.renew_session(session_id, harness.ttl_us) is None
        for session_id in (expired, closed):
            with pytest.raises(OtherStorageError, match="session_over"):
                store.open_session(session_id, Owner("me"), harness.ttl_us)

    def test_opening_is_idempotent(self, harness: StoreHarness, store: Store) -> None:
        """A living session may be opened again: the first answer may have been lost."""
        session_id = opened(harness, "ti", 1)
        store.open_session(session_id, Owner("test", "ti", 1), harness.ttl_us)
        assert store.renew_session(session_id, harness.ttl_us) is not None

    def test_unowned_runs_are_those_without_a_living_owner(self, harness: StoreHarness, store: Store) -> None:
        """Never taken, released, closed, expired: unowned; held: owned."""
        root = start(store)
        expired, closed = opened(harness), opened(harness)
        late = start(store, parent=root, lease=TakeLease(expired))
        shut = start(store, parent=root, lease=TakeLease(closed))
        store.close_session(closed)
        harness.advance(harness.ttl_us + 1)
        back = start(store, parent=root, lease=TakeLease(opened(harness)))
        append(store, back, lease=ReleaseLease())
        held = start(store, parent=root, lease=TakeLease(opened(harness)))
        unowned = store.find_runs(RunFilter(root_run_id=root, unowned=True)).rows
        owned = store.find_runs(RunFilter(root_run_id=root, unowned=False)).rows
        assert {row.run_id for row in unowned} == {root, late, shut, back}
        assert [row.run_id for row in owned] == [held]

    def test_a_lease_and_a_step_of_another_run_are_one_commit(self, harness: StoreHarness, store: Store) -> None:
        """A refused lease takes the whole commit with it."""
        held, other = start(store, lease=TakeLease(opened(harness))), start(store)
        commit = commit_of(
            RunStep(other, 1, 0, (event(),)),
            RunStep(held, 1, 1, lease=TakeLease(opened(harness))),
        )
        (result,) = store.commit([commit])
        assert refused(result).run_id == held
        assert head_of(store, other).seq == 1

    def test_no_more_siblings_are_owned_than_the_cap_allows(self, harness: StoreHarness, store: Store) -> None:
        """Those of the parent and the operation count, alone and in one batch; a place is free once it is given back."""
        parent, session = start(store), opened(harness)
        cap = Cap(parent, "op", 2)
        children = [start(store, parent=parent) for _ in range(5)]
        start(store, parent=parent, op_id="another", lease=TakeLease(session))
        take = [RunStep(child, 1, 0, (event(),), lease=TakeLease(session, cap)) for child in children]
        answers = store.commit([commit_of(step) for step in take[:3]])
        assert [isinstance(answer, Committed) for answer in answers] == [True, True, False]
        assert refused(submit(store, take[3])).reason == "cap"
        append(store, children[0], lease=ReleaseLease())
        must(submit(store, take[3]))
        append(store, children[1], "end", moves=Moves(status="Completed", final_snapshot_id="0" * 64))
        must(submit(store, take[4]))
        assert refused(submit(store, take[2])).reason == "cap"

    def test_the_places_of_a_session_that_is_over_are_free(self, harness: StoreHarness, store: Store) -> None:
        """A process that dies keeps them no longer than its runs."""
        parent, dead, heir = start(store), opened(harness, "task", 1), opened(harness)
        cap = Cap(parent, "op", 1)
        first, second = (start(store, parent=parent) for _ in range(2))
        append(store, first, lease=TakeLease(dead, cap))
        step = RunStep(second, 1, 0, (event(),), lease=TakeLease(heir, cap))
        assert refused(submit(store, step)).reason == "cap"
        opened(harness, "task", 2)
        must(submit(store, step))

    def test_many_who_ask_at_once_get_no_more_places_than_there_are(self, harness: StoreHarness, store: Store) -> None:
        """Whoever waits for the parent's row counts what was written meanwhile."""
        parent, session = start(store), opened(harness)
        children = [start(store, parent=parent) for _ in range(8)]
        take = TakeLease(session, Cap(parent, "op", 3))
        answers = at_once(8, lambda number: submit(store, RunStep(children[number], 1, 0, (event(),), lease=take)))
        assert sum(isinstance(answer, Committed) for answer in answers) == 3

    def test_who_waits_for_a_place_can_be_asked(self, harness: StoreHarness, store: Store) -> None:
        """Children of one parent and operation that have not ended, and that nobody owns."""
        parent, session = start(store), opened(harness)
        waits = start(store, parent=parent)
        start(store, parent=parent, lease=TakeLease(session))
        start(store, parent=parent, op_id="another")
        ended = start(store, parent=parent)
        append(store, ended, "end", moves=Moves(status="Completed", final_snapshot_id="0" * 64))
        where = RunFilter(parent_run_id=parent, op_id="op", statuses=frozenset({"Pending", "Running"}), unowned=True)
        assert [row.run_id for row in store.find_runs(where, limit=2).rows] == [waits]
