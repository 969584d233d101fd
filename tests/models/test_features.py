"""Features networks: their maps against an independent PyTorch RepVGG, and everything around them."""

import logging

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn
from support import BOTH_FORMS, OTHER_SMALL, SMALL, context_mode, images, randomise_bn, relative_difference, weights
from support.torch_features import maps, place, reference_of, training_steps, values

import mindrepvgg
from mindrepvgg import create_model
from mindrepvgg.errors import CheckpointError, UserError
from mindrepvgg.models.feature_layout import FeatureLayout
from mindrepvgg.training.freeze import freeze
from mindrepvgg.weights.description import Description

compat, slow = pytest.mark.compat, pytest.mark.slow

LEVELS = (0, 1, 2, 3, 4)


# With several blocks in the last stages, whose first blocks differ from the others.
DEEP = {
    "deep_g4": {"num_blocks": (1, 1, 3, 2), "widths": (8, 8, 16, 24, 32), "group_size": 4},
    "deep_plus": {**SMALL["plus"], "num_blocks": (1, 1, 3, 2)},
}


def classifier_of(kind, deploy=False, classes=5):
    """A network that classifies, with a random history: one of SMALL, DEEP or OTHER_SMALL, or by its name."""
    small = {**SMALL, **DEEP}
    name, shape = ("repvgg", small[kind]) if kind in small else (kind, OTHER_SMALL.get(kind, {}))
    return randomise_bn(create_model(name, classes, deploy=deploy, **shape)).set_train(False)


def features_of(classifier, tmp_path, **options):
    """A features network with a classifier's weights."""
    mindrepvgg.save_checkpoint(classifier, tmp_path / "classifier.safetensors")
    name, shape = classifier.variant.name, classifier.variant.model_args
    options = {"deploy": classifier.deploy, **options, **shape}
    net = create_model(name, features_only=True, weights=tmp_path / "classifier.safetensors", **options)
    return net.set_train(False)


def check_maps(actual, expected, rtol=1e-5):
    assert isinstance(actual, tuple)
    for level, (one, truth) in enumerate(zip(actual, expected, strict=True)):
        assert relative_difference(one, truth) < rtol, level
        # A map that does not move with the image would agree whatever the network computes.
        assert relative_difference(one[:1], one[1:2]) > 0.02


@compat
@BOTH_FORMS
@pytest.mark.parametrize("kind", ["g4", "d2se", "plus"])
def test_every_map_equals_pytorchs(pynative_mode, tmp_path, kind, deploy):
    classifier = classifier_of(kind, deploy)
    net, x = features_of(classifier, tmp_path), images(2, 3, 65, 47)
    expected = maps(reference_of(classifier), x)
    check_maps(net(Tensor(x)), expected)
    if not deploy:
        check_maps(mindrepvgg.to_deploy(net)(Tensor(x)), expected)


@pytest.mark.parametrize("level", LEVELS)
def test_each_map_alone(pynative_mode, tmp_path, level):
    classifier, x = classifier_of("g4"), images()
    net = features_of(classifier, tmp_path, out_indices=(level,))
    check_maps(net(Tensor(x)), maps(reference_of(classifier), x)[level : level + 1])


@compat
@pytest.mark.parametrize("kind", ["qarepvgg", "mobileone"])
def test_the_other_blocks_networks_give_the_maps_that_their_classifiers_make(pynative_mode, tmp_path, kind):
    classifier, x = classifier_of(kind), Tensor(images())
    net = features_of(classifier, tmp_path)
    expected = []
    y = x
    for level in LEVELS:
        y = getattr(classifier, f"stage{level}")(y)
        expected.append(y.asnumpy())
    check_maps(net(x), expected)
    check_maps(mindrepvgg.to_deploy(net)(x), expected)


def test_one_map_of_a_network_in_graph_mode(graph_mode, tmp_path):
    classifier, x = classifier_of("plus"), images(2, 3, 33, 33)
    net = features_of(classifier, tmp_path, out_indices=(3,))
    check_maps(net(Tensor(x)), maps(reference_of(classifier), x)[3:4])


