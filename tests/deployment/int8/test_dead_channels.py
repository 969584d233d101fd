"""Zeroing the readers of dead channels changes the float logits by rounding alone."""

import numpy as np
import pytest
from support.int8 import LAYERS, digits
from support.onnx_files import session

from mindrepvgg.deployment.graph import build_onnx
from mindrepvgg.deployment.int8.grids import IntegerOptions
from mindrepvgg.deployment.int8.integers import Quantizer, layer_nodes
from mindrepvgg.models.dead_channels import constant_channels, zero_dead

DEAD, CONSTANT = (1, 5, 9), 12  # of stage3.0's 24 channels


@pytest.fixture(scope="module")
def found(sick_arrays, tmp_path_factory):
    """(float logits of a sick network, those after zeroing, what zeroing found, its layout), on digits."""
    folder = tmp_path_factory.mktemp("dead")
    variant, arrays = sick_arrays
    x = digits("train")[0][:64]
    (folder / "sick.onnx").write_bytes(build_onnx(variant, arrays).SerializeToString())
    quantizer = Quantizer(folder / "sick.onnx", layer_nodes(variant, "logits"), [x], IntegerOptions())
    inputs = {name: quantizer.extremes[layer.given] for name, layer in quantizer.graph.layers.items()}
    zeroed = zero_dead(variant, arrays, inputs)
    (folder / "zeroed.onnx").write_bytes(build_onnx(variant, zeroed.arrays).SerializeToString())
    return session(folder / "sick.onnx")(x), session(folder / "zeroed.onnx")(x), zeroed, arrays


def test_logits_change_by_rounding_alone(found):
    before, after, zeroed, _ = found
    assert np.abs(after - before).max() < 1e-5 * np.abs(before).max()
    assert {*DEAD, CONSTANT} <= set(zeroed.dead["stage3.1"].tolist())
    assert zeroed.count >= 4
    assert "stage0" not in zeroed.dead
    assert set(zeroed.dead) < set(LAYERS)


def test_a_channel_of_zeros_is_read_no_more_and_another_constant_is_only_at_the_border(found):
    _, _, zeroed, arrays = found
    name = "stage3.1.rbr_reparam"
    before, after = arrays[f"{name}.weight"], zeroed.arrays[f"{name}.weight"]
    assert not after[:, list(DEAD)].any()
    assert not after[:, CONSTANT, 1, 1].any()
    around = np.ones((3, 3), bool)
    around[1, 1] = False
    assert np.array_equal(after[:, CONSTANT][:, around], before[:, CONSTANT][:, around])
    others = [channel for channel in range(24) if channel not in zeroed.dead["stage3.1"]]
    assert np.array_equal(after[:, others], before[:, others])
    moved = zeroed.arrays[f"{name}.bias"] - arrays[f"{name}.bias"]
    np.testing.assert_allclose(moved, before[:, CONSTANT, 1, 1] * 0.75, rtol=1e-4, atol=1e-5)


def test_taking_out_every_tap_of_a_constant_would_be_wrong(found, sick_arrays, tmp_path):
    """The negative control: at the border the other taps read the padding."""
    before, _, zeroed, _ = found
    wrong = dict(zeroed.arrays)
    kernel = wrong["stage3.1.rbr_reparam.weight"].copy()
    wrong["stage3.1.rbr_reparam.bias"] = wrong["stage3.1.rbr_reparam.bias"] + 0.75 * kernel[:, CONSTANT].sum((1, 2))
    kernel[:, CONSTANT] = 0
    wrong["stage3.1.rbr_reparam.weight"] = kernel
    (tmp_path / "wrong.onnx").write_bytes(build_onnx(sick_arrays[0], wrong).SerializeToString())
    after = session(tmp_path / "wrong.onnx")(digits("train")[0][:64])
    assert np.abs(after - before).max() > 1e-3 * np.abs(before).max()


def test_constant_is_told_from_nearly_constant():
    low = np.array([0, 1, 1, 0, -2.0])
    high = np.array([0, 1 + 1e-8, 1 + 1e-4, 1e-9, -2.0])
    assert constant_channels(low, high).tolist() == [0, 1, 4]


def test_groups_read_their_own_channels():
    from mindrepvgg.models.variants import find

    variant = find("repvgg", num_blocks=[1, 1, 1, 1], widths=[8, 8, 8, 8, 8], group_size=2)
    rng = np.random.default_rng(0)
    arrays = {"linear.weight": rng.standard_normal((3, 8)), "linear.bias": np.zeros(3)}
    for spec in variant.block_specs():
        arrays[f"{spec.fused}.weight"] = rng.standard_normal(spec.kernel_shape)
        arrays[f"{spec.fused}.bias"] = np.zeros(spec.out_channels)
    grouped = next(spec for spec in variant.block_specs() if spec.groups == 2)
    inputs = {spec.name: (np.zeros(spec.in_channels), np.ones(spec.in_channels)) for spec in variant.block_specs()}
    inputs["linear"] = np.zeros(8), np.ones(8)
    inputs[grouped.name][1][5] = 0  # the second group's second input
    found = zero_dead(variant, arrays, inputs)
    changed = np.argwhere(found.arrays[f"{grouped.fused}.weight"] != arrays[f"{grouped.fused}.weight"])
    assert {tuple(place[:2]) for place in changed} == {(out, 1) for out in range(4, 8)}
    inputs["linear"][1][2] = 0
    assert not zero_dead(variant, arrays, inputs).arrays["linear.weight"][:, 2].any()
