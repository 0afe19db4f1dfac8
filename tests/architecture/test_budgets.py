"""Size, names and shortcuts: the budgets that keep every module readable in one sitting."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOPS = ("airflow_childrun", "dags_examples", "tests")
MAX_MODULE, MAX_FUNCTION, MAX_POSITIONAL, MAX_PUBLIC_NAMES = 400, 50, 8, 12
TESTS_MAY_BE = 2  # times as long
BANNED_NAMES = {"common", "helpers", "manager", "misc", "utils"}
# Written so that this file does not find itself.
BANNED_WORDS = tuple("".join(word) for word in (("TO", "DO"), ("FIX", "ME"), ("pragma: no ", "cover")))
IGNORE = "type: " + "ignore"
PROVING = ("raises", "assert", "fail", "check", "verify", "expect", "warns", "run_")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def swallows(node: ast.ExceptHandler) -> bool:
    """Return whether a handler catches everything and does nothing with it."""
    broad = node.type is None or (isinstance(node.type, ast.Name) and node.type.id in {"Exception", "BaseException"})
    return broad and all(isinstance(statement, ast.Pass | ast.Continue) for statement in node.body)


def proves_nothing(function: Function) -> bool:
    """Return whether nothing in a test can fail."""
    nodes = list(ast.walk(function))
    calls = [ast.unparse(node.func).lower() for node in nodes if isinstance(node, ast.Call)]
    return not any(isinstance(node, ast.Assert) for node in nodes) and not any(
        word in call for call in calls for word in PROVING
    )


def function_breaches(function: Function, *, test: bool) -> Iterator[str]:
    size = (function.end_lineno or 0) - function.lineno + 1
    if size > MAX_FUNCTION * (TESTS_MAY_BE if test else 1):
        yield f"{function.name}: {size} lines"
    positional = len(function.args.args) + len(function.args.posonlyargs)
    if positional > MAX_POSITIONAL:
        yield f"{function.name}: {positional} positional parameters"
    if test and function.name.startswith("test") and proves_nothing(function):
        yield f"{function.name}: nothing in it can fail"


def breaches(path: Path, text: str) -> list[str]:
    """Return what a module does that the budgets forbid, one line each.

    :param path: relative to the project's root
    """
    test, lines = path.parts[0] == "tests", text.splitlines()
    found = []
    if len(lines) > MAX_MODULE * (TESTS_MAY_BE if test else 1):
        found.append(f"{len(lines)} lines")
    if path.stem in BANNED_NAMES:
        found.append("a name that says nothing")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, Function):
            found += function_breaches(node, test=test)
        elif isinstance(node, ast.ExceptHandler) and swallows(node):
            found.append(f"line {node.lineno}: swallows every error")
    for number, line in enumerate(lines, 1):
        if not test and IGNORE in line and path.name != "_airflow.py":
            found.append(f"line {number}: {IGNORE} outside the version gate")
        found += [f"line {number}: {word}" for word in BANNED_WORDS if word in line]
    return found


def modules() -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for top in TOPS for path in (ROOT / top).rglob("*.py"))


def test_every_module_keeps_the_budgets() -> None:
    """No module of the project is beyond a budget."""
    found = [f"{name}: {breach}" for name in modules() for breach in breaches(Path(name), (ROOT / name).read_text())]
    assert not found, "\n".join(found)


def test_the_public_names_are_few() -> None:
    """The root exports no more than a reader can keep in mind."""
    import airflow_childrun

    assert len(airflow_childrun.__all__) <= MAX_PUBLIC_NAMES


def test_no_committed_text_names_a_machine() -> None:
    """Nothing that is committed points into somebody's home or at his package index."""
    pattern = re.compile(r"/(?:root|home|Users)/[a-z]|/work/|--(?:extra-)?index-url|^-i ", re.MULTILINE)
    suffixes = {".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".sql", ".mako", ".ini"}
    files = [path for top in (*TOPS, "docs", "constraints") for path in (ROOT / top).rglob("*")]
    files += list(ROOT.glob("*.*"))
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in files
        if path.suffix in suffixes and path != Path(__file__)
        for match in pattern.finditer(path.read_text())
    ]
    assert not found, "\n".join(found)


LONG_BODY = "\n".join("    x = 1" for _ in range(MAX_FUNCTION))


@pytest.mark.parametrize(
    ("path", "text", "breach"),
    [
        ("airflow_childrun/a.py", "x = 1\n" * (MAX_MODULE + 1), "401 lines"),
        ("airflow_childrun/a.py", f"def f():\n{LONG_BODY}", "f: 51 lines"),
        ("airflow_childrun/utils.py", "", "a name that says nothing"),
        ("airflow_childrun/a.py", "def f(a, b, c, d, e, f, g, h, i): ...", "f: 9 positional parameters"),
        ("airflow_childrun/a.py", "try:\n    x\nexcept Exception:\n    pass", "line 3: swallows every error"),
        ("airflow_childrun/a.py", f"x = 1  # {IGNORE}", f"line 1: {IGNORE} outside the version gate"),
        ("airflow_childrun/a.py", f"# {BANNED_WORDS[0]}", f"line 1: {BANNED_WORDS[0]}"),
        ("tests/a.py", "def test_a():\n    print(1)", "test_a: nothing in it can fail"),
    ],
)
def test_the_budgets_notice(path: str, text: str, breach: str) -> None:
    """Each budget reports the module that breaks it."""
    assert breaches(Path(path), text) == [breach]
