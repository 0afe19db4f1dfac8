"""``python -m tests.bench [ROW...] [--json] [--quick]``: measure, print a table, exit 1 where a goal is not met.

A row may be named by its beginning: ``steps`` measures four. ``--quick`` measures once and a tenth: it shows that the
benchmark works, and nothing about speed. Peers come with the extra ``bench``.
"""

from __future__ import annotations

import argparse
import json
import sys

from tests.bench.databases import databases
from tests.bench.rows import GOALS, MEASURES, Outcome, Scale
from tests.bench.sides import keep_bytecode

TIMES = 5


def main() -> int:
    """Run the benchmarks that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"all, or some of: {', '.join(GOALS)}")
    parser.add_argument("--json", action="store_true", help="the last line is an object {row: {ratio, goal, met}}")
    parser.add_argument("--quick", action="store_true", help="once, a tenth of the work")
    given = parser.parse_args()
    wanted = [name for name in GOALS if not given.rows or any(name.startswith(row) for row in given.rows)]
    if not wanted:
        parser.error(f"there is no such row; there are {', '.join(GOALS)}")
    scale = Scale(1, 0.1) if given.quick else Scale(TIMES, 1)
    found: dict[str, Outcome] = {}
    keep_bytecode()
    with databases() as bases:
        for names, measure in MEASURES:
            if not set(names).isdisjoint(wanted):
                outcomes = measure(bases, scale)
                for name in names:
                    if name in wanted:
                        found[name] = outcomes[name]
                        print(_line(name, outcomes[name]), flush=True)
    met = {name: GOALS[name].is_met(outcome.ratio) for name, outcome in found.items()}
    if given.json:
        report = {
            name: {"ratio": round(outcome.ratio, 4), "goal": str(GOALS[name]), "met": met[name]}
            for name, outcome in found.items()
        }
        print(json.dumps(report))
    return 0 if all(met.values()) else 1


def _line(name: str, outcome: Outcome) -> str:
    goal = GOALS[name]
    verdict = "met" if goal.is_met(outcome.ratio) else "NOT MET"
    note = f" ({outcome.note})" if outcome.note else ""
    sides = f"{outcome.ours:,.5g} against {outcome.peer:,.5g} {outcome.unit}"
    return f"{name:22} {outcome.ratio:8.2f}  {goal!s:>8}  {verdict:8} {sides:44} {goal.what} / {goal.against}{note}"


if __name__ == "__main__":
    sys.exit(main())
