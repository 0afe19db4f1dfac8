"""Ending runs from outside: requests into inboxes, and the end of runs that nobody owns, leaves first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from uuid import UUID

from airflow_childrun.engine.decide import close_orphan
from airflow_childrun.engine.history import RunHistory
from airflow_childrun.engine.inbox import CANCEL, CLOSE, WITHDRAW, EndRequest, request_body, standing_request
from airflow_childrun.model.events import INBOX_CONSUMED, DomainEvent, Event, RunCompleted
from airflow_childrun.runtime.histories import load_history, read_start, read_starts
from airflow_childrun.runtime.house import House
from airflow_childrun.store.api import Commit, Committed, InboxPost, RunRow, RunStep, Store, TakeLease
from airflow_childrun.store.codec import encode_event
from airflow_childrun.store.projection import moves_of

END_TRIES = 5
"""How often to look again at a run that somebody moved while its end was being written."""


def close_posts(house: House, run_ids: Iterable[UUID], reason: str, *, grace_us: int = 0) -> list[InboxPost]:
    """Return the entries that ask runs to end because their parent did."""
    body = request_body(reason, grace_us)
    return [InboxPost(run_id, house.entropy.new_id(), CLOSE, body) for run_id in run_ids]


def withdraw_posts(house: House, rows: Iterable[RunRow]) -> list[InboxPost]:
    """Return the entries that take closes back, for those runs that anything was posted to."""
    return [
        InboxPost(row.run_id, house.entropy.new_id(), WITHDRAW, b"{}")
        for row in rows
        if not row.is_terminal and row.head.inbox_seq > 0
    ]


def closable_children(store: Store, run_ids: Iterable[UUID]) -> list[RunRow]:
    """Return those runs that have not ended and whose spawn recorded the policy ``cancel``."""
    rows = [row for row in store.get_runs(run_ids).values() if not row.is_terminal]
    starts = read_starts(store, (row.run_id for row in rows))
    return [row for row in rows if starts[row.run_id].parent_close_policy == "cancel"]


def close_policy(store: Store, row: RunRow) -> str | None:
    """Return what a run's spawn recorded for the end of its parent; None in V1, which means ``abandon``."""
    return read_start(store, row.run_id).parent_close_policy


def cancel_run(house: House, run_id: UUID, reason: str, *, kind: str = CANCEL) -> dict[UUID, str]:
    """Ask a run and everything below it to end; what nobody owns ends here, leaves first.

    :param reason: stands in the histories
    :param kind: ``cancel``, or ``close`` where a parent's end is the cause and a later try may take it back
    :raises SecretsDetectedError: if the reason holds a secret
    :returns: by run id, ``cancelled`` (it ended now), ``requested`` (its owner will end it), ``already_terminal``
    """
    house.policy.check(reason, "the reason")
    outcome: dict[UUID, str] = {}
    for row in _leaves_first(house.store, run_id):
        if row.kind == "task_instance":
            continue
        if _ask(house, row.run_id, reason, kind):
            outcome[row.run_id] = "cancelled" if end_unowned(house, row.run_id) else "requested"
        else:
            outcome[row.run_id] = "already_terminal"
    return outcome


def _ask(house: House, run_id: UUID, reason: str, kind: str) -> bool:
    """Post a request, unless one as strong stands; False if the run has ended."""
    standing = standing_request(house.patience.attempt(lambda: house.store.read_inbox(run_id)))
    if standing is not None and standing.kind in (kind, CANCEL):
        row = house.find_run(run_id)
        return row is not None and not row.is_terminal
    post = InboxPost(run_id, house.entropy.new_id(), kind, request_body(reason))
    return house.patience.attempt(lambda: house.store.post([post]))[post.post_id] is not None


def end_unowned(house: House, run_id: UUID) -> bool:
    """End a run that was asked to, if nobody owns it; say whether it has ended.

    Left to the next driver: a run whose operation has an ``on_cancel`` and that had entered a state. What is below it is
    asked to end in the same commit.
    """
    for _ in range(END_TRIES):
        row = house.find_run(run_id)
        if row is None or row.is_terminal:
            return row is not None
        request = overdue_request(house.store, row, house.patience.attempt(house.store.now_us))
        if request is None:
            return False
        commit = _end(house, row, request)
        if isinstance(house.patience.attempt(lambda: house.committer.submit(commit)), Committed):  # noqa: B023
            return True
    return False


def overdue_request(store: Store, row: RunRow, now_us: int) -> EndRequest | None:
    """Return the request by which a run is over though nobody has written so yet; None if it is not.

    Nobody owns it, the grace is over, and nothing has to run before its end.
    """
    if not may_be_overdue(row):
        return None
    request = standing_request(store.read_inbox(row.run_id))
    if request is None or request.effective_at > now_us or needs_clean_up(store, row):
        return None
    return request


def may_be_overdue(row: RunRow) -> bool:
    """Whether it is worth while to look into a run's inbox: asks no store."""
    is_open = row.kind == "operation" and not row.is_terminal
    return is_open and row.lease_expires_at is None and row.head.inbox_seq > 0


def needs_clean_up(store: Store, row: RunRow) -> bool:
    """Whether a run's operation has an ``on_cancel`` that must run before it ends."""
    return read_start(store, row.run_id).on_cancel and load_history(store, row.run_id).last_entered is not None


def _end(house: House, row: RunRow, request: EndRequest) -> Commit:
    """Return the commit that ends an unowned run as Cancelled and asks its children to end."""
    store = house.store
    history = load_history(store, row.run_id)
    events: list[Event] = [
        *close_orphan(history, lapsed=False, limit=0),
        consumed_event(request),
        RunCompleted(status="Cancelled", final_snapshot_id=history.checkpoint_id, reason=request.to_json()),
    ]
    encoded = tuple(encode_event(event) for event in events)
    lease = TakeLease(None)
    step = RunStep(row.run_id, row.head.seq, row.head.epoch, encoded, moves_of(events), lease=lease)
    posts = orphan_posts(house, history, f"its parent was asked to end: {request.reason}")
    return Commit(house.entropy.new_id(), (step,), posts=tuple(posts))


def orphan_posts(house: House, history: RunHistory, reason: str) -> list[InboxPost]:
    """Return what asks the children of a run to end that is ended from outside; those that were asked are left in peace."""
    rows = closable_children(house.store, [child.child_run_id for child in history.children])
    asked = {row.run_id for row in rows if standing_request(house.store.read_inbox(row.run_id)) is not None}
    return close_posts(house, (row.run_id for row in rows if row.run_id not in asked), reason)


def consumed_event(request: EndRequest) -> DomainEvent:
    """Return the event by which a run deals with its inbox."""
    payload = {"n": request.n, "kind": request.kind, "reason": request.reason}
    return DomainEvent(name=INBOX_CONSUMED, payload=payload)


def _leaves_first(store: Store, run_id: UUID) -> list[RunRow]:
    """Return a run and everything below it that has not ended, the deepest first."""
    top = store.find_run(run_id)
    found: list[RunRow] = [] if top is None else [top]
    level: Sequence[RunRow] = found
    while level:
        level = [child for row in level for child in store.children_of(row.run_id) if not child.is_terminal]
        found = [*found, *level]
    return found[::-1]
