"""``python -m tests.golden [DIR]``: every recording in a directory (default: ours) against our engine, on every store.

Prints a line per difference and a count at the end; exits with 1 if anything differs beyond the table, with 2 if there is
nothing to compare.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import time
from pathlib import Path

from tests.golden.check import Tally, check_file
from tests.golden.stage import Backend, MemoryBackend, SqliteBackend


def main(arguments: list[str]) -> int:
    """Compare, and return the exit status."""
    folder = Path(arguments[0]) if arguments else Path(__file__).parent
    files = sorted(folder.glob("*.jsonl"))
    if len(arguments) > 1 or not files:
        print(f"usage: python -m tests.golden [DIR]; there are no recordings (*.jsonl) in {folder}", file=sys.stderr)
        return 2
    logging.getLogger("airflow_childrun").setLevel(logging.CRITICAL)
    began = time.monotonic()
    # Every commit is synced to the disk; in memory, where there is such a folder, that costs nothing.
    ram = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="childrun-golden-", dir=ram) as scratch:
        backends: list[Backend] = [MemoryBackend(), SqliteBackend(Path(scratch))]
        tallies = {backend.name: Tally() for backend in backends}
        for path in files:
            check_file(path, backends, tallies)
    for tally in tallies.values():
        print(*tally.lines, sep="\n", end="\n" if tally.lines else "")
    for name, tally in tallies.items():
        print(*tally.summary(name), sep="\n")
    print(f"{len(files)} files in {time.monotonic() - began:.1f} s")
    return 1 if any(tally.lines for tally in tallies.values()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
