"""The matrix: every cell ends as was written before (tests/stack/matrix/cells.py)."""

from __future__ import annotations

import pytest

from tests.postgres import PostgresServer
from tests.stack.matrix.cells import CELLS, Cell
from tests.stack.matrix.runner import WIDE, WIDTH, play_all
from tests.stack.records import Records
from tests.stack.stand import Stand, started

pytestmark = [pytest.mark.stack, pytest.mark.provider, pytest.mark.fault]
NARROW = 4
"""The parallelism of the session's stand: a child that is held keeps a worker."""


def differences(stand: Stand, records: Records, cells: list[Cell], width: int) -> list[str]:
    """Play cells, and return those that went otherwise than written."""
    return [str(outcome) for outcome in play_all(stand, records, cells, width) if not outcome.is_good]


def test_a_few_cells_go_as_written(stand: Stand, records: Records):
    """Some of each kind."""
    cells = [cell for cell in CELLS if cell.quick]
    assert len(cells) == 5
    assert differences(stand, records, cells, NARROW) == []


@pytest.mark.long
def test_all_cells_go_as_written(postgres_server: PostgresServer):
    """On a stand of their own, which takes more at once."""
    with started(postgres_server, settings=WIDE) as wide:
        records = Records.of(wide)
        assert differences(wide, records, list(CELLS), WIDTH) == []
        records.store.close()
