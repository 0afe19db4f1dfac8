"""A DAG that people start in the UI: its form follows from type hints, and what somebody mistypes starts nothing."""

from __future__ import annotations

from typing import Any

import pytest

from tests.stack.records import Records
from tests.stack.stand import Stand

pytestmark = [pytest.mark.stack, pytest.mark.provider]
GOOD = [{"name": "web", "pages": 2}]


def test_the_form_has_the_fields_of_the_operations_type_hints(stand: Stand):
    """What the UI's form is drawn from: an array of objects with a text and a number, both required."""
    shown = stand.browser.get("/dags/stand_form/details")["params"]["sources"]
    assert shown["schema"]["type"] == "array"
    items = shown["schema"]["items"]
    assert {name: field["type"] for name, field in items["properties"].items()} == {
        "name": "string",
        "pages": "integer",
    }
    assert sorted(items["required"]) == ["name", "pages"]


@pytest.mark.parametrize(
    ("sources", "told"),
    [
        ([{"name": "web", "pages": "many"}], "'many' is not of type 'integer'"),
        ([{"name": "web"}], "'pages' is a required property"),
        ("web", "'web' is not of type 'array'"),
    ],
)
def test_a_value_that_does_not_fit_starts_no_dag_run(stand: Stand, records: Records, sources: Any, told: str):
    """Airflow holds the conf against the schema, and says what is wrong before there is a run."""
    with pytest.raises(AssertionError, match=told):
        stand.browser.trigger("stand_form", "mistyped", {"sources": sources})
    assert "mistyped" not in stand.browser.run_ids("stand_form")
    assert records.hosts("stand_form", "mistyped") == []


def test_what_no_schema_can_say_is_a_typed_error_before_anything_is_spawned(stand: Stand, records: Records):
    """The second source fits the schema and not the operation: place and field stand in the log, and not even the first is spawned."""
    stand.browser.trigger("stand_form", "refused", {"sources": [*GOOD, {"name": "shop", "pages": -1}]})
    assert stand.browser.wait_for_run("stand_form", "refused") == "failed"
    task = stand.browser.task("stand_form", "refused", "load")
    log = stand.browser.log("stand_form", "refused", "load", 1)
    print(log)
    assert task["try_number"] == 1, "a retry cannot mend an input"
    for wanted in ("input_invalid", "element 1", "pages"):
        assert wanted in log, f"{wanted!r} is missing in\n{log}"
    assert records.children("stand_form", "refused") == []


def test_the_same_run_id_twice_is_one_run(stand: Stand, records: Records):
    """Airflow refuses the second one, and the children of the first are as they were."""
    stand.browser.trigger("stand_form", "twice", {"sources": GOOD})
    assert stand.browser.wait_for_run("stand_form", "twice") == "success"
    with pytest.raises(AssertionError, match="409"):
        stand.browser.trigger("stand_form", "twice", {"sources": GOOD})
    assert records.statuses("stand_form", "twice") == [(1, "Completed")]
