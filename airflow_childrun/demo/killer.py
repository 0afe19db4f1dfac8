"""Kills a process at an exact place: after an answer was recorded, and before the next call is made."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable

import psutil

SLICE_S = 0.0005
PATIENCE_S = 20.0


def kill_between_calls(pid: int, port: int, is_recorded: Callable[[], bool], is_past: Callable[[], bool]) -> bool:
    """Let a process go on in short slices until it has recorded an answer, and kill it there with SIGKILL.

    Frozen, it can be looked at: what is seen still holds when it is killed.

    :param pid: the process
    :param port: of the server that it calls
    :param is_recorded: whether the answer stands in the store
    :param is_past: whether the server has received another call
    :returns: False if it was faster and is past the place; it goes on then
    """
    deadline = time.monotonic() + PATIENCE_S
    process = psutil.Process(pid)
    os.kill(pid, signal.SIGSTOP)
    try:
        while time.monotonic() < deadline and not is_past():
            if is_recorded() and not _is_calling(process, port):
                os.kill(pid, signal.SIGKILL)
                return True
            os.kill(pid, signal.SIGCONT)
            time.sleep(SLICE_S)
            os.kill(pid, signal.SIGSTOP)
    finally:
        # Where it was killed this does nothing.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    return False


def _is_calling(process: psutil.Process, port: int) -> bool:
    return any(
        connection.raddr and connection.raddr.port == port and connection.status != psutil.CONN_TIME_WAIT
        for connection in process.net_connections("tcp")
    )
