"""A bundle with versions, as a Git bundle has them: each is a folder of the stand's ``versions``."""

from __future__ import annotations

import os
from pathlib import Path

from airflow.dag_processing.bundles.base import BaseDagBundle


class FolderBundle(BaseDagBundle):
    """The newest version is the folder ``v<n>`` whose name comes last, as it was when last looked for."""

    supports_versioning = True
    _current: str | None = None

    @property
    def path(self) -> Path:
        """Where the files of the version stand that was asked for, or of the newest."""
        return self._versions / (self.version or self._current or "none")

    def initialize(self) -> None:
        """Look for the first time."""
        self.refresh()
        super().initialize()

    def get_current_version(self) -> str | None:
        """Return the newest version that was seen."""
        return self.version or self._current

    def refresh(self) -> None:
        """Look for the newest version."""
        self._current = max((path.name for path in self._versions.glob("v*") if path.suffix == ""), default=None)

    @property
    def _versions(self) -> Path:
        return Path(os.environ["CHILDRUN_STAND"]) / "versions"
