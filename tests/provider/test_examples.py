"""The examples are parsed, stay the same from parse to parse, and really run."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import pytest

from airflow_childrun.demo.airflow_home import AirflowHome as ThrowawayAirflow
from airflow_childrun.demo.billing import BillingServer
from airflow_childrun.hooks.connection import open_store, settings_from_url
from airflow_childrun.store.api import RunFilter, RunRow, Store
from tests.provider.conftest import ROOT, AirflowHome

pytestmark = [pytest.mark.provider, pytest.mark.slow]

EXAMPLES = ROOT / "dags_examples"
DAG_IDS = {"monthly_invoices", "ingest", "company_report"}

_PARSE = """
import hashlib, json, sys
from airflow.dag_processing.dagbag import DagBag
from airflow.serialization.serialized_objects import DagSerialization
bag = DagBag(sys.argv[1])
assert not bag.import_errors, bag.import_errors
for dag in bag.dags.values():
    data = json.dumps(DagSerialization.to_dict(dag), sort_keys=True)
    params = {name: dag.params.get_param(name).schema for name in dag.params}
    print("DAG " + json.dumps([dag.dag_id, hashlib.sha256(data.encode()).hexdigest(), params]))
"""


@pytest.fixture(scope="module")
def home(airflow_home: AirflowHome) -> AirflowHome:
    """Give an Airflow that loads the examples and has a store."""
    done = airflow_home.childrun("init")
    assert done.status == 0, done.text
    return AirflowHome(airflow_home.path, {**airflow_home.environment, "AIRFLOW__CORE__DAGS_FOLDER": str(EXAMPLES)})


@pytest.fixture(scope="module")
def store(home: AirflowHome) -> Store:
    """Give the store of that Airflow."""
    return open_url(f"sqlite:///{home.path}/childrun.db")


def open_url(url: str) -> Store:
    """Open a store by its URL."""
    return open_store(settings_from_url(url, None))


def outputs_of(store: Store, rows: list[RunRow], state: str = "main") -> list[Any]:
    """Return what a state of these runs returned: the last one's result is the output."""
    found = []
    for row in rows:
        assert row.status == "Completed"
        snapshot_id = row.final_snapshot_id or ""
        snapshot = json.loads(store.get_artifacts(row.root_run_id, [snapshot_id])[snapshot_id])
        found.append(snapshot[f"{row.op_id}.main.{state}"])
    return found


def newest_children(store: Store, dag_id: str) -> list[RunRow]:
    """Return the children of the newest task instance of a DAG that has some."""
    hosts = sorted(store.find_runs(RunFilter(dag_id=dag_id)).rows, key=lambda row: row.created_at, reverse=True)
    return next(found for host in hosts if (found := store.children_of(host.run_id)))


def test_examples_parse_and_serialize_the_same_in_every_process(home: AirflowHome) -> None:
    """A DAG whose serialized form changed by itself would get a new version at every parse."""
    first, second = (
        [line for line in home.python(_PARSE, str(EXAMPLES), PYTHONHASHSEED=seed).out.splitlines() if "DAG " in line]
        for seed in ("1", "2")
    )
    assert first == second
    parsed = {dag_id: params for dag_id, _, params in (json.loads(line.partition("DAG ")[2]) for line in first)}
    assert set(parsed) == DAG_IDS
    # The form in the UI is made of the operation's type hints.
    items = parsed["monthly_invoices"]["customers"]["items"]
    assert {name: field["type"] for name, field in items["properties"].items()} == {"id": "string", "seats": "integer"}


# --------------------------------------------------------------------------------------------------- monthly invoices


def test_invoices_are_made_for_every_customer_of_the_schedule(home: AirflowHome, store: Store) -> None:
    """Without input, as on its schedule, every customer gets one invoice: two calls each, none repeated."""
    with BillingServer() as billing:
        done = home.airflow("dags", "test", "monthly_invoices", "2026-03-01", AIRFLOW_CONN_BILLING=billing.url)
    assert done.status == 0, done.text
    assert len(billing.calls) == 24
    assert billing.repeated == 0
    outputs = outputs_of(store, newest_children(store, "monthly_invoices"))
    assert len(outputs) == 12
    assert sum(output["cents"] for output in outputs) == 554_800


def test_invoices_can_be_made_by_hand_for_one_customer(home: AirflowHome, store: Store) -> None:
    """What the form sends decides who is billed, and for which month."""
    conf = {"customers": [{"id": "grove", "seats": 2}], "month": "2026-02"}
    with BillingServer() as billing:
        done = home.airflow(
            "dags", "test", "monthly_invoices", "--conf", json.dumps(conf), AIRFLOW_CONN_BILLING=billing.url
        )
    assert done.status == 0, done.text
    (row,) = newest_children(store, "monthly_invoices")
    assert outputs_of(store, [row]) == [{"invoice": "grove-2026-02", "cents": 3800}]


def test_a_form_that_does_not_fit_the_type_hints_is_refused(home: AirflowHome) -> None:
    """Airflow checks the input against the operation's schema before anything runs."""
    conf = {"customers": [{"id": "grove", "seats": "many"}]}
    with BillingServer() as billing:
        done = home.airflow(
            "dags", "test", "monthly_invoices", "--conf", json.dumps(conf), AIRFLOW_CONN_BILLING=billing.url
        )
    assert "'many' is not of type 'integer'" in done.text
    assert billing.calls == []


