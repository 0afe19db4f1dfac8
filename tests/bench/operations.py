"""What is measured: the smallest operations that record something, and nothing else."""

from __future__ import annotations

import logging
from typing import Any

from airflow_childrun import operation
from airflow_childrun.authoring.registry import RegistryResolver
from airflow_childrun.clock import SystemClock
from airflow_childrun.model.config import RunConfig
from airflow_childrun.model.manifest import build_manifest
from airflow_childrun.runtime.engine import ExecutionEngine, RunResult
from airflow_childrun.runtime.house import House, Limits
from airflow_childrun.secret_policy import standard
from airflow_childrun.store.api import Store
from airflow_childrun.store.memory import MemoryStore
from airflow_childrun.store.sql.store import SqlStore

CHILD_BYTES = 1024
"""Size of a child's input and of its output."""


def number(value: int) -> int:
    """Be a step that does nothing: what is left is the price of recording it."""
    return value


@operation(version="1")
def many_steps(io: Any, count: int) -> int:
    """Record ``count`` facts in one state."""
    return sum(io.step(number, index) for index in range(count))


@operation(version="1")
def leaf(io: Any, text: str) -> str:
    """Be a child of one state."""
    return text


@operation(version="1")
def fan_out(io: Any, count: int) -> int:
    """Spawn, drive and await ``count`` children of 1 KiB in and out."""
    results = io.map(leaf, texts(count), key=_name)
    completed: int = sum(result.completed for result in results)
    if completed != count:
        raise RuntimeError(f"{completed} of {count} children completed")
    return completed


def texts(count: int) -> list[str]:
    """Return inputs of 1 KiB, all different."""
    return [f"{index:06d}".ljust(CHILD_BYTES, "x") for index in range(count)]


def _name(text: str) -> str:
    return text[:6]


def open_store(url: str) -> Store:
    """Open a store: ``memory``, or a SQLAlchemy URL of a database that has its tables."""
    return MemoryStore(SystemClock()) if url == "memory" else SqlStore(url)


def open_engine(url: str) -> ExecutionEngine:
    """Open an engine with the settings that a task has by default."""
    logging.basicConfig(level=logging.WARNING)
    return ExecutionEngine(House(open_store(url), RegistryResolver(), standard(), limits=Limits()))


def run(engine: ExecutionEngine, name: str, count: int) -> RunResult:
    """Run an operation to its end.

    :raises RuntimeError: if it did not complete
    """
    result = engine.start(build_manifest(name, "1", input=count, run_config=RunConfig()))
    if result.phase != "Completed":
        raise RuntimeError(f"{name} ended as {result.phase}")
    return result
