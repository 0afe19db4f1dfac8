"""A run whose clean-up was entered is neither taken back nor continued, only started afresh (rule 7)."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID, uuid4

import pytest

from airflow_childrun.authoring.operation import Operation
from airflow_childrun.engine.inbox import CLOSE, WITHDRAW, request_body
from airflow_childrun.engine.ports import RunIdentity
from airflow_childrun.errors import InvalidPlanError, OtherIoError
from airflow_childrun.ids import child_run_id
from airflow_childrun.runtime.closing import cancel_run
from airflow_childrun.runtime.generations import next_generation
from airflow_childrun.store.api import Commit, Committed, InboxPost
from airflow_childrun.store.verify import verify_run
from tests.engine.kit import Background, Lab, Process, Stage, eventually
from tests.host.kit import AirflowTask, HostLab, Try, statuses

HOUR_US = 3_600_000_000
TASK = AirflowTask()


class House:
    """An operation that opens something, hangs as long as it is told to, and closes what it opened when it is cancelled."""

    def __init__(self, lab: Lab, *, tidies: bool = True) -> None:
        self.lab = lab
        self.hangs = True
        op = lab.put("house", lambda s: s.write("number", s.ask("number")), self.live)
        op.on_cancel = (lambda s: s.ask("closed")) if tidies else None

    def live(self, stage: Stage) -> None:
        stage.ask("opened")
        stage.write("random", stage.io.random_bytes(8).hex())
        stage.write("context", stage.read("given"))
        if self.hangs:
            stage.io.sleep("nap", HOUR_US)

    def cancel(self, process: Process, run_id: UUID) -> None:
        """Cancel a run that somebody drives, and wait for its end."""
        eventually(lambda: self.lab.world.counts.get("opened", 0) > 0)
        cancel_run(process.house, run_id, "not now")
        eventually(lambda: self.lab.row(run_id).is_terminal)
        assert self.lab.row(run_id).status == "Cancelled"
        self.hangs = False


@pytest.fixture
def lab() -> Iterator[HostLab]:
    made = HostLab()
    yield made
    made.close()


def cancelled(lab: HostLab, house: House, task: AirflowTask = TASK) -> tuple[Try, UUID]:
    """Return a try whose only child was cancelled while it hung."""
    one = lab.begin(task, inbox_poll_s=0.02)
    wanted = [lab.child("house", 1, context={"house.main.given": "key"})]
    rows = one.spawn(wanted)
    driving = Background(one.host.drive, rows)
    house.cancel(one.process, rows[0].run_id)
    driving.join()
    one.host.close()
    return one, rows[0].run_id


def assert_afresh(lab: HostLab, first: UUID, second: UUID) -> None:
    """Check that the second generation began with the request and the context of the first one, and knows nothing of it."""
    started, before = lab.started(second), lab.started(first)
    assert started.continues is None
    assert (started.generation, started.initial_snapshot_id, started.manifest_id) == (
        2,
        before.initial_snapshot_id,
        before.manifest_id,
    )
    assert lab.world.counts == {"number": 2, "opened": 2, "closed": 1}
    assert lab.row(second).status == "Completed"
    assert lab.final(second)["house.main.context"] == "key"
    for row in lab.all_runs():
        assert verify_run(lab.store, row.run_id) == []


def test_a_retry_starts_afresh_what_was_cleaned_up(lab: HostLab) -> None:
    house = House(lab)
    _, first = cancelled(lab, house)
    two = lab.begin(TASK.retry())
    assert statuses(two.run([lab.child("house", 1, context={"house.main.given": "key"})])) == ["Completed"]
    assert_afresh(lab, first, child_run_id(lab.host_id(TASK), "house/1", 2))
    assert lab.tries(TASK)[-1]["keys"] == [{"key": "house/1", "generation": 2}]


def test_a_clear_starts_afresh_what_was_cleaned_up(lab: HostLab) -> None:
    house = House(lab)
    _, first = cancelled(lab, house)
    wanted = [lab.child("house", 1, context={"house.main.given": "key"})]
    assert statuses(lab.begin(TASK.clear()).run(wanted, "resume_failed")) == ["Completed"]
    assert_afresh(lab, first, child_run_id(lab.host_id(TASK), "house/1", 2))


def test_a_retry_that_does_not_name_it_starts_it_afresh_from_the_record(lab: HostLab) -> None:
    """The retry completes the list of the try before; what its own list lost is asked for as it was."""
    house = House(lab)
    _, first = cancelled(lab, house)
    assert statuses(lab.begin(TASK.retry()).run([])) == ["Completed"]
    assert_afresh(lab, first, child_run_id(lab.host_id(TASK), "house/1", 2))


def test_a_task_that_only_awaits_starts_afresh_what_was_cleaned_up(lab: HostLab) -> None:
    house = House(lab)
    one = lab.begin(TASK)
    handles = one.handles(one.spawn([lab.child("house", 1, context={"house.main.given": "key"})]))
    one.host.close()
    awaiting = AirflowTask("await")
    two = lab.begin(awaiting, inbox_poll_s=0.02)
    rows = two.host.attach(handles)
    driving = Background(two.host.drive, rows)
    house.cancel(two.process, rows[0].run_id)
    driving.join()
    two.host.close()
    assert statuses(lab.begin(awaiting.retry()).join(handles)) == ["Completed"]
    assert_afresh(lab, rows[0].run_id, child_run_id(lab.host_id(TASK), "house/1", 2))


def test_a_tree_that_heals_starts_afresh_what_was_cleaned_up(lab: HostLab) -> None:
    """The parent is continued, its child is not."""
    house = House(lab)

    def parent(stage: Stage) -> None:
        child = stage.spawn("house", "h", 1, context={"house.main.given": "key"})
        if stage.join(child, "end")["status"] != "Completed":
            raise ValueError("the child did not complete")

    lab.put("street", parent)
    lab.put("town", lambda s: s.write("end", s.join(s.spawn("street", "s"), "e")["status"]))
    process = lab.process(inbox_poll_s=0.02)
    town = process.create("town")
    driving = Background(process.resume, town)
    top = child_run_id(town, "s")
    first = child_run_id(top, "h")
    house.cancel(process, first)
    assert driving.join().phase == "Completed"
    assert lab.row(top).status == "Failed"
    opened = next_generation(process.house, lab.row(top), RunIdentity(town, town, town, 0))
    assert isinstance(lab.store.commit([Commit(uuid4(), (opened.step,), opened.artifacts)])[0], Committed)
    assert process.resume(opened.run_id).phase == "Completed"
    assert lab.started(opened.run_id).continues is not None
    assert_afresh(lab, first, child_run_id(top, "h", 2))


def test_what_has_no_clean_up_is_continued_after_a_cancel(lab: HostLab) -> None:
    """The counterpart: its completed state stays completed."""
    house = House(lab, tidies=False)
    cancelled(lab, house)
    wanted = [lab.child("house", 1, context={"house.main.given": "key"})]
    assert statuses(lab.begin(TASK.retry()).run(wanted)) == ["Completed"]
    assert lab.world.counts == {"number": 1, "opened": 1}


def test_what_was_cancelled_before_it_entered_a_state_is_continued(lab: HostLab) -> None:
    """Its clean-up never ran."""
    House(lab).hangs = False
    one = lab.begin(TASK)
    rows = one.spawn(lab.wanted("house", [1]))
    assert cancel_run(one.process.house, rows[0].run_id, "too early") == {rows[0].run_id: "cancelled"}
    one.host.close()
    assert statuses(lab.begin(TASK.retry()).run(lab.wanted("house", [1]))) == ["Completed"]
    assert lab.started(child_run_id(lab.host_id(TASK), "house/1", 2)).continues is not None


def test_a_close_is_not_withdrawn_once_the_clean_up_was_entered(lab: HostLab) -> None:
    """A process dies in the clean-up; whatever is posted meanwhile, the next one cleans up and ends the run."""
    House(lab)
    first = lab.process(inbox_poll_s=0.02)
    run_id = first.create("house")
    lab.world.scripts["closed"] = [lambda request: first.crash()]
    Background(first.resume, run_id)
    eventually(lambda: lab.world.counts.get("opened", 0) > 0)
    lab.store.post([InboxPost(run_id, uuid4(), CLOSE, request_body("its task is over"))])
    eventually(lambda: lab.world.counts.get("closed", 0) > 0)
    lab.store.post([InboxPost(run_id, uuid4(), WITHDRAW, b"{}")])
    assert lab.process().resume(run_id).phase == "Cancelled"
    assert lab.world.counts == {"number": 1, "opened": 1, "closed": 2}


def test_a_clean_up_that_fails_is_entered_all_the_same(lab: HostLab) -> None:
    house = House(lab)
    lab.world.scripts["closed"] = [OtherIoError("jammed", code="jammed")]
    _, first = cancelled(lab, house)
    assert statuses(lab.begin(TASK.retry()).run([lab.child("house", 1, context={"house.main.given": "key"})])) == [
        "Completed"
    ]
    assert_afresh(lab, first, child_run_id(lab.host_id(TASK), "house/1", 2))


def test_no_state_may_have_the_name_of_the_clean_up() -> None:
    """Else one id would stand for two handlers."""
    op = Operation("confused", version="1")
    with pytest.raises(InvalidPlanError) as caught:

        @op.state
        def on_cancel(io: object) -> None:
            """Never run."""

    assert caught.value.code == "duplicate_state_id"
