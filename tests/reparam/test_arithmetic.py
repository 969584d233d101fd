"""The arithmetic of re-parameterisation, in float64, against PyTorch's convolution and BN in evaluation."""

import numpy as np
import pytest
import torch
from support import array, torch_reference
from torch.nn import functional

from mindrepvgg.reparam import arithmetic

pytestmark = pytest.mark.compat

EPS = 1e-5


def bn_vectors(rng, channels):
    """A BN with a history: gamma (some negative), beta, mean, variance."""
    gamma = rng.uniform(0.5, 1.5, channels) * rng.choice([1, -1], channels)
    return gamma, rng.normal(size=channels), rng.normal(size=channels), rng.uniform(0.1, 3, channels)


def block_params(in_channels, out_channels, groups=1, identity=False, seed=0):
    """One train-form block's arrays by their names within the block."""
    rng = np.random.default_rng(seed)
    params = {
        "rbr_dense.conv.weight": rng.normal(size=(out_channels, in_channels // groups, 3, 3)),
        "rbr_1x1.conv.weight": rng.normal(size=(out_channels, in_channels // groups, 1, 1)),
    }
    for prefix in ("rbr_dense.bn", "rbr_1x1.bn", *(["rbr_identity"] if identity else [])):
        leaves = zip(arithmetic.BN_LEAVES, bn_vectors(rng, out_channels), strict=True)
        params.update({f"{prefix}.{leaf}": vector for leaf, vector in leaves})
    return params


def torch_bn(x, gamma, beta, mean, var, eps=EPS):
    gamma, beta, mean, var = map(torch.tensor, (gamma, beta, mean, var))
    return functional.batch_norm(x, mean, var, gamma, beta, training=False, eps=eps)


def torch_conv(x, kernel, bias=None, **options):
    return functional.conv2d(
        x, torch.tensor(kernel), None if bias is None else torch.tensor(bias), padding=kernel.shape[-1] // 2, **options
    )


def noise(channels, seed=1):
    return torch.tensor(np.random.default_rng(seed).normal(size=(2, channels, 7, 5)))


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("size", [1, 3])
def test_a_folded_bn_is_the_convolution_and_its_bn(groups, size):
    rng = np.random.default_rng(3)
    kernel, bn = rng.normal(size=(12, 8 // groups, size, size)), bn_vectors(rng, 12)
    folded, bias = arithmetic.fold_bn(kernel, *bn, EPS)
    assert folded.dtype == bias.dtype == np.float64
    x = noise(8)
    expected = torch_bn(torch_conv(x, kernel, groups=groups), *bn)
    actual = torch_conv(x, folded, bias, groups=groups)
    np.testing.assert_allclose(array(actual), array(expected), rtol=0, atol=1e-12)


def test_eps_counts():
    rng = np.random.default_rng(3)
    kernel, bn = rng.normal(size=(4, 4, 3, 3)), bn_vectors(rng, 4)
    x = noise(4)
    folded, bias = arithmetic.fold_bn(kernel, *bn, 1e-3)
    expected = torch_bn(torch_conv(x, kernel), *bn, eps=1e-3)
    np.testing.assert_allclose(array(torch_conv(x, folded, bias)), array(expected), rtol=0, atol=1e-12)
    other = torch_bn(torch_conv(x, kernel), *bn, eps=1e-5)
    assert np.abs(array(other - expected)).max() > 1e-4


@pytest.mark.parametrize(("channels", "groups"), [(6, 1), (6, 2), (8, 4), (8, 8), (1, 1)])
def test_the_identity_kernel_returns_its_input(channels, groups):
    kernel = arithmetic.identity_kernel(channels, groups)
    assert kernel.shape == (channels, channels // groups, 1, 1)
    x = noise(channels)
    assert torch.equal(torch_conv(x, kernel, groups=groups), x)


def expected_branches(x, params, stride=1, groups=1, dilation=1, eps=None):
    """Sum of the branches in PyTorch."""
    eps = eps or dict.fromkeys(("rbr_dense", "rbr_1x1", "rbr_identity"), EPS)

    def bn(y, branch, prefix):
        return torch_bn(y, *(params[f"{prefix}.{leaf}"] for leaf in arithmetic.BN_LEAVES), eps[branch])

    dense = functional.conv2d(
        x, torch.tensor(params["rbr_dense.conv.weight"]), None, stride, dilation, dilation, groups
    )
    pointwise = torch_conv(x, params["rbr_1x1.conv.weight"], stride=stride, groups=groups)
    total = bn(dense, "rbr_dense", "rbr_dense.bn") + bn(pointwise, "rbr_1x1", "rbr_1x1.bn")
    return total + bn(x, "rbr_identity", "rbr_identity") if "rbr_identity.gamma" in params else total


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(("out_channels", "stride", "identity"), [(8, 1, True), (8, 2, False), (12, 1, False)])
def test_a_fused_block_is_the_sum_of_its_branches(out_channels, stride, identity, groups, dilation):
    params = block_params(8, out_channels, groups, identity)
    kernel, bias = arithmetic.fuse_block(params, EPS)
    assert kernel.shape == (out_channels, 8 // groups, 3, 3)
    assert kernel.dtype == bias.dtype == np.float64
    x = noise(8)
    expected = expected_branches(x, params, stride, groups, dilation)
    actual = functional.conv2d(x, torch.tensor(kernel), torch.tensor(bias), stride, dilation, dilation, groups)
    np.testing.assert_allclose(array(actual), array(expected), rtol=0, atol=1e-12)


def test_every_branch_has_its_own_eps():
    params, eps = block_params(4, 4, identity=True), {"rbr_dense": 1e-5, "rbr_1x1": 1e-3, "rbr_identity": 1e-2}
    x = noise(4)
    expected = array(expected_branches(x, params, eps=eps))
    np.testing.assert_allclose(array(torch_conv(x, *arithmetic.fuse_block(params, eps))), expected, rtol=0, atol=1e-12)
    assert np.abs(array(torch_conv(x, *arithmetic.fuse_block(params, EPS))) - expected).max() > 1e-4


def test_float32_weights_are_fused_in_float64():
    params = {name: value.astype(np.float32) for name, value in block_params(8, 8, identity=True).items()}
    exact = arithmetic.fuse_block({name: value.astype(np.float64) for name, value in params.items()}, EPS)
    for actual, expected in zip(arithmetic.fuse_block(params, EPS), exact, strict=True):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize(("channels", "at_once"), [(8, 3), (8, 8), (8, 1), (300, None)])
def test_many_channels_are_fused_in_parts(monkeypatch, channels, at_once):
    if at_once:
        monkeypatch.setattr(arithmetic, "_CHANNELS_AT_ONCE", at_once)
    assert channels > 2 * arithmetic._CHANNELS_AT_ONCE or at_once
    params, x = block_params(channels, channels, groups=2, identity=True), noise(channels)
    expected, actual = (
        expected_branches(x, params, groups=2),
        torch_conv(x, *arithmetic.fuse_block(params, EPS), groups=2),
    )
    np.testing.assert_allclose(array(actual), array(expected), rtol=0, atol=1e-11)


def test_the_result_is_rounded_once_at_the_end():
    params = block_params(8, 8, identity=True)
    for rounded, exact in zip(
        arithmetic.fuse_block(params, EPS, np.float32), arithmetic.fuse_block(params, EPS), strict=True
    ):
        assert rounded.dtype == np.float32
        np.testing.assert_array_equal(rounded, exact.astype(np.float32))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("identity", [False, True])
def test_the_probe_of_the_reference_finds_the_same_kernel(groups, identity):
    """`probe_kernel` is the other tests' truth: it must itself agree with a convolution's known answer."""
    block = torch_reference.Block(8, 8, 1 if identity else 2, groups).double()
    params = block_params(8, 8, groups, identity)
    leaves = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
    for name, value in params.items():
        stem, _, leaf = name.rpartition(".")
        getattr(block.get_submodule(stem), leaves.get(leaf, leaf)).data = torch.tensor(value)
    kernel, bias = torch_reference.probe_kernel(block)
    x = noise(8)
    expected = array(expected_branches(x, params, groups=groups))
    np.testing.assert_allclose(array(torch_conv(x, array(kernel), array(bias), groups=groups)), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"rbr_1x1.conv.weight": None}, "the block has no parameter rbr_1x1.conv.weight; it is not in train form"),
        ({"rbr_dense.bn.beta": None}, "the block has no parameter rbr_dense.bn.beta"),
        ({"rbr_identity.moving_mean": None}, "the block has no parameter rbr_identity.moving_mean"),
        (
            {"rbr_dense.conv.weight": np.zeros((4, 4, 5, 5))},
            "rbr_dense.conv.weight has shape (4, 4, 5, 5), expected (out, in // groups, 3, 3)",
        ),
        (
            {"rbr_1x1.conv.weight": np.zeros((4, 4))},
            "rbr_1x1.conv.weight has shape (4, 4), expected (out, in // groups, 1, 1)",
        ),
        (
            {"rbr_1x1.conv.weight": np.zeros((4, 2, 1, 1))},
            "rbr_dense (4, 4, 3, 3) and rbr_1x1 (4, 2, 1, 1) have other channels or groups",
        ),
        (
            {"rbr_1x1.bn.gamma": np.ones(3)},
            "rbr_1x1: BN gamma has shape (3,), the kernel's outputs are (4,)",
        ),
        (
            {"rbr_identity.beta": np.ones((4, 1))},
            "rbr_identity: BN beta has shape (4, 1), the kernel's outputs are (4,)",
        ),
        (
            {"rbr_dense.bn.moving_variance": np.array([1, -0.5, 1, 1])},
            "rbr_dense: the BN's moving variance is negative (-0.5): damaged statistics",
        ),
    ],
)
def test_blocks_that_cannot_be_fused_are_refused(changes, text):
    params = {**block_params(4, 4, identity=True), **changes}
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is compared literally below
        arithmetic.fuse_block({name: value for name, value in params.items() if value is not None}, EPS)
    assert text in str(caught.value)


def test_fold_bn_names_the_vector_that_does_not_fit():
    with pytest.raises(ValueError, match=r"convolution: BN moving_mean has shape \(5,\), the kernel's outputs are \(4"):
        arithmetic.fold_bn(np.ones((4, 2, 3, 3)), np.ones(4), np.ones(4), np.ones(5), np.ones(4), EPS)


def test_the_identity_kernel_needs_groups_that_divide():
    with pytest.raises(ValueError, match=r"channels \(=6\) must be divisible by groups \(=4\)"):
        arithmetic.identity_kernel(6, 4)
