"""Airflow accepts what the package says of itself, and everything that it names exists."""

from __future__ import annotations

import importlib
import json
import tomllib
from importlib.util import find_spec
from pathlib import Path

import jsonschema
import pytest

import airflow_childrun
from airflow_childrun.hooks.connection import CONN_NAME_ATTR, CONN_TYPE, EXTRAS
from airflow_childrun.hooks.settings import DEFAULT_CONN_ID, DEFAULTS
from airflow_childrun.provider_info import get_provider_info
from tests.provider.conftest import ROOT, AirflowHome

pytestmark = pytest.mark.provider

INFO = get_provider_info()


def test_it_fits_airflows_own_schema() -> None:
    """The metadata validates against the JSON schema that this Airflow ships."""
    spec = find_spec("airflow")
    assert spec is not None
    assert spec.origin is not None
    schema = json.loads((Path(spec.origin).parent / "provider_info.schema.json").read_text())
    jsonschema.validate(INFO, schema)


def named_objects() -> list[str]:
    (connection,) = INFO["connection-types"]
    decorators = [each["class-name"] for each in INFO["task-decorators"]]
    return [*INFO["cli"], *INFO["db-managers"], *INFO["hook-class-names"], connection["hook-class-name"], *decorators]


@pytest.mark.parametrize("path", sorted(set(named_objects())))
def test_every_object_that_it_names_exists(path: str) -> None:
    """A typing error in a class path would only be a log line in Airflow."""
    module, _, name = path.rpartition(".")
    assert hasattr(importlib.import_module(module), name)


def test_every_module_that_it_names_exists() -> None:
    """Operators, hooks and triggers are where the metadata says."""
    for module in named_modules():
        assert find_spec(module), module


def named_modules() -> list[str]:
    kinds = ("operators", "hooks", "triggers")
    return [module for kind in kinds for each in INFO[kind] for module in each["python-modules"]]


def test_no_public_class_or_function_of_ours_lives_where_the_metadata_does_not_say() -> None:
    """A registry of providers lists what is named; all that authors import from the root for use in Airflow is."""
    homes = {getattr(airflow_childrun, name).__module__ for name in airflow_childrun.__all__ if name != "__version__"}
    layers = ("operators", "hooks", "triggers")
    public = {home for home in homes if home.split(".")[1] in layers} - {"airflow_childrun.hooks.elements"}
    assert public <= set(named_modules())
    assert len(public) >= 4


def test_the_hook_is_registered_under_the_names_that_it_uses() -> None:
    """Connection type, form fields and hook agree."""
    (connection,) = INFO["connection-types"]
    hook = importlib.import_module("airflow_childrun.hooks.childrun").ChildRunHook
    assert connection["connection-type"] == CONN_TYPE == hook.conn_type
    assert hook.conn_name_attr == CONN_NAME_ATTR
    assert hook.default_conn_name == DEFAULT_CONN_ID
    assert set(connection["conn-fields"]) == EXTRAS


def test_no_field_of_the_form_that_is_shown_in_clear_invites_a_secret() -> None:
    """Extras are shown in clear, so none of them is a password field; the password field says that it takes URLs."""
    (connection,) = INFO["connection-types"]
    assert not any(each["schema"].get("format") == "password" for each in connection["conn-fields"].values())
    assert "URL" in connection["ui-field-behaviour"]["relabeling"]["password"]


def test_the_documented_defaults_are_those_in_use() -> None:
    """What `airflow config list` shows as a default is what the code does without a value."""
    options = {name: each["default"] for name, each in INFO["config"]["childrun"]["options"].items()}
    assert options == {
        "operations_modules": "",
        "secret_policy": DEFAULTS.preset,
        "max_concurrency": str(DEFAULTS.max_concurrency),
        "max_depth": str(DEFAULTS.max_depth),
        "session_ttl_s": str(DEFAULTS.session_ttl_s),
        "metadata_tables": str(DEFAULTS.metadata_tables),
        "xcom_max_bytes": str(DEFAULTS.xcom_max_bytes),
    }


def test_the_entry_points_lead_here() -> None:
    """Airflow finds the metadata, and a shell the command, by the entry points of the package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for target in (project["entry-points"]["apache_airflow_provider"]["provider_info"], project["scripts"]["childrun"]):
        module, _, name = target.partition(":")
        assert callable(getattr(importlib.import_module(module), name))


_MANAGER = """
import json
from airflow.providers_manager import ProvidersManager
from airflow_childrun.hooks.settings import read_settings
manager = ProvidersManager()
manager.initialize_providers_configuration()
from airflow.configuration import conf
print("RESULT " + json.dumps({
    "provider": "airflow-childrun" in manager.providers,
    "hook": "childrun" in manager.hooks,
    "fields": sorted(name for name in manager.connection_form_widgets if "__childrun__" in name),
    "behaviour": "childrun" in manager.field_behaviours,
    "managers": [name for name in manager.db_managers if "childrun" in name],
    "depth": conf.getint("childrun", "max_depth"),
    "settings": read_settings().max_depth,
}))
"""


def test_airflow_registers_all_of_it(airflow_home: AirflowHome) -> None:
    """The provider manager of a real Airflow knows provider, connection form, database manager and configuration."""
    done = airflow_home.python(_MANAGER, AIRFLOW__CHILDRUN__MAX_DEPTH="7")
    line = next((line for line in done.out.splitlines() if line.startswith("RESULT ")), None)
    assert line, done.text
    assert "missing" not in done.err, done.err
    assert json.loads(line.removeprefix("RESULT ")) == {
        "provider": True,
        "hook": True,
        "fields": sorted(f"extra__childrun__{name}" for name in EXTRAS),
        "behaviour": True,
        "managers": ["airflow_childrun.db_manager.ChildRunDBManager"],
        "depth": 7,
        "settings": 7,
    }


def test_a_wrong_setting_names_option_and_remedy(airflow_home: AirflowHome) -> None:
    """A value that does not fit is refused with what the option takes, not replaced by a default."""
    script = (
        "from airflow_childrun.hooks.settings import read_settings\n"
        "from airflow_childrun.errors import HostError\n"
        "try:\n    read_settings()\nexcept HostError as error:\n    print(error)\n"
    )
    done = airflow_home.python(script, AIRFLOW__CHILDRUN__SECRET_POLICY="lax")
    assert "[config_invalid] [childrun] secret_policy = 'lax'" in done.out
    assert "'standard' or 'strict'" in done.out
