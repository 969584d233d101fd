"""What the tables in docs/fusing.md say: every wrong fold is told from the right one, and the whole grid is exact."""

import pytest
from support.block_pairs import GRIDS, both
from support.folds import EXACT, check_fold
from support.wrong_folds import CONTROLS

from mindrepvgg.reparam.named_blocks import BLOCKS

pytestmark = pytest.mark.usefixtures("pynative_mode")


@pytest.mark.compat
@pytest.mark.parametrize("control", CONTROLS, ids=str)
def test_a_wrong_fold_is_told_from_the_right_one(control):
    right, wrong = control.errors()
    assert right < EXACT
    assert wrong > control.least


def test_every_block_has_a_grid_and_controls():
    of_a_bn_alone = {"PlainBlock", "RepOptBlock"}
    names = {name.rpartition(".")[2] for name in BLOCKS.values()} - of_a_bn_alone
    assert names <= {kind.__name__ for kind in GRIDS}
    assert names <= {control.subject for control in CONTROLS}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "size", "options"),
    [(kind, size, options) for kind, (size, grid) in GRIDS.items() for options in grid],
    ids=lambda part: getattr(part, "__name__", ""),
)
def test_the_whole_grid(kind, size, options):
    check_fold(*both(kind, **options), size)
