"""``python -m tests.guards [--only NAME ...]``: take each guard away, and expect the test of its promise to fail.

Works on a copy of the tree. Prints a line per guard; exits 1 if a test still passes without its guard, or fails with it.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.guards.table import GUARDS, Guard

ROOT = Path(__file__).parents[2]
PARTS = ("airflow_childrun", "tests", "dags_examples", "pyproject.toml", "README.md", "LICENSE")
LIMIT_S = 300
PASSED, FAILED = 0, 1


def run(tree: Path, test: str) -> int:
    """Run one test in a tree and return pytest's exit status; one that never ends has failed."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "", test]
    try:
        return subprocess.run(command, check=False, cwd=tree, capture_output=True, timeout=LIMIT_S).returncode
    except subprocess.TimeoutExpired:
        return FAILED


def without(tree: Path, guard: Guard) -> int:
    """Run a guard's test without the guard."""
    file = tree / "airflow_childrun" / guard.file
    whole = file.read_text()
    if whole.count(guard.old) != 1:
        sys.exit(f"{guard.name}: what is to be taken away stands {whole.count(guard.old)} times in {guard.file}")
    file.write_text(whole.replace(guard.old, guard.new))
    try:
        return run(tree, guard.test)
    finally:
        file.write_text(whole)


def main() -> None:
    """Take the guards away one by one."""
    parser = argparse.ArgumentParser(prog="python -m tests.guards")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="names of guards")
    parser.add_argument("--no-control", action="store_true", help="do not run the tests with their guards first")
    given = parser.parse_args()
    wanted = [guard for guard in GUARDS if not given.only or guard.name in given.only]
    bad = 0
    with tempfile.TemporaryDirectory(prefix="childrun-guards-") as folder:
        tree = Path(folder)
        for part in PARTS:
            source = ROOT / part
            if source.is_dir():
                shutil.copytree(source, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, tree / part)
        for guard in wanted:
            began = time.monotonic()
            control = PASSED if given.no_control else run(tree, guard.test)
            status = without(tree, guard)
            verdict = "its test fails without it" if status == FAILED else f"ITS TEST DOES NOT FAIL ({status})"
            if control != PASSED:
                verdict = f"ITS TEST FAILS WITH IT ({control})"
            bad += control != PASSED or status != FAILED
            print(f"{guard.name:16} {verdict}  {time.monotonic() - began:.0f} s", flush=True)
    print(f"{len(wanted)} guards, {bad} without proof")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
