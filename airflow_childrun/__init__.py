"""Durable child runs for Apache Airflow.

``import airflow_childrun`` loads neither Airflow nor SQLAlchemy: names below are imported when they are first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME_OF = {
    "Operation": "airflow_childrun.authoring.operation",
    "operation": "airflow_childrun.authoring.operation",
    "ChildRunHook": "airflow_childrun.hooks.childrun",
    "RunFilter": "airflow_childrun.store.api",
    "SpawnOrder": "airflow_childrun.hooks.elements",
    "SpawnChildRunOperator": "airflow_childrun.operators.childrun",
    "AwaitChildRunOperator": "airflow_childrun.operators.childrun",
    "childrun_maintenance_dag": "airflow_childrun.operators.maintenance",
    "childrun_runner_dag": "airflow_childrun.operators.runner",
}

__all__ = [
    "AwaitChildRunOperator",
    "ChildRunHook",
    "Operation",
    "RunFilter",
    "SpawnChildRunOperator",
    "SpawnOrder",
    "__version__",
    "childrun_maintenance_dag",
    "childrun_runner_dag",
    "operation",
]

if TYPE_CHECKING:
    from airflow_childrun.authoring.operation import Operation, operation
    from airflow_childrun.hooks.childrun import ChildRunHook
    from airflow_childrun.hooks.elements import SpawnOrder
    from airflow_childrun.operators.childrun import AwaitChildRunOperator, SpawnChildRunOperator
    from airflow_childrun.operators.maintenance import childrun_maintenance_dag
    from airflow_childrun.operators.runner import childrun_runner_dag
    from airflow_childrun.store.api import RunFilter


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
