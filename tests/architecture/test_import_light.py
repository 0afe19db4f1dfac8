"""What an author, a worker without a database and a DAG parser import loads neither Airflow nor SQLAlchemy."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("airflow", "alembic", "psycopg", "sqlalchemy")
PURE_PACKAGES = ("authoring", "engine", "model", "runtime", "transports")
PURE_MODULES = ("canonical", "clock", "errors", "ids", "secret_policy", "store.api", "store.memory")


def pure_modules() -> list[str]:
    names = [f"airflow_childrun.{name}" for name in (*PURE_PACKAGES, *PURE_MODULES)]
    for package in PURE_PACKAGES:
        found = pkgutil.walk_packages([str(ROOT / "airflow_childrun" / package)], f"airflow_childrun.{package}.")
        names += [module.name for module in found]
    return names


def loaded_by(*modules: str, watched: tuple[str, ...] = HEAVY) -> list[str]:
    """Return which of the ``watched`` top-level packages a new interpreter loads with ``modules``."""
    script = "; ".join(
        [
            "import importlib, sys",
            *(f"importlib.import_module({name!r})" for name in modules),
            f"print(*[name for name in {watched!r} if name in sys.modules])",
        ]
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    return done.stdout.split()


def test_the_root_loads_next_to_nothing() -> None:
    """``import airflow_childrun`` costs a DAG parser nothing: not even pydantic is loaded."""
    assert loaded_by("airflow_childrun", watched=(*HEAVY, "pydantic", "orjson", "rich")) == []


def test_an_author_needs_no_airflow() -> None:
    """Operations are defined, and tested by their authors, without Airflow or a database driver."""
    assert loaded_by("airflow_childrun.authoring.operation") == []


def test_declaring_operations_loads_nothing_that_runs_them() -> None:
    """A DAG file is read every few seconds: what handlers, stores and events need is loaded when a run begins."""
    runs = ("airflow_childrun.store", "airflow_childrun.model.events", "airflow_childrun.model.requests")
    watched = (*runs, "airflow_childrun.engine", "airflow_childrun.secret_policy")
    assert loaded_by("airflow_childrun.authoring.operation", watched=watched) == []


def test_whoever_drives_runs_has_built_every_model() -> None:
    """Validators that were put off are there before there are threads: two of them must not build one at a time."""
    import airflow_childrun.runtime.house  # noqa: F401 - builds them
    from airflow_childrun.model.wire import Wire

    models = list(Wire.__subclasses__())
    for model in models:
        models += model.__subclasses__()
    assert {model.__name__ for model in models if not model.__pydantic_complete__} == set()
    assert "RunManifest" in {model.__name__ for model in models}


def test_the_pure_layers_load_neither_airflow_nor_sql() -> None:
    """Every module of the Airflow-free layers, imported together, leaves both out."""
    modules = pure_modules()
    assert "airflow_childrun.engine" in modules
    assert loaded_by(*modules) == []


def test_the_pytest_plugin_loads_nothing_but_pytest() -> None:
    """Pytest loads it in every project of an environment; the testing of operations itself needs no Airflow either."""
    assert loaded_by("airflow_childrun.testing.plugin", watched=(*HEAVY, "pydantic", "orjson")) == []
    assert loaded_by("airflow_childrun.testing.operations") == []


def test_the_check_itself_sees_what_is_loaded() -> None:
    """A module that does load SQLAlchemy is reported, so an empty answer above means something."""
    assert loaded_by("sqlalchemy") == ["sqlalchemy"]


@pytest.mark.parametrize("name", ["ids", "engine", "model"])
def test_submodules_load_on_their_own(name: str) -> None:
    """No module works only because another was imported before it."""
    assert loaded_by(f"airflow_childrun.{name}") == []
