"""The proof in one command: ``python -m tests.soak --minutes 10 --seed N``.

Four parts, one after the other, each a command of its own that can be called alone:

- the failpoint sweep on SQLite and on PostgreSQL, one death and two in a row (``tests.fault.sweep``);
- the simulation, 200 schedules a minute (``tests.simulation``);
- the kill soak, which takes ``--minutes``, over 500 runs, the database restarted three times (``tests.soak.kill``);
- zombies, a hundred pauses a minute (``tests.fault.zombies``).

Prints a line per part with its figures, and a line with all of it; exits 1 if anything was lost. Takes about twice the minutes
on two processors.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.soak.server import RestartableServer

ROOT = Path(__file__).parents[2]
SWEEP_S = 9.0
SCHEDULES, ZOMBIES_A_ROUND, PAUSES = 200, 16, 100


def run(*command: str) -> tuple[bool, dict[str, Any]]:
    """Run a part; return whether nothing was lost, and its figures: the last line that it printed."""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", *command], check=False, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    lines = done.stdout.splitlines()
    try:
        figures = json.loads(lines[-1])
    except (IndexError, ValueError):
        figures = {"problems": ["no figures"]}
    if done.returncode:
        print(done.stdout[-20_000:])
    return done.returncode == 0, {**figures, "seconds": round(time.monotonic() - began)}


def parts(minutes: float, seed: int, runs: int, url: str, folder: str) -> Iterator[tuple[str, list[str]]]:
    """Return the name and the command of every part."""
    places = {"sqlite": f"sqlite:///{folder}/store.db", "postgresql": url}
    for name, where in places.items():
        for faults, share in ((1, 1.0), (2, 0.5)):
            given = ["--url", where, "--seed", str(seed), "--faults", str(faults)]
            seconds = str(max(5.0, minutes * SWEEP_S * share))
            yield f"sweep, {name}, faults {faults}", ["tests.fault.sweep", *given, "--seconds", seconds]
    schedules = max(20, round(minutes * SCHEDULES))
    first = str(seed * 1_000_000)
    yield "simulation", ["tests.simulation", "--json", "--keep-going", "--first", first, "--count", str(schedules)]
    yield "kill soak", ["tests.soak.kill", "--minutes", str(minutes), "--seed", str(seed), "--runs", str(runs)]
    rounds = str(max(1, round(minutes * PAUSES / ZOMBIES_A_ROUND + 0.49)))
    given = ["--url", url, "--seed", str(seed), "--zombies", str(ZOMBIES_A_ROUND), "--rounds", rounds]
    yield "zombies", ["tests.fault.zombies", *given]


def main() -> None:
    """Run all parts, print their figures, exit 1 on any loss."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("--minutes", type=float, default=10.0, help="of the kill soak; the others in proportion")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--runs", type=int, default=500, help="topmost runs of the kill soak at a time")
    parser.add_argument("--only", help="only the parts whose name begins so")
    given = parser.parse_args()
    server = RestartableServer()
    lost: list[str] = []
    found: dict[str, Any] = {}
    try:
        with tempfile.TemporaryDirectory(prefix="childrun-proof-") as folder:
            for name, command in parts(given.minutes, given.seed, given.runs, server.url, folder):
                if given.only and not name.startswith(given.only):
                    continue
                is_well, found[name] = run(*command)
                lost += [] if is_well else [name]
                verdict = "nothing lost" if is_well else "LOST SOMETHING"
                print(f"{name}: {verdict}: {json.dumps(found[name])}", flush=True)
    finally:
        server.close()
    print(json.dumps({"seed": given.seed, "parts": found, "lost": lost}))
    sys.exit(1 if lost else 0)


if __name__ == "__main__":
    main()
