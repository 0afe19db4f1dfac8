"""Ingest: every source is read from a flaky HTTP API, page by page, and written to a table.

The API refuses some requests and answers slowly, so a run of an hour is tried again often. What was read is never asked
for again: a page is recorded when it arrives, and every state ends with a checkpoint. The table is written by key, so
that a write which was in flight when the worker died can simply be made again. Nothing here depends on the time or on
chance: a run that was killed ten times ends as one that was not.

Needs an HTTP connection ``orders_api`` and a connection ``warehouse``, here a file of SQLite.
"""

from __future__ import annotations

import datetime as dt
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import httpx
from airflow.sdk import DAG, BaseHook

from airflow_childrun import Operation, SpawnChildRunOperator


@dataclass
class Order:
    """A row of the table."""

    id: int
    day: dt.date
    amount: Decimal


@dataclass
class Page:
    """What the API answers."""

    pages: int
    orders: list[Order]


# [START operation]
ingest = Operation("ingest_source", version="1")


@ingest.state
def fetch(io: Any, source: str) -> list[Order]:
    """Read every page; each is a step of its own, tried again when the API is moody."""
    first = io.step(read_page, source, 1, retry=5)
    rest = [io.step(read_page, source, number, retry=5) for number in range(2, first.pages + 1)]
    return [order for page in (first, *rest) for order in page.orders]


@ingest.state(side_effects="ApplySideEffect", idempotency="source and order id")
def load(io: Any, source: str, fetch: list[Order]) -> int:
    """Write what ``fetch`` returned: a parameter with a state's name is that state's result."""
    return int(io.step(write_orders, source, fetch, retry=5))


@ingest.state
def summarise(source: str, fetch: list[Order], load: int) -> dict[str, Any]:
    """Return the output of the run: what the last state returns."""
    return {"source": source, "rows": load, "amount": sum((order.amount for order in fetch), Decimal(0))}


# [END operation]


def read_page(source: str, number: int) -> Page:
    """Ask the API for a page; the type hint says what is made of its JSON, now and when it is read back."""
    url = BaseHook.get_connection("orders_api").get_uri().rstrip("/")
    page: Page = httpx.get(f"{url}/orders/{source}", params={"page": number}).raise_for_status().json()
    return page


def write_orders(source: str, orders: list[Order]) -> int:
    """Write rows by key: written twice, they are the same rows."""
    rows = [(source, order.id, order.day.isoformat(), str(order.amount)) for order in orders]
    with closing(sqlite3.connect(BaseHook.get_connection("warehouse").schema or "")) as connection, connection:
        connection.execute("CREATE TABLE IF NOT EXISTS orders (source, id, day, amount, PRIMARY KEY (source, id))")
        connection.executemany("INSERT OR REPLACE INTO orders VALUES (?, ?, ?, ?)", rows)
    return len(rows)


# [START dag]
with DAG("ingest", schedule=None, params={"sources": ["web", "shop", "partner"]}) as dag:
    SpawnChildRunOperator(
        task_id="ingest",
        operation=ingest,
        inputs=dag.param("sources"),
        child_key=str,
        retries=3,
        retry_delay=dt.timedelta(seconds=10),
    )
# [END dag]
