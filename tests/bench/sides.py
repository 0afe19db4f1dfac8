"""The processes that are compared, and the order in which they are asked: in turn, so that a busy minute hits both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[2]

Found = dict[str, Any]
"""What a measurement answers: ``seconds`` and whatever else was counted."""


def keep_bytecode() -> None:
    """Let every process that is started keep what it compiles, as what pip has installed is compiled."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


class SideFailedError(RuntimeError):
    """A process that was to be measured ended; the message holds what it said last."""


class Side:
    """One process that measures when it is asked; made by :func:`started`."""

    def __init__(self, name: str, process: subprocess.Popen[str], log: Any) -> None:
        self._name = name
        self._process = process
        self._log = log

    def answer(self) -> str:
        """Read its next line.

        :raises SideFailedError: if there is none
        """
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise SideFailedError(f"{self._name} ended: {self._log.read()[-3000:]}")
        return line

    def begin(self) -> None:
        """Have it measure."""
        assert self._process.stdin
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def measure(self) -> Found:
        """Have it measure, and return what it found."""
        self.begin()
        return self.result()

    def result(self) -> Found:
        """Return what it found, once it has."""
        found: Found = json.loads(self.answer())
        return found


@contextmanager
def started(task: str, **arguments: Any) -> Iterator[Side]:
    """Start a side and wait until it is warm.

    :param task: ``module:function`` below ``tests.bench``
    """
    module, _, function = task.partition(":")
    command = [sys.executable, "-m", "tests.bench.work", module, function, json.dumps(arguments)]
    pipe = subprocess.PIPE
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log, text=True, cwd=ROOT)
        try:
            side = Side(task, process, log)
            side.answer()
            yield side
        finally:
            process.kill()
            process.communicate()


def in_turn(times: int, **tasks: tuple[str, Mapping[str, Any]]) -> dict[str, list[Found]]:
    """Measure several sides ``times`` times, one after the other, and return what each found."""
    found: dict[str, list[Found]] = {name: [] for name in tasks}
    with ExitStack() as stack:
        sides = {name: stack.enter_context(started(task, **given)) for name, (task, given) in tasks.items()}
        for _ in range(times):
            for name, side in sides.items():
                found[name].append(side.measure())
    return found


def middle(found: Sequence[Found], field: str = "seconds") -> float:
    """Return the median of a field."""
    return float(median(one[field] for one in found))
