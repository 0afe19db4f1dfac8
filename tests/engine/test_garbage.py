"""What a run leaves behind is freed when it is let go: Python's collector of cycles has nothing to do for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

COUNT = 50

# In a process of its own: what earlier tests have left behind would be found as well.
SCRIPT = f"""
import gc, sys
from tests.bench.operations import open_engine, run

gc.disable()
engine = open_engine("memory")
run(engine, sys.argv[1], {COUNT})  # makes what a process makes once
gc.collect()
run(engine, sys.argv[1], {COUNT})
print(gc.collect())
"""


@pytest.mark.parametrize("what", ["fan_out", "many_steps"])
def test_neither_a_child_nor_a_step_leaves_a_cycle(what: str) -> None:
    """A group commit once named itself, and kept every event, answer and snapshot until the collector came."""
    found = subprocess.run([sys.executable, "-c", SCRIPT, what], capture_output=True, check=True, text=True).stdout
    assert int(found) < COUNT / 2
