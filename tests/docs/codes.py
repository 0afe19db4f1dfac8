"""Finds every error code in the source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from airflow_childrun.model.events import ENGINE_NAMES

PACKAGE = Path(__file__).parents[2] / "airflow_childrun"
NOT_SHIPPED_ERRORS = ("testing", "demo")
CODE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)+|transport|usage|nondeterminism")
CODE_FIRST = frozenset({"ErrorInfo", "_refuse", "_found", "Finding", "close_attempt"})
"""Functions and classes whose first argument is a code."""


def codes_in_source() -> dict[str, str]:
    """Return every error code of the package and one place that raises it."""
    trees = {
        path: ast.parse(path.read_text())
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.relative_to(PACKAGE).parts[0] not in NOT_SHIPPED_ERRORS
    }
    constants = {name: value for tree in trees.values() for name, value in _constants(tree)}
    found: dict[str, str] = {}
    for path, tree in trees.items():
        for expression in _in_place_of_a_code(tree, is_check=path.name == "check.py"):
            for text in _texts(expression, constants):
                if CODE.fullmatch(text):
                    found.setdefault(text, f"{path.relative_to(PACKAGE)}:{expression.lineno}")
    return found


def _constants(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            for target in node.targets:
                if isinstance(target, ast.Name) and target.id.isupper():
                    yield target.id, node.value.value


def _in_place_of_a_code(tree: ast.Module, *, is_check: bool) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield from (keyword.value for keyword in node.keywords if keyword.arg in ("code", "default_code"))
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in CODE_FIRST and node.args and not is_check:
                yield node.args[0]
        elif isinstance(node, ast.Assign):
            names = {target.id for target in node.targets if isinstance(target, ast.Name)}
            if names & {"default_code", "code"}:
                yield node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            if node.target.id == "default_code":
                yield node.value
        elif isinstance(node, ast.FunctionDef):
            defaults = dict(
                zip([each.arg for each in reversed(node.args.args)], reversed(node.args.defaults), strict=False)
            )
            if "code" in defaults:
                yield defaults["code"]


def _texts(expression: ast.expr, constants: dict[str, str]) -> Iterator[str]:
    if isinstance(expression, ast.Constant) and isinstance(expression.value, str):
        yield expression.value
    elif isinstance(expression, ast.Name):
        yield from filter(None, [constants.get(expression.id)])
    elif isinstance(expression, ast.IfExp):
        yield from _texts(expression.body, constants)
        yield from _texts(expression.orelse, constants)
    elif isinstance(expression, ast.JoinedStr):
        # The one kind there is: the name of an event of the engine's, and what is wrong with it.
        text = ast.unparse(expression)
        assert text.startswith("f'{event.name}_"), text
        wrong = text.removeprefix("f'{event.name}").rstrip("'")
        yield from (f"{name}{wrong}" for name in ENGINE_NAMES)
