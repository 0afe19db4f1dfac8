"""Operations of a module that [childrun] operations_modules lists."""

from __future__ import annotations

from typing import Any

from airflow_childrun import operation


@operation(version="1")
def shared_triple(io: Any, number: int) -> int:
    """Return three times the number."""
    return number * 3
