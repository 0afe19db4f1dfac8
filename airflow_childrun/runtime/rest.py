"""Whether a whole process has nothing to do, and until when."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from uuid import UUID

from airflow_childrun.engine.ports import Watch
from airflow_childrun.runtime.mail import Mailbox
from airflow_childrun.runtime.slots import Slots
from airflow_childrun.runtime.waiting import NEVER, Hold

LEAVING_S = 10.0
"""How long a process that lives on waits for the threads of runs that it gave up."""


@dataclass(frozen=True, slots=True)
class Rest:
    """Every run that a process drives waits.

    :param inboxes: by run, the number of the last inbox entry that the process knows of
    :param wake_at: when the first of them goes on by itself or is over, in microseconds of the store's time; NEVER = not
        before others do something
    :param watched: by run that waits for something outside: what others may look at in its place; it does not count for
        ``wake_at``
    """

    inboxes: Mapping[UUID, int]
    wake_at: int
    watched: Mapping[UUID, Watch] = field(default_factory=dict)

    def outlasts(self, run_ids: Iterable[UUID], until_us: int) -> bool:
        """Whether all of these runs are among those that wait, and nothing happens before a time."""
        return self.inboxes.keys() >= set(run_ids) and self.wake_at >= until_us


def rest_of(
    slots: Slots,
    active: Iterable[UUID],
    holds: Mapping[UUID, Hold],
    mailboxes: Mapping[UUID, Mailbox],
    queued: Mapping[UUID, int],
) -> Rest | None:
    """Return the rest of all active runs, None if one is at work; to be asked with the slots' monitor held.

    :param queued: runs that wait for places which other runs of this process hold, and their last inbox entries
    """
    if not slots.is_idle:
        return None
    wake_at, inboxes, watched = NEVER, dict(queued), dict[UUID, Watch]()
    for run_id in active:
        if run_id in queued:
            continue
        hold, mailbox = holds.get(run_id), mailboxes.get(run_id)
        stay = None if hold is None else hold.stay()
        if stay is None or mailbox is None or mailbox.is_due():
            return None
        inboxes[run_id] = mailbox.known
        wake_at = min(wake_at, stay.until_us, mailbox.due_at() or NEVER)
        if stay.watch is not None:
            watched[run_id] = stay.watch
    return None if inboxes and wake_at == NEVER and not watched else Rest(inboxes, wake_at, watched)
