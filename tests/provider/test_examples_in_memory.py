"""The operations of the examples, tested as docs/testing.md tells their authors to."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any

import pytest

from airflow_childrun.testing.operations import OperationTester
from dags_examples import company_report, ingest, monthly_invoices

pytestmark = pytest.mark.provider

AURORA = {"id": "aurora", "seats": 2}
MARCH = {"month": "2026-03"}


def page(source: str, number: int) -> ingest.Page:
    """Answer for the API: two pages of one order each."""
    return ingest.Page(2, [ingest.Order(number, dt.date(2026, 1, number), Decimal("1.50"))])


def test_an_invoice_is_made_and_sent_in_that_order(childrun: OperationTester) -> None:
    """The number that the service gives is the one that is sent; one recorded call each."""
    childrun.fake(monthly_invoices.create_invoice, lambda customer, month, cents, token: f"{customer}-{month}-{cents}")
    childrun.fake(monthly_invoices.send_invoice)
    run = childrun.run(monthly_invoices.monthly_invoice, AURORA, config=MARCH)
    assert run.output == {"invoice": "aurora-2026-03-3800", "cents": 3800}
    assert run.steps == ["main/create", "main/send"]
    assert childrun.calls[1].args[0] == "aurora-2026-03-3800"


def test_nobody_is_billed_twice_by_a_lost_answer(childrun: OperationTester) -> None:
    """The call whose answer was lost is made again with the same token."""
    childrun.fake(monthly_invoices.post, {"number": "A-1"})
    childrun.fake(monthly_invoices.create_invoice, "A-1")
    childrun.fake(monthly_invoices.send_invoice)
    lost = childrun.crash(monthly_invoices.monthly_invoice, AURORA, config=MARCH, at="create", how="in_flight")
    assert childrun.resume(lost).completed
    first, second, sent = childrun.calls
    assert (first.name, first.args) == (second.name, second.args)
    assert sent.name == "send_invoice"


def test_a_source_is_read_page_by_page_whatever_the_api_does(childrun: OperationTester) -> None:
    """A refused page is asked for again, the others are not."""
    childrun.fake(ingest.read_page, answers=[ConnectionError("503"), page("web", 1), page("web", 2)])
    childrun.fake(ingest.write_orders, lambda source, orders: len(orders))
    run = childrun.run(ingest.ingest, "web")
    assert run.output == {"source": "web", "rows": 2, "amount": "3.00"}
    assert run.states == {"fetch": 1, "load": 1, "summarise": 1}


@pytest.mark.parametrize("name", ["invoice", "ingest", "report"])
def test_every_example_survives_a_crash_at_every_io(childrun: OperationTester, name: str) -> None:
    """Three ways to end, at each IO of the operation and its children."""
    childrun.fake(monthly_invoices.create_invoice, "A-1")
    childrun.fake(monthly_invoices.send_invoice)
    childrun.fake(ingest.read_page, page)
    childrun.fake(ingest.write_orders, lambda source, orders: len(orders))
    given: dict[str, tuple[Any, Any, Any]] = {
        "invoice": (monthly_invoices.monthly_invoice, AURORA, MARCH),
        "ingest": (ingest.ingest, "web", None),
        "report": (company_report.company_report, "acme", None),
    }
    operation, given_input, config = given[name]
    assert childrun.check_reentry(operation, given_input, config=config).ended >= 6
