"""Print the matrix: ``python -m tests.stack.matrix [--quick] [WORDS ...]``; exit 1 if a cell went otherwise than written."""

from __future__ import annotations

import argparse
import signal
import sys
import time

from tests.postgres import start_embedded
from tests.stack.matrix.cells import CELLS
from tests.stack.matrix.runner import WIDE, WIDTH, play_all, summary
from tests.stack.records import Records
from tests.stack.stand import started


def main() -> int:
    """Start a stand, play, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.stack.matrix", description=__doc__)
    parser.add_argument("words", nargs="*", metavar="WORDS", help="only cells whose name holds one of these")
    parser.add_argument("--quick", action="store_true", help="only the subset that runs everywhere")
    arguments = parser.parse_args()
    cells = [cell for cell in CELLS if not arguments.words or any(words in cell.name for words in arguments.words)]
    cells = [cell for cell in cells if cell.quick or not arguments.quick]
    signal.signal(signal.SIGTERM, leave)
    server, stop = start_embedded()
    try:
        with started(server, settings=WIDE) as stand:
            records = Records.of(stand)
            began = time.monotonic()
            outcomes = play_all(stand, records, cells, WIDTH, lambda text: print(text, flush=True))
            print(summary(outcomes, time.monotonic() - began))
            records.store.close()
    finally:
        stop()
    return int(not all(outcome.is_good for outcome in outcomes))


def leave(_signal: int, _frame: object) -> None:
    """Stop the stand though cells are still being played."""
    raise SystemExit(2)


if __name__ == "__main__":
    sys.exit(main())
