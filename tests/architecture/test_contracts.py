"""The import contracts of pyproject.toml hold, and each of them bites when a copy of the tree is broken."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINT = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"

# What is broken -> (contract that must notice, file below airflow_childrun/, what is added to it).
SABOTAGE = {
    "engine uses the runtime": ("layers", "engine/sabotage.py", "import airflow_childrun.runtime"),
    "store uses the engine": ("layers", "store/sabotage.py", "import airflow_childrun.engine"),
    "model uses the store": ("layers", "model/sabotage.py", "from airflow_childrun import store"),
    "errors use the model": ("layers", "errors.py", "import airflow_childrun.model"),
    "authoring uses the runtime in a function": (
        "layers",
        "authoring/sabotage.py",
        "def f():\n    import airflow_childrun.runtime",
    ),
    "runtime uses hooks for a type only": (
        "layers",
        "runtime/sabotage.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import airflow_childrun.hooks.sabotage",
    ),
    "hook uses an operator": ("layers", "hooks/sabotage.py", "import airflow_childrun.operators.sabotage"),
    "trigger uses an operator": ("layers", "triggers/sabotage.py", "import airflow_childrun.operators.sabotage"),
    "cli uses plugins": ("layers", "cli/sabotage.py", "import airflow_childrun.plugins.sabotage"),
    "a module nobody placed": ("layers", "toolbox.py", ""),
    "engine uses Airflow": ("pure-core", "engine/sabotage.py", "import airflow"),
    "runtime uses SQLAlchemy": ("pure-core", "runtime/sabotage.py", "from sqlalchemy import text"),
    "authoring uses Airflow through the gate": (
        "pure-core",
        "authoring/sabotage.py",
        "def f():\n    import airflow_childrun._airflow",
    ),
    "transports use Airflow's types": (
        "pure-core",
        "transports/sabotage.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from airflow.sdk import DAG",
    ),
    "store uses Airflow": ("store-without-airflow", "store/sql/sabotage.py", "from airflow import settings"),
    "engine asks the clock": ("engine-is-pure", "engine/sabotage.py", "import airflow_childrun.clock"),
    "engine starts a process": ("engine-is-pure", "engine/sabotage.py", "import subprocess"),
    "runtime starts a thread": ("scheduler-port", "runtime/sabotage.py", "from threading import Thread"),
    "runtime sleeps": ("scheduler-port", "runtime/sabotage.py", "import time"),
    "operator has a pool": ("scheduler-port", "operators/sabotage.py", "from concurrent.futures import wait"),
    "engine throws dice": ("scheduler-port", "engine/sabotage.py", "import random"),
    "operator speaks SQL": ("no-sql-above-the-store", "operators/sabotage.py", "import sqlalchemy"),
    "hook speaks SQL": ("no-sql-above-the-store", "hooks/sabotage.py", "def f():\n    import psycopg"),
    "operator opens the SQL store": (
        "store-sql-is-protected",
        "operators/sabotage.py",
        "import airflow_childrun.store.sql",
    ),
    "runtime opens the SQL store": (
        "store-sql-is-protected",
        "runtime/sabotage.py",
        "from airflow_childrun.store import sql",
    ),
    "hook uses the testing kit": ("no-testing-in-production", "hooks/sabotage.py", "import airflow_childrun.testing"),
    "engine uses pytest": ("no-testing-in-production", "engine/sabotage.py", "import pytest"),
    "the root re-exports eagerly": ("light-packages", "__init__.py", "def f():\n    import airflow"),
    "a package file loads SQLAlchemy": ("light-packages", "store/__init__.py", "import sqlalchemy"),
    "two siblings need each other": (
        "acyclic",
        "store/sql/sabotage.py",
        "import airflow_childrun.store.sql.accomplice",
    ),
}

# Modules that the sabotage points at and that need not exist yet.
ACCOMPLICES = {
    "_airflow.py": "import airflow",
    "hooks/sabotage.py": "",
    "operators/sabotage.py": "",
    "plugins/sabotage.py": "",
    "store/sql/accomplice.py": "import airflow_childrun.store.sql.sabotage",
}


def lint(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", LINT, "--no-cache", "--no-logo", *arguments],
        check=False,
        capture_output=True,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "COLUMNS": "400"},
    )


def add(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    package_file = path.parent / "__init__.py"
    package_file.touch()
    path.write_text(f"{path.read_text() if path.exists() else ''}\n{text}\n")


def test_every_contract_is_kept() -> None:
    """The tree as it is breaks no contract."""
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_contract_is_broken_by_some_sabotage() -> None:
    """No contract stands in pyproject.toml without a proof below that it can fail."""
    configuration = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    declared = {contract["id"] for contract in configuration["contracts"]}
    assert declared == {contract for contract, _, _ in SABOTAGE.values()}


@pytest.mark.parametrize("what", SABOTAGE)
def test_a_contract_bites(what: str, tmp_path: Path) -> None:
    """A copy of the tree with one forbidden import fails the contract that forbids it."""
    contract, file, text = SABOTAGE[what]
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    package = tmp_path / "airflow_childrun"
    shutil.copytree(ROOT / "airflow_childrun", package, ignore=shutil.ignore_patterns("__pycache__"))
    for accomplice, its_text in ACCOMPLICES.items():
        if f"airflow_childrun.{accomplice.removesuffix('.py').replace('/', '.')}" in text:
            add(package / accomplice, its_text)
    add(package / file, text)
    done = lint(tmp_path, "--contract", contract)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "0 kept, 1 broken" in done.stdout, done.stdout + done.stderr
