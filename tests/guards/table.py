"""Each promise, the guard that keeps it, a patch that takes the guard away, and the test that then fails.

``docs/promises.md`` shows the same table to people; ``python -m tests.guards`` carries the patches out on a copy.
"""

from __future__ import annotations

from dataclasses import dataclass

CONTRACT = "tests/contract/test_store_contract.py::TestMemoryStore::"
SQLITE = "tests/contract/test_store_contract.py::TestSqliteStore::"


@dataclass(frozen=True)
class Guard:
    """A guard and what shows that it is needed.

    :param name: short, for ``--only``
    :param file: below ``airflow_childrun/``
    :param old: what is taken away; stands in the file exactly once
    :param test: the pytest id of the test that fails then
    """

    name: str
    promise: str
    file: str
    old: str
    new: str
    test: str


GUARDS: tuple[Guard, ...] = (
    Guard(
        "head",
        "No two writers append the same event: an append names the head that it knows",
        "store/decision.py",
        "    if step.expected_head != row.head.seq:\n",
        "    if False:\n",
        CONTRACT + "test_a_stale_head_conflicts_and_changes_nothing",
    ),
    Guard(
        "epoch",
        "A process that lost a run writes nothing more to it",
        "store/decision.py",
        "    if step.epoch is not None and step.epoch != row.head.epoch:\n",
        "    if False:\n",
        CONTRACT + "test_a_stale_epoch_conflicts",
    ),
    Guard(
        "lease",
        "A run that a living process drives is not taken away from it",
        "store/decision.py",
        "        if holder is not None and not holder.is_over(picture.now):\n",
        "        if False:\n",
        CONTRACT + "test_a_held_run_is_not_taken",
    ),
    Guard(
        "commit-id",
        "A commit with unknown outcome, submitted again, happens once and is answered with its result",
        "store/decision.py",
        "    original = _original_result(commit, picture)\n",
        "    original = None\n",
        CONTRACT + "test_an_identical_commit_is_answered_with_its_original_result",
    ),
    Guard(
        "another-commit",
        "Another writer's commit never passes for one's own",
        "store/decision.py",
        "            if event is None or event.commit_id != commit.commit_id:\n",
        "            if event is None:\n",
        CONTRACT + "test_another_commit_does_not_pass_for_it",
    ),
    Guard(
        "late-spawn",
        "A spawn submitted again while its first submission is under way finds that it happened",
        "store/sql/commit.py",
        "        return [self._asked_again(commit, result) for commit, result in zip(commits, results, strict=True)]\n",
        "        return results\n",
        "tests/fault/test_append_register.py::test_a_commit_that_comes_late_happens_once_and_is_told",
    ),
    Guard(
        "post-id",
        "A request that is posted twice stands in the inbox once",
        "store/decision.py",
        "        known = picture.posted.get((post.run_id, post.post_id))\n",
        "        known = None\n",
        CONTRACT + "test_posting_is_idempotent",
    ),
    Guard(
        "terminal",
        "A terminal commit wins a race: what comes later is told so",
        "store/decision.py",
        "stored.row.status not in TERMINAL:",
        "stored.row.status:",
        CONTRACT + "test_what_comes_too_late_is_rejected",
    ),
    Guard(
        "slot",
        "A slot has each generation once",
        "store/decision.py",
        "        if picture.find_slot(step.create.slot_id, step.create.generation) is not None:\n",
        "        if False:\n",
        CONTRACT + "test_a_generation_of_a_slot_exists_once",
    ),
    Guard(
        "artifact",
        "An artifact is what its id says, on every read",
        "store/sql/store.py",
        "            if body_digest(body) != key:\n",
        "            if False:\n",
        SQLITE + "test_a_changed_artifact_is_found_out",
    ),
    Guard(
        "chain",
        "No run goes on from an event that is not what was written",
        "runtime/histories.py",
        "    check_stream(run_id, page)\n",
        "",
        "tests/fault/test_corruption.py::test_a_changed_event_that_is_still_an_event_stops_the_run",
    ),
    Guard(
        "row",
        "No run goes on from a row that does not follow from its events",
        "runtime/histories.py",
        "            check.finish()\n",
        "            pass\n",
        "tests/fault/test_corruption.py::test_a_changed_row_stops_the_run",
    ),
    Guard(
        "end",
        "No damaged row is handed out as a child's end",
        "runtime/ends.py",
        "    check_ends(store, rows)\n",
        "",
        "tests/fault/test_corruption.py::test_a_changed_end_is_handed_out_to_nobody",
    ),
    Guard(
        "entered",
        "A state is entered in the log before its handler starts",
        "runtime/driver.py",
        "        journal.flush()\n        outcome = ",
        "        outcome = ",
        "tests/engine/test_commits.py::test_entry_is_durable_before_the_handler_starts",
    ),
    Guard(
        "fact-first",
        "An answer is durable before the handler sees it",
        "runtime/journal.py",
        "        self.stage(events)\n        self.flush(extras)\n",
        "        self.stage(events, extras.artifacts)\n",
        "tests/engine/test_commits.py::test_a_fact_is_durable_before_the_handler_sees_it",
    ),
    Guard(
        "recorded",
        "A recorded call is never repeated",
        "engine/fact_io.py",
        "            found = self._recorded(key, digest, call)\n",
        "            found = None\n",
        "tests/engine/test_crash_sweep.py::test_dying_inside_every_call_of_the_world_repeats_that_call_alone",
    ),
    Guard(
        "request-digest",
        "A recorded answer is given to the request that it answers, and to no other",
        "engine/fact_io.py",
        "        if fact.request_digest is not None and fact.request_digest != digest:\n",
        "        if False:\n",
        "tests/engine/test_facts.py::test_same_key_with_another_request_is_refused_and_not_recorded",
    ),
    Guard(
        "safe-call",
        "No outside call starts once the session may be over",
        "runtime/journal.py",
        "        self._guard.require_safe()\n",
        "",
        "tests/engine/test_recovery.py::test_no_call_starts_once_the_session_may_be_over",
    ),
    Guard(
        "recovery-limit",
        "A run that kills every owner ends",
        "engine/decide.py",
        "    if lapsed and history.recoveries + 1 > limit:\n",
        "    if False:\n",
        "tests/engine/test_recovery.py::test_a_run_that_kills_every_owner_ends_at_the_recovery_limit",
    ),
    Guard(
        "own-children",
        "A run awaits only its own children, hence there are no cycles",
        "runtime/nursery.py",
        "        return row.run_id in self._own or row.slot_id in self._own or row.parent_run_id == self._history.run_id\n",
        "        return True\n",
        "tests/engine/test_children.py::test_await_of_a_foreign_run_is_refused",
    ),
    Guard(
        "stale-try",
        "A try of a task that another one followed changes nothing",
        "runtime/host.py",
        '        if kind == "stale":\n',
        "        if False:\n",
        "tests/host/test_host_runs.py::test_a_stale_try_writes_nothing",
    ),
    Guard(
        "secret-value",
        "No secret is recorded",
        "engine/fact_io.py",
        '            self._scene.policy.check(value, f"what is to be recorded under {key!r}", allow_keys)\n',
        "",
        "tests/fault/test_canary.py::test_what_a_handler_knows_is_found_nowhere",
    ),
    Guard(
        "secret-error",
        "No recorded error repeats a secret",
        "engine/attempt.py",
        "Failed(policy.redact_info(describe(raised)), ",
        "Failed(describe(raised), ",
        "tests/engine/test_failures.py::test_secret_in_an_error_is_redacted_and_details_dropped",
    ),
    Guard(
        "secret-log",
        "No traceback in a log shows a message that holds a secret",
        "engine/attempt.py",
        "presentable(raised, policy))\n",
        "raised)\n",
        "tests/fault/test_canary.py::test_what_a_handler_knows_is_found_nowhere",
    ),
    Guard(
        "steady-clock",
        "A wall clock that is set ends no sleep and no run",
        "runtime/sessions.py",
        "        return store_us + round((self._clock.monotonic_s() - at_s) * 1_000_000)\n",
        "        return local_us\n",
        "tests/fault/test_clock.py::test_on_postgresql_a_clock_that_is_set_changes_nothing",
    ),
    Guard(
        "child-row",
        "A spawned child that has vanished is damage, and no answer",
        "runtime/nursery.py",
        "        if link is not None and (row is None or link.manifest_id not in (None, row.manifest_id)):\n",
        "        if False:\n",
        "tests/fault/test_corruption.py::test_a_child_that_vanished_is_no_answer",
    ),
    Guard(
        "durable-wait",
        "A wait that is cut short by a death is neither forgotten nor begun anew",
        "runtime/waiting.py",
        "        return self._open(key, 1, delay_us) if opened is None else opened[1]\n",
        "        return self._open(key, 1, delay_us)\n",
        "tests/lifecycle/test_time.py::test_a_death_neither_forgets_nor_repeats_the_time_of_an_await",
    ),
    Guard(
        "state-deadline",
        "A death sets no state's timeout back",
        "runtime/driver.py",
        "journal.history.deadlines.get(node.id) or self._house.now_us()",
        "self._house.now_us()",
        "tests/lifecycle/test_time.py::test_a_death_does_not_set_the_time_of_a_state_back",
    ),
    Guard(
        "abandoned-pen",
        "An attempt that ran out of time records nothing more",
        "runtime/timed.py",
        "        if self._is_taken:\n",
        "        if False:\n",
        "tests/lifecycle/test_time.py::test_the_next_attempt_waits_until_the_abandoned_handler_has_ended",
    ),
    Guard(
        "lease-outlasts",
        "A lease is given back only when nothing of its owner is at work in the run",
        "runtime/supervisor.py",
        "        except Abandoned:\n            driver.outlast_handlers()\n",
        "        except Abandoned:\n",
        "tests/lifecycle/test_time.py::test_the_lease_outlasts_an_abandoned_handler",
    ),
    Guard(
        "recovery-zero",
        "A healthy run survives any number of kills that let it move",
        "engine/history.py",
        "        self.last_fact_key = fact.key\n        self.recoveries = 0\n",
        "        self.last_fact_key = fact.key\n",
        "tests/engine/test_recovery.py::test_a_fact_sets_the_count_of_recoveries_to_zero",
    ),
    Guard(
        "waiting-owners",
        "Owners that die while a run only waits do not count against it",
        "runtime/driver.py",
        "        lapsed = row.lease_session_id is not None and not self._was_waiting(history)\n",
        "        lapsed = row.lease_session_id is not None\n",
        "tests/engine/test_recovery.py::test_owners_that_die_while_the_run_sleeps_are_not_counted",
    ),
    Guard(
        "lost-ownership",
        "A task whose children went to another process waits for their results, and does not fail",
        "hooks/driving.py",
        "                self._supervisor.wait(row.run_id, until_us=self._await_until_us)\n",
        "",
        "tests/fault/test_lost_ownership.py::test_a_task_whose_children_went_to_another_process_waits_for_their_results",
    ),
    Guard(
        "overdue",
        "Past its grace, an unowned run with a posted close reads as Cancelled",
        "runtime/overdue.py",
        "            shown.append(row if request is None else _ended(row, request))\n",
        "            shown.append(row)\n",
        "tests/lifecycle/test_overdue.py::test_it_reads_as_cancelled_once_its_grace_is_over",
    ),
    Guard(
        "overdue-write",
        "Whoever touches such a run writes its end first",
        "runtime/host.py",
        "        ended = settle(self._house, newest.values())\n",
        "        ended: dict[UUID, RunRow] = {}\n",
        "tests/lifecycle/test_overdue.py::test_a_retry_that_comes_too_late_continues_what_was_closed",
    ),
    Guard(
        "clean-up-owed",
        "A run that owes clean-up does not end before that has run",
        "runtime/closing.py",
        "    if request is None or request.effective_at > now_us or needs_clean_up(store, row):\n",
        "    if request is None or request.effective_at > now_us:\n",
        "tests/lifecycle/test_overdue.py::test_one_that_owes_clean_up_reads_as_it_is",
    ),
    Guard(
        "orphans",
        "What is below a run that is ended from outside is asked to end in the same commit",
        "runtime/closing.py",
        "    return Commit(house.entropy.new_id(), (step,), posts=tuple(posts))\n",
        "    return Commit(house.entropy.new_id(), (step,))\n",
        "tests/lifecycle/test_overdue.py::test_what_is_below_a_run_that_is_ended_from_outside_is_asked_to_end",
    ),
    Guard(
        "with-parent",
        "A run that fails or is cancelled takes its children along",
        "runtime/ending.py",
        "        self.journal.flush(Extras(posts=tuple(posts)), release=True)\n",
        "        self.journal.flush(release=True)\n",
        "tests/lifecycle/test_cancel.py::test_a_parent_that_fails_takes_its_children_along",
    ),
    Guard(
        "children-first",
        "Children end before the parent that is cancelled",
        "runtime/ending.py",
        "        self.wait_all(ids)\n",
        "",
        "tests/lifecycle/test_cancel.py::test_children_end_before_their_parent",
    ),
    Guard(
        "sweep-task",
        "A sweep leaves alone what Airflow will go on with",
        "runtime/recover.py",
        "    if not dag_run_is_open or state in FINAL_FAILURES:\n",
        '    if not dag_run_is_open or state in {*FINAL_FAILURES, "success", "skipped"}:\n',
        "tests/lifecycle/test_overdue.py::test_what_a_state_of_airflows_means_for_the_children",
    ),
    Guard(
        "sweep-stranger",
        "A sweep leaves the runs of another Airflow alone",
        "runtime/recover.py",
        "        if self._deployment_id is not None and not is_of(self._deployment_id, host):\n",
        "        if False:\n",
        "tests/lifecycle/test_overdue.py::test_a_sweep_leaves_the_runs_of_another_airflow_alone",
    ),
    Guard(
        "purge",
        "Nothing is purged in which something happened since",
        "store/sql/purge.py",
        "        if not found or any(row.is_open or row.updated_at >= idle_since for row in found):\n",
        "        if not found:\n",
        SQLITE + "test_a_tree_in_which_something_happened_since_stays",
    ),
)