# ------------------------------------------------------------------------------------------------------------- ingest


class OrdersApi:
    """Serves pages of orders, refuses the first request for each, and counts.

    :param requests: how often each (source, page) was asked for
    :param on_request: called with (source, page) before a request is answered well
    """

    PAGES = 3

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        self.on_request: Callable[[str, int], None] = lambda *_: None
        self._lock = threading.Lock()
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                api._answer(self)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        url = urlsplit(request.path)
        source, page = url.path.rpartition("/")[2], int(parse_qs(url.query)["page"][0])
        with self._lock:
            self.requests[source, page] += 1
            refused = self.requests[source, page] == 1
        if not refused:
            self.on_request(source, page)
        orders = [{"id": page * 10 + n, "day": f"2026-01-0{page}", "amount": f"{n}.10"} for n in range(1, 4)]
        body = json.dumps({"pages": self.PAGES, "orders": orders}).encode()
        request.send_response(503 if refused else 200)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)


def rows_in(warehouse: Path) -> dict[str, int]:
    """Return how many rows each source has in the table."""
    connection = sqlite3.connect(warehouse)
    found = dict(connection.execute("SELECT source, count(*) FROM orders GROUP BY source").fetchall())
    connection.close()
    return found


@dataclass(frozen=True)
class Ingested:
    """An ingest that nothing disturbed but the API itself."""

    requests: Counter[tuple[str, int]]
    rows: dict[str, int]
    children: list[RunRow]


@pytest.fixture(scope="module")
def ingested(home: AirflowHome, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Ingested:
    """Run the example once."""
    warehouse = tmp_path_factory.mktemp("ingest") / "warehouse.db"
    with OrdersApi() as api:
        connections = {
            "AIRFLOW_CONN_ORDERS_API": api.url,
            "AIRFLOW_CONN_WAREHOUSE": f"sqlite:///{warehouse}",
        }
        done = home.airflow("dags", "test", "ingest", **connections)
    assert done.status == 0, done.text
    return Ingested(api.requests, rows_in(warehouse), newest_children(store, "ingest"))


def test_ingest_outlasts_a_flaky_api(store: Store, ingested: Ingested) -> None:
    """Each page is asked for until it is answered and never again; every state's result is checkpointed."""
    assert set(ingested.requests.values()) == {2}
    assert len(ingested.requests) == 9
    assert ingested.rows == {"web": 9, "shop": 9, "partner": 9}
    outputs = outputs_of(store, ingested.children, "summarise")
    assert sorted(outputs, key=lambda output: output["source"]) == [
        {"source": source, "rows": 9, "amount": "18.90"} for source in ("partner", "shop", "web")
    ]


@pytest.mark.stack
@pytest.mark.fault
def test_ingest_killed_within_a_call_ends_as_if_nothing_had_happened(ingested: Ingested, tmp_path: Path) -> None:
    """SIGKILL while a page is on its way: the retry asks for that page alone, and the result has the same id."""
    api, task = OrdersApi(), "/dags/ingest/dagRuns/killed/taskInstances/ingest"
    connections = {"orders_api": api.url, "warehouse": f"sqlite:///{tmp_path}/warehouse.db"}
    with api, ThrowawayAirflow([EXAMPLES / "ingest.py"], connections=connections) as airflow:
        airflow.prepare()
        airflow.start()
        killed: list[int] = []

        def kill(source: str, page: int) -> None:
            if (source, page) == ("shop", 2) and not killed:
                killed.append(airflow.get(task)["pid"])
                os.kill(killed[0], signal.SIGKILL)

        api.on_request = kill
        airflow.trigger("ingest", "killed")
        airflow.wait_for("ingest to succeed", lambda: airflow.get(task)["state"] in ("success", "failed"), 120)
        assert airflow.get(task)["try_number"] == 2, airflow.task_log()
        assert airflow.get(task)["state"] == "success", airflow.task_log()
        ends = {row.final_snapshot_id for row in newest_children(open_url(airflow.store_url), "ingest")}
    assert len(killed) == 1
    # One request was refused, one answered; those in flight at the kill were made again, at most one for each child.
    assert api.requests["shop", 2] == 3
    assert sum(api.requests.values()) <= 9 * 2 + 3
    assert rows_in(tmp_path / "warehouse.db") == {"web": 9, "shop": 9, "partner": 9}
    assert ends == {row.final_snapshot_id for row in ingested.children}


# ----------------------------------------------------------------------------------------------------- company report


def test_company_report_adds_up_a_tree_and_names_what_is_missing(home: AirflowHome, store: Store) -> None:
    """Three levels run in one task; a store that fails is a result, not the end of the report."""
    done = home.airflow("dags", "test", "company_report")
    assert done.status == 0, done.text
    assert "company_report/acme: 597 without cadiz" in done.text
    assert "company_report/zenith: 18\n" in done.text
    companies = newest_children(store, "company_report")
    regions = [region for company in companies for region in store.children_of(company.run_id)]
    stores = [shop for region in regions for shop in store.children_of(region.run_id)]
    assert (len(companies), len(regions), len(stores)) == (2, 3, 6)
    assert Counter(row.status for row in stores) == {"Completed": 5, "Failed": 1}
