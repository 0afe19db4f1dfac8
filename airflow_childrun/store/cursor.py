"""Where a page of runs ended, as a string that callers pass back."""

from __future__ import annotations

from uuid import UUID

from airflow_childrun.errors import InputError
from airflow_childrun.store.api import RunRow


def cursor_of(row: RunRow) -> str:
    """Return the cursor that stands behind ``row``."""
    return f"{row.created_at}-{row.run_id.hex}"


def position_of(cursor: str | None) -> tuple[int, UUID] | None:
    """Return creation time and id of the row that a cursor stands behind.

    :raises InputError: code ``input_invalid``, if it is no cursor of ours
    """
    if cursor is None:
        return None
    created_at, _, run_id = cursor.partition("-")
    try:
        position = int(created_at), UUID(hex=run_id)
        if not 0 <= position[0] < 2**63:
            raise ValueError(created_at)
    except ValueError:
        raise InputError(f"cursor {cursor!r} is none that find_runs returned; pass RunPage.cursor back") from None
    return position
