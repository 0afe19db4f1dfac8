"""``python -m tests.bench.charts [FOLDER] [--quick]``: measure how costs grow, and draw it as PNG (by default into docs/charts).

Each point is the median of three measurements in a process of its own, taken in turn with the other points, on a
durable PostgreSQL. ``--quick`` measures once and a hundredth: it shows that the charts work, and nothing about costs.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.bench.databases import Databases, databases
from tests.bench.rows import Scale, together
from tests.bench.sides import ROOT, in_turn, keep_bytecode, middle

TIMES = 3
COMMITS = 200
EMPTY = 1_000
"""Where an empty store stands on an axis that has no zero."""
LINE = "#2563a8"


@dataclass(frozen=True, slots=True)
class Chart:
    """What a chart shows.

    :param flat: whether a level line would be the ideal; otherwise growth in proportion is
    """

    name: str
    title: str
    across: str
    up: str
    flat: bool
    measure: Callable[[Databases, Scale], dict[int, float]]


def _commit(bases: Databases, scale: Scale) -> dict[int, float]:
    """Return microseconds of a commit by events in the store."""
    urls = {}
    for events in (0, 10_000, 100_000, 1_000_000):
        urls[events] = bases.fresh("postgresql", ours=True)
        bases.fill(urls[events], scale.of(events) if events else 0)
    found = in_turn(
        scale.times, **{f"of{events}": ("ours:commits", {"url": url, "count": COMMITS}) for events, url in urls.items()}
    )
    return {max(EMPTY, events): middle(found[f"of{events}"]) * 1e6 / COMMITS for events in urls}


def _resume(bases: Databases, scale: Scale) -> dict[int, float]:
    """Return milliseconds of a resume by events behind the checkpoint."""
    counts = (100, 1_000, 10_000, 100_000)
    tasks = {
        f"of{count}": ("histories:resume", {"url": bases.fresh("postgresql", ours=True), "facts": scale.of(count)})
        for count in counts
    }
    found = in_turn(scale.times, **tasks)
    return {count: middle(found[f"of{count}"]) * 1000 for count in counts}


def _children(bases: Databases, scale: Scale) -> dict[int, float]:
    """Return seconds by children of one parent."""
    counts = (10, 100, 1_000, 3_000)
    url = bases.fresh("postgresql", ours=True)
    found = in_turn(
        scale.times, **{f"of{count}": ("ours:children", {"url": url, "count": scale.of(count)}) for count in counts}
    )
    return {count: middle(found[f"of{count}"]) for count in counts}


def _processes(bases: Databases, scale: Scale) -> dict[int, float]:
    """Return children a second by processes that share the work, the slowest one's time counting."""
    return together(bases, scale, scale.of(960), (1, 2, 4, 8, 16)).rates


CHARTS = (
    Chart("commit", "A commit, by events in the store", "events in the store", "us a commit", True, _commit),
    Chart("resume", "A resume, by events behind its checkpoint", "events behind the checkpoint", "ms", True, _resume),
    Chart("children", "Children of one run, spawn to result", "children", "seconds", False, _children),
    Chart("processes", "Children a second, by processes", "processes", "children a second", True, _processes),
)


def draw(chart: Chart, points: dict[int, float], path: Path) -> None:
    """Draw one chart: every point with its value, and what would be ideal as a broken line."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FixedLocator, NullLocator

    figure, axes = plt.subplots(figsize=(5, 3), dpi=100, layout="constrained")
    numbers, values = list(points), list(points.values())
    if chart.flat:
        ideal = [values[0]] * len(numbers)
    else:
        ideal = [values[-1] * number / numbers[-1] for number in numbers]
        axes.set_yscale("log")
    axes.set_xscale("log")
    axes.plot(numbers, ideal, "--", color="#999999", label="as at the first point" if chart.flat else "in proportion")
    axes.plot(numbers, values, "o-", color=LINE, label="measured")
    for number, value in points.items():
        label = f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
        axes.annotate(label, (number, value), textcoords="offset points", xytext=(0, 7), ha="center", fontsize=9)
    if chart.flat:
        axes.set_ylim(0, max(values) * 1.25)
    axes.margins(x=0.08, y=0.15)
    axes.xaxis.set_major_locator(FixedLocator(numbers))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(
        numbers, ["empty" if chart.name == "commit" and number == EMPTY else f"{number:,}" for number in numbers]
    )
    axes.set(title=chart.title, xlabel=chart.across, ylabel=chart.up)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="best")
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)


def main() -> None:
    """Measure and draw."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.charts", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "docs" / "charts")
    parser.add_argument("--quick", action="store_true", help="once, a hundredth of the work")
    parser.add_argument("--only", choices=[chart.name for chart in CHARTS], help="one of them")
    given = parser.parse_args()
    scale = Scale(1, 0.01) if given.quick else Scale(TIMES, 1)
    given.folder.mkdir(parents=True, exist_ok=True)
    keep_bytecode()
    with databases() as bases:
        for chart in CHARTS:
            if given.only in (None, chart.name):
                points = chart.measure(bases, scale)
                draw(chart, points, given.folder / f"{chart.name}.png")
                shown = ", ".join(f"{number:,}: {value:,.4g}" for number, value in points.items())
                print(f"{chart.title} ({chart.up}): {shown}; load {os.getloadavg()[0]:.1f}", flush=True)


if __name__ == "__main__":
    main()
