"""Arrays in binary are what PostgreSQL takes them for: as the driver's own text would have been, NULLs and edges included."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_childrun.store.sql.dialects.arrays import packed
from airflow_childrun.store.sql.store import SqlStore

COLUMNS: dict[str, list[Any]] = {
    "BYTEA": [b"", b"\x00\xff\\", None, bytes(range(256)) * 300],
    "BIGINT": [0, -(2**63), 2**63 - 1, None],
    "INTEGER": [-1, 2**31 - 1, -(2**31), None],
    "BOOLEAN": [True, False, None],
    "TEXT": ["", "NULL", '{"\\",}', "\U0001f600 ä", None],
    "VARCHAR(16)": ["raw", None],
}


@pytest.mark.parametrize("kind", COLUMNS)
@pytest.mark.parametrize("which", ["all", "without NULL", "only NULL", "one"])
def test_every_value_arrives(postgres_module_url: str, kind: str, which: str) -> None:
    """Also where all values of a column are NULL, and where there is only one."""
    values = {
        "all": COLUMNS[kind],
        "without NULL": [value for value in COLUMNS[kind] if value is not None],
        "only NULL": [None, None],
        "one": COLUMNS[kind][:1],
    }[which]
    store = SqlStore(postgres_module_url)
    text = f"SELECT v FROM unnest(CAST(%s AS {kind}[])) v"
    with store.database.engine().connect() as connection:
        found = [row[0] for row in connection.exec_driver_sql(text, (packed(kind, values),)).all()]
    store.close()
    assert found == values
