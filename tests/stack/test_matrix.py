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


def play(stand: Stand, records: Records, cells: list[Cell]) -> None:
    """Play cells, and name those that went otherwise than written."""
    outcomes = play_all(stand, records, cells, WIDTH)
    assert len(outcomes) == len(cells)
    assert [str(outcome) for outcome in outcomes if not outcome.is_good] == []


def test_a_few_cells_go_as_written(stand: Stand, records: Records):
    """Some of each kind."""
    play(stand, records, [cell for cell in CELLS if cell.quick])


@pytest.mark.long
def test_all_other_cells_go_as_written(stand: Stand, records: Records):
    """With the few above, all of them."""
    play(stand, records, [cell for cell in CELLS if not cell.quick])
