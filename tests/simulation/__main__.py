"""Replays schedules: ``python -m tests.simulation SEED [SEED ...]``, or ``--count N --first SEED`` for many."""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
import traceback
from collections import Counter

from tests.simulation.run import FAULTS, simulate


def main() -> int:
    """Run seeds; exit 1 if one fails."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("seeds", nargs="*", type=int)
    parser.add_argument("--count", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--only", choices=FAULTS, help="the one fault that strikes, once, in a single process")
    parser.add_argument("--keep-going", action="store_true", help="print one line per failing seed and go on")
    parser.add_argument("--json", action="store_true", help="print what happened in all of them as the last line")
    given = parser.parse_args()
    began, failed = time.monotonic(), 0
    happened: Counter[str] = Counter()
    gc.freeze()  # what is loaded lives on; what a schedule leaves behind is looked at more seldom
    gc.set_threshold(200_000, 50, 1000)
    seeds = given.seeds or range(given.first, given.first + given.count)
    for seed in seeds:
        try:
            done = simulate(seed, only=given.only) if not given.keep_going else _quietly(seed, given.only)
        except Exception as error:
            failed += 1
            if given.keep_going:
                print(f"seed {seed}: {type(error).__name__}: {str(error)[:300]}")
                continue
            traceback.print_exc()
            return 1
        happened.update(done.setting.faults.happened, given_up=len(done.given_up), deaths=done.deaths)
        if given.seeds:
            print(done.report())
    if given.json:
        print(json.dumps({"schedules": len(seeds), "failed": failed, **happened}))
        return 1 if failed else 0
    print(f"{len(seeds)} schedules, {failed} failed, {time.monotonic() - began:.1f} s")
    return 1 if failed else 0


def _quietly(seed: int, only: str | None):
    from tests.simulation.run import Simulation

    simulation = Simulation(seed, only=only)
    simulation.run()
    return simulation


if __name__ == "__main__":
    sys.exit(main())
