"""Reads the documentation: blocks of code, commands, links and quotations."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"(?:<!-- (?P<quoted>[^\n]+) -->\n)?```(?P<kind>\w*)\n(?P<text>.*?)```", re.DOTALL)
_MODULE = re.compile(r"python -m (tests[\w.]*)")
_COMMAND = re.compile(r"`((?:airflow )?childrun(?: [^`]+)?)`")


@dataclass(frozen=True)
class Block:
    """A block of code.

    :param quoted: ``<file>: <region>`` if it repeats a part of an example
    """

    kind: str
    text: str
    quoted: str | None


def blocks(page: Path) -> list[Block]:
    """Return the blocks of a page."""
    return [Block(found["kind"], found["text"], found["quoted"]) for found in _BLOCK.finditer(page.read_text())]


def region(quoted: str) -> str:
    """Return the part of an example between its ``[START x]`` and ``[END x]``."""
    file, _, name = quoted.partition(": ")
    source = (ROOT / file).read_text()
    return source.partition(f"# [START {name}]\n")[2].partition(f"# [END {name}]")[0]


def modules(page: Path) -> set[str]:
    """Return the modules of ours that a page tells to run."""
    return set(_MODULE.findall(page.read_text()))


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the arguments of each ``childrun`` command on a page, in the text and in blocks for a console."""
    text = page.read_text()
    for found in _COMMAND.finditer(text):
        yield shlex.split(found[1].removeprefix("airflow "))[1:]
    for block in blocks(page):
        if block.kind == "console":
            for line in block.text.splitlines():
                for part in line.removeprefix("$ ").split("&&"):
                    words = shlex.split(part)
                    if words and words[0] == "childrun":
                        yield words[1:]
