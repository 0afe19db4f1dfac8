"""``python -m tests.bench [ROW...] [--json] [--quick]``: measure, print a table, exit 1 where a goal is not met.

Rows may be named by their beginning: ``steps`` measures four. ``--quick`` measures once and a tenth: it shows that the
benchmark works, and nothing about speed. Peers come with the extra ``bench``.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Mapping
from typing import Any

from tests.bench.databases import Databases, databases
from tests.bench.rows import GOALS, MEASURES, Measure, Outcome, Scale
from tests.bench.sides import keep_bytecode

TIMES = 5


def main() -> int:
    """Run the benchmarks that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"all, or some of: {', '.join(GOALS)}")
    parser.add_argument("--json", action="store_true", help="the last line is an object {row: {ratio, goal, met}}")
    parser.add_argument("--quick", action="store_true", help="once, a tenth of the work")
    given = parser.parse_args()
    wanted = {name for row in given.rows or [""] for name in _rows(row)}
    unknown = [row for row in given.rows if not _rows(row)]
    if unknown:
        parser.error(f"there is no row {', '.join(unknown)}; there are {', '.join(GOALS)}")
    scale = Scale(1, 0.1) if given.quick else Scale(TIMES, 1)
    found: dict[str, Outcome | None] = {}
    keep_bytecode()
    with databases() as bases:
        for names, measure in MEASURES:
            asked = [name for name in names if name in wanted]
            outcomes = _measured(measure, bases, scale) if asked else {}
            for name in asked:
                found[name] = outcomes.get(name)
                print(_line(name, outcomes.get(name)), flush=True)
    report = {name: _entry(name, outcome) for name, outcome in found.items()}
    if given.json:
        print(json.dumps(report))
    return 0 if all(entry["met"] for entry in report.values()) else 1


def _rows(text: str) -> list[str]:
    """Return the row of a name, or those whose names begin with it."""
    return [text] if text in GOALS else [name for name in GOALS if name.startswith(text)]


def _measured(measure: Measure, bases: Databases, scale: Scale) -> Mapping[str, Outcome]:
    """Measure; what cannot be measured costs no other row, and is no success."""
    try:
        return measure(bases, scale)
    except Exception:  # a peer may fail in any way
        traceback.print_exc()
        return {}


def _entry(name: str, outcome: Outcome | None) -> dict[str, Any]:
    goal = GOALS[name]
    ratio = None if outcome is None else round(outcome.ratio, 4)
    return {"ratio": ratio, "goal": str(goal), "met": outcome is not None and goal.is_met(outcome.ratio)}


def _line(name: str, outcome: Outcome | None) -> str:
    goal = GOALS[name]
    if outcome is None:
        return f"{name:22} {'-':>8}  {goal!s:>8}  FAILED   {goal.what} / {goal.against}"
    verdict = "met" if goal.is_met(outcome.ratio) else "NOT MET"
    note = f" ({outcome.note})" if outcome.note else ""
    sides = f"{outcome.ours:,.5g} against {outcome.peer:,.5g} {outcome.unit}"
    return f"{name:22} {outcome.ratio:8.2f}  {goal!s:>8}  {verdict:8} {sides:44} {goal.what} / {goal.against}{note}"


if __name__ == "__main__":
    sys.exit(main())
