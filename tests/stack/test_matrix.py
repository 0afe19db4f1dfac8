"""The matrix on the session's stand: every cell ends as was written before (tests/stack/matrix/cells.py)."""

from __future__ import annotations

import pytest

from tests.stack.matrix.cells import CELLS, Cell
from tests.stack.matrix.runner import play_all
from tests.stack.records import Records
from tests.stack.stand import Stand

pytestmark = [pytest.mark.stack, pytest.mark.provider, pytest.mark.fault]
WIDTH = 4
"""The parallelism of the session's stand: a child that is held keeps a worker."""


def differences(stand: Stand, records: Records, cells: list[Cell]) -> list[str]:
    """Play cells, and return those that went otherwise than written."""
    return [str(outcome) for outcome in play_all(stand, records, cells, WIDTH) if not outcome.is_good]


def test_a_few_cells_go_as_written(stand: Stand, records: Records):
    """Some of each kind."""
    cells = [cell for cell in CELLS if cell.quick]
    assert len(cells) > 5
    assert differences(stand, records, cells) == []


@pytest.mark.long
def test_all_other_cells_go_as_written(stand: Stand, records: Records):
    """With the few above, all of them."""
    assert differences(stand, records, [cell for cell in CELLS if not cell.quick]) == []
