"""Which network a file holds: told in every dialect, and near misses name the closest network and what differs."""

from functools import partial

import numpy as np
import pytest
from support import BOTH_FORMS, FORM
from support.dialect_names import NAMES, VARIANTS, knows, names_alike, shapes_in, zeros
from support.golden import FAMILY

from mindrepvgg.errors import CheckpointError
from mindrepvgg.models import variants
from mindrepvgg.models.shapes import parameter_shapes
from mindrepvgg.weights.recognise import recognise


@BOTH_FORMS
@pytest.mark.parametrize("dialect", NAMES)
def test_every_network_is_recognised_in_every_dialect(dialect, deploy):
    for variant in filter(partial(knows, dialect), map(variants.find, FAMILY)):
        found = recognise(zeros(shapes_in(dialect, variant, deploy)))
        assert found.variant is variant
        assert (found.deploy, found.num_classes, found.in_channels) == (deploy, 1000, 3)
        assert found.has_aux == (variant.aux_heads and not deploy)
        assert found.dialect == names_alike(dialect, variant, deploy)
        assert {n: a.shape for n, a in found.arrays.items()} == parameter_shapes(variant, FORM[deploy])


def test_other_classes_and_channels_are_read_off_the_shapes():
    found = recognise(zeros(shapes_in("timm", variants.find("repvgg_b1g2"), False, classes=10, channels=1)))
    assert (found.variant.name, found.num_classes, found.in_channels) == ("repvgg_b1g2", 10, 1)


def test_sizes_of_one_s_own_become_repvgg():
    variant = variants.custom((1, 3, 2, 2), (24, 32, 48, 64, 80), group_size=4, se="pre", se_ratio=3)
    found = recognise(zeros(shapes_in("timm", variant, True, classes=5)))
    assert found.variant == variant
    # 24 // 16 and 40 // 16 are also 24 // 20 and 40 // 20: the usual ratio wins.
    usual = variants.custom((1, 2, 1, 1), (24, 24, 40, 40, 40), se="pre", se_ratio=16)
    assert recognise(zeros(shapes_in("modelzoo", usual, False))).variant == usual
    nano = recognise(zeros(shapes_in("official", variants.find("repvgg_nano"), False)))
    assert nano.variant.name == "repvgg_nano"


def test_a_stage_1_that_keeps_the_size_is_of_a_network_for_small_pictures():
    small = variants.custom((2, 4, 14, 1), (48, 48, 96, 192, 1280), strides=(1, 1, 2, 2, 2))
    a0 = variants.find("repvgg_a0")
    identity = {f"stage1.0.rbr_identity.{name}": (48,) for name in ("weight", "bias", "running_mean", "running_var")}
    found = recognise(zeros({**shapes_in("official", a0, False, classes=100), **identity}))
    assert (found.variant, found.num_classes) == (small, 100)
    fused = zeros(shapes_in("official", a0, True, classes=100))
    assert recognise(fused).variant.name == "repvgg_a0"
    assert recognise(fused, small).variant == small


def near_miss(change, dialect="timm", name="repvgg_a0", deploy=False):
    arrays = zeros(shapes_in(dialect, variants.find(name), deploy))
    change(arrays)
    with pytest.raises(CheckpointError) as caught:
        recognise(arrays)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_near_misses_name_the_closest_network_and_both_sides_in_the_file_s_names():
    def change(arrays):
        del arrays["stages.2.13.conv_1x1.bn.running_var"]
        arrays["neck.conv.weight"] = np.zeros((2, 3))
        arrays["stages.0.1.identity.bias"] = np.zeros(47)

    assert near_miss(change) == (
        "not quite a RepVGG: the closest is repvgg_a0 in train form under timm's names, but "
        "1 missing: stages.2.13.conv_1x1.bn.running_var (192,); 1 unexpected: neck.conv.weight (2, 3); "
        "1 of another shape: stages.0.1.identity.bias (47,), expected (48,)"
    )


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda a: a.pop("stage0.rbr_reparam.weight"), "1 missing: stage0.rbr_reparam.weight (64, 3, 3, 3)"),
        (lambda a: a.pop("stage2.3.rbr_reparam.weight"), "1 missing: stage2.3.rbr_reparam.weight (256, 64, 3, 3)"),
        (lambda a: a.pop("linear.bias"), "1 missing: linear.bias (1000,)"),
        (
            lambda a: a.update({"stage0.rbr_reparam.weight": np.zeros((64, 0, 3, 3))}),
            "(64, 0, 3, 3), expected (64, 3, ",
        ),
        (lambda a: a.update({"linear.weight": np.zeros((0, 2048))}), "linear.weight (0, 2048), expected (1000, 2048)"),
        (lambda a: a.update({"linear.weight": np.zeros(5)}), "linear.weight (5,), expected (1000, 2048)"),
        (lambda a: a.update({"stage0.rbr_reparam.weight": np.zeros(5)}), "stage0.rbr_reparam.weight (5,), expected"),
        (lambda a: a.update({"stage1.1.rbr_reparam.weight": np.zeros((128, 0, 3, 3))}), "(128, 0, 3, 3), expected (12"),
        (lambda a: a.update({"x\x1b[2J\n" * 99: np.zeros(1)}), r"1 unexpected: x\x1b[2J\nx\x1b"),
    ],
)
def test_near_misses_of_b1g4_in_deploy_form(change, text):
    message = near_miss(change, "official", "repvgg_b1g4", deploy=True)
    assert message.startswith("not quite a RepVGG: the closest is repvgg_b1g4 in deploy form")
    assert text in message


