"""RepVGG's and QARepVGG's layout with blocks of other kinds, and with other strides: sizes, forms, checkpoints."""

import math

import numpy as np
import pytest
from mindspore import Tensor, nn
from mindspore.nn.utils import no_init_parameters
from support import FORM, SMALL, randomise_bn, relative_difference, weights
from support.golden import GOLDEN

from mindrepvgg import create_model, load_checkpoint, load_weights, save_checkpoint, to_deploy, verify_equivalence
from mindrepvgg.errors import CheckpointError
from mindrepvgg.models import summary, variants
from mindrepvgg.models.block_kinds import FAMILIES, KINDS
from mindrepvgg.models.qat import fold_bn, to_fake_quantized, to_trainable_deploy
from mindrepvgg.models.shapes import parameter_shapes
from mindrepvgg.reparam.named_blocks import block_class
from mindrepvgg.weights.containers import read_weights, write_weights

pytestmark = pytest.mark.usefixtures("pynative_mode")

OTHERS = [kind for kind in KINDS if kind != "repvgg"]
# The blocks of RepOptimizer have tests of their own in the default suite.
EVERY_OTHER = pytest.mark.parametrize(
    "block",
    [
        pytest.param(kind, marks=pytest.mark.slow) if kind in ("repopt_vgg", "linear_addition") else kind
        for kind in OTHERS
    ],
)
# At the stem, which keeps no channels, in a whole stage, whose last block keeps its shape, and at the last block.
WHERE = ["stage0", "stage1.*", "stage4.0"]
STRIDES = (1, 1, 2, 2, 1)
# Grouped, so that every second block is; with SE and auxiliary heads.
SIZES = {"g4": {**SMALL["g4"], "strides": STRIDES}, "plus": SMALL["plus"]}


def make(block, kind="g4", **options):
    net = create_model("repvgg", 7, block=block, block_where=WHERE, **SIZES[kind], **options)
    return randomise_bn(net).set_train(False)


def images(count=2, height=17, width=20):
    return Tensor(np.random.default_rng(0).normal(size=(count, 3, height, width)).astype(np.float32))


def shapes(net):
    return {parameter.name: tuple(parameter.shape) for parameter in net.get_parameters()}


@pytest.mark.parametrize("kind", SIZES)
@EVERY_OTHER
def test_shapes_are_those_of_the_built_network(block, kind):
    with no_init_parameters():
        for deploy in (False, True):
            net = create_model("repvgg", block=block, block_where=WHERE, deploy=deploy, **SIZES[kind])
            assert parameter_shapes(net.variant, FORM[deploy]) == shapes(net)


@EVERY_OTHER
def test_the_chosen_blocks_alone_are_of_that_kind(block):
    net = make(block)
    chosen = {"stage0", "stage1.0", "stage1.1", "stage4.0"}
    for spec in net.variant.block_specs():
        cell = dict(net.cells_and_names())[spec.name]
        assert type(cell) is block_class(block if spec.name in chosen else "repvgg")
        assert isinstance(cell.activation, nn.ReLU)


def learned(kind, channels, width, stride):
    """Parameters that training learns in an ungrouped 3x3 block, counted by hand from the papers' figures."""
    conv, point, bn = 9 * channels * width, channels * width, 2 * width
    skip = bn if channels == width and stride == 1 else 0
    return {
        "plain": conv + bn,
        "repopt_vgg": conv + bn,
        "linear_addition": conv + point + 2 * width + bn + (width if skip else 0),
        "repvgg": conv + point + 2 * bn + skip,
        "qarepvgg": conv + point + 2 * bn,
        "acb": conv + 2 * (3 * point) + 3 * bn,
        "mobileone": 4 * (conv + bn) + point + bn + skip,
        # 3x3; 1x1; 1x1 and average; 1x1 of the input's width and 3x3
        "dbb": (conv + bn) + (point + bn) + (point + 2 * bn) + (channels**2 + 2 * channels + conv + bn),
    }[kind]


@pytest.mark.parametrize("block", KINDS)
def test_counts_are_those_of_the_papers_figures(block):
    found = summary.summarise(variants.find("repvgg_a0", block=block))
    widths, blocks = (48, 48, 96, 192, 1280), (1, 2, 4, 14, 1)
    count, channels = 1280 * 1000 + 1000, 3
    for width, number in zip(widths, blocks, strict=True):
        for i in range(number):
            count += learned(block, channels, width, 2 if i == 0 else 1)
            channels = width
    assert found.total("train").params == count
    assert found.total("deploy").params == GOLDEN["repvgg_a0"][1]
    assert found.total("deploy").macs == summary.summarise(variants.find("repvgg_a0")).total("deploy").macs


