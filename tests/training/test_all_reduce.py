"""How gradients are put together before they are sent; what two processes make of them is in test_distributed.py."""

import pytest
from mindspore import nn

from mindrepvgg.errors import UserError
from mindrepvgg.training import all_reduce


@pytest.mark.parametrize(
    ("sizes", "runs", "starts"),
    [
        ([2, 3, 9, 1, 4, 5, 2], ((0, 2), (3, 5), (6, 7)), (0, 2, -1, 5, 6, -1, 10)),
        ([9, 9], (), (-1, -1)),
        ([1, 1], ((0, 2),), (0, 1)),
        ([], (), ()),
    ],
)
def test_small_gradients_are_bundled(sizes, runs, starts):
    assert all_reduce._bundle(sizes, 4) == (runs, starts)


def test_a_mindspore_without_its_own_reducer(monkeypatch):
    monkeypatch.delattr(nn, "DistributedGradReducer")
    with pytest.raises(
        UserError, match=r"^all_reduce \(=mindspore\) needs MindSpore's .* leave all_reduce at bundled$"
    ):
        all_reduce.gradient_mean("mindspore", (), 2)
