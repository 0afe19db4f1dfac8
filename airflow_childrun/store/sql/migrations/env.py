"""What Alembic runs: our caller hands over its connection, and nothing is read from a configuration file."""

from __future__ import annotations

from alembic import context

from airflow_childrun.store.sql.schema import VERSION_TABLE

attributes = context.config.attributes
context.configure(
    connection=attributes["connection"],
    version_table=VERSION_TABLE,
    version_table_schema=attributes["schema"],
)
# The caller's transaction holds the migration lock and commits.
context.run_migrations(schema=attributes["schema"])
