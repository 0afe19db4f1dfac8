"""A bundle with versions, as a Git bundle has them: each is a folder of the stand's ``versions``."""

from __future__ import annotations

import os
from pathlib import Path

from airflow.dag_processing.bundles.base import BaseDagBundle


class FolderBundle(BaseDagBundle):
    """The newest version is the folder ``v<n>`` whose name comes last."""

    supports_versioning = True

    @property
    def path(self) -> Path:
        """Where the files of the version stand that was asked for, or of the newest."""
        return self._versions / (self.version or self.get_current_version() or "none")

    def get_current_version(self) -> str | None:
        """Return the newest version."""
        return max((path.name for path in self._versions.glob("v*") if path.suffix == ""), default=None)

    def refresh(self) -> None:
        """Do nothing: the folders are there."""

    @property
    def _versions(self) -> Path:
        return Path(os.environ["CHILDRUN_STAND"]) / "versions"
