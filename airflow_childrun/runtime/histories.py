"""Reading: from a run's id to its folded history, through every generation that it continues."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from uuid import UUID

from airflow_childrun.canonical import decode_stored
from airflow_childrun.engine.history import RunHistory, begin
from airflow_childrun.engine.prepare import PlanResolver
from airflow_childrun.errors import CorruptionError, InvalidHistoryError, InvalidPlanError, NotFoundError
from airflow_childrun.model.events import Continues, Event, RunStarted
from airflow_childrun.model.manifest import RunManifest
from airflow_childrun.model.plan import ExecutionPlan, plan_differences
from airflow_childrun.runtime.collector import collector_paused
from airflow_childrun.runtime.earlier import Going, Patiently, Reads, continued_run_changed, from_summary
from airflow_childrun.store.api import RunRow, Store, StoredEvent
from airflow_childrun.store.chain import check_chain
from airflow_childrun.store.codec import decode_event
from airflow_childrun.store.projection import RowCheck

PAGE = 1000
"""How many events are read at once."""

Watch = Callable[[RunHistory, Event], None]
"""Sees what the events so far mean, and the next one, before that is taken in."""

Page = Iterable[tuple[StoredEvent, Event]]


@dataclass(frozen=True, slots=True)
class Shortcut:
    """How to go on from a summary instead of reading everything.

    :param after: no summary is looked for before so many events: reading them is quicker
    :param patiently: how facts behind the summary are looked up later
    """

    after: int
    patiently: Patiently


def load_run(store: Reads, row: RunRow, shortcut: Shortcut) -> RunHistory:
    """Fold a run's chain, from its newest summary on if it has one, and refuse a row that does not follow from it.

    :raises CorruptionError: code ``run_row_mismatch``, or as :func:`load_history`
    """
    return _load(store, row.run_id, row, shortcut)


def load_whole_run(store: Reads, row: RunRow) -> RunHistory:
    """Read and fold a run's chain from its first event on, and refuse a row that does not follow from it.

    :raises CorruptionError: code ``run_row_mismatch``, or as :func:`load_history`
    """
    return _load(store, row.run_id, row, None)


def load_history(store: Reads, run_id: UUID, watch: Watch | None = None) -> RunHistory:
    """Read and fold a run's chain from its first event on.

    :param watch: sees every event before it is taken in
    :raises NotFoundError: code ``run_not_found``
    :raises InvalidHistoryError: if the events are none that an engine writes
    :raises CorruptionError: if an event is not what was written, or a continued run not what it was when it was continued
    """
    return _load(store, run_id, None, None, watch)


def _load(
    store: Reads, run_id: UUID, row: RunRow | None, shortcut: Shortcut | None, watch: Watch | None = None
) -> RunHistory:
    """Fold a chain of generations, first to last, page by page: a long one need not stand in memory.

    :param row: of the run, to be checked
    :param shortcut: None: read everything
    """
    streams = [_stream(store, run_id, row, None, shortcut)]
    while streams[-1].begun is None and (continues := streams[-1].continues) is not None:
        before = UUID(continues.run_id)
        ends = store.read_events(before, continues.seq, continues.seq)
        if not ends or ends[0].hash != continues.hash:
            raise continued_run_changed(before, streams[-1].run_id)
        streams.append(_stream(store, before, None, continues, shortcut))
    history: RunHistory | None = None
    for stream in reversed(streams):
        history = stream.begun or begin(stream.run_id, history)
        check = RowCheck(row) if row is not None and stream.run_id == row.run_id else None
        if check is not None and stream.first is not None:
            check.take(*stream.first)
        for page in stream.pages:
            with collector_paused(stream.is_long):
                _take_page(history, page, watch, check)
        if check is not None:
            check.finish()
    if history is None:
        raise AssertionError(run_id)
    return history


def _take_page(history: RunHistory, page: Page, watch: Watch | None, check: RowCheck | None) -> None:
    for stored, event in page:
        if watch is not None:
            watch(history, event)
        if check is not None:
            check.take(stored, event)
        history.apply(stored.seq, event)


@dataclass(frozen=True, slots=True)
class _Stream:
    """The events of one run that are to be folded.

    :param begun: what the events before them mean; without it they are all
    :param first: the run's first event, if they do not begin with it
    :param is_long: whether there is more than a page of them
    """

    run_id: UUID
    continues: Continues | None
    pages: Iterable[Page]
    begun: RunHistory | None = None
    first: tuple[StoredEvent, Event] | None = None
    is_long: bool = False


def _stream(
    store: Reads, run_id: UUID, row: RunRow | None, continues: Continues | None, shortcut: Shortcut | None
) -> _Stream:
    """Begin to read a run.

    :param continues: how far it was continued; its events behind that do not count
    """
    going = _from_summary(store, run_id, row, continues, shortcut)
    if going is not None:
        return _Stream(run_id, None, [going.tail], going.history, going.first)
    to_seq = continues.seq if continues else None
    page = store.read_events(run_id, to_seq=to_seq, limit=PAGE)
    if not page and row is None:
        raise NotFoundError(f"there is no run {run_id}; see `childrun runs list`", code="run_not_found")
    check_stream(run_id, page)
    first = decode_event(page[0]) if page else None
    return _Stream(
        run_id,
        first.continues if isinstance(first, RunStarted) else None,
        _pages(store, run_id, page, to_seq),
        is_long=len(page) == PAGE,
    )


def _pages(store: Reads, run_id: UUID, page: list[StoredEvent], to_seq: int | None) -> Iterator[Page]:
    """Yield the events of a first page that was checked, and of those after it, checked in turn."""
    while page:
        # One by one: what is decoded need not live as long as its page.
        yield ((stored, decode_event(stored)) for stored in page)
        if len(page) < PAGE:
            return
        last = page[-1]
        page = store.read_events(run_id, last.seq + 1, to_seq, PAGE)
        check_chain(run_id, [last, *page])


def _from_summary(
    store: Reads, run_id: UUID, row: RunRow | None, continues: Continues | None, shortcut: Shortcut | None
) -> Going | None:
    """Return where to go on from, if anything is to be left out at all."""
    if shortcut is None or (continues is not None and continues.seq < shortcut.after):
        return None
    known = row or store.find_run(run_id)
    if known is None or known.checkpoint_seq < shortcut.after:
        return None
    to_seq = continues.seq if continues else None
    if to_seq is not None and known.checkpoint_seq > to_seq:
        return None
    return from_summary(store, known, to_seq, lambda: load_history(store, run_id), shortcut.patiently)


def check_stream(run_id: UUID, stored: Sequence[StoredEvent]) -> None:
    """Refuse a stream that is not what was written from its first event on.

    :raises CorruptionError: code ``event_chain_broken``
    """
    if stored and stored[0].seq != 1:
        raise CorruptionError(
            f"event 1 of run {run_id} is gone; run `childrun verify {run_id}` and restore the run from a backup",
            code="event_chain_broken",
            details={"run_id": str(run_id), "seq": 1},
        )
    check_chain(run_id, stored)


def read_start(store: Reads, run_id: UUID) -> RunStarted:
    """Return a run's first event.

    :raises CorruptionError: code ``stream_broken``, if it is none that begins a run
    """
    return _start(run_id, store.read_events(run_id, 1, 1))


def read_starts(store: Store, run_ids: Iterable[UUID]) -> dict[UUID, RunStarted]:
    """Return the first events of those runs that exist, some hundred to a query.

    :raises CorruptionError: code ``stream_broken``, if one is none that begins a run
    """
    wanted = list(dict.fromkeys(run_ids))
    ends = [store.read_ends(wanted[at : at + PAGE]) for at in range(0, len(wanted), PAGE)]
    return {run_id: _start(run_id, stored) for page in ends for run_id, stored in page.items()}


def _start(run_id: UUID, stored: Sequence[StoredEvent]) -> RunStarted:
    first = decode_event(stored[0]) if stored else None
    if isinstance(first, RunStarted):
        return first
    raise CorruptionError(f"the history of run {run_id} does not begin with RunStarted", code="stream_broken")


def read_manifest(store: Reads, root_run_id: UUID, started: RunStarted) -> RunManifest:
    """Return the manifest of a run.

    :raises NotFoundError: code ``manifest_not_found``
    :raises CorruptionError: codes ``manifest_corrupt``, ``manifest_deserialize_failed``
    """
    body = store.get_artifacts(root_run_id, [started.manifest_id]).get(started.manifest_id)
    if body is None:
        raise NotFoundError(
            f"the manifest {started.manifest_id} is missing; run `childrun verify`", code="manifest_not_found"
        )
    try:
        manifest = RunManifest.from_json(decode_stored(body))
    except ValueError:
        raise CorruptionError(
            f"the manifest {started.manifest_id} has no shape of a manifest", code="manifest_deserialize_failed"
        ) from None
    if manifest.op_id != started.op_id:
        raise InvalidHistoryError(
            f"RunStarted names {started.op_id}, its manifest {manifest.op_id}", code="run_started_op_id_mismatch"
        )
    return manifest


def check_drift(store: Reads, root_run_id: UUID, history: RunHistory, plan: ExecutionPlan) -> None:
    """Compare a plan with the one that the run began with, up to the last state that was entered.

    :raises InvalidPlanError: codes ``plan_op_id_mismatch``, ``plan_drift`` (the message lists the differences)
    """
    started = history.start
    if plan.op_id != started.op_id:
        raise InvalidPlanError(f"the plan is that of {plan.op_id}, not {started.op_id}", code="plan_op_id_mismatch")
    found = _differences(store, root_run_id, history, plan)
    if found:
        raise InvalidPlanError(
            f"the operation {plan.op_id} {plan.op_version} changed under run {history.run_id}: {'; '.join(found)}. Bring "
            'the old plan back, register it under its own version, or choose on_plan_change="respawn"',
            code="plan_drift",
            details={"differences": found},
        )


def is_drifted(store: Store, row: RunRow, resolver: PlanResolver) -> bool:
    """Whether a run's operation has another plan now, up to the last state that the run entered."""
    history = load_history(store, row.run_id)
    plan = resolver.resolve(read_manifest(store, row.root_run_id, history.start))
    return bool(_differences(store, row.root_run_id, history, plan))


def _differences(store: Reads, root_run_id: UUID, history: RunHistory, plan: ExecutionPlan) -> list[str]:
    plan_id = history.start.plan_id
    if plan_id is None or plan_id == plan.plan_id:
        return []
    body = store.get_artifacts(root_run_id, [plan_id]).get(plan_id)
    return plan_differences(decode_stored(body), plan, history.last_entered) if body else ["its plan is missing"]
