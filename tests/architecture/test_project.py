"""What the project says of itself agrees with itself."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

import airflow_childrun

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = [
    text.rpartition(" ")[2]
    for text in PROJECT["classifiers"]
    if re.fullmatch(r"Programming Language :: Python :: 3\.\d+", text)
]


def name_of(requirement: str) -> str:
    return re.split(r"[\[<>=!~ ]", requirement, maxsplit=1)[0].lower()


@pytest.mark.parametrize("python", PYTHONS)
def test_every_supported_python_has_pinned_versions(python: str) -> None:
    """Each declared dependency, extras included, is pinned exactly, by a command that the file names."""
    text = (ROOT / "constraints" / f"constraints-{python}.txt").read_text()
    pinned = dict(re.findall(r"^([a-z0-9-]+)==(\S+)$", text, re.MULTILINE))
    declared = [
        *PROJECT["dependencies"],
        *(one for extra in PROJECT["optional-dependencies"].values() for one in extra),
    ]
    assert not {name_of(requirement) for requirement in declared} - {PROJECT["name"]} - set(pinned)
    assert f"--python-version {python}" in text.splitlines()[1]
    assert all(line.startswith("#") or "==" in line for line in text.splitlines())


def test_the_oldest_supported_python_is_the_floor_everywhere() -> None:
    """Metadata, ruff and mypy speak of the same oldest Python."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    oldest = PYTHONS[0]
    assert PROJECT["requires-python"] == f">={oldest}"
    assert tool["mypy"]["python_version"] == oldest
    assert tool["ruff"]["target-version"] == f"py{oldest.replace('.', '')}"


def test_the_version_is_written_once() -> None:
    """The version stands in the package and nowhere else."""
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", airflow_childrun.__version__)
    assert PROJECT["dynamic"] == ["version"]


def test_every_dependency_has_a_floor() -> None:
    """No requirement is open downwards: a floor that is not written is not tested."""
    open_ended = [one for one in PROJECT["dependencies"] if ">=" not in one]
    assert not open_ended
