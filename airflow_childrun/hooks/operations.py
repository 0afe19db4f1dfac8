"""Operations beyond the DAG file: entry points and the modules that an administrator lists."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from importlib.metadata import entry_points

from airflow_childrun.authoring.registry import Registered, RegistryResolver
from airflow_childrun.errors import OperationError
from airflow_childrun.hooks.settings import Settings
from airflow_childrun.model.manifest import RunManifest
from airflow_childrun.model.plan import ExecutionPlan

ENTRY_POINTS = "airflow_childrun.operations"
OWN_MODULE = "airflow_childrun.hooks.dag_runs"
"""The children that are DAG runs: whoever finds one in the store, can go on with it."""


def load_shared_operations(settings: Settings) -> None:
    """Import what defines operations for every DAG file: our own, entry points, then ``[childrun] operations_modules``.

    :raises OperationError: code ``operations_module_broken``, naming the module and what it raised
    """
    _import(OWN_MODULE, "airflow_childrun")
    for name, origin in _shared(settings):
        _import(name, origin)


def shared_modules(settings: Settings) -> list[str]:
    """Return the names of the modules that define operations for every DAG file."""
    return [name for name, _ in _shared(settings)]


def _shared(settings: Settings) -> list[tuple[str, str]]:
    points = entry_points(group=ENTRY_POINTS)
    named = [(point.value.partition(":")[0], f"the entry point {point.name!r}") for point in points]
    return [*named, *((name, "[childrun] operations_modules") for name in settings.operations_modules)]


def _import(name: str, origin: str) -> None:
    try:
        importlib.import_module(name)
    except Exception as error:
        raise OperationError(
            f"{origin} names the module {name!r}, which cannot be imported: {type(error).__name__}: {error}",
            code="operations_module_broken",
        ) from error


class TaskResolver:
    """Finds plans for what a task drives.

    :param listed: operations that it was given, ahead of all that its process knows
    """

    def __init__(self, dag_file: str | None, listed: Iterable[Registered] = ()) -> None:
        self._registry = RegistryResolver(file=dag_file)
        self._listed = {(made.name, made.version): made for made in listed}

    def resolve(self, manifest: RunManifest) -> ExecutionPlan:
        """Return the plan that a manifest asks for.

        :raises OperationError: codes ``operation_not_reachable``, ``operation_ambiguous``
        """
        made = self._listed.get((manifest.op_id, manifest.op_version))
        return self._registry.resolve(manifest) if made is None else made.plan(manifest)


def make_resolver(settings: Settings, dag_file: str | None, listed: Iterable[Registered] = ()) -> TaskResolver:
    """Return the resolver for what a task of a DAG file drives."""
    load_shared_operations(settings)
    return TaskResolver(dag_file, listed)