@pytest.mark.parametrize("kind", ["repvgg_nano", "plus"])
def test_names_are_the_classifiers_and_nothing_follows_the_last_map(kind, tmp_path, caplog):
    classifier = classifier_of(kind)
    caplog.set_level(logging.WARNING)
    whole, cut = features_of(classifier, tmp_path), features_of(classifier, tmp_path, out_indices=[0, 2])
    assert not caplog.records  # a head that is left out is no news
    everything = weights(classifier)
    assert list(weights(whole)) == [name for name in everything if not name.startswith("linear") and "_aux" not in name]
    assert list(weights(cut)) == [name for name in weights(whole) if name.startswith(("stage0", "stage1", "stage2"))]
    for name, value in weights(whole).items():
        np.testing.assert_array_equal(value, everything[name])


def test_what_a_network_tells_of_its_maps():
    net = create_model("repvgg_a0", features_only=True, out_indices=(1, 4), deploy=True)
    # MindCV finds chs, reduction and name; timm num_chs, reduction and module, and the methods.
    told = {"name": "stage4", "channels": 1280, "reduction": 32, "chs": 1280, "num_chs": 1280, "module": "stage4"}
    assert net.feature_info[1] == told
    assert net.feature_info.channels() == net.out_channels == [48, 1280]
    assert net.feature_info.reduction() == [4, 32]
    assert net.num_classes == 0
    assert create_model("repvgg_nano").feature_info.reduction() == [2, 4, 8, 16, 32]
    names = [info["name"] for info in create_model("repvgg", **SMALL["plus"]).feature_info]
    assert names == ["stage0", "stage1", "stage2", "stage3_second", "stage4"]


@BOTH_FORMS
@pytest.mark.parametrize("kind", ["d2se", "plus"])
def test_a_checkpoint_rebuilds_the_features_network(pynative_mode, tmp_path, kind, deploy):
    net, x = features_of(classifier_of(kind, deploy), tmp_path, out_indices=(1, 3)), Tensor(images())
    mindrepvgg.save_checkpoint(net, tmp_path / "features.ckpt", dataset="mine")
    expected = [one.asnumpy() for one in net(x)]
    for again in (
        mindrepvgg.load_checkpoint(tmp_path / "features.ckpt"),
        mindrepvgg.load_weights(tmp_path / "features.ckpt"),
        mindrepvgg.load_checkpoint(tmp_path / "features.ckpt", net),
    ):
        assert again.variant == net.variant
        assert again.metadata["features"] == net.variant.features.to_dict()
        assert "num_classes" not in again.metadata
        assert again.metadata["dataset"] == "mine"
        check_maps(again(x), expected, 1e-6)
    other = create_model(net.variant.name, features_only=True, deploy=deploy, **net.variant.model_args)
    with pytest.raises(CheckpointError, match=r"holds features .*1, 3"):
        mindrepvgg.load_checkpoint(tmp_path / "features.ckpt", other)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"out_indices": [2, 1]}, r"out_indices \(=\[2, 1\]\) must be rising"),
        ({"out_indices": 3}, r"out_indices \(=3\)"),
        ({"unheard": 3}, "describes a network that cannot be built"),
        ([], r"features \(=\[\]\) must be a mapping"),
    ],
)
def test_a_description_that_cannot_be(features, message):
    told = {"model": "repvgg_a0", "in_channels": 3, "form": "train", "features": features}
    with pytest.raises(CheckpointError, match=message):
        Description.read(told, "the file")


@pytest.mark.parametrize("indices", [(), (4, 0), (1, 1), (5,), (-1,), (True,), 3, "01", (1.0,)])
def test_indices_that_cannot_be(indices):
    with pytest.raises(UserError, match="out_indices"):
        FeatureLayout(out_indices=indices)


def test_arguments_of_features_networks_alone():
    with pytest.raises(UserError, match="out_indices needs features_only=True"):
        create_model("repvgg_nano", out_indices=(1, 2))
    with pytest.raises(UserError, match="did you mean out_indices"):
        create_model("repvgg_nano", features_only=True, out_indexes=(1, 2))


