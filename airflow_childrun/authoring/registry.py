"""Where operations are found: by name and version, never by a path that came from data."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

from airflow_childrun.errors import OperationError
from airflow_childrun.model.manifest import RunManifest
from airflow_childrun.model.plan import ExecutionPlan

MAKERS = ("airflow_childrun.authoring", "airflow_childrun.operators")
"""Packages that make things on behalf of whoever calls them."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an operation was defined.

    :param module: the globals of the module's execution: the same file read again has others. Kept alive here, since what
        has ended may give its identity to a newcomer
    """

    file: str
    line: int
    module: dict[str, Any] | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of_function(cls, function: Callable[..., Any]) -> Self:
        """Return where a function was defined."""
        code = getattr(function, "__code__", None)
        if code is None:
            return cls("<unknown>", 0)
        return cls(code.co_filename, code.co_firstlineno, getattr(function, "__globals__", None))

    @classmethod
    def of_caller(cls, build: Callable[..., Any] | None) -> Self:
        """Return where the nearest code outside of this package stands."""
        if build is not None:
            return cls.of_function(build)
        frame = inspect.currentframe()
        while frame is not None and frame.f_globals.get("__name__", "").startswith(MAKERS):
            frame = frame.f_back
        if frame is None:
            return cls("<unknown>", 0)
        return cls(frame.f_code.co_filename, frame.f_lineno, frame.f_globals)

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class Registered(Protocol):
    """What the registry keeps."""

    name: str
    version: str
    place: Place

    def plan(self, manifest: RunManifest) -> ExecutionPlan:
        """Return the plan of a run."""

    def shape(self) -> bytes:
        """Return what two operations of one name and version must have in common."""


class Registry:
    """Operations by name and version, one per file that defines them."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], dict[str, Registered]] = {}

    def register(self, made: Registered) -> None:
        """Take an operation in; the same file read again replaces what it defined before."""
        places = self._known.setdefault((made.name, made.version), {})
        before = places.get(made.place.file)
        if before is not None and before is not made and before.place.module is made.place.module:
            raise OperationError(
                f"operation {made.name!r} version {made.version!r} is defined twice: at {before.place} and at "
                f"{made.place}; give one of them another name or version",
                code="operation_duplicate",
            )
        places[made.place.file] = made

    def settle(self, made: Registered) -> None:
        """File an operation under the place that it turned out to have."""
        places = self._known[(made.name, made.version)]
        for file in [file for file, known in places.items() if known is made]:
            del places[file]
        self.register(made)

    def find(self, name: str, version: str, file: str | None = None) -> Registered:
        """Return an operation; where several files define it, the one of ``file``.

        :raises OperationError: codes ``operation_not_reachable`` (lists what is known), ``operation_ambiguous``
        """
        places = self._known.get((name, version), {})
        if file is not None and file in places:
            return places[file]
        if not places:
            raise OperationError(self._unknown(name, version), code="operation_not_reachable")
        if len(places) > 1 and len({known.shape() for known in places.values()}) > 1:
            listed = " and at ".join(str(known.place) for known in places.values())
            raise OperationError(
                f"operation {name!r} version {version!r} is defined differently at {listed}; give one of them another "
                "version",
                code="operation_ambiguous",
            )
        return next(reversed(places.values()))

    def known(self) -> Mapping[tuple[str, str], list[Place]]:
        """Return where each operation is defined."""
        return {key: [known.place for known in places.values()] for key, places in self._known.items() if places}

    def _unknown(self, name: str, version: str) -> str:
        listed = ", ".join(f"{known} {at}" for known, at in sorted(self._known) if self._known[(known, at)]) or "none"
        return (
            f"operation {name!r} version {version!r} is not known in this process (known: {listed}). A worker knows the "
            "operations of its own DAG file, of the entry points `airflow_childrun.operations` and of the modules in "
            "[childrun] operations_modules; define or list it in one of them"
        )


REGISTRY = Registry()
"""What this process has defined."""


class RegistryResolver:
    """Finds plans in a registry.

    :param file: the DAG file on whose behalf it looks
    """

    def __init__(self, registry: Registry = REGISTRY, file: str | None = None) -> None:
        self._registry = registry
        self._file = file

    def resolve(self, manifest: RunManifest) -> ExecutionPlan:
        """Return the plan that a manifest asks for; see :class:`~airflow_childrun.engine.prepare.PlanResolver`."""
        return self._registry.find(manifest.op_id, manifest.op_version, self._file).plan(manifest)
