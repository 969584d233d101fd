"""Equalised networks compute what they did, judged by PyTorch on both sets of weights, and their weights are even."""

import dataclasses

import numpy as np
import pytest
import torch
from support import SMALL, images, randomise_bn, relative_difference

from mindrepvgg import create_model
from mindrepvgg.deployment.int8.equalize import equalize
from mindrepvgg.evaluation.torch_reference import TorchReference
from mindrepvgg.models.parameters import network_arrays
from mindrepvgg.models.variants import find

KINDS = tuple(SMALL)
IMAGES = images(3, 3, 48, 40)


def deployed(kind):
    """Arrays of a deploy-form network with biases of both signs, by name."""
    arrays = network_arrays(randomise_bn(create_model("repvgg", 10, 3, deploy=True, **SMALL[kind])))
    rng = np.random.default_rng(1)
    for name, array in arrays.items():
        if name.endswith("rbr_reparam.bias"):
            arrays[name] = rng.normal(0, 0.3, array.shape).astype(np.float32)
    return arrays


def logits(arrays):
    """By PyTorch, which knows nothing of this package's layers."""
    return TorchReference({name: torch.from_numpy(np.array(array)) for name, array in arrays.items()})(IMAGES)


def sides(kind, arrays):
    """For each block the largest weight of its channels and of what reads them, by loops over channels."""
    specs = find("repvgg", **SMALL[kind]).block_specs()
    for spec, following in zip(specs, [*specs[1:], None], strict=True):
        kernel = arrays[f"{spec.name}.rbr_reparam.weight"]
        before, after = [], []
        for channel in range(spec.out_channels):
            before.append(np.abs(kernel[channel]).max())
            if following is None:
                after.append(np.abs(arrays["linear.weight"][:, channel]).max())
                continue
            reader = arrays[f"{following.name}.rbr_reparam.weight"]
            width, per_group = reader.shape[1], len(reader) // following.groups
            group = channel // width
            after.append(np.abs(reader[group * per_group : (group + 1) * per_group, channel % width]).max())
        yield spec.name, np.array(before), np.array(after)


@pytest.mark.parametrize("kind", KINDS)
def test_the_logits_stay(kind):
    arrays = deployed(kind)
    copies = {name: array.copy() for name, array in arrays.items()}
    found = equalize(find("repvgg", **SMALL[kind]), arrays)
    assert found.largest > 1.5, "something was scaled"
    assert relative_difference(logits(found.arrays), logits(arrays)) < 1e-5
    assert arrays.keys() == found.arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, copies[name], "the given arrays stay as they are")
        assert found.arrays[name].shape == array.shape
        assert found.arrays[name].dtype == np.float32


@pytest.mark.parametrize("kind", ["d2se", "plus"])
def test_without_the_inverse_scale_se_would_compute_something_else(kind):
    arrays, variant = deployed(kind), find("repvgg", **SMALL[kind])
    forgotten = equalize(dataclasses.replace(variant, se=None), arrays)
    assert relative_difference(logits(forgotten.arrays), logits(arrays)) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_both_sides_of_a_channel_have_the_same_largest_weight(kind):
    arrays = deployed(kind)
    found = equalize(find("repvgg", **SMALL[kind]), arrays)
    uneven = max(np.abs(np.log(before / after)).max() for _, before, after in sides(kind, arrays))
    assert uneven > 0.7, "the network was uneven before"
    for name, before, after in sides(kind, found.arrays):
        bias, largest = (np.abs(each[f"{name}.rbr_reparam.bias"]) for each in (found.arrays, arrays))
        assert bias.max() <= largest.max() * (1 + 1e-6), "no bias grew past the largest"
        free = bias < 0.999 * largest.max()
        assert free.sum() > len(free) / 2
        np.testing.assert_allclose(before[free], after[free], rtol=0.01)
        assert (before[~free] >= after[~free] * 0.99).all() or not (~free).any()


def test_scaling_of_channels_is_undone():
    """Two copies of one network whose channels were scaled apart equalise to about the same weights."""
    arrays, variant = deployed("plain"), find("repvgg", **SMALL["plain"])
    for name in arrays:
        if name.endswith("rbr_reparam.bias"):
            arrays[name] *= 0  # no limits by biases
    apart = scaled_apart(arrays, variant)
    assert relative_difference(logits(apart), logits(arrays)) < 1e-5
    assert max(relative_difference(apart[name], arrays[name]) for name in arrays if "weight" in name) > 10
    one, other = (equalize(variant, each).arrays for each in (arrays, apart))
    for name in arrays:
        if "weight" in name:
            assert relative_difference(other[name], one[name]) < 0.02


def scaled_apart(arrays, variant, octaves=6):
    """The same function, with the outputs of each block scaled by 2**-octaves ... 2**octaves channel by channel."""
    rng = np.random.default_rng(2)
    arrays = {name: array.copy() for name, array in arrays.items()}
    specs = variant.block_specs()
    for spec, following in zip(specs, [*specs[1:], None], strict=True):
        factors = np.float32(2) ** rng.uniform(-octaves, octaves, spec.out_channels).astype(np.float32)
        arrays[f"{spec.name}.rbr_reparam.weight"] *= factors[:, None, None, None]
        arrays[f"{spec.name}.rbr_reparam.bias"] *= factors
        if following is None:
            arrays["linear.weight"] /= factors
        else:
            arrays[f"{following.name}.rbr_reparam.weight"] /= factors[:, None, None]
    return arrays


def test_dead_channels_are_left_alone():
    arrays, variant = deployed("plain"), find("repvgg", **SMALL["plain"])
    arrays["stage1.0.rbr_reparam.weight"][3] = 0
    arrays["stage3.0.rbr_reparam.weight"][:, 5] = 0
    found = equalize(variant, arrays)
    assert found.scales["stage1.0"][3] == 1
    assert found.scales["stage2.0"][5] == 1
    assert all(np.isfinite(array).all() for array in found.arrays.values())
    assert relative_difference(logits(found.arrays), logits(arrays)) < 1e-5


def test_an_equal_network_stays():
    arrays, variant = deployed("plain"), find("repvgg", **SMALL["plain"])
    once = equalize(variant, arrays)
    again = equalize(variant, once.arrays)
    assert again.largest < 1.05
    assert again.rounds <= 3 < once.rounds


def test_double_precision_is_kept_and_not_written_to():
    arrays = {name: array.astype(np.float64) for name, array in deployed("g4").items()}
    copies = {name: array.copy() for name, array in arrays.items()}
    found = equalize(find("repvgg", **SMALL["g4"]), arrays)
    for name, array in copies.items():
        np.testing.assert_array_equal(arrays[name], array)
        assert found.arrays[name].dtype == np.float64
