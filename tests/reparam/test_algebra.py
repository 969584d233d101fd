"""The algebra of branches, each operation against PyTorch's float64 convolutions of random maps.

An operation is right where what it makes, convolved, is what its parts, convolved one by one, come to.
"""

import functools
import itertools

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor, nn
from support import relative_difference
from support.linear_maps import EPS, around, batch_norm, bn_vectors, convolved, error, pictures, random_map
from support.wrong_folds import CLEARLY
from torch.nn import functional

from mindrepvgg.reparam import algebra
from mindrepvgg.reparam.algebra import (
    LinearMap,
    add,
    compose,
    concatenate,
    enlarge,
    fill_border,
    fold_bn,
    identity_kernel,
    scale,
    to_dense,
    ungroup,
)

pytestmark = pytest.mark.compat

EXACT = 1e-12

SIZES = [(1, 1), (3, 3), (1, 5), (4, 2)]
PLACES = [
    {},
    {"stride": (2, 2), "padding": (1, 1, 1, 1)},
    {"stride": (1, 2), "padding": (2, 0, 1, 3), "dilation": (2, 1)},
    {"padding": (-1, 2, 0, -2), "dilation": (1, 3)},
]


@pytest.mark.parametrize(("channels", "groups"), [(6, 1), (6, 2), (8, 4), (8, 8), (1, 1)])
def test_the_identity_kernel_returns_its_input(channels, groups):
    kernel = identity_kernel(channels, groups)
    assert kernel.shape == (channels, channels // groups, 1, 1)
    assert kernel.dtype == np.float64
    x = pictures(np.random.default_rng(0), channels)
    assert torch.equal(convolved(LinearMap(kernel, groups=groups), x), x)
    rows = slice(channels // 2, None)
    np.testing.assert_array_equal(identity_kernel(channels, groups, rows=rows), kernel[rows])


@pytest.mark.parametrize("size", [(2, 2), (3, 3), (3, 5)])
@pytest.mark.parametrize(("groups", "stride"), [(1, 1), (4, 2), (8, 1)])
def test_the_average_kernel_is_pytorchs_pooling(size, groups, stride):
    x = pictures(np.random.default_rng(0))
    kernel = identity_kernel(8, groups, size, 1 / (size[0] * size[1]))
    padding = size[0] // 2, size[1] // 2
    pooled = LinearMap(kernel, None, (stride, stride), (padding[0], padding[0], padding[1], padding[1]), groups=groups)
    expected = functional.avg_pool2d(x, size, stride, padding)
    assert error(pooled, expected, x) < EXACT


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("size", "groups", "bias"), [((3, 3), 1, False), ((1, 1), 2, True), ((4, 2), 4, True)])
def test_a_folded_bn_is_the_convolution_and_its_bn(size, groups, bias, place):
    rng = np.random.default_rng(3)
    linear_map, bn, x = random_map(rng, 12, 8, size, groups, bias, **place), bn_vectors(rng, 12), pictures(rng)
    folded = fold_bn(linear_map, *bn, EPS)
    assert folded[0].dtype == folded[1].dtype == np.float64
    assert LinearMap(*folded)[2:] == linear_map[2:]
    assert error(folded, batch_norm(convolved(linear_map, x), bn), x) < EXACT


def test_eps_counts():
    rng = np.random.default_rng(3)
    linear_map, bn, x = random_map(rng), bn_vectors(rng, 8), pictures(rng)
    folded = fold_bn(linear_map, *bn, 1e-3)
    assert error(folded, batch_norm(convolved(linear_map, x), bn, 1e-3), x) < EXACT
    assert error(folded, batch_norm(convolved(linear_map, x), bn, 1e-5), x) > 1e-4


def test_a_float32_kernel_is_folded_in_float64():
    rng = np.random.default_rng(3)
    bn, kernel = bn_vectors(rng, 8), rng.normal(size=(8, 8, 3, 3)).astype(np.float32)
    narrow, wide = fold_bn(LinearMap(kernel), *bn, EPS), fold_bn(LinearMap(kernel.astype(np.float64)), *bn, EPS)
    np.testing.assert_array_equal(narrow[0], wide[0])
    assert narrow[0].dtype == np.float64


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("place", PLACES)
def test_a_scaled_map_is_its_output_times_the_factor(place, bias):
    rng = np.random.default_rng(4)
    linear_map, factor, x = random_map(rng, groups=2, bias=bias, **place), rng.normal(size=8), pictures(rng)
    expected = convolved(linear_map, x) * torch.tensor(factor).reshape(1, 8, 1, 1)
    assert error(scale(linear_map, factor), expected, x) < EXACT


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("grown", [(1, 1, 1, 1), (0, 2, 3, 1)])
def test_an_enlarged_kernel_computes_the_same(grown, place):
    rng = np.random.default_rng(5)
    linear_map, x = random_map(rng, size=(3, 2), **place), pictures(rng)
    enlarged = enlarge(linear_map, *grown)
    assert enlarged[0].shape[2:] == (3 + grown[0] + grown[1], 2 + grown[2] + grown[3])
    assert error(enlarged, convolved(linear_map, x), x) < EXACT


@pytest.mark.parametrize(("dilation", "left"), [((2, 2), (1, 1)), ((1, 3), (1, 1)), ((4, 6), (2, 3)), ((2, 3), (2, 3))])
@pytest.mark.parametrize(("size", "stride"), [((3, 3), (1, 1)), ((1, 2), (2, 1))])
def test_a_dense_kernel_computes_the_same(size, stride, dilation, left):
    rng = np.random.default_rng(6)
    linear_map = random_map(rng, groups=4, size=size, stride=stride, dilation=dilation, padding=(1, 2, 0, 4))
    x = pictures(rng)
    dense = LinearMap(*to_dense(linear_map, left))
    assert dense.dilation == left
    assert error(dense, convolved(linear_map, x), x) < EXACT


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("place", PLACES)
def test_a_map_in_one_group_computes_the_same(groups, place):
    rng = np.random.default_rng(7)
    linear_map, x = random_map(rng, 16, 8, (3, 2), groups, **place), pictures(rng)
    whole = LinearMap(*ungroup(linear_map))
    assert whole.groups == 1
    assert whole.kernel.shape == (16, 8, 3, 2)
    assert error(whole, convolved(linear_map, x), x) < EXACT


def random_sum(seed):
    """Some maps over one input whose outputs have one size: kernels at random places of a common window."""
    rng = np.random.default_rng(seed)
    groups, stride = int(rng.choice([1, 2, 8])), tuple(int(s) for s in rng.integers(1, 3, 2))
    window, border = rng.integers(4, 12, 2), rng.integers(0, 6, 4)
    maps = []
    for _ in range(int(rng.integers(2, 5))):
        size, dilation, padding = [], [], []
        for axis in (0, 1):
            step = int(rng.integers(1, 4))
            count = int(rng.integers(1, (window[axis] - 1) // step + 2))
            room = int(window[axis] - 1 - step * (count - 1))
            before = int(rng.integers(0, room + 1))
            size.append(count)
            dilation.append(step)
            padding += [int(border[2 * axis]) - before, int(border[2 * axis + 1]) - room + before]
        place = {"stride": stride, "padding": tuple(padding), "dilation": tuple(dilation)}
        maps.append(random_map(rng, 8, 8, tuple(size), groups, bool(rng.integers(2)), **place))
    return maps, pictures(rng, size=(17, 19))


def check_sum(maps, x):
    expected = sum(convolved(one, x) for one in maps)
    kernels = [one.kernel.copy() for one in maps]
    assert error(add(*maps), expected, x) < EXACT
    for one, kernel in zip(maps, kernels, strict=True):
        np.testing.assert_array_equal(one.kernel, kernel)
    assert error(add(*maps[:-1]), expected, x) > CLEARLY


@pytest.mark.parametrize("seed", range(40))
def test_a_sum_of_random_maps(seed):
    check_sum(*random_sum(seed))


@pytest.mark.slow
def test_many_sums_of_random_maps():
    for seed in range(40, 1500):
        check_sum(*random_sum(seed))


def test_sums_keep_dilation_where_they_can():
    rng = np.random.default_rng(8)
    large = random_map(rng, size=(5, 5), dilation=(2, 2), padding=(4, 4, 4, 4))
    for small, dilation, size in (
        (random_map(rng, size=(1, 1)), (2, 2), (5, 5)),
        (random_map(rng, size=(3, 3), dilation=(4, 4), padding=(4, 4, 4, 4)), (2, 2), (5, 5)),
        (random_map(rng, size=(3, 3), dilation=(3, 2), padding=(3, 3, 2, 2)), (1, 2), (9, 5)),
        (random_map(rng, size=(1, 1), padding=(1, -1, 0, 0)), (1, 2), (9, 5)),
    ):
        total, x = LinearMap(*add(large, small)), pictures(rng)
        assert (total.dilation, total.kernel.shape[2:]) == (dilation, size)
        assert error(total, convolved(large, x) + convolved(small, x), x) < EXACT


def test_a_single_place_has_any_dilation():
    rng = np.random.default_rng(8)
    one, other = random_map(rng, size=(1, 1), dilation=(2, 3)), random_map(rng, size=(1, 1))
    assert LinearMap(*add(one, other)).dilation == LinearMap(*add(other, one)).dilation == (2, 3)
    assert LinearMap(*add(one, random_map(rng, padding=(1, 1, 1, 1)))).dilation == (1, 1)


def test_an_array_is_used_for_the_sum_only_where_it_may_be():
    rng = np.random.default_rng(8)
    large, small = random_map(rng, padding=(1, 1, 1, 1)), random_map(rng, size=(1, 1))
    before = large.kernel.copy()
    locked = large._replace(kernel=large.kernel.copy())
    locked.kernel.flags.writeable = False
    narrow = large._replace(kernel=large.kernel.astype(np.float32))
    assert add(locked, small, in_place=True)[0] is not locked.kernel
    total = add(narrow, small, in_place=True)[0]
    assert total.dtype == np.float64
    np.testing.assert_array_equal(narrow.kernel, before.astype(np.float32))
    assert add(large, small)[0] is not large.kernel
    assert add(large, small, in_place=True)[0] is large.kernel
    assert not np.array_equal(large.kernel, before)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("place", PLACES)
def test_concatenated_maps_are_outputs_side_by_side(place, bias):
    rng = np.random.default_rng(9)
    maps, x = [random_map(rng, out, bias=bias, **place) for out in (3, 8, 1)], pictures(rng)
    together = concatenate(*maps)
    expected = torch.cat([convolved(one, x) for one in maps], 1)
    assert together[0].shape[0] == 12
    assert error(together, expected, x) < EXACT


def test_a_filled_border_has_what_zeros_become():
    rng = np.random.default_rng(10)
    point, x = random_map(rng, size=(1, 1), groups=2), pictures(rng)
    filled = fill_border(point, 1, 0, 2, 3)
    expected = around(convolved(point, x), (1, 0, 2, 3), torch.tensor(point.bias))
    assert error(filled, expected, x) < EXACT


def compose_filled(first, second):
    """A 1x1, and a map whose padding is what zeros become."""
    return compose(fill_border(first, *second.padding), second._replace(padding=(0, 0, 0, 0)))


@pytest.mark.parametrize("place", PLACES[:3])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("size", SIZES)
def test_a_pointwise_map_and_then_another(size, groups, place):
    """1x1 and then k x k, whose border is what zeros become; the widths of both differ."""
    rng = np.random.default_rng(11)
    first = random_map(rng, 12, 8, (1, 1), groups)
    second = random_map(rng, 16, 12, size, groups, **place)
    x, inner = pictures(rng), second._replace(padding=(0, 0, 0, 0))
    expected = convolved(inner, around(convolved(first, x), second.padding, torch.tensor(first.bias)))
    composed = LinearMap(*compose_filled(first, second))
    assert composed.kernel.shape == (16, 8 // groups, *size)
    assert error(composed, expected, x) < EXACT


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_without_a_bias_in_between_zeros_are_what_zeros_become(groups):
    rng = np.random.default_rng(12)
    first, x = random_map(rng, 12, 8, (1, 1), groups, bias=False), pictures(rng)
    for bias in (True, False):
        second = random_map(rng, 16, 12, (3, 3), groups, bias, padding=(1, 1, 1, 1), stride=(2, 2))
        assert error(compose(first, second), convolved(second, convolved(first, x)), x) < EXACT


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("size", SIZES[1:])
@pytest.mark.parametrize("bias", [True, False])
def test_a_map_and_then_a_pointwise_one(size, groups, place, bias):
    rng = np.random.default_rng(13)
    first, x = random_map(rng, 12, 8, size, groups, bias, **place), pictures(rng)
    second = random_map(rng, 16, 12, (1, 1), groups)
    assert error(compose(first, second), convolved(second, convolved(first, x)), x) < EXACT


def test_a_border_is_cut_off_before_and_after():
    rng = np.random.default_rng(14)
    x = pictures(rng)
    first = random_map(rng, size=(1, 1), padding=(-2, 0, -1, 0))
    for padding in ((-1, -1, -1, -1), (-1, 0, 0, 0)):
        second = random_map(rng, padding=padding)
        assert error(compose(first, second), convolved(second, convolved(first, x)), x) < EXACT


def test_float32_kernels_are_composed_in_float64():
    rng = np.random.default_rng(15)
    first, second = random_map(rng, size=(1, 1)), random_map(rng, padding=(1, 1, 1, 1))
    for one, other, both in ((first, second, compose_filled), (second, first, compose)):
        narrow = [part._replace(kernel=part.kernel.astype(np.float32)) for part in (one, other)]
        wide = [part._replace(kernel=part.kernel.astype(np.float64)) for part in narrow]
        for got, want in zip(both(*narrow)[:2], both(*wide)[:2], strict=True):
            assert got.dtype == np.float64
            assert relative_difference(got, want) < 1e-15


RNG = np.random.default_rng(16)
PLAIN, POINT = random_map(RNG, padding=(1, 1, 1, 1)), random_map(RNG, size=(1, 1))


@pytest.mark.parametrize(
    ("operation", "text"),
    [
        (lambda: identity_kernel(6, 4), "channels (=6) must be divisible by groups (=4)"),
        (
            lambda: fold_bn(PLAIN, np.ones(8), np.ones(8), np.ones(5), np.ones(8), EPS),
            "a BN of 5 channels follows 8 outputs",
        ),
        (
            lambda: add(PLAIN, POINT._replace(stride=(2, 2))),
            "a sum of strides (1, 1) and (2, 2) is no convolution",
        ),
        (
            lambda: add(random_map(RNG, groups=2, size=(1, 1)), POINT),
            "a sum of 2 and 1 groups: ungroup one of them first",
        ),
        (
            lambda: add(PLAIN, random_map(RNG, 4, size=(1, 1))),
            "a sum of kernels (8, 8, 3, 3) and (4, 8, 1, 1), whose channels differ",
        ),
        (
            lambda: add(PLAIN, POINT._replace(padding=(1, 1, 1, 1))),
            "a sum of kernels (3, 3) and (1, 1) with paddings (1, 1, 1, 1) and (1, 1, 1, 1), whose outputs have other "
            "sizes",
        ),
        (lambda: concatenate(PLAIN, POINT), "outputs of kernels (8, 8, 3, 3) and (8, 8, 1, 1) do not fit side by side"),
        (
            lambda: concatenate(POINT, POINT._replace(stride=(2, 2))),
            "outputs of kernels (8, 8, 1, 1) and (8, 8, 1, 1) do not fit side by side",
        ),
        (
            lambda: concatenate(POINT, POINT._replace(bias=None)),
            "of two maps side by side, one has a bias and one has none",
        ),
        (
            lambda: concatenate(*[random_map(RNG, groups=2)] * 2),
            "outputs of grouped maps side by side: ungroup them first",
        ),
        (
            lambda: fill_border(PLAIN, 1, 1, 1, 1),
            "a border around the outputs of a kernel (3, 3) of stride (1, 1) is no padding",
        ),
        (
            lambda: fill_border(POINT._replace(stride=(1, 2)), 1, 1, 1, 1),
            "a border around the outputs of a kernel (1, 1) of stride (1, 2) is no padding",
        ),
        (lambda: compose(POINT, random_map(RNG, groups=2)), "1 groups and then 2: ungroup them first"),
        (
            lambda: compose(POINT, random_map(RNG, 8, 6)),
            "a kernel (8, 6, 3, 3) of 1 groups cannot follow 8 outputs",
        ),
        (
            lambda: compose(PLAIN, PLAIN),
            "a kernel (3, 3) and then (3, 3) are not one: neither is 1x1 of stride 1",
        ),
        (
            lambda: compose(POINT._replace(stride=(2, 2)), PLAIN),
            "a kernel (1, 1) and then (3, 3) are not one: neither is 1x1 of stride 1",
        ),
        (
            lambda: compose(PLAIN, POINT._replace(padding=(0, 1, 0, 0))),
            "a kernel (3, 3) and then (1, 1) are not one: neither is 1x1 of stride 1",
        ),
        (
            lambda: compose(POINT._replace(bias=None, padding=(-1, 0, 0, 0)), PLAIN),
            "a border is cut off and padded again: zeros stand where the input has values",
        ),
        (
            lambda: compose(POINT, PLAIN),
            "zeros are padded between two convolutions of which the first has a bias: the border differs",
        ),
    ],
)
def test_what_is_no_convolution_is_refused(operation, text):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is compared literally below
        operation()
    assert str(caught.value) == text


class Operations(nn.Cell):
    """Every operation on tensors: what a graph must be able to compile. Each is given its parts as a tuple."""

    def __init__(self, arrays):
        super().__init__()
        for name, value in arrays.items():
            setattr(self, name, Tensor(value, ms.float32))

    def construct(self):
        wide, ones, none = (1, 1, 1, 1), (1, 1), (0, 0, 0, 0)
        large = (self.kernel, self.bias, ones, wide, ones, 2)
        point = (self.point, self.bias, ones, none, ones, 2)
        spread = (self.kernel, self.bias, ones, (2, 2, 3, 3), (2, 3), 2)
        folded = algebra.fold_bn(large, self.gamma, self.beta, self.mean, self.var, 1e-5)
        total = algebra.add(folded, point, spread, algebra.scale(point, self.gamma))
        bare = (self.kernel, self.bias, ones, none, ones, 2)
        both = algebra.compose(algebra.fill_border(point, 1, 1, 1, 1), bare)
        after = algebra.compose(total, point)
        joined = algebra.concatenate(algebra.ungroup(both), algebra.ungroup(both))
        dense = algebra.enlarge(algebra.to_dense(spread), 1, 0, 0, 2)
        return total[:2], both[:2], after[:2], joined[:2], dense[:2]


def test_operations_on_tensors_are_those_on_arrays(mode):
    rng = np.random.default_rng(17)
    gamma, beta, mean, var = bn_vectors(rng, 8)
    arrays = {"gamma": gamma, "beta": beta, "mean": mean, "var": var, "bias": rng.normal(size=8)}
    arrays |= {"kernel": rng.normal(size=(8, 4, 3, 3)), "point": rng.normal(size=(8, 4, 1, 1))}
    exact = Operations({})
    for name, value in arrays.items():
        object.__setattr__(exact, name, value)
    for got, want in zip(Operations(arrays)(), exact.construct(), strict=True):
        for part, truth in zip(got, want, strict=True):
            assert isinstance(part, Tensor)
            assert truth.dtype == np.float64
            assert relative_difference(part, truth) < 1e-6


@pytest.mark.parametrize(("size", "groups"), itertools.product([(3, 3), (5, 1)], [1, 4]))
def test_tensors_of_a_chain_of_operations(pynative_mode, size, groups):
    """Tensors against PyTorch directly, where no array was in between."""
    rng = np.random.default_rng(18)
    first, second = random_map(rng, 8, 8, (1, 1), groups), random_map(rng, 8, 8, size, groups, padding=(1, 1, 1, 1))
    bn, x = bn_vectors(rng, 8), pictures(rng)
    tensor = functools.partial(Tensor, dtype=ms.float32)
    parts = [part._replace(kernel=tensor(part.kernel), bias=tensor(part.bias)) for part in (first, second)]
    folded = fold_bn(compose_filled(*parts), *map(tensor, bn), EPS)
    inner = convolved(
        second._replace(padding=(0, 0, 0, 0)), around(convolved(first, x), (1,) * 4, torch.tensor(first.bias))
    )
    assert error(folded, batch_norm(inner, bn), x) < 1e-6
