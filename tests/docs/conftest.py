"""The documentation runs in the same Airflow as the tests of the provider."""

from __future__ import annotations

from tests.provider.conftest import airflow_home, new_airflow_home, provider_path

__all__ = ["airflow_home", "new_airflow_home", "provider_path"]
