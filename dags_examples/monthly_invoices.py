"""Monthly invoices: one child run per customer, on a schedule or from the form in the UI.

Finance runs this on the first of the month for everybody, and by hand for one customer after a complaint. A dozen
customers or ten thousand fit into the one task. Nobody may be billed twice: not when the worker dies half way, and not
when somebody clears the task.

Needs an HTTP connection ``billing``: the service that makes and sends invoices. `childrun demo` runs this very file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import httpx
import pendulum
from airflow.sdk import DAG, BaseHook, Param

from airflow_childrun import SpawnChildRunOperator, operation

CENTS_PER_SEAT = 1900


@dataclass
class Customer:
    """Who gets an invoice; the form in the UI is made of these fields."""

    id: str
    seats: int


# [START operation]
@operation(version="1")
def monthly_invoice(io: Any, customer: Customer, config: dict[str, Any]) -> dict[str, Any]:
    """Make a customer's invoice and send it: two calls, each recorded once it is answered."""
    cents = customer.seats * CENTS_PER_SEAT
    token = io.idempotency_token("create")
    invoice = io.step(create_invoice, customer.id, config["month"], cents, token, key="create", retry=3)
    io.step(send_invoice, invoice, io.idempotency_token("send"), key="send", retry=3)
    return {"invoice": invoice, "cents": cents}


# [END operation]


def create_invoice(customer_id: str, month: str, cents: int, token: str) -> str:
    """Have an invoice made, and return its number."""
    invoice: str = post("/invoices", {"customer": customer_id, "month": month, "cents": cents}, token)["number"]
    return invoice


def send_invoice(number: str, token: str) -> None:
    """Have an invoice sent to its customer."""
    post(f"/invoices/{number}/send", {}, token)


def post(path: str, body: dict[str, Any], token: str) -> Any:
    """Call the billing service, which answers a token that it knows with its first answer."""
    url = BaseHook.get_connection("billing").get_uri().rstrip("/")
    return httpx.post(url + path, json=body, headers={"Idempotency-Key": token}).raise_for_status().json()


CUSTOMERS = [
    {"id": "aurora", "seats": 12},
    {"id": "birch", "seats": 3},
    {"id": "cobalt", "seats": 40},
    {"id": "dune", "seats": 7},
    {"id": "ember", "seats": 21},
    {"id": "fjord", "seats": 5},
    {"id": "grove", "seats": 90},
    {"id": "harbor", "seats": 2},
    {"id": "iris", "seats": 16},
    {"id": "juniper", "seats": 33},
    {"id": "kestrel", "seats": 8},
    {"id": "lagoon", "seats": 55},
]

# [START dag]
with DAG(
    "monthly_invoices",
    schedule="@monthly",
    start_date=pendulum.datetime(2026, 1, 1),
    catchup=False,
    params={
        "customers": Param(CUSTOMERS, type="array", items=monthly_invoice.input_schema()),
        "month": Param(None, type=["null", "string"], pattern=r"^\d{4}-\d{2}$", description="empty: this month"),
    },
) as dag:
    SpawnChildRunOperator(
        task_id="invoices",
        operation=monthly_invoice,
        inputs=dag.param("customers"),
        child_key="id",
        op_config={"month": "{{ params.month or dag_run.run_after.strftime('%Y-%m') }}"},
        on_clear="reuse",  # a cleared task must not bill again
    )
# [END dag]
