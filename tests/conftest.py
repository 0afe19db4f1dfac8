"""What every test shares: PostgreSQL, Hypothesis profiles, and an Airflow home that is not the developer's."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

from hypothesis import HealthCheck, settings

pytest_plugins = ["tests.postgres", "airflow_childrun.testing.plugin"]

settings.register_profile("dev", max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("dev"), max_examples=200, derandomize=True, print_blob=True)
settings.register_profile("nightly", settings.get_profile("dev"), max_examples=5000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") == "true" else "dev"))

# Importing airflow makes a home and reads its configuration, so this has to stand before any test module's imports.
if "AIRFLOW_HOME" not in os.environ:
    _owner = os.getpid()
    _home = tempfile.mkdtemp(prefix="childrun-airflow-")
    os.environ["AIRFLOW_HOME"] = _home

    def _remove_home() -> None:
        if os.getpid() == _owner:  # not in a forked child
            shutil.rmtree(_home, ignore_errors=True)

    atexit.register(_remove_home)
os.environ.setdefault("AIRFLOW__CORE__LOAD_EXAMPLES", "False")
os.environ.setdefault("AIRFLOW__CORE__DAGS_FOLDER", f"{os.environ['AIRFLOW_HOME']}/dags")
os.environ.setdefault("AIRFLOW__USAGE_DATA_COLLECTION__ENABLED", "False")
