"""For the tests of those who write operations: run one in memory, fake its world, crash it, and see what was recorded.

With pytest the fixture ``childrun`` gives a new :class:`OperationTester` to each test. Nothing here needs Airflow, a
database, or time: a test's clock jumps over every wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

from airflow_childrun.authoring.operation import Operation
from airflow_childrun.authoring.registry import REGISTRY, RegistryResolver
from airflow_childrun.model.config import RunConfig
from airflow_childrun.model.manifest import RunManifest, build_manifest
from airflow_childrun.model.plan import ExecutionPlan
from airflow_childrun.secret_policy import SecretPolicy, standard
from airflow_childrun.testing.clock import ManualClock
from airflow_childrun.testing.process import Bench, Process, request_of
from airflow_childrun.testing.record import RunRecord
from airflow_childrun.testing.reentry import ReentryReport, Trial, check_reentry
from airflow_childrun.testing.virtual_time import Baton
from airflow_childrun.testing.watched_io import Entry, How, Point
from airflow_childrun.testing.world import Call, World

__all__ = ["OperationTester", "RunRecord"]

RUN_ID = UUID("5eed0000-0000-4000-8000-000000000001")
HOWS: tuple[How, ...] = ("crash", "abandon", "in_flight")


class OperationTester:
    """Runs operations in memory.

    :param airflow: what ``io.airflow`` is: dag_id, run_id, logical_date ... as texts
    :param policy: what counts as a secret; by default the standard preset
    :param patience_s: real seconds after which a handler that does not come back fails the test
    """

    def __init__(
        self,
        *,
        airflow: Mapping[str, Any] | None = None,
        policy: SecretPolicy | None = None,
        patience_s: float = 60.0,
    ) -> None:
        self.airflow = airflow
        self._policy = policy or standard()
        self._patience_s = patience_s
        self.clock = ManualClock()
        self._world = World()
        self._runs: dict[UUID, Trial] = {}

    @property
    def calls(self) -> list[Call]:
        """Every call that reached the world, faked or not, in order: ``name``, ``key``, ``args``, ``kwargs``."""
        return self._world.calls

    def fake(
        self, target: Callable[..., Any] | str, answer: Any = None, *, answers: Sequence[Any] | None = None
    ) -> None:
        """Answer in place of a step's function, or of a namespace (by its name).

        :param answer: what is returned; an exception is raised; a callable is called with the call's arguments
        :param answers: such answers one by one, one for each call
        """
        self._world.fake(target, answers, answer)

    def run(
        self,
        operation: Operation,
        input: Any = None,
        *,
        config: Any = None,
        run_config: RunConfig | None = None,
        initial_context: Mapping[str, Any] | None = None,
    ) -> RunRecord:
        """Run an operation to its end.

        :raises InputError: if the input does not fit
        """
        trial = self._trial(operation, input, config, run_config, initial_context)
        trial.begin()
        return self._keep(trial)

    def crash(
        self,
        operation: Operation,
        input: Any = None,
        *,
        at: int | str,
        how: How = "crash",
        config: Any = None,
        run_config: RunConfig | None = None,
        initial_context: Mapping[str, Any] | None = None,
    ) -> RunRecord:
        """Begin a run, and end its process at an IO; :meth:`resume` goes on.

        :param at: the number of the IO, from 1 in the order of the first run, or the end of its key
        :param how: ``crash``: its answer is recorded, the handler has not seen it, nothing unwinds. ``abandon``: there,
            but the process lives on, and the handler is unwound. ``in_flight``: the world has answered, and the answer is
            not recorded
        :raises LookupError: if there is no such IO
        """
        trial = self._trial(operation, input, config, run_config, initial_context)
        trial.begin()
        trial = trial.again(_find_point(trial.first.log.entries, at, how))
        self._world.rewind()
        trial.begin()
        return self._keep(trial)

    def resume(self, run: RunRecord) -> RunRecord:
        """Go on with a run in a new process.

        :raises LookupError: if this tester has not begun the run
        """
        if run.run_id not in self._runs:
            raise LookupError(f"{run.run_id} was not begun here")
        trial = self._runs[run.run_id]
        trial.resume()
        return self._keep(trial)

    def check_reentry(
        self,
        operation: Operation,
        input: Any = None,
        *,
        config: Any = None,
        run_config: RunConfig | None = None,
        initial_context: Mapping[str, Any] | None = None,
        how: How | Iterable[How] = HOWS,
    ) -> ReentryReport:
        """End the process at every IO, once in each way, and expect that the next one goes on as if nothing had happened.

        The operation runs once undisturbed, and then as often as it and its children have IOs and there are ways, each
        time on another store with the first answer of each fake: fake what must not really happen that often.

        :raises ReentryError: naming the IO, and what was different after it
        """
        trial = self._trial(operation, input, config, run_config, initial_context)
        hows: Iterable[How] = [how] if isinstance(how, str) else how
        return check_reentry(trial, list(hows), self._world.rewind)

    def _trial(
        self,
        operation: Operation,
        input: Any,
        config: Any,
        run_config: RunConfig | None,
        initial_context: Mapping[str, Any] | None,
    ) -> Trial:
        manifest = build_manifest(
            operation.name,
            operation.version,
            op_config=config,
            input=operation.encode_input(input),
            run_config=run_config or operation.run_config,
        )
        context = None if initial_context is None else dict(initial_context)
        request = request_of(manifest, context, self.airflow)

        def make_process(bench: Bench | None, point: Point | None) -> tuple[Bench, Process]:
            if bench is None:
                # Each run begins at the same time, so that what it makes of the time can be compared.
                self.clock = ManualClock()
            made = bench or Bench(Baton(self.clock, self._patience_s), self._world, self._policy)
            return made, Process(made, _finder(operation), point)

        run_id = UUID(int=RUN_ID.int + len(self._runs))
        return Trial(operation, run_id, request, make_process)

    def _keep(self, trial: Trial) -> RunRecord:
        self._runs[trial.run_id] = trial
        return trial.record()


def _finder(operation: Operation) -> Callable[[RunManifest], ExecutionPlan]:
    """Find the operation under test itself, and others as its file knows them."""
    others = RegistryResolver(REGISTRY, operation.place.file)

    def find(manifest: RunManifest) -> ExecutionPlan:
        if (manifest.op_id, manifest.op_version) == (operation.name, operation.version):
            return operation.plan(manifest)
        return others.resolve(manifest)

    return find


def _find_point(entries: Sequence[Entry], at: int | str, how: How) -> Point:
    """Return the point that a number or the end of a key names."""
    asks = [(entry, index, ask) for entry in entries for index, ask in enumerate(entry.asks)]
    if isinstance(at, int):
        found = asks[at - 1 : at] if at > 0 else []
    else:
        found = [each for each in asks if any((key or "").endswith(at) for key, _, _ in each[2].asked)]
    if not found:
        listed = ", ".join(f"{number} {ask}" for number, (_, _, ask) in enumerate(asks, 1)) or "none"
        raise LookupError(f"there is no IO {at!r}; there are: {listed}")
    entry, index, _ = found[0]
    return Point(entry.run_id, entry.state_id, entry.number, index, how)
