"""Tables and trees on a terminal, or as plain lines in a pipe."""

from __future__ import annotations

import sys

from rich.console import Console, RenderableType
from rich.table import Table

PIPE_WIDTH = 240
"""Columns of a pipe: wide enough that no id is cut."""


def show(*renderables: RenderableType) -> None:
    """Print something, without the blanks with which tables fill their last column."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PIPE_WIDTH)
    with console.capture() as captured:
        for each in renderables:
            console.print(each)
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


def table_with(*columns: str, header: bool = True, right: frozenset[str] = frozenset()) -> Table:
    """Return an empty table with these columns; those in ``right`` hold numbers."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", show_header=header)
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    return table
