"""How commands speak: results to the standard output, notes and errors to the standard error."""

from __future__ import annotations

import sys
from typing import Any

from airflow_childrun.canonical import canonical_json_bytes


def write(line: str = "") -> None:
    """Print a line of the result."""
    sys.stdout.write(f"{line}\n")


def note(line: str) -> None:
    """Print a line that is not the result."""
    sys.stderr.write(f"{line}\n")


def write_json(value: Any) -> None:
    """Print a value as one line of JSON."""
    write(json_text(value))


def json_text(value: Any) -> str:
    """Return a value as one line of JSON."""
    return canonical_json_bytes(value).decode()


def fail(code: str, message: str) -> None:
    """Print an error as one line."""
    note(f"error [{code}]: {' '.join(message.split())}")