@compat
def test_in_a_cell_of_ones_own(pynative_mode, tmp_path):
    class Pooled(nn.Cell):
        """Counts on two maps."""

        def __init__(self):
            super().__init__()
            self.backbone = create_model("repvgg", features_only=True, out_indices=(1, 3), **SMALL["d2se"])
            self.heads = nn.CellList([nn.Dense(channels, 2) for channels in self.backbone.out_channels])

        def construct(self, x):
            first, second = self.backbone(x)
            return self.heads[0](first.mean((2, 3))) + self.heads[1](second.mean((2, 3)))

    net, x = randomise_bn(Pooled()).set_train(False), Tensor(images())
    assert "backbone.stage0.rbr_dense.conv.weight" in weights(net)
    fused = mindrepvgg.to_deploy(net)
    assert mindrepvgg.verify_equivalence(net, fused, x).passed
    mindrepvgg.save_checkpoint(fused, tmp_path / "own.ckpt")
    again = mindrepvgg.to_deploy(Pooled())
    mindrepvgg.load_checkpoint(tmp_path / "own.ckpt", again)
    assert relative_difference(again(x), fused(x)) < 1e-6


# Of DEEP's blocks: (options, strides, dilations), and the reductions of the levels.
PLACES = {
    # timm's: the first block of a stage that lost its stride has the dilation of the stage before.
    "output_stride 16": (
        {"output_stride": 16},
        ((2,), (2,), (2, 1, 1), (1, 1)),
        ((1,), (1,), (1, 1, 1), (1, 2)),
        [2, 4, 8, 16, 16],
    ),
    "output_stride 8": (
        {"output_stride": 8},
        ((2,), (2,), (1, 1, 1), (1, 1)),
        ((1,), (1,), (1, 2, 2), (2, 4)),
        [2, 4, 8, 8, 8],
    ),
    # mmpretrain's, as the authors' PSPNet has them: all blocks of a stage have its dilation.
    "stages": (
        {"strides": (2, 2, 1, 1), "dilations": [1, 1, 2, 4]},
        ((2,), (2,), (1, 1, 1), (1, 1)),
        ((1,), (1,), (2, 2, 2), (4, 4)),
        [2, 4, 8, 8, 8],
    ),
    "dilations": (
        {"dilations": (3, 1, 1, 2)},
        ((2,), (2,), (2, 1, 1), (2, 1)),
        ((3,), (1,), (1, 1, 1), (2, 2)),
        [2, 4, 8, 16, 32],
    ),
}


@compat
@BOTH_FORMS
@pytest.mark.parametrize("kind", DEEP)
@pytest.mark.parametrize("place_of", PLACES)
def test_strides_and_dilations_equal_pytorchs(pynative_mode, tmp_path, place_of, kind, deploy):
    options, strides, dilations, reductions = PLACES[place_of]
    classifier, x = classifier_of(kind, deploy), images(2, 3, 65, 80)
    net, reference = features_of(classifier, tmp_path, **options), reference_of(classifier)
    plain = maps(reference, x)
    expected = maps(place(reference, strides, dilations), x)
    assert net.feature_info.reduction() == reductions
    found = net(Tensor(x))
    check_maps(found, expected)
    assert relative_difference(found[-1][:, :, :2, :2], plain[-1][:, :, :2, :2]) > 1e-3  # negative control
    if not deploy:
        mindrepvgg.save_checkpoint(mindrepvgg.to_deploy(net), tmp_path / "fused.ckpt")
        again = mindrepvgg.load_checkpoint(tmp_path / "fused.ckpt")
        assert again.variant == net.variant
        check_maps(again(Tensor(x)), expected)


