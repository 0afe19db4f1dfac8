"""``childrun runs`` and ``childrun verify``: stable output for programs, telling output for people."""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from airflow_childrun.canonical import artifact_id, canonical_json_bytes
from airflow_childrun.cli.main import main
from airflow_childrun.hooks import connection
from airflow_childrun.ids import child_run_id
from airflow_childrun.model.events import (
    DomainEvent,
    Event,
    Failure,
    Parent,
    RunCompleted,
    RunStarted,
    StateCompleted,
    StateEntered,
    StateFailed,
)
from airflow_childrun.store.api import AirflowCoordinates, Artifact, Commit, Committed, NewRun, RunStep
from airflow_childrun.store.codec import encode_event
from airflow_childrun.store.projection import moves_of
from airflow_childrun.store.sql import migrate
from airflow_childrun.store.sql.store import SqlStore

pytestmark = pytest.mark.provider

ROOT = uuid.UUID("11111111-0000-5000-8000-000000000001")
HOST = uuid.UUID("11111111-0000-5000-8000-000000000002")
CUSTOMERS = [f"customer-{n:02d}" for n in range(12)]
SNAPSHOT = canonical_json_bytes({"bill.main.total": 42})
DECLINED = {"code": "card_declined", "category": "Rpc", "retryable": False, "message": "no [money]", "details": None}


@dataclass
class Written:
    """A store with one host run, twelve children and one grandchild, of which one child failed and was continued."""

    url: str
    store: SqlStore
    path: Path

    def write(self, run_id: uuid.UUID, events: Sequence[Event], **row: Any) -> None:
        """Create a run with its whole history."""
        artifacts = [Artifact(ROOT, artifact_id(body), "Snapshot", body) for body in (b"{}", SNAPSHOT)]
        started = events[0]
        assert isinstance(started, RunStarted)
        new = NewRun(
            kind=started.kind,
            parent_run_id=uuid.UUID(started.parent.run_id) if started.parent else None,
            root_run_id=ROOT,
            depth=started.depth,
            generation=started.generation,
            op_id=started.op_id,
            op_version=started.op_version or "",
            manifest_id=started.manifest_id,
            initial_snapshot_id=started.initial_snapshot_id,
            **row,
        )
        step = RunStep(run_id, 0, None, tuple(map(encode_event, events)), moves_of(events), create=new)
        (done,) = self.store.commit([Commit(uuid.uuid4(), (step,), tuple(artifacts))])
        assert isinstance(done, Committed), done

    def child(
        self, parent: uuid.UUID, key: str, *, depth: int = 1, generation: int = 1, fails: bool = False
    ) -> uuid.UUID:
        """Create an ended child."""
        slot = child_run_id(parent, key)
        empty, final = artifact_id(b"{}"), artifact_id(SNAPSHOT)
        started = RunStarted(
            op_id="bill",
            manifest_id=empty,
            initial_snapshot_id=empty,
            engine=1,
            op_version="1",
            parent=Parent(run_id=str(parent), fact_key=key, slot_owner_id=str(parent)),
            root_run_id=str(ROOT),
            depth=depth,
            generation=generation,
        )
        entered = StateEntered(state_id="bill.main.charge", attempt=0, base_snapshot_id=empty)
        failure = StateFailed(state_id="bill.main.charge", error=Failure(state_id="bill.main.charge", info=DECLINED))
        end: list[Event] = (
            [failure, RunCompleted(status="Failed", final_snapshot_id=empty)]
            if fails
            else [
                DomainEvent(name="fact_recorded", payload={"key": "charge/bill#0", "payload_id": final, "meta": {}}),
                StateCompleted(state_id="bill.main.charge", context_snapshot_id=final),
                RunCompleted(status="Completed", final_snapshot_id=final),
            ]
        )
        run_id = child_run_id(parent, key, generation)
        self.write(run_id, [started, entered, *end], slot_id=slot)
        return run_id


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Written]:
    path = tmp_path_factory.mktemp("store") / "runs.db"
    url = f"sqlite:///{path}"
    migrate.upgrade(url)
    made = Written(url, SqlStore(url), path)
    empty = artifact_id(b"{}")
    at = AirflowCoordinates("billing", "manual__2026-01-05", "invoices", 3)
    host = RunStarted(
        op_id="task_instance",
        manifest_id=empty,
        initial_snapshot_id=empty,
        engine=1,
        kind="task_instance",
        op_version="1",
        root_run_id=str(ROOT),
        airflow={"dag_id": at.dag_id},
    )
    made.write(HOST, [host], slot_id=HOST, airflow=at)
    for key in CUSTOMERS:
        made.child(HOST, key, fails=key == "customer-07")
    made.child(HOST, "customer-07", generation=2)
    made.child(child_run_id(HOST, "customer-11"), "audit", depth=2, fails=True)
    yield made
    made.store.close()


