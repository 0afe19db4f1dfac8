"""More than one DAG file, more than one Airflow, more than one version of a bundle. Outcomes stand first."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.postgres import PostgresServer
from tests.stack.changes import ChangingFile
from tests.stack.records import Records
from tests.stack.stand import Stand, StandError, started
from tests.stack.test_fate import Gate, is_alive, wait_until

pytestmark = [pytest.mark.stack, pytest.mark.provider, pytest.mark.long]


def test_a_task_of_another_dag_file_awaits_what_has_ended_and_names_what_it_cannot_drive(
    stand: Stand, records: Records
):
    """Handles carry their root's id: what completed is returned; what only the other file knows is an error that says so."""
    stand.browser.trigger("stand_apart", "foreign", {"items": ["a"]})
    assert stand.browser.wait_for_run("stand_apart", "foreign") == "success"
    handles = stand.browser.xcom("stand_apart", "foreign", "spawn")
    stand.browser.trigger("stand_elsewhere", "ended", {"handles": handles})
    assert stand.browser.wait_for_run("stand_elsewhere", "ended") == "success"
    assert [each["output"] for each in stand.browser.xcom("stand_elsewhere", "ended", "await")] == ["A checked, stored"]
    assert stand.witness.counts("foreign/")["foreign/a/fetch"] == 1
    stand.browser.trigger("stand_left", "unreachable")
    stand.browser.wait_for_task("stand_left", "unreachable", "spawn", "success")
    handles = stand.browser.xcom("stand_left", "unreachable", "spawn")
    stand.browser.trigger("stand_elsewhere", "pending", {"handles": handles})
    assert stand.browser.wait_for_run("stand_elsewhere", "pending") == "failed"
    log = stand.browser.log("stand_elsewhere", "pending", "await", 1)
    print(log)
    assert "operation_not_reachable" in log
    assert "'square'" in log
    assert records.statuses("stand_left", "unreachable") == [(1, "Pending")] * 2


@pytest.fixture
def neighbour(stand: Stand, postgres_server: PostgresServer) -> Iterator[Stand]:
    """Give a second Airflow, whose connection leads to the first one's store, under a deployment id of its own."""

    def share(other: Stand) -> None:
        (found,) = json.loads(stand.airflow("connections", "get", "childrun_default", "-o", "json"))
        shown = found["extra_dejson"]
        extra = {**(json.loads(shown) if isinstance(shown, str) else shown), "deployment_id": "staging"}
        fields = {
            name: found[name]
            for name in ("conn_type", "host", "port", "schema", "login", "password")
            if found.get(name)
        }
        other.airflow("connections", "add", "childrun_default", "--conn-json", json.dumps({**fields, "extra": extra}))

    with started(postgres_server, make_store=share) as made:
        (made.home / "flags").mkdir()
        yield made


def test_two_airflows_on_one_store_leave_each_other_alone(stand: Stand, neighbour: Stand, records: Records):
    """Same DAG, same run id, same inputs: two trees, each with its own children and its own calls; sweeps keep apart."""
    for each in (stand, neighbour):
        each.browser.trigger("stand_once", "twins", {"items": ["a"]})
        assert each.browser.wait_for_run("stand_once", "twins") == "success"
        assert set(each.witness.counts("twins/").values()) == {1}
    hosts = records.hosts("stand_once", "twins")
    assert len({host.root_run_id for host in hosts}) == 2
    assert records.statuses("stand_once", "twins") == [(1, "Completed")] * 2
    assert records.findings("stand_once", "twins") == []
    stand.browser.trigger("stand_left", "mine")
    assert stand.browser.wait_for_run("stand_left", "mine") == "failed"
    with pytest.raises(StandError, match="belongs to another Airflow"):
        neighbour.childrun("recover")
    assert records.statuses("stand_left", "mine") == [(1, "Pending")] * 2
    stand.childrun("recover")
    assert records.statuses("stand_left", "mine") == [(1, "Cancelled")] * 2


@pytest.fixture
def versioned(postgres_server: PostgresServer, tmp_path: Path) -> Iterator[Stand]:
    """Give an Airflow whose bundle has versions: a folder each, the newest being the last by name."""
    bundles = [{"name": "versioned", "classpath": "tests.stack.bundle.FolderBundle", "kwargs": {}}]
    settings = {"AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps(bundles)}
    with started(postgres_server, tmp_path, settings=settings) as made:
        yield made


def test_a_run_of_a_bundle_with_versions_keeps_the_code_that_it_began_with(
    versioned: Stand, shut_of: Callable[[Stand, str], Gate]
):
    """A retry drives the children by the old version's plan, a clear on the latest version by the new one, afresh."""
    stand, records = versioned, Records.of(versioned)
    old, new = (stand.home / "versions" / name for name in ("v1", "v2"))
    new.with_name("v2.new").mkdir(parents=True)
    old.mkdir()
    ChangingFile(stand, "bundled", folder=old).write("old")
    file = ChangingFile(stand, "bundled", folder=new.with_name("v2.new"))
    file.write("new", state="start")
    file.wait_until_known()
    held = shut_of(stand, "pinned/a/second")
    stand.browser.trigger("bundled", "pinned")
    pid = held.wait_for_call()
    new.with_name("v2.new").rename(new)
    wait_until(lambda: stand.browser.get("/dags/bundled")["bundle_version"] == "v2", "the new version is parsed", 60)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid), "it is gone")
    held.open()
    assert stand.browser.wait_for_run("bundled", "pinned") == "success"
    assert [each["output"] for each in stand.browser.xcom("bundled", "pinned", "spawn")] == ["a old"]
    assert records.statuses("bundled", "pinned") == [(1, "Completed")]
    stand.browser.clear("bundled", "pinned", "spawn", run_on_latest_version=True)
    stand.browser.wait_for_task("bundled", "pinned", "spawn", "success", least_try=3)
    assert [each["output"] for each in stand.browser.xcom("bundled", "pinned", "spawn")] == ["a new"]
    assert records.statuses("bundled", "pinned") == [(1, "Completed"), (2, "Completed")]
    records.store.close()


@pytest.fixture
def shut_of() -> Iterator[Callable[[Stand, str], Gate]]:
    """Give a function that holds answers of any stand's witness."""
    made: list[Gate] = []

    def close(stand: Stand, prefix: str) -> Gate:
        made.append(Gate(stand, prefix))
        return made[-1]

    yield close
    for each in made:
        each.stand.witness.on_call = lambda _: None
        each.open()