@EVERY_OTHER
def test_macs_are_those_of_the_convolutions_that_run(block):
    """Where a branch has two convolutions, the first one works at the input's size."""
    net, counted = make(block), []
    for _, cell in net.cells_and_names():
        if isinstance(cell, nn.Conv2d):
            cell.register_forward_hook(
                lambda cell, _, output: counted.append(cell.weight.size * math.prod(output.shape[2:]))
            )
    net(images(1))
    found = summary.summarise(net.variant, 7, image_size=(17, 20)).total("train")
    assert found.macs == sum(counted) + 7 * 32


def test_what_is_alive_in_a_diverse_branch_block():
    """The last branch's 1x1 keeps its output at the input's size, beside the sum and what comes out."""
    sizes = {"num_blocks": (1, 1, 1, 1), "widths": (8, 16, 16, 16, 16)}
    layers = {
        block: {layer.name: layer for layer in summary.summarise(variants.find("repvgg", block, **sizes), 7).layers}
        for block in ("dbb", "acb", "plain")
    }
    before, after = 8 * 112 * 112, 16 * 56 * 56
    first = 16 * 112 * 112  # of the 1x1 before the average, whose input another branch reads later
    assert layers["dbb"]["stage1.0"].train.activations == before + after + first + after
    assert layers["acb"]["stage1.0"].train.activations == before + 2 * after
    assert layers["plain"]["stage1.0"].train.activations == before + after


@pytest.mark.parametrize("kind", SIZES)
@EVERY_OTHER
def test_the_deploy_form_computes_the_same_and_is_the_family_s(block, kind):
    net = make(block, kind)
    deployed = to_deploy(net)
    report = verify_equivalence(net, deployed, images(), 1e-5)
    assert len(report.blocks) == len(net.variant.block_specs())
    ordinary = create_model("repvgg", 7, deploy=True, **SIZES[kind])
    assert shapes(ordinary) == shapes(deployed)
    for parameter in ordinary.get_parameters():
        parameter.set_data(Tensor(weights(deployed)[parameter.name]))
    assert np.array_equal(ordinary.set_train(False)(images()).asnumpy(), deployed(images()).asnumpy())
    kernel = deployed.stage1[1].fused.weight
    kernel.set_data(Tensor(kernel.asnumpy() * np.float32(1.01)))
    assert not verify_equivalence(net, deployed, images(), 1e-5, raise_on_failure=False).passed


@EVERY_OTHER
def test_a_checkpoint_tells_its_blocks_in_both_forms(block, tmp_path):
    net = make(block, "plus")
    for form, kept in (("train", net), ("deploy", to_deploy(net))):
        path = tmp_path / f"{form}.ckpt"
        save_checkpoint(kept, path)
        for found in (load_checkpoint(path), load_weights(path)):
            assert found.variant == net.variant
            assert found.metadata["form"] == form
            assert found.metadata["model_args"]["block_where"] == WHERE
            assert all(np.array_equal(array, weights(kept)[name]) for name, array in weights(found).items())
    shape = {"block": block, "block_where": WHERE, **SIZES["plus"]}
    fused = create_model("repvgg", 7, weights=path, deploy=True, **shape).set_train(False)
    assert relative_difference(fused(images()), net(images()).asnumpy()) < 1e-5
    with pytest.raises(CheckpointError, match="holds a repvgg of another shape: block "):
        create_model("repvgg", 7, weights=tmp_path / "train.ckpt", **SIZES["plus"])


@EVERY_OTHER
def test_a_file_without_a_description_is_taken_where_it_is_expected(block, tmp_path):
    net, path = make(block), tmp_path / "bare.ckpt"
    save_checkpoint(net, path)
    write_weights(path, read_weights(path).arrays)
    shape = {"block": block, "block_where": WHERE, **SIZES["g4"]}
    assert np.array_equal(create_model("repvgg", 7, weights=path, **shape).set_train(False)(images()), net(images()))
    with pytest.raises(CheckpointError) as caught:
        load_weights(path)
    assert len(str(caught.value).splitlines()) == 1
    if block not in ("plain", *FAMILIES):
        assert f"has {block} blocks (stage0." in str(caught.value)


@EVERY_OTHER
def test_the_forms_of_training_for_int8(block):
    net = to_deploy(make(block))
    inserted = to_trainable_deploy(net)
    for form, other in (("bn", inserted), ("qat", to_fake_quantized(inserted))):
        assert parameter_shapes(net.variant, form, 7) == shapes(other)
    folded = fold_bn(inserted)
    assert shapes(folded) == shapes(net)
    assert relative_difference(folded(images()), net(images()).asnumpy()) < 1e-5


def test_strides_are_those_of_the_first_block_of_a_stage():
    net = create_model("repvgg", 7, **SIZES["g4"])
    assert net.forward_features(images(1, 32, 24)).shape == (1, 32, 8, 6)
    assert net.feature_info.reduction() == [1, 1, 2, 4, 4]
    split = variants.find("repvgg", **SMALL["plus"], strides=STRIDES)
    assert [(stage.name, stage.stride) for stage in split.stages] == [
        *(("stage1", 1), ("stage2", 2), ("stage3_first", 2), ("stage3_second", 1), ("stage4", 1))
    ]
