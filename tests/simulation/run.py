"""One schedule: a seed becomes trees of runs, processes and faults; at the end everything must have come right."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Any
from uuid import UUID

from airflow_childrun.canonical import artifact_id, canonical_json_bytes
from airflow_childrun.errors import ChildRunError, Interrupt
from airflow_childrun.model.manifest import build_manifest
from airflow_childrun.runtime.closing import cancel_run
from airflow_childrun.runtime.engine import ExecutionEngine
from airflow_childrun.runtime.house import Limits
from airflow_childrun.runtime.summaries import verify_summaries
from airflow_childrun.store.api import RunFilter, RunRow
from airflow_childrun.store.memory import MemoryStore
from airflow_childrun.store.verify import verify_tree
from tests.simulation.baton import BEGIN_US, Baton, Process
from tests.simulation.limits import check_recoveries
from tests.simulation.machines import Faults, Machine, Setting, StoreClock
from tests.simulation.programs import OPERATIONS, STAGE, Author, Expected, Program, answer

FAULTS = ("refused", "unheard", "late", "slow", "death", "pause")
MOST_DEATHS = 4
LOG_LINES = 250


@dataclass
class Simulation:
    """What a seed makes.

    :param calm: without faults, cancellations and a second process
    :param only: the one fault that strikes, once; nobody cancels, and there is no second process
    """

    seed: int
    calm: bool = False
    only: str | None = None
    random: Random = field(init=False)
    calls: list[tuple[str, str]] = field(default_factory=list)
    broken: Counter[str] = field(default_factory=Counter)
    cancelled: bool = False
    deaths: int = 0
    given_up: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        """Choose trees, processes and faults."""
        self.random = random = Random(self.seed)
        self.cancels = random.random() < 0.25 and not self._is_alone()
        author = Author(random, random.randint(2, 8), timeouts=self.cancels)
        self.programs: list[tuple[str, Program]] = [(author.operation(), author.program())]
        if random.random() < 0.2:
            self.programs.append((author.operation(), author.program("1")))
        self.baton = Baton(random, random.choice([0.05, 0.2, 0.5, 0.9]))
        limits = Limits(
            max_concurrency=random.choice([1, 1, 2, 3, 8]),
            recovery_limit=random.choice([0, 1, 5] if self.cancels else [0, 1, 1000, 1000]),
            session_ttl_s=30.0,
            poll_s=7.0,
            inbox_poll_s=9.0,
            summary_after=Random(-1 - self.seed).choice([1, 1, 6, 256]),
        )
        store = MemoryStore(StoreClock(self.baton))
        self.setting = Setting(self.baton, store, self._faults(), limits, [], skewed=not self.calm)
        self.expected = Expected()
        self.ends = [self.expected.run(op, program) for op, program in self.programs]

    def _is_alone(self) -> bool:
        """Whether one process drives everything, and nobody comes in between."""
        return self.calm or self.only is not None

    def _faults(self) -> Faults:
        """Choose what goes wrong: a fifth of all seeds only has schedules."""
        random = self.random
        if self.only is not None:
            return Faults(**{self.only: 0.05}, left=1)  # type: ignore[arg-type]
        if self.calm or random.random() < 0.2:
            return Faults()
        rates: dict[str, Any] = {name: random.choice([0.0, 0.01, 0.05]) for name in FAULTS}
        return Faults(**rates, left=random.randint(1, 12))

    # -- the world

    def touch(self, label: str, token: str, failures: int) -> int:
        """Answer a step's call; the process may die inside."""
        baton = self.baton
        process = baton.me().process
        self._check_call(label, process)
        self.calls.append((label, token))
        number = len([None for called, _ in self.calls if called == label])
        baton.point(f"world: {label} for the {number}. time")
        faults = self.setting.faults
        if faults.strikes("slow", baton.random):
            baton.sleep(baton.random.uniform(0, 60))
        if faults.strikes("death", baton.random):
            process.die()
        if number <= failures:
            raise ConnectionError(label)
        return answer(label)

    def breaks(self, label: str, times: int) -> bool:
        """Whether a handler is to raise now."""
        self.broken[label] += 1
        return self.broken[label] <= times

    def _check_call(self, label: str, process: Process) -> None:
        """Check that no recorded call is repeated, and that whoever calls has a session that lives."""
        machine = next(machine for machine in self.setting.machines if machine.process is process)
        for run_id, facts in self.setting.store._facts.items():
            owner = self.setting.store._runs[run_id].row.lease_session_id
            # Who was superseded, and does not know it yet, may be about to make the call that its successor made.
            if machine.house.keeper.owns(owner):
                digests = self._digests(label)
                assert all(fact.failed or fact.key_digest not in digests for fact in facts), (
                    f"{label} was recorded already"
                )
        session = self.setting.store._sessions.get(machine.house.keeper._session_id or UUID(int=0))
        assert session is not None, f"{process.name} calls without a session"
        assert session.ended is not None or not session.is_over(self.baton.now_us), f"{process.name} calls too late"

    @staticmethod
    def _digests(label: str) -> set[str]:
        return {artifact_id(f"{state}/{label}".encode()) for state in ("first", "second", "main")}

    # -- the course

    def run(self) -> None:
        """Go through the schedule and check its end.

        :raises AssertionError: what did not come right
        """
        STAGE.world = self
        before = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        try:
            self._create()
            for number in range(1 if self._is_alone() else self.random.choice([1, 1, 2, 3])):
                self.setting.boot(f"task {number}")
            init = Process(self.baton, "init")
            self.baton.start(init, "respawn", self._respawn)
            if self.cancels:
                user = Machine(self.setting, "user", "user", 1)
                self.baton.start(user.process, "cancel", lambda: self._cancel(user))
            self.baton.run(lambda: not self.baton.threads)
            self._check()
        finally:
            logging.disable(before)
            STAGE.world = None

    def _create(self) -> None:
        """Create the roots, before anything can go wrong."""
        setting = self.setting
        process = Process(self.baton, "creator")
        calm, setting.faults = setting.faults, Faults()
        maker = Machine(setting, "creator", "creator", 1)
        setting.faults = calm

        def create() -> None:
            engine = ExecutionEngine(maker.house)
            for op, program in self.programs:
                manifest = build_manifest(op, "1", input=program, run_config=OPERATIONS[op].run_config)
                setting.roots.append(engine.create(manifest))

        self.baton.start(process, "create", create)
        self.baton.run(lambda: not self.baton.threads)

    def _respawn(self) -> None:
        """Begin another process where one died, or in the place of one that lives."""
        baton = self.baton
        mourned: set[str] = set()
        takeovers = 0 if self._is_alone() else self.random.choice([0, 0, 0, 1, 2])
        while not all(machine.is_done or machine.process.dead for machine in self.setting.machines) or (
            self.setting.open_runs()
        ):
            baton.sleep(baton.random.uniform(0, 60))
            for machine in list(self.setting.machines):
                if machine.process.dead and machine.process.name not in mourned:
                    mourned.add(machine.process.name)
                    self.setting.boot(machine.key)
            if len(mourned) >= MOST_DEATHS:
                self.setting.faults.death = 0.0
            if takeovers and baton.random.random() < 0.5:
                takeovers -= 1
                baton.note("takeover")
                self.setting.boot(self.setting.machines[0].key)
        self.deaths = len(mourned)

    def _cancel(self, user: Machine) -> None:
        """Ask some run to end, at some time."""
        baton = self.baton
        baton.sleep(baton.random.choice([0, 1, 30, 200]) * baton.random.random())
        open_runs = self.setting.open_runs()
        if not open_runs:
            return
        self.cancelled = True
        run_id = baton.random.choice(open_runs)
        baton.note(f"cancel {run_id}")
        try:
            cancel_run(user.house, run_id, "not wanted any more")
        except (ChildRunError, Interrupt) as error:
            baton.note(f"cancel: {error}")

    # -- the end

    def _check(self) -> None:
        if self.baton.escaped:
            thread, raised = self.baton.escaped[0]
            raise AssertionError(f"{thread}: {type(raised).__name__}: {raised}") from raised
        store = self.setting.store
        rows = store.find_runs(RunFilter(), limit=10_000).rows
        for row in rows:
            assert row.is_terminal, f"{row.run_id} is {row.status}"
            assert row.lease_session_id is None, f"{row.run_id} has ended and is still owned"
        for root in self.setting.roots:
            findings = verify_tree(store, root)
            assert not findings, findings[0]
        for row in rows:
            assert not verify_summaries(store, row), row.run_id
        slots = Counter((row.slot_id, row.generation) for row in rows)
        assert max(slots.values()) == 1
        self.given_up = check_recoveries(store, rows, self.setting.limits.recovery_limit)
        if self.given_up:
            assert self._disturbances() > self.setting.limits.recovery_limit, (
                "given up though fewer processes were lost"
            )
            self.ends = [Expected(self.given_up).run(op, program) for op, program in self.programs]
        self._check_calls()
        if self._is_certain():
            self._check_results(list(rows))
        if self._is_certain() and not self._has_stops():
            self._check_attempts()

    def _check_attempts(self) -> None:
        """Check that a single answer which is lost costs no attempt, however late its commit happens."""
        if self._disturbances() == 1 and self.setting.faults.happened in (["unheard"], ["late"], ["refused"]):
            bodies = [event.body for events in self.setting.store._events.values() for event in events]
            assert not any(b'"recovered"' in body for body in bodies), "an attempt was left open"

    def _disturbances(self) -> int:
        """Return how often a fault struck, or another process came, or one lost its session because it was not let run."""
        opened = Counter(who.partition("/")[0] for _, who, what in self.baton.log if what == "open_session done")
        starved = sum(count - 1 for count in opened.values())
        return len(self.setting.faults.happened) + len(self.setting.machines) - 1 + starved

    def _is_certain(self) -> bool:
        """Whether neither a user nor a clock decides how runs end."""
        return not (self.cancels or self.expected.has_timeouts)

    def _check_calls(self) -> None:
        """Check that a call is repeated only if something happened to its process, and then with the same token."""
        tokens: dict[str, set[str]] = {}
        for label, token in self.calls:
            tokens.setdefault(label, set()).add(token)
        for label, found in tokens.items():
            assert len(found) == 1, f"{label} was called with the tokens {found}"
        counts = Counter(label for label, _ in self.calls)
        disturbed = self._disturbances()
        for label, count in counts.items():
            most = self.expected.calls.get(label, 1) + disturbed
            assert count <= most, f"{label} was called {count} times, {most} at most"
            if not disturbed and self._is_certain() and not self._has_stops():
                assert count == most, f"{label} was called {count} times instead of {most}"

    def _check_results(self, rows: list[RunRow]) -> None:
        """Compare what came out with what comes out of the programs when nobody disturbs them.

        A run that was given up counts as failed; everything above it and beside it is compared all the same.
        """
        by_id = {row.run_id: row for row in rows}
        for root, (status, context) in zip(self.setting.roots, self.ends, strict=True):
            row = by_id[root]
            assert row.status == status, f"{root} is {row.status}, not {status}"
            if status == "Completed":
                wanted = artifact_id(canonical_json_bytes(context))
                assert row.final_snapshot_id == wanted, f"{root} ended with {row.final_snapshot_id}, not {wanted}"
        is_whole = all(status == "Completed" for status, _ in self.ends) and not self.given_up
        if is_whole and not self._has_stops():
            assert len(rows) == self.expected.runs, f"{len(rows)} runs instead of {self.expected.runs}"
            assert {label for label, _ in self.calls} == set(self.expected.calls)

    def _has_stops(self) -> bool:
        """Whether some child fails for good, so that its own children may be closed early."""
        return '"stop"' in canonical_json_bytes([program for _, program in self.programs]).decode()

    def report(self) -> str:
        """Return the end of the schedule's log."""
        lines = [f"seed {self.seed}: {self.setting.faults} {self.setting.limits}"]
        lines += [f"{(at - BEGIN_US) / 1e6:12.6f} {who:40} {what}" for at, who, what in self.baton.log[-LOG_LINES:]]
        only = f" --only {self.only}" if self.only else ""
        lines.append(f"to see it alone: python -m tests.simulation {self.seed}{only}")
        return "\n".join(lines)


def simulate(seed: int, *, calm: bool = False, only: str | None = None) -> Simulation:
    """Run a seed; where it fails, print its schedule.

    :raises AssertionError: what did not come right
    """
    simulation = Simulation(seed, calm=calm, only=only)
    try:
        simulation.run()
    except BaseException:
        print(simulation.report())
        raise
    return simulation
