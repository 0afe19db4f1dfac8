"""Print the matrix: ``python -m tests.stack.matrix [--quick] [WORD ...]``; exit 1 if a cell went otherwise than written."""

from __future__ import annotations

import argparse
import sys
import time

from tests.postgres import start_embedded
from tests.stack.matrix.cells import CELLS
from tests.stack.matrix.runner import play_all, summary
from tests.stack.records import Records
from tests.stack.stand import started

WIDTH = 10


def main() -> int:
    """Start a stand, play, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.stack.matrix", description=__doc__)
    parser.add_argument("words", nargs="*", metavar="WORD", help="only cells whose name holds each of these")
    parser.add_argument("--quick", action="store_true", help="only the subset that runs everywhere")
    parser.add_argument("--width", type=int, default=WIDTH, help=f"cells at a time (default {WIDTH})")
    arguments = parser.parse_args()
    cells = [cell for cell in CELLS if all(word in cell.name for word in arguments.words)]
    cells = [cell for cell in cells if cell.quick or not arguments.quick]
    server, stop = start_embedded()
    settings = {
        "AIRFLOW__CORE__PARALLELISM": str(arguments.width + 2),
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
    }
    try:
        with started(server, settings=settings) as stand:
            records = Records(
                stand.environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"].replace("+psycopg2:", "+psycopg:")
            )
            began = time.monotonic()
            outcomes = play_all(stand, records, cells, arguments.width, lambda text: print(text, flush=True))
            print(summary(outcomes, time.monotonic() - began))
            records.store.close()
    finally:
        stop()
    return int(not all(outcome.is_good for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
