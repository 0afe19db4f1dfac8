"""A PostgreSQL that can be broken off in the middle of its work and started again."""

from __future__ import annotations

import os
import pwd
import secrets
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from tests.postgres import _await_answer, _binaries, _free_port, _settings


class RestartableServer:
    """A server of this process, which stops with it."""

    def __init__(self) -> None:
        self._work = tempfile.TemporaryDirectory(prefix="childrun-soak-pg-", ignore_cleanup_errors=True)
        work = Path(self._work.name)
        work.chmod(0o755)
        self._log = work / "log"
        self._programs = _binaries(work)
        self._run = work / "run"
        self._run.mkdir()
        self._user: dict[str, Any] = {}
        if os.geteuid() == 0:  # the server refuses to run as root
            nobody = pwd.getpwnam("nobody")
            self._user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            os.chown(self._run, nobody.pw_uid, nobody.pw_gid)
        self._port = _free_port()
        password = secrets.token_hex(16)
        self._admin = f"postgresql://postgres:{password}@127.0.0.1:{self._port}/postgres"
        self.url = self._admin.replace("postgresql://", "postgresql+psycopg://")
        self._initialise(password)
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def _initialise(self, password: str) -> None:
        file = self._run / "password"
        file.write_text(password)
        file.chmod(0o644)
        command = [str(self._programs / "initdb"), "-D", str(self._run / "data"), "-U", "postgres", "--encoding=UTF8"]
        command += ["--auth=scram-sha-256", "--locale=C", "--no-sync", f"--pwfile={file}", "--no-instructions"]
        subprocess.run(command, check=True, capture_output=True, cwd=self._run, **self._user)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        settings = _settings(self._port, self._run, durable=False)  # a process's death loses nothing that was written
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                [str(self._programs / "postgres"), "-D", str(self._run / "data"), *settings],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._run,
                **self._user,
            )
        _await_answer(self._process, self._admin, self._log)

    def break_off(self) -> None:
        """Stop as ``pg_ctl stop -m immediate`` does: no farewell, no checkpoint; the next start recovers."""
        self._stop(signal.SIGQUIT)

    def close(self) -> None:
        """Stop for good."""
        self._stop(signal.SIGINT)
        self._work.cleanup()

    def _stop(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(30)
            self._process = None
