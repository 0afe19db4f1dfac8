"""What simulated runs do: programs as data, made by a seed; the operation that performs them; what must come out."""

from __future__ import annotations

from random import Random
from typing import Any, Protocol

from airflow_childrun.authoring.operation import Operation
from airflow_childrun.errors import OtherIoError, StateError
from airflow_childrun.model.config import Duration, Fixed, RetryPolicy, RunConfig

STATE_TRIES = 4
Program = dict[str, Any]


class Outside(Protocol):
    """The world that steps call."""

    def touch(self, label: str, token: str, failures: int) -> int:
        """Answer; fail as often as told before."""

    def breaks(self, label: str, times: int) -> bool:
        """Whether a handler is to raise now."""


class _Stage:
    """Where the running simulation puts its world."""

    world: Outside | None = None


STAGE = _Stage()


def world() -> Outside:
    """Return the world of the running simulation."""
    if STAGE.world is None:
        raise AssertionError("no simulation runs")
    return STAGE.world


def touch(label: str, token: str, failures: int) -> int:
    """Call the outside."""
    return world().touch(label, token, failures)


def explode(label: str) -> int:
    """Fail for good."""
    raise ValueError(label)


def policy(attempts: int, delay_s: int = 2) -> RetryPolicy:
    """Return a policy with equal waits."""
    return RetryPolicy(max_attempts=attempts, backoff=Fixed(delay=Duration(secs=delay_s)), jitter_percent=50)


node = Operation("sim_node", version="1", run_config=RunConfig(retry_policy=policy(STATE_TRIES)))


@node.state
def first(io: Any, program: Program) -> list[Any]:
    """Perform the first half."""
    return perform(io, program["first"], program)


@node.state(after="first")
def second(io: Any, program: Program) -> list[Any]:
    """Perform the second half."""
    return perform(io, program["second"], program)


tidy = Operation("sim_tidy", version="1", run_config=RunConfig(retry_policy=policy(STATE_TRIES)))


@tidy.state
def main(io: Any, program: Program) -> list[Any]:
    """Perform both halves."""
    return [*perform(io, program["first"], program), *perform(io, program["second"], program)]


@tidy.on_cancel
def put_away(io: Any, program: Program) -> int:
    """Tidy up."""
    return int(io.step(touch, f"{program['label']}~", "-", 0, key="put away"))


OPERATIONS = {"sim_node": node, "sim_tidy": tidy}


def perform(io: Any, lines: list[Any], program: Program) -> list[Any]:
    """Perform instructions; return what they gave, without what time or chance had a part in."""
    found: list[Any] = []
    children: dict[str, Any] = {}
    for kind, label, *more in lines:
        if kind == "step":
            token = io.idempotency_token(label)
            found.append(io.step(touch, label, token, more[0], key=label, retry=policy(more[0] + 1)))
        elif kind == "error":
            try:
                io.step(explode, label, key=label)
            except OtherIoError as error:
                found.append(error.code)
        elif kind == "sleep":
            io.sleep(more[0], key=label)
        elif kind == "chance":
            io.now_millis(), io.random_bytes(4)
        elif kind == "raise" and world().breaks(label, more[0]):
            raise ValueError(label)
        elif kind == "stop":
            raise StateError(label, code="stopped")
        elif kind == "spawn":
            op = OPERATIONS[more[0]]
            children[label] = io.spawn(op, more[1], key=label, timeout=more[2])
        elif kind == "await":
            found.append(_end(io.await_child(children[label])))
        elif kind == "map":
            results = io.map(OPERATIONS[more[0]], more[1], key="label", max_concurrency=more[2])
            found += [_end(result) for result in results]
    return found


def _end(result: Any) -> Any:
    return result.output if result.completed else result.status


