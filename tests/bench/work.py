"""One side of a comparison, in a process of its own: warms up, then measures each time that it reads a line.

``python -m tests.bench.work MODULE FUNCTION JSON-ARGUMENTS``: the function prepares and returns what is to be measured,
a function without arguments which returns what it found beside the time, such as how many events it read.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable
from typing import Any

Measured = Callable[[], dict[str, Any] | None]


def main() -> None:
    """Serve until the standard input ends."""
    module, function, arguments = sys.argv[1:4]
    answers = sys.stdout
    sys.stdout = sys.stderr  # whatever the peers print, an answer is a line of ours
    measured: Measured = getattr(importlib.import_module(f"tests.bench.{module}"), function)(**json.loads(arguments))
    print("ready", file=answers, flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        found = measured() or {}
        print(json.dumps({"seconds": time.perf_counter() - began, **found}), file=answers, flush=True)


if __name__ == "__main__":
    main()
