"""What stands in a run's inbox: whether it was asked to end, by whom, from when on. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from airflow_childrun.canonical import canonical_json_bytes, decode_stored
from airflow_childrun.store.api import InboxEntry

CANCEL, CLOSE, WITHDRAW = "cancel", "close", "withdraw"


@dataclass(frozen=True, slots=True)
class EndRequest:
    """A request to end that stands.

    :param n: number of the newest entry that was read for it
    :param kind: ``cancel`` is for good; ``close`` comes from a parent that ended, and may be withdrawn within its grace
    :param effective_at: microseconds UTC
    """

    n: int
    kind: Literal["cancel", "close"]
    reason: str
    effective_at: int

    def to_json(self) -> dict[str, Any]:
        """Return what a cancelled run says of its end."""
        return {"code": "cancelled", "kind": self.kind, "reason": self.reason}


def request_body(reason: str, grace_us: int = 0) -> bytes:
    """Return the body of a ``cancel`` or ``close`` entry: ``{"reason", "grace_us"?}``."""
    body: dict[str, Any] = {"reason": reason}
    return canonical_json_bytes({**body, "grace_us": grace_us} if grace_us else body)


def standing_request(entries: Sequence[InboxEntry]) -> EndRequest | None:
    """Return the request that stands after all entries of an inbox, oldest first; None if none does.

    Of several closes the one that takes effect first stands.
    """
    standing: EndRequest | None = None
    for entry in entries:
        if entry.kind == WITHDRAW:
            standing = standing if standing is not None and standing.kind == CANCEL else None
        elif entry.kind == CANCEL and (standing is None or standing.kind == CLOSE):
            standing = EndRequest(entry.n, "cancel", _read(entry)[0], entry.recorded_at)
        elif entry.kind == CLOSE:
            reason, grace_us = _read(entry)
            close = EndRequest(entry.n, "close", reason, entry.recorded_at + grace_us)
            # A later close without a grace ends a grace: who gave it is gone, or fails for good.
            if standing is None or (standing.kind == CLOSE and close.effective_at < standing.effective_at):
                standing = close
    return standing


def _read(entry: InboxEntry) -> tuple[str, int]:
    body = decode_stored(entry.body)
    known = body if isinstance(body, dict) else {}
    grace_us = known.get("grace_us", 0)
    return str(known.get("reason", "")), grace_us if isinstance(grace_us, int) else 0
