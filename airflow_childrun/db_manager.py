"""What ``airflow db migrate`` does for us: nothing, unless ``[childrun] metadata_tables`` asks for it.

Airflow imports this module in every ``airflow db`` command, so it loads no database driver, and no failure of ours may
stop Airflow's own migration: it is logged, naming the command that shows it again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from airflow_childrun._airflow import BaseDBManager, empty_metadata, metadata_url
from airflow_childrun.cli import metadata as tables
from airflow_childrun.errors import ChildRunError
from airflow_childrun.hooks.settings import read_settings

_REMEDY = "Airflow's own tables are not concerned; `childrun migrate` shows the error again"


class ChildRunDBManager(BaseDBManager):
    """Airflow's handle on our tables, where they share its metadata database."""

    # Empty on purpose: tables named here are required of every metadata database.
    metadata = empty_metadata()
    migration_dir = str(Path(__file__).parent / "store" / "sql" / "migrations")
    alembic_file = str(Path(migration_dir) / "alembic.ini")
    version_table_name = "alembic_version_childrun"
    supports_table_dropping = False

    def initdb(self, use_migration_files: bool = False) -> None:
        """Make our tables, if the configuration asks for it."""
        del use_migration_files  # there is one way only
        self._run(tables.migrate_tables)

    def upgradedb(
        self,
        to_revision: str | None = None,
        from_revision: str | None = None,
        show_sql_only: bool = False,
        use_migration_files: bool = False,
    ) -> None:
        """Migrate our tables, if the configuration asks for it."""
        del to_revision, from_revision, use_migration_files  # these are about Airflow's own migrations
        if not show_sql_only:
            self._run(tables.migrate_tables)

    def check_migration(self) -> bool:
        """Return whether our tables are up to date, or not our business."""
        return self._run(tables.check_tables)

    def create_db_from_orm(self) -> None:
        """Make our tables, if the configuration asks for it."""
        self._run(tables.migrate_tables)

    def downgrade(self, *_: Any, **__: Any) -> None:
        """Leave our tables alone: migrations are additive, older code reads newer tables."""

    def _run(self, verb: Callable[[str], None]) -> bool:
        try:
            if read_settings().metadata_tables:
                verb(metadata_url())
        except (ChildRunError, ImportError) as error:
            self.log.warning("childrun: %s failed: %s. %s", verb.__name__, error, _REMEDY)
            return False
        return True
