"""Where operations are found: by name and version, scoped by the file that defines them."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest

from airflow_childrun import Operation, operation
from airflow_childrun.authoring.registry import REGISTRY, Place, Registry, RegistryResolver
from airflow_childrun.errors import OperationError
from airflow_childrun.model.config import RunConfig
from airflow_childrun.model.manifest import build_manifest
from tests.authoring.kit import load

INVOICE = "@operation(version='1')\ndef invoice(io, amount: int):\n    return {result}\n"
BIG_INVOICE = "op = Operation('invoice', version='1')\n@op.state\ndef other(amount: int):\n    return 2\n"


def test_repr_has_no_address_and_copies_are_the_thing_itself() -> None:
    """So that a DAG's serialized hash does not change at every parse."""
    op = Operation("shown", version="2")
    assert repr(op) == str(op) == "Operation('shown', version='2')"
    assert copy.copy(op) is op
    assert copy.deepcopy({"default_args": [op]})["default_args"][0] is op


def test_nothing_of_an_operation_is_ever_pickled() -> None:
    op = Operation("pickled", version="1")
    op.state(lambda_named("main"))
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        pickle.dumps(op)


def lambda_named(name: str) -> Any:
    handler = lambda: None
    handler.__name__ = name
    return handler


def test_the_same_file_read_again_replaces(tmp_path: Path) -> None:
    """As the DAG processor and ``dag.test`` do: the newest reading counts."""
    file = tmp_path / "dag.py"
    first = load(file, INVOICE.format(result=1))
    second = load(file)
    assert first.invoice is not second.invoice
    assert REGISTRY.find("invoice", "1", str(file)) is second.invoice
    third = load(file, "\n\n" + BIG_INVOICE)
    assert REGISTRY.find("invoice", "1") is third.op


def test_a_file_read_a_hundred_times_keeps_one(tmp_path: Path) -> None:
    file = tmp_path / "dag.py"
    last = load(file, BIG_INVOICE)
    for _ in range(100):
        last = load(file)
    assert REGISTRY.find("invoice", "1") is last.op
    assert len(REGISTRY.known()["invoice", "1"]) == 1


def test_a_duplicate_in_one_file_is_refused_naming_both_places(tmp_path: Path) -> None:
    file = tmp_path / "dag.py"
    with pytest.raises(OperationError) as raised:
        load(file, INVOICE.format(result=1) + INVOICE.format(result=2))
    assert raised.value.code == "operation_duplicate"
    assert f"is defined twice: at {file}:2 and at {file}:5; give one of them another name or version" in str(
        raised.value
    )


def test_versions_stand_beside_one_another(tmp_path: Path) -> None:
    file = load(
        tmp_path / "dag.py",
        INVOICE.format(result=1) + "old = invoice\n" + INVOICE.format(result=2).replace("'1'", "'2'"),
    )
    assert REGISTRY.find("invoice", "1") is file.old
    assert REGISTRY.find("invoice", "2") is file.invoice


def test_two_files_with_one_name_each_prefer_their_own(tmp_path: Path) -> None:
    one, other = tmp_path / "one.py", tmp_path / "other.py"
    small, big = load(one, INVOICE.format(result=1)), load(other, BIG_INVOICE)
    assert REGISTRY.find("invoice", "1", str(one)) is small.invoice
    assert REGISTRY.find("invoice", "1", str(other)) is big.op
    manifest = build_manifest("invoice", "1", input=1, run_config=RunConfig())
    for file, states in ((one, ["invoice.main.main"]), (other, ["invoice.main.other"])):
        plan = RegistryResolver(file=str(file)).resolve(manifest)
        assert [node.id for node in plan.order] == states


def test_from_elsewhere_two_that_differ_are_ambiguous(tmp_path: Path) -> None:
    one, other = tmp_path / "one.py", tmp_path / "other.py"
    load(one, INVOICE.format(result=1))
    load(other, BIG_INVOICE)
    with pytest.raises(OperationError) as raised:
        REGISTRY.find("invoice", "1", str(tmp_path / "third.py"))
    assert raised.value.code == "operation_ambiguous"
    assert f"is defined differently at {one}:2 and at {other}:2; give one of them another version" in str(raised.value)


def test_from_elsewhere_two_that_are_equal_are_one(tmp_path: Path) -> None:
    """A module that two bundles hold: the plans are the same, so either will do."""
    for name in ("one.py", "other.py"):
        load(tmp_path / name, INVOICE.format(result=1))
    assert REGISTRY.find("invoice", "1").name == "invoice"


def test_what_is_not_reachable_lists_the_known_and_says_where_it_looked(tmp_path: Path) -> None:
    registry = Registry()
    with pytest.raises(OperationError, match=r"\(known: none\)"):
        registry.find("invoice", "1")
    for version in ("2", "10"):
        registry.register(
            load(tmp_path / f"v{version}.py", INVOICE.format(result=1).replace("'1'", f"'{version}'")).invoice
        )
    with pytest.raises(OperationError) as raised:
        registry.find("invoice", "1")
    assert raised.value.code == "operation_not_reachable"
    text = str(raised.value)
    assert "operation 'invoice' version '1' is not known in this process (known: invoice 10, invoice 2)" in text
    for place in ("its own DAG file", "entry points `airflow_childrun.operations`", "[childrun] operations_modules"):
        assert place in text


def test_a_definition_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    file = tmp_path / "dag.py"
    with pytest.raises(OperationError):
        load(file, "@operation\nasync def invoice(io): ...\n")
    assert ("invoice", "1") not in REGISTRY.known()
    load(file, INVOICE.format(result=1))


def test_a_place_is_where_the_function_stands() -> None:
    @operation(version="1")
    def placed(io: Any) -> None: ...

    assert placed.place == Place.of_function(placed.states["main"].function)
    assert str(placed.place).startswith(f"{__file__}:")
    assert Operation("graph", version="1").place.file == __file__
