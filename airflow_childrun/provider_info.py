"""What Airflow's provider manager reads about this package; checked against Airflow's own JSON schema by a test."""

from __future__ import annotations

from typing import Any

from airflow_childrun import __version__
from airflow_childrun.hooks.settings import DEFAULTS

_NAME = "Child Runs"


def get_provider_info() -> dict[str, Any]:
    """Return the provider's metadata."""
    return {
        "package-name": "airflow-childrun",
        "name": _NAME,
        "description": "Durable child runs: spawn thousands from one task, await them, resume what crashed.",
        "versions": [__version__],
        "integrations": [{"integration-name": _NAME, "tags": ["software"]}],
        "operators": [
            {
                "integration-name": _NAME,
                "python-modules": [
                    "airflow_childrun.operators.childrun",
                    "airflow_childrun.operators.maintenance",
                    "airflow_childrun.operators.runner",
                ],
            }
        ],
        "hooks": [{"integration-name": _NAME, "python-modules": ["airflow_childrun.hooks.childrun"]}],
        "triggers": [{"integration-name": _NAME, "python-modules": ["airflow_childrun.triggers.childrun"]}],
        "hook-class-names": ["airflow_childrun.hooks.childrun.ChildRunHook"],
        "connection-types": [_connection_type()],
        "task-decorators": [{"name": "durable", "class-name": "airflow_childrun.decorators.durable.durable_task"}],
        "cli": ["airflow_childrun.cli.main.get_commands"],
        "db-managers": ["airflow_childrun.db_manager.ChildRunDBManager"],
        "config": {"childrun": {"description": "Durable child runs (airflow-childrun).", "options": _options()}},
    }


def _connection_type() -> dict[str, Any]:
    return {
        "connection-type": "childrun",
        "hook-class-name": "airflow_childrun.hooks.childrun.ChildRunHook",
        "hook-name": _NAME,
        "ui-field-behaviour": {
            "hidden-fields": [],
            "relabeling": {"schema": "Database", "password": "Password, or a whole URL"},
            "placeholders": {
                "host": "database host; empty for SQLite",
                "port": "5432",
                "schema": "name of the database; for SQLite the absolute path of the file",
                "login": "childrun_airflow",
                "password": "`childrun init` fills in all of this",
            },
        },
        "conn-fields": {
            "deployment_id": _text(
                "Deployment id",
                "Tells this Airflow from every other, its own copies included. Any new random UUID; never change it.",
            ),
            "dialect": {
                "label": "Dialect",
                "description": "Empty if the password field holds a whole URL.",
                "schema": {"type": ["string", "null"], "enum": ["postgresql", "sqlite", None]},
            },
            "driver": _text("Driver", "Empty for the dialect's usual one (psycopg, pysqlite)."),
            "schema": _text("Schema", "Database schema of the tables; empty for the login's default."),
            "query": _text("Options", "Further options of the driver, such as sslmode=require. Shown in clear."),
        },
    }


def _text(label: str, description: str) -> dict[str, Any]:
    return {"label": label, "description": description, "schema": {"type": ["string", "null"]}}


def _options() -> dict[str, Any]:
    return {
        "operations_modules": _option(
            "string",
            "",
            "Modules that define operations, separated by commas: imported wherever a run is driven, so that a run can go "
            "on outside the DAG file that spawned it. Beside them stand the entry points `airflow_childrun.operations`.",
            example="company.operations, company.billing",
        ),
        "secret_policy": _option(
            "string",
            DEFAULTS.preset,
            "What may not be recorded. `standard` refuses a documented list of key names, well-known forms of keys and "
            "what Airflow masks; `strict` refuses much that is harmless, too.",
            example="strict",
        ),
        "max_concurrency": _option(
            "integer",
            DEFAULTS.max_concurrency,
            "How many inline children of one task run at the same time; a child that waits does not count.",
        ),
        "max_depth": _option("integer", DEFAULTS.max_depth, "How deep runs may be nested."),
        "session_ttl_s": _option(
            "integer",
            DEFAULTS.session_ttl_s,
            "After how many seconds without a sign of life a process counts as dead, and others may take over its runs.",
        ),
        "metadata_tables": _option(
            "boolean",
            str(DEFAULTS.metadata_tables),
            "Whether `airflow db migrate` also migrates the tables of a store that lies in Airflow's metadata database. "
            "`childrun migrate` does the same with the rights of the connection alone.",
        ),
        "xcom_max_bytes": _option(
            "integer",
            DEFAULTS.xcom_max_bytes,
            "How large the results of one task may be in XCom; above it the task fails and names results='references'.",
        ),
    }


def _option(kind: str, default: object, description: str, *, example: str | None = None) -> dict[str, Any]:
    return {
        "description": description,
        "version_added": "0.1.0",
        "type": kind,
        "example": example,
        "default": str(default),
    }