def dilated(blocks, place_of):
    """Strides and dilations of networks of these numbers of blocks in stages 1 to 4, by hand as in PLACES."""
    of_first = {"output_stride 16": ((2, 2, 2, 1), (1, 1, 1, 1)), "output_stride 8": ((2, 2, 1, 1), (1, 1, 1, 2))}
    of_others = {"output_stride 16": (1, 1, 1, 2), "output_stride 8": (1, 1, 2, 4)}
    if place_of == "plain":
        strides, first, others = (2, 2, 2, 2), (1, 1, 1, 1), (1, 1, 1, 1)
    elif place_of == "stages":
        strides, first, others = (2, 2, 1, 1), (1, 1, 2, 4), (1, 1, 2, 4)
    else:
        (strides, first), others = of_first[place_of], of_others[place_of]
    steps = tuple((stride, *[1] * (count - 1)) for stride, count in zip(strides, blocks, strict=True))
    return steps, tuple((one, *[other] * (n - 1)) for one, other, n in zip(first, others, blocks, strict=True))


@slow
@pytest.mark.parametrize("name", ["repvgg_a0", "repvgg_b1g4", "repvgg_d2se"])
def test_published_networks_equal_pytorchs_in_every_place(pynative_mode, tmp_path, name):
    classifier, x = classifier_of(name), images(2, 3, 96, 96)
    reference = reference_of(classifier)
    for place_of in ("plain", "output_stride 16", "output_stride 8", "stages"):
        net = features_of(classifier, tmp_path, **PLACES.get(place_of, [{}])[0])
        expected = maps(place(reference, *dilated(classifier.variant.num_blocks, place_of)), x)
        check_maps(net(Tensor(x)), expected)
        check_maps(mindrepvgg.to_deploy(net)(Tensor(x)), expected)


@pytest.mark.parametrize("kind", OTHER_SMALL)
def test_a_stride_that_becomes_dilation_changes_no_weights(pynative_mode, tmp_path, kind):
    """MobileOne's first block of a stage keeps its channels: without its stride it could have an identity."""
    classifier, x = classifier_of(kind), Tensor(images(2, 3, 64, 64))
    net = features_of(classifier, tmp_path, output_stride=8)
    assert set(weights(net)) == {name for name in weights(classifier) if not name.startswith("linear")}
    assert [one.shape[2] for one in net(x)] == [32, 16, 8, 8, 8]
    assert mindrepvgg.verify_equivalence(net, mindrepvgg.to_deploy(net), x).passed


def test_strides_of_five_are_the_layouts_own():
    """Networks for small pictures count the stem, mmpretrain's strides of four do not."""
    shape = {**SMALL["g4"], "strides": (1, 1, 2, 2, 2)}
    net = create_model("repvgg", features_only=True, **shape)
    assert net.feature_info.reduction() == [1, 1, 2, 4, 8]
    assert net.variant.features.strides is None
    assert "stage1.0.rbr_identity.gamma" in weights(net)
    net = create_model("repvgg", features_only=True, output_stride=8, **SMALL["g4"])
    assert "stage1.0.rbr_identity.gamma" not in weights(net)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"output_stride": 4}, r"^output_stride \(=4\) must be 8, 16 or 32$"),
        ({"output_stride": "8"}, "^output_stride"),
        (
            {"dilations": (1, 1, 2)},
            r"^dilations \(=\(1, 1, 2\)\) must be 4 numbers, each from 1 to 64, for stages 1-4$",
        ),
        ({"dilations": 2}, "^dilations"),
        ({"dilations": (1, 1, 0, 2)}, "^dilations"),
        ({"strides": (2, 2, 3, 1)}, r"^strides .* must be 4 numbers, each 1 or 2, for stages 1-4$"),
        ({"output_stride": 8, "dilations": (1, 1, 2, 2)}, "give it, or strides and dilations, not both$"),
    ],
)
def test_places_that_cannot_be(wrong, message):
    with pytest.raises(UserError, match=message):
        create_model("repvgg_nano", features_only=True, **wrong)


FROZEN = {
    "none": {},  # negative control: everything moves
    "stem": {"frozen_stages": 0},
    "stages": {"frozen_stages": 3},
    "norms": {"norm_eval": True},
    "both": {"frozen_stages": 1, "norm_eval": True},
}


