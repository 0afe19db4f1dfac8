"""Every line of every file of a directory, judged: equal, in the table, or different."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tests.golden import table
from tests.golden.compare import compare_anew, compare_imported
from tests.golden.identity import compare_canonical, compare_names
from tests.golden.original_replay import check_replays
from tests.golden.perform import perform_anew, perform_imported
from tests.golden.recording import check_recording
from tests.golden.rules import Explained
from tests.golden.stage import Backend
from tests.golden.transport import compare_transport

Kind = Literal["scenario", "transport", "canonical", "names"]
Verdict = Literal["equal", "in the table", "different"]


@dataclass(frozen=True)
class Finding:
    """What became of one recorded line.

    :param rows: the rows of the table that it needed
    :param lines: what differs beyond them
    """

    kind: Kind
    name: str
    rows: frozenset[str]
    lines: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """Return how it stands."""
        if self.lines:
            return "different"
        return "in the table" if self.rows else "equal"


def kind_of(case: Any) -> Kind | None:
    """Return the form of a line, or None if it has none that we know."""
    if isinstance(case, dict):
        for mark, kind in _MARKS.items():
            if mark <= case.keys():
                return kind
    return None


_MARKS: Mapping[frozenset[str], Kind] = {
    frozenset({"given", "start", "runs"}): "scenario",
    frozenset({"calls", "answers"}): "transport",
    frozenset({"text", "op_id", "state_id"}): "names",
    frozenset({"text", "canonical", "id"}): "canonical",
    frozenset({"text", "error"}): "canonical",
}


def judge(kind: Kind, case: Mapping[str, Any], backend: Backend) -> Finding:
    """Perform one recorded line and compare; whatever is raised is a difference."""
    name = str(case.get("name") or case.get("about") or ascii(case.get("text")))
    explained = Explained()
    try:
        lines = _differences(kind, case, backend, explained)
    except Exception as error:
        lines = [f"{type(error).__name__}: {error}"]
    wanted = table.lines_of(name)
    if wanted is not None:
        about, told = wanted
        explained.rows.add(about)
        lines = _beyond(lines, told)
    return Finding(kind, name, frozenset(explained.rows), tuple(lines))


def _differences(kind: Kind, case: Mapping[str, Any], backend: Backend, explained: Explained) -> list[str]:
    if kind == "canonical":
        return compare_canonical(case, explained)
    if kind == "names":
        return compare_names(case)
    if kind == "transport":
        return compare_transport(case, backend, explained)
    found = check_recording(case)
    last = perform_anew(case, backend)
    found += compare_anew(case, last, explained)
    if "at_crash" in case:
        last = perform_imported(case, backend)
        found += compare_imported(case, last, explained)
    return found + check_replays(case, last.counters["end"])


def _beyond(lines: Sequence[str], told: Sequence[str]) -> list[str]:
    """Return what the table does not tell, and what it tells that did not happen."""
    missing, extra = Counter(told) - Counter(lines), Counter(lines) - Counter(told)
    return [f"the table says, but it is not so: {line}" for line in missing.elements()] + list(extra.elements())


@dataclass
class Tally:
    """Counts of verdicts by kind, and the lines to print."""

    counts: Counter[tuple[Kind, Verdict]] = field(default_factory=Counter)
    lines: list[str] = field(default_factory=list)

    def add(self, finding: Finding, where: str) -> None:
        """Take a finding in."""
        self.counts[finding.kind, finding.verdict] += 1
        self.lines += [f"{where} {finding.name}: {line}" for line in finding.lines]

    def summary(self, where: str) -> Iterator[str]:
        """Yield a line of counts by kind."""
        for kind, noun in _NOUNS.items():
            counts = {verdict: self.counts[kind, verdict] for verdict in ("equal", "in the table", "different")}
            if sum(counts.values()):
                told = ", ".join(f"{number} {verdict}" for verdict, number in counts.items())
                yield f"{where}: {sum(counts.values())} {noun}: {told}"


_NOUNS: Mapping[Kind, str] = {
    "scenario": "scenarios",
    "transport": "transport cases",
    "canonical": "canonical texts",
    "names": "names",
}


def read(path: Path) -> list[Any]:
    """Read a file of JSON lines; a text may hold U+2028, so only line feeds part lines."""
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line.strip()]


def check_file(path: Path, backends: Sequence[Backend], tallies: Mapping[str, Tally]) -> None:
    """Judge every line of a file on every backend; what needs no store, on the first alone."""
    for number, case in enumerate(read(path), 1):
        kind = kind_of(case)
        if kind is None:
            tallies[backends[0].name].lines.append(f"{path.name}:{number}: no form of a recording that is known")
            continue
        for backend in backends if kind in ("scenario", "transport") else backends[:1]:
            tallies[backend.name].add(judge(kind, case, backend), f"{path.name}, {backend.name},")
