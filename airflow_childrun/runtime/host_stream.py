"""The stream of a host run: created, appended to and closed under the epoch of one try."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

from airflow_childrun.canonical import artifact_id, canonical_json_bytes
from airflow_childrun.engine.inbox import CLOSE
from airflow_childrun.engine.prepare import MANIFEST, SNAPSHOT, Lineage, create_step
from airflow_childrun.errors import HostError
from airflow_childrun.model.events import ENGINE, DomainEvent, Event, RunStarted
from airflow_childrun.runtime.closing import cancel_run, closable_children, close_posts
from airflow_childrun.runtime.host_try import HostCoordinates
from airflow_childrun.runtime.house import House
from airflow_childrun.store.api import (
    AirflowCoordinates,
    Artifact,
    Commit,
    Committed,
    Conflict,
    InboxPost,
    RunRow,
    RunStep,
    TakeLease,
)
from airflow_childrun.store.codec import encode_event
from airflow_childrun.store.projection import moves_of

HOST_OP_ID = "task_instance"
CLOSE_TRIES = 5


class HostStream:
    """Writes for one try; a try that another one followed writes nothing more.

    :param label: the try, for people
    :param airflow: what children are told of Airflow
    """

    def __init__(self, house: House, coordinates: HostCoordinates, label: str, airflow: Mapping[str, Any]) -> None:
        self._house = house
        self._coordinates = coordinates
        self._label = label
        self._airflow = airflow
        self._root = coordinates.root_run_id()
        self.row: RunRow | None = None
        self._head, self._epoch = 0, 0

    @property
    def incarnation(self) -> int:
        """A number that every later try of this task instance exceeds."""
        return (self.row.generation if self.row else 1) * 2**32 + self._epoch

    def adopt(self, row: RunRow) -> None:
        """Go on with a host run that exists."""
        self.row = row
        self._head, self._epoch = row.head.seq, row.head.epoch

    def create(self, event: DomainEvent) -> None:
        """Create the host run; over one of a deleted DAG run, fence that off and end what it left running."""
        old = self.row
        generation = old.generation + 1 if old else 1
        host_id = self._coordinates.run_id(generation)
        steps, artifacts = [self._creation(host_id, generation, event)], self._artifacts()
        left: list[UUID] = []
        if old is not None:
            steps.append(RunStep(old.run_id, old.head.seq, old.head.epoch, lease=TakeLease(None)))
            left = [row.run_id for row in self._house.store.children_of(old.run_id) if not row.is_terminal]
        why = "its DAG run was deleted and made again"
        posts = tuple(close_posts(self._house, left, why))
        answer = self._submit(Commit(self._house.entropy.new_id(), tuple(steps), artifacts, posts))
        if isinstance(answer, Conflict):
            raise self._conflict(answer, answer.run_id)
        self._head, self._epoch = answer.heads[host_id].seq, answer.heads[host_id].epoch
        self.row = self._house.store.find_run(host_id)
        self.end(left, why)

    def append(
        self,
        events: Sequence[Event],
        steps: tuple[RunStep, ...] = (),
        artifacts: tuple[Artifact, ...] = (),
        *,
        posts: Iterable[InboxPost] = (),
        lease: TakeLease | None = None,
    ) -> bool:
        """Append to the host's stream; False if a run to be created by the same commit is there already.

        :raises HostError: codes ``stale_attempt``, ``child_run_busy``
        """
        step = RunStep(
            self.host_id, self._head, self._epoch, tuple(map(encode_event, events)), moves_of(events), lease=lease
        )
        answer = self._submit(Commit(self._house.entropy.new_id(), (step, *steps), artifacts, tuple(posts)))
        if isinstance(answer, Conflict):
            if answer.reason == "exists":
                return False
            raise self._conflict(answer, self.host_id)
        head = answer.heads[self.host_id]
        self._head, self._epoch = head.seq, head.epoch
        return True

    def close(self, run_ids: Iterable[UUID], reason: str, grace_us: int) -> bool:
        """Ask children to end after a grace, and let nothing be spawned after; False if this try is not the newest.

        One commit under the try's epoch, which it raises: a zombie closes nothing.
        """
        wanted = set(run_ids) | {row.run_id for row in self._house.store.children_of(self.host_id)}
        left = closable_children(self._house.store, wanted)
        posts = tuple(close_posts(self._house, (row.run_id for row in left), reason, grace_us=grace_us))
        head = self._head
        for _ in range(CLOSE_TRIES):
            step = RunStep(self.host_id, head, self._epoch, lease=TakeLease(None))
            answer = self._submit(Commit(self._house.entropy.new_id(), (step,), posts=posts))
            if isinstance(answer, Committed):
                return True
            if answer.reason != "head" or answer.head is None:
                return False
            # The thread that spawns has come first; what it spawned stands in the inbox of the next try.
            head = answer.head.seq
        return False

    def end(self, run_ids: Iterable[UUID], reason: str) -> None:
        """End runs, and what is below them, as far as nobody owns them; owners are asked to."""
        for row in closable_children(self._house.store, run_ids):
            cancel_run(self._house, row.run_id, reason, kind=CLOSE)

    def _creation(self, host_id: UUID, generation: int, event: DomainEvent) -> RunStep:
        at = self._coordinates
        started = RunStarted(
            op_id=HOST_OP_ID,
            manifest_id=self._artifacts()[0].id,
            initial_snapshot_id=self._artifacts()[1].id,
            engine=ENGINE,
            kind="task_instance",
            op_version="1",
            root_run_id=str(self._root),
            generation=generation,
            slot_id=str(at.run_id()) if generation > 1 else None,
            airflow=dict(self._airflow),
        )
        lineage = Lineage(host_id, self._root, slot_id=at.run_id(), generation=generation)
        where = AirflowCoordinates(at.dag_id, at.dag_run_id, at.task_id, at.map_index)
        step = create_step(started, lineage, "task_instance", where)
        events = (*step.events, encode_event(event))
        return RunStep(host_id, 0, None, events, moves_of([started, event]), create=step.create)

    def _artifacts(self) -> tuple[Artifact, Artifact]:
        body = canonical_json_bytes({"airflow": dict(self._airflow)})
        return (
            Artifact(self._root, artifact_id(body), MANIFEST, body),
            Artifact(self._root, artifact_id(b"{}"), SNAPSHOT, b"{}"),
        )

    @property
    def epoch(self) -> int:
        """The epoch of this try."""
        return self._epoch

    @property
    def host_id(self) -> UUID:
        """The host run."""
        return self.row.run_id if self.row is not None else self._coordinates.run_id()

    def _submit(self, commit: Commit) -> Committed | Conflict:
        answer = self._house.patience.attempt(lambda: self._house.committer.submit(commit))
        if isinstance(answer, Committed):
            self._house.cradle.keep(commit, answer)
        return answer

    def _conflict(self, conflict: Conflict, host_id: UUID) -> HostError:
        """Say who came in between: another try of this task, or whoever drives one of its children."""
        if conflict.run_id == host_id:
            return HostError(
                f"{self._label} is not the newest try any more: another one has begun meanwhile, or the task was told to "
                "stop. It stops here and changes nothing further",
                code="stale_attempt",
                retryable=True,
            )
        return HostError(
            f"child run {conflict.run_id} is being driven by another process, so that this try cannot open its next "
            "generation; a retry tries again",
            code="child_run_busy",
            retryable=True,
        )
