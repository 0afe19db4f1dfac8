"""Plays many cells on one stand at once, and compares what is seen with what was written down."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

from tests.stack.matrix.cells import IMPOSSIBLE, Cell
from tests.stack.matrix.stage import LOOK_EVERY_S, Doors, Seen, Stage
from tests.stack.records import Records
from tests.stack.stand import Stand

WIDTH = 12
WIDE = {
    "AIRFLOW__CORE__PARALLELISM": str(WIDTH + 2),
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
}
"""Settings of a stand on which many cells are played at once: each may hold a worker, and none may be given up for being slow."""
SETTLE_S = 20.0
"""How long what was expected may take to show once no task moves any more."""


@dataclass(frozen=True)
class Outcome:
    """How a cell went.

    :param seen: what was to be seen at the end; None if it could not be played
    :param trouble: why not, or what `childrun verify` finds
    """

    cell: Cell
    seen: Seen | None
    trouble: str
    seconds: float

    @property
    def is_good(self) -> bool:
        """Whether it went as written."""
        return self.seen == self.cell.expected and not self.trouble

    def __str__(self) -> str:
        seen = self.seen
        counted = "   -     -" if seen is None else f"{seen.count:4} {seen.calls:5}"
        told = f"{'ok ' if self.is_good else 'NO '} {self.cell.name:48} {counted} {self.seconds:6.0f} s  {seen or '-'}"
        if self.is_good:
            return told
        lines = [told, f"    expected: {self.cell.expected}"]
        return "\n".join([*lines, f"    {self.trouble}"] if self.trouble else lines)


HEADER = f"    {'cell':48} runs calls  time      task [results] child: its generations, first+second calls"


def play_all(
    stand: Stand, records: Records, cells: Sequence[Cell], width: int, say: Callable[[str], None] = print
) -> list[Outcome]:
    """Play cells, some at a time, and say how each went.

    :param width: how many at a time; a held child keeps a worker, so no more than Airflow's parallelism
    """
    for folder in ("flags", "lists"):
        (stand.home / folder).mkdir(exist_ok=True)
    stand.browser.dag_ids()
    doors = Doors(stand)
    say(HEADER)
    outcomes = []
    # Those that take longest begin first.
    ordered = sorted(cells, key=lambda cell: not cell.idle)
    pool = ThreadPoolExecutor(width + sum(cell.idle for cell in cells))
    try:
        for future in as_completed([pool.submit(_play, stand, records, doors, cell) for cell in ordered]):
            outcomes.append(future.result())
            say(str(outcomes[-1]))
    finally:
        # Where somebody stops it half way, the stand goes at once, and every cell with it.
        pool.shutdown(wait=False, cancel_futures=True)
        doors.open("")
        stand.witness.on_call = lambda _: None
    return outcomes


def _play(stand: Stand, records: Records, doors: Doors, cell: Cell) -> Outcome:
    began = time.monotonic()
    stage = cell.stage(stand, records, doors, cell.dag_id, re.sub(r"[^a-z0-9_]+", ".", cell.name.lower()))
    seen, trouble = None, ""
    try:
        cell.act(stage)
        seen = _settled(stage, cell)
        trouble = "; ".join(map(str, stage.findings()))
    except Exception as error:
        trouble = f"{type(error).__name__}: {error}"
    finally:
        stage.open()
    return Outcome(cell, seen, trouble, time.monotonic() - began)


def _settled(stage: Stage, cell: Cell) -> Seen:
    """Look again until the expected is to be seen, or nothing moves any more."""
    stage.wait(stage.is_over, "the DAG run is over")
    deadline = time.monotonic() + SETTLE_S
    while True:
        over, seen = stage.is_over(), stage.look(cell.target)
        if over and (seen == cell.expected or time.monotonic() > deadline):
            return seen
        time.sleep(LOOK_EVERY_S)


def summary(outcomes: Iterable[Outcome], seconds: float) -> str:
    """Return what closes the table."""
    outcomes = list(outcomes)
    lines = ["", "not played:", *(f"  {what}: {why}" for what, why in IMPOSSIBLE.items()), ""]
    bad = [outcome for outcome in outcomes if not outcome.is_good]
    if bad:
        lines += ["different from what was written:", *(str(outcome) for outcome in bad), ""]
    seen = [outcome.seen for outcome in outcomes if outcome.seen is not None]
    runs, calls = sum(each.count for each in seen), sum(each.calls for each in seen)
    lines.append(f"{len(outcomes)} cells, {len(bad)} differ; {runs} child runs, {calls} calls; {seconds:.0f} s")
    return "\n".join(lines)
