"""Company report: a tree of child runs, company -> region -> store.

Each level asks the one below and adds up. All of it works in one task, many stores at a time, and however deep: a run
that waits for its children takes no slot. One store never closes its till; its run fails, and whoever asked for it
decides what that means. Here the report goes out and names it.

The task ``spawn`` returns at once with handles; ``report`` awaits them. In between there could be other tasks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from airflow.sdk import DAG, task

from airflow_childrun import AwaitChildRunOperator, SpawnChildRunOperator, operation

REGIONS = {"acme": ["north", "south"], "zenith": ["west"]}
STORES = {"north": ["oslo", "turku"], "south": ["bari", "cadiz", "nice"], "west": ["cork"]}
TILLS: dict[str, list[int] | None] = {
    "oslo": [120, 75],
    "turku": [60],
    "bari": [33, 44, 55],
    "cadiz": None,
    "nice": [210],
    "cork": [18],
}


@dataclass
class Total:
    """What a level reports to the one above."""

    amount: int = 0
    missing: list[str] = field(default_factory=list)


# [START operations]
@operation(version="1")
def store_total(io: Any, store: str) -> Total:
    """Add up a store's till."""
    return Total(sum(io.step(read_till, store)))


@operation(version="1")
def region_total(io: Any, region: str) -> Total:
    """Ask the stores of a region, all at the same time."""
    stores = io.step(list_stores, region)
    return add_up(stores, io.map(store_total, stores, key=str))


@operation(version="1")
def company_report(io: Any, company: str) -> Total:
    """Ask the regions of a company, which ask their stores."""
    regions = io.step(list_regions, company)
    return add_up(regions, io.map(region_total, regions, key=str))


def add_up(names: list[str], results: list[Any]) -> Total:
    """Add up what completed, and name what did not: a failed child is a result, no exception."""
    total = Total()
    for name, result in zip(names, results, strict=True):
        total.amount += result.output.amount if result.completed else 0
        total.missing += result.output.missing if result.completed else [name]
    return total


# [END operations]


def list_regions(company: str) -> list[str]:
    """Read a company's regions from wherever they are known."""
    return REGIONS[company]


def list_stores(region: str) -> list[str]:
    """Read a region's stores."""
    return STORES[region]


def read_till(store: str) -> list[int]:
    """Read a store's sales of the day."""
    sales = TILLS[store]
    if sales is None:
        raise ValueError(f"the till of {store} is still open")
    return sales


# [START dag]
with DAG("company_report", schedule=None, params={"companies": ["acme", "zenith"]}) as dag:
    spawn = SpawnChildRunOperator(
        task_id="spawn",
        operation=company_report,
        inputs=dag.param("companies"),
        child_key=str,
        wait_for_completion=False,
    )
    report = AwaitChildRunOperator(task_id="report", child_runs=spawn.output)

    @task
    def publish(reports: Any) -> None:
        """Print what the children returned."""
        for child in reports:
            total = child["output"]
            missing = f" without {', '.join(total['missing'])}" if total["missing"] else ""
            print(f"{child['key']}: {total['amount']}{missing}")

    publish(report.output)
# [END dag]