class Expected:
    """What becomes of a program that nobody disturbs; counts its runs and calls on the way.

    :param given_up: labels of the programs whose runs ended at the recovery limit
    """

    def __init__(self, given_up: frozenset[str] = frozenset()) -> None:
        self._given_up = given_up
        self.runs = 0
        self.calls: dict[str, int] = {}
        self.has_timeouts = False

    def run(self, op: str, program: Program) -> tuple[str, dict[str, Any]]:
        """Return status and final context."""
        self.runs += 1
        if program["label"] in self._given_up:
            return "Failed", {}
        if op == "sim_tidy":
            found = self._lines(program["first"])
            more = None if found is None else self._lines(program["second"])
            if found is None or more is None:
                return "Failed", {}
            return "Completed", {"sim_tidy.main.main": [*found, *more]}
        context: dict[str, Any] = {}
        for name in ("first", "second"):
            found = self._lines(program[name])
            if found is None:
                return "Failed", context
            context[f"sim_node.main.{name}"] = found
        return "Completed", context

    def output(self, op: str, program: Program) -> Any:
        """Return what an await of the child gives."""
        status, context = self.run(op, program)
        return (
            context["sim_tidy.main.main" if op == "sim_tidy" else "sim_node.main.second"]
            if status == "Completed"
            else status
        )

    def _lines(self, lines: list[Any]) -> list[Any] | None:
        found: list[Any] = []
        ends: dict[str, Any] = {}
        for kind, label, *more in lines:
            if kind == "step":
                self.calls[label] = more[0] + 1
                found.append(answer(label))
            elif kind == "error":
                found.append("step_failed")
            elif kind == "stop":
                return None
            elif kind == "spawn":
                self.has_timeouts |= more[2] is not None
                ends[label] = self.output(more[0], more[1])
            elif kind == "await":
                found.append(ends[label])
            elif kind == "map":
                found += [self.output(more[0], program) for program in more[1]]
        return found


def answer(label: str) -> int:
    """Return what the world answers."""
    return sum(ord(letter) * place for place, letter in enumerate(label, 1)) % 1000


class Author:
    """Writes random programs.

    :param budget: how many runs a tree has at most
    """

    def __init__(self, random: Random, budget: int, *, timeouts: bool) -> None:
        self._random = random
        self._budget = budget
        self._timeouts = timeouts

    def program(self, label: str = "0", depth: int = 0) -> Program:
        """Write a program and those of its children."""
        children: list[str] = []
        kinds: set[str] = set()
        halves: dict[str, Any] = {"label": label}
        for half in ("first", "second"):
            lines: list[Any] = []
            children = []
            for number in range(self._random.randint(0 if depth else 1, 3)):
                self._line(f"{label}.{half[0]}{number}", depth, lines, children, kinds)
            waiting = [child for child in children if self._random.random() < 0.85]
            self._random.shuffle(waiting)
            lines += [["await", child] for child in waiting]
            halves[half] = lines
        return halves

    def operation(self) -> str:
        """Choose who performs a program."""
        return "sim_tidy" if self._random.random() < 0.3 else "sim_node"

    def _line(self, label: str, depth: int, lines: list[Any], children: list[str], kinds: set[str]) -> None:
        random = self._random
        kind = random.choices(
            ["step", "error", "sleep", "chance", "raise", "stop", "spawn", "map"],
            [6, 1, 1, 1, 1, 0.5 if depth else 0, 4, 2],
        )[0]
        if (kind in ("spawn", "map") and (depth >= 3 or self._budget <= 0)) or (kind == "raise" and "raise" in kinds):
            kind = "step"
        kinds.add(kind)
        if kind == "step":
            lines.append(["step", label, random.choice([0, 0, 0, 0, 1, 2])])
        elif kind == "sleep":
            lines.append(["sleep", label, random.choice([1, 10, 45, 150])])
        elif kind == "raise":
            lines.append(["raise", label, random.randint(1, STATE_TRIES - 1)])
        elif kind == "spawn":
            self._budget -= 1
            timeout = random.choice([5, 50, 500]) if self._timeouts and random.random() < 0.3 else None
            lines.append(["spawn", label, self.operation(), self.program(label, depth + 1), timeout])
            children.append(label)
        elif kind == "map":
            size = random.randint(1, 3)
            self._budget -= size
            inner = [self.program(f"{label}m{index}", depth + 1) for index in range(size)]
            lines.append(["map", label, self.operation(), inner, random.choice([None, None, 1, 2])])
        else:
            lines.append([kind, label])