@pytest.fixture
def childrun(written: Written, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Give a function that runs a command on the module's store: status, output, errors."""

    def run(*arguments: str, url: str | None = None) -> tuple[int, str, str]:
        status = main([*arguments, "--url", url or written.url])
        out, err = capsys.readouterr()
        return status, out, err

    yield run
    for store in connection._open.values():
        store.close()
    connection._open.clear()


Run = Callable[..., tuple[int, str, str]]


def test_a_list_has_stable_columns_and_the_newest_first(childrun: Run) -> None:
    """People see status, operation, key, generation, start, duration and error code of each run, and no id is cut."""
    status, out, _ = childrun("runs", "list")
    assert status == 0
    header, newest, *rest = out.splitlines()
    assert header.split("  ")[0] == "RUN"
    assert " ".join(header.split()) == "RUN STATUS OPERATION KEY GEN STARTED (UTC) DURATION ERROR"
    grandchild = child_run_id(child_run_id(HOST, "customer-11"), "audit")
    assert newest.split()[:5] == [str(grandchild), "Failed", "bill@1", "audit", "1"]
    assert newest.endswith("card_declined")
    assert len(rest) == 14
    assert rest[-1].split()[:3] == [str(HOST), "-", "billing.invoices[3]"]
    assert not any(line != line.rstrip() for line in out.splitlines())


def test_filters_and_json(childrun: Run) -> None:
    """Programs read one object a line, whose names are stable; filters combine."""
    status, out, _ = childrun("runs", "list", "--status", "Failed", "--parent", str(HOST)[:8], "--json")
    assert status == 0
    (found,) = map(json.loads, out.splitlines())
    assert (found["key"], found["error_code"], found["generation"]) == ("customer-07", "card_declined", 1)
    assert set(found) == {
        "run_id",
        "kind",
        "status",
        "operation",
        "version",
        "key",
        "generation",
        "parent_run_id",
        "root_run_id",
        "slot_id",
        "depth",
        "events",
        "created_at",
        "ended_at",
        "duration_us",
        "deadline_at",
        "wake_at",
        "error_code",
        "final_snapshot_id",
        "lease_session_id",
        "airflow",
    }
    status, out, _ = childrun("runs", "list", "--dag-id", "billing", "--json")
    assert json.loads(out)["airflow"] == {
        "dag_id": "billing",
        "dag_run_id": "manual__2026-01-05",
        "task_id": "invoices",
        "map_index": 3,
    }
    assert len(childrun("runs", "list", "--limit", "5", "--json")[1].splitlines()) == 5


def test_an_id_may_be_shortened_while_it_is_unique(childrun: Run) -> None:
    """With or without hyphens, in either case; what fits several or none is refused with what to do."""
    run_id = child_run_id(HOST, "customer-03")
    for text in (str(run_id), run_id.hex, str(run_id)[:10], run_id.hex[:9].upper()):
        status, out, _ = childrun("runs", "show", text, "--json")
        assert (status, json.loads(out)["run_id"]) == (0, str(run_id))
    digits = [json.loads(line)["run_id"][0] for line in childrun("runs", "list", "--json")[1].splitlines()]
    shared = max(digits, key=digits.count)
    for text, code in (
        (shared, "run_id_ambiguous"),
        ("ffffffffffff", "run_not_found"),
        ("", "run_id_invalid"),
        ("xyz", "run_id_invalid"),
    ):
        status, out, err = childrun("runs", "show", text)
        assert (status, out) == (2, "")
        assert err.startswith(f"error [{code}]: ")
        assert err.count("\n") == 1


def test_one_run_is_shown_with_its_result_and_children(childrun: Run) -> None:
    """Its row, its snapshot, and its children counted by status."""
    status, out, _ = childrun("runs", "show", str(HOST))
    assert status == 0
    assert "billing.invoices[3]" in out
    assert "manual__2026-01-05" in out
    assert "children 12: 12 Completed" in out
    assert f"childrun runs list --parent {HOST}" in out
    shown = json.loads(childrun("runs", "show", str(child_run_id(HOST, "customer-00")), "--json")[1])
    assert shown["snapshot"] == {"bill.main.total": 42}


def test_a_history_is_readable(childrun: Run) -> None:
    """Events in order, with what they are about; text of users is no markup."""
    run_id = str(child_run_id(HOST, "customer-07"))
    status, out, _ = childrun("runs", "events", run_id)
    assert status == 0
    lines = [line.split() for line in out.splitlines()]
    assert [(line[0], line[5]) for line in lines[1:]] == [
        ("1", "RunStarted"),
        ("2", "StateEntered"),
        ("3", "StateFailed"),
        ("4", "RunCompleted"),
    ]
    assert "bill.main.charge: [card_declined] no [money]" in out
    events = [json.loads(line) for line in childrun("runs", "events", run_id, "--json")[1].splitlines()]
    assert [each["seq"] for each in events] == [1, 2, 3, 4]
    assert events[3]["event"]["Kernel"]["RunCompleted"]["status"] == "Failed"


def test_a_tree_shows_each_slot_once_and_leaves_out_no_failure(childrun: Run) -> None:
    """Each slot once; where not all children are drawn, those that failed are, and the others are counted."""
    status, out, _ = childrun("runs", "tree", str(HOST))
    lines = out.splitlines()
    assert status == 0
    assert lines[0] == "billing.invoices[3]  manual__2026-01-05"
    assert [key for key in CUSTOMERS if sum(key in line for line in lines) != 1] == []
    assert sum("generation 2" in line for line in lines) == 1
    assert "✗ audit  bill  Failed" in lines[-1]
    _, out, _ = childrun("runs", "tree", str(child_run_id(HOST, "customer-11"))[:13], "--root", "--width", "2")
    assert out.splitlines()[0] == lines[0]
    assert "... 10 more: 10 Completed" in out
    assert len(childrun("runs", "tree", str(HOST), "--json")[1].splitlines()) == 15
    assert childrun("runs", "tree", str(ROOT))[1].splitlines() == lines, "a DAG run's id shows all of its tasks"


def test_verify_finds_nothing_in_what_was_written(childrun: Run) -> None:
    """Exit 0 and the number of runs and events looked at; of one run, with all below it."""
    assert childrun("verify", "--all")[:2] == (0, "nothing wrong in 15 runs with 69 events\n")
    status, out, _ = childrun("verify", str(child_run_id(HOST, "customer-11")), "--json")
    assert (status, json.loads(out)) == (0, {"runs": 2, "events": 9, "findings": 0})
    status, _, err = childrun("verify")
    assert status == 2
    assert err.startswith("error [usage]: ")


def test_verify_finds_what_was_changed(childrun: Run, written: Written, tmp_path: Path) -> None:
    """Exit 1, and a line that names run, event and finding."""
    copy = tmp_path / "changed.db"
    with closing(sqlite3.connect(written.path)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
        run_id = child_run_id(HOST, "customer-05")
        target.execute("UPDATE childrun_run SET status = 'Failed' WHERE run_id = ?", [run_id.bytes])
        target.commit()
    status, out, _ = childrun("verify", "--all", url=f"sqlite:///{copy}")
    assert status == 1
    (line,) = (line for line in out.splitlines() if str(run_id) in line)
    assert "row_mismatch" in line
    assert "column status is Failed, not Completed" in line
    found = [
        json.loads(line) for line in childrun("verify", "--all", "--json", url=f"sqlite:///{copy}")[1].splitlines()
    ]
    assert (found[0]["code"], found[-1]["findings"]) == ("row_mismatch", 1)


def test_a_damaged_run_does_not_end_a_list(childrun: Run, written: Written, tmp_path: Path) -> None:
    """A list is what one looks at when something is wrong: it goes on past a first event that cannot be read."""
    copy = tmp_path / "damaged.db"
    with closing(sqlite3.connect(written.path)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
        run_id = child_run_id(HOST, "customer-05")
        target.execute("UPDATE childrun_event SET body = X'7B7D' WHERE run_id = ? AND seq = 1", [run_id.bytes])
        target.commit()
    status, out, _ = childrun("runs", "list", "--json", url=f"sqlite:///{copy}")
    assert status == 0
    assert {each["run_id"]: each["key"] for each in map(json.loads, out.splitlines())}[str(run_id)] is None


def test_a_run_whose_result_is_damaged_is_shown_all_the_same(childrun: Run, written: Written, tmp_path: Path) -> None:
    """All but the result is there to read; the error, its code and the exit status say what is not."""
    copy = tmp_path / "damaged.db"
    with closing(sqlite3.connect(written.path)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
        run_id = str(child_run_id(HOST, "customer-05"))
        target.execute(
            "UPDATE childrun_artifact SET body = X'7B7D7B' WHERE id = ?", [bytes.fromhex(artifact_id(SNAPSHOT))]
        )
        assert target.total_changes == 1
        target.commit()
    status, out, err = childrun("runs", "show", run_id, url=f"sqlite:///{copy}")
    assert status == 2
    assert "customer-05" in out
    assert err.startswith("error [artifact_content_address_mismatch]: ")
    status, out, _ = childrun("runs", "show", run_id, "--json", url=f"sqlite:///{copy}")
    assert (status, json.loads(out)["snapshot"]) == (2, None)