def test_one_s_own_sizes_can_be_nearly_right_too():
    arrays = zeros(shapes_in("official", VARIANTS["plain"], False))
    del arrays["stage1.1.rbr_identity.weight"]
    with pytest.raises(CheckpointError) as caught:
        recognise(arrays)
    assert "the closest is repvgg of num_blocks [2, 1, 2, 1], widths [8, 8, 16, 24, 32] in train form" in str(
        caught.value
    )


def test_a_backbone_without_its_head():
    def change(arrays):
        del arrays["head.fc.weight"], arrays["head.fc.bias"]

    assert near_miss(change, "mmpretrain", "repvgg_b2g4") == (
        "the head (head.fc.weight and head.fc.bias) is missing: "
        "this is the backbone of a repvgg_b2g4 in train form under mmpretrain's names"
    )


def test_a_half_converted_network():
    arrays = zeros(shapes_in("official", VARIANTS["plain"], False))
    arrays["stage0.rbr_reparam.weight"] = np.zeros((8, 3, 3, 3))
    with pytest.raises(
        CheckpointError, match=r"half converted: 1 blocks are fused \(stage0.rbr_reparam.weight\) and 7 "
    ):
        recognise(arrays)


def test_quantised_weights():
    def change(arrays):
        for name in ("stem.conv_kxk.conv.weight", "head.fc.bias"):
            arrays[name] = arrays[name].astype(np.int8)

    text = "2 tensors are not floating-point: stem.conv_kxk.conv.weight (int8), head.fc.bias (int8)"
    assert near_miss(change).startswith(text)


def test_two_dialects_in_one_file_are_not_mixed():
    def change(arrays):
        arrays["linear.weight"] = arrays["head.fc.weight"]

    assert "1 unexpected: linear.weight (1000, 1280)" in near_miss(change)


@pytest.mark.parametrize(
    "names",
    [
        ["conv_stem.weight", "bn1.weight", "blocks.0.0.conv_dw.weight", "blocks.0.0.se.conv_reduce.weight"],
        ["stem.conv1.weight", "layer1.0.conv1.weight", "fc.weight", "fc.bias"],
        # ResNet of timm's byobnet: built of parts with similar names
        ["stages.0.0.conv1_kxk.conv.weight", "stages.0.0.shortcut.conv.weight", "stages.0.0.conv2_kxk.conv.weight"],
        [],
    ],
    ids=["efficientnet", "resnet", "byobnet", "nothing"],
)
def test_other_networks_are_no_repvgg(names):
    with pytest.raises(CheckpointError, match=f"not a RepVGG: of {len(names)} tensors, "):
        recognise({name: np.zeros((2, 2)) for name in names})


def test_a_small_part_of_another_network_is_no_repvgg():
    arrays = zeros(shapes_in("mmpretrain", VARIANTS["plain"], True))
    arrays |= {f"neck.{i}.conv.weight": np.zeros((2, 2)) for i in range(len(arrays) + 1)}
    with pytest.raises(CheckpointError, match="not a RepVGG: of 33 tensors, 17 have no name that "):
        recognise(arrays)
