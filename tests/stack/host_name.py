"""The name under which a worker of the stand is known: another one than its machine's."""

from __future__ import annotations

import os
import socket


def of_worker() -> str:
    """Return it: ``[core] hostname_callable``."""
    return os.environ.get("CHILDRUN_WORKER") or socket.gethostname()
