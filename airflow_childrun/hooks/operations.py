"""Operations beyond the DAG file: entry points and the modules that an administrator lists."""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points

from airflow_childrun.authoring.registry import RegistryResolver
from airflow_childrun.errors import OperationError
from airflow_childrun.hooks.settings import Settings

ENTRY_POINTS = "airflow_childrun.operations"


def load_shared_operations(settings: Settings) -> None:
    """Import what defines operations for every DAG file: entry points, then ``[childrun] operations_modules``.

    :raises OperationError: code ``operations_module_broken``, naming the module and what it raised
    """
    for point in entry_points(group=ENTRY_POINTS):
        _import(point.value.partition(":")[0], f"the entry point {point.name!r}")
    for name in settings.operations_modules:
        _import(name, "[childrun] operations_modules")


def _import(name: str, origin: str) -> None:
    try:
        importlib.import_module(name)
    except Exception as error:
        raise OperationError(
            f"{origin} names the module {name!r}, which cannot be imported: {type(error).__name__}: {error}",
            code="operations_module_broken",
        ) from error


def make_resolver(settings: Settings, dag_file: str | None) -> RegistryResolver:
    """Return the resolver for what a DAG file drives."""
    load_shared_operations(settings)
    return RegistryResolver(file=dag_file)