def our_steps(net, batches, lr, momentum, wrapped):
    """As `training_steps`, of a features network, or of one within a cell of one's own."""
    holder = nn.SequentialCell(net) if wrapped else net
    holder.set_train()
    optimizer = nn.Momentum(net.trainable_params(), lr, momentum)

    def loss(x):
        outputs = holder(x)
        return sum([(one**2).mean() for one in outputs]), outputs

    step, found = ms.value_and_grad(loss, None, optimizer.parameters, has_aux=True), []
    for x in batches:
        holder.set_train()
        (_, outputs), gradients = step(Tensor(x))
        optimizer(gradients)
        found.append([one.asnumpy() for one in outputs])
        holder.set_train(False)  # a validation in between
    return found


@compat
@pytest.mark.parametrize(
    ("mode", "kind", "frozen"),
    [
        *(("pynative", "d2se", case) for case in ("none", "both")),
        *(pytest.param("pynative", "d2se", case, marks=slow) for case in ("stem", "stages", "norms")),
        pytest.param("pynative", "repvgg_a0", "both", marks=slow),
        ("pynative", "plus", "stages"),
        ("graph", "g4", "both"),
    ],
)
def test_two_training_steps_equal_pytorchs(tmp_path, mode, kind, frozen):
    with context_mode(mode):
        classifier = classifier_of(kind)
        batches = [images(4, 3, 64, 64, seed=seed) for seed in (0, 1)]
        net = features_of(classifier, tmp_path, **FROZEN[frozen])
        before = weights(net)
        reference = reference_of(classifier)
        expected = training_steps(reference, batches, 0.01, 0.9, **FROZEN[frozen])
        for step, one in enumerate(our_steps(net, batches, 0.01, 0.9, wrapped=frozen == "both")):
            check_maps(tuple(one), expected[step])
    after, truth = {name.removeprefix("0."): value for name, value in weights(net).items()}, values(reference)
    for name, value in after.items():
        assert relative_difference(value, truth(name)) < 1e-5, name
    stages, norms = FROZEN[frozen].get("frozen_stages", -1), FROZEN[frozen].get("norm_eval", False)
    still = {name for name in before if int(name[5]) <= stages or (norms and "moving" in name)}
    same = {name for name, value in after.items() if np.array_equal(value, before[name])}
    # SE's one squeezed channel may be dead here.
    assert same - {name for name in same - still if ".se." in name} == still


def test_what_was_unfrozen_is_frozen_again(tmp_path):
    net = features_of(classifier_of("g4"), tmp_path, frozen_stages=1)
    frozen = [p for p in net.get_parameters() if p.name.startswith(("stage0", "stage1"))]
    assert frozen
    for parameter in frozen:
        parameter.requires_grad = True
    nn.SequentialCell(net).set_train()
    assert not any(parameter.requires_grad for parameter in frozen)
    # The fused network's convolutions are frozen as their branches were.
    fused = mindrepvgg.to_deploy(net)
    assert not any(p.requires_grad for p in fused.get_parameters() if "stage1." in p.name)
    assert all(p.requires_grad for p in fused.get_parameters() if "stage2." in p.name)


def test_frozen_in_one_way_only():
    net = create_model("repvgg", features_only=True, norm_eval=True, **SMALL["g4"])
    with pytest.raises(UserError, match=r"freezes itself, with frozen_stages \(=-1\) and norm_eval \(=True\)"):
        freeze(nn.SequentialCell(net), stages=1)
    net = freeze(create_model("repvgg", features_only=True, **SMALL["g4"]), stages=1)
    assert not net.set_train().stage0.rbr_dense.conv.weight.requires_grad


@pytest.mark.parametrize(
    "wrong", [{"frozen_stages": 5}, {"frozen_stages": -2}, {"frozen_stages": True}, {"norm_eval": 1}]
)
def test_freezing_that_cannot_be(wrong):
    with pytest.raises(UserError, match=f"^{next(iter(wrong))} "):
        FeatureLayout(**wrong)
