"""Every project's names, written out here a second time: recognised, renamed exactly, refused in words.

Arrays of the real sizes have zero strides, so that RepVGG-B3 costs one number; exactness is tested on small networks.
"""

import dataclasses

import numpy as np
import pytest
from mindspore.nn.utils import no_init_parameters

from mindrepvgg.errors import CheckpointError, UserError
from mindrepvgg.models import variants
from mindrepvgg.models.shapes import parameter_shapes
from mindrepvgg.weights.dialects import DIALECTS, find_dialect
from mindrepvgg.weights.pickles import Opaque
from mindrepvgg.weights.recognise import recognise
from mindrepvgg.weights.rename import from_house, to_house
from mindrepvgg.weights.torchfile import read_torch_file
from mindrepvgg.weights.unwrap import unwrap

TORCH_BN = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
MEGENGINE_BN = TORCH_BN[:4]
MINDSPORE_BN = ("gamma", "beta", "moving_mean", "moving_variance")

# stem, block, 3x3 conv, its BN, 1x1 conv, its BN, identity BN, fused conv, SE's two convs, head, BN's leaves
NAMES = {
    "official": (
        "stage0", "stage{s}.{i}", "rbr_dense.conv", "rbr_dense.bn", "rbr_1x1.conv", "rbr_1x1.bn", "rbr_identity",
        "rbr_reparam", "se.down", "se.up", "linear", TORCH_BN,
    ),
    "repvggplus": (
        "stage0", "stage{s}.blocks.{i}", "rbr_dense.conv", "rbr_dense.bn", "rbr_1x1.conv", "rbr_1x1.bn",
        "rbr_identity", "rbr_reparam", "post_se.down", "post_se.up", "linear", TORCH_BN,
    ),
    "timm": (
        "stem", "stages.{s-1}.{i}", "conv_kxk.conv", "conv_kxk.bn", "conv_1x1.conv", "conv_1x1.bn", "identity",
        "reparam_conv", "attn.fc1", "attn.fc2", "head.fc", TORCH_BN,
    ),
    "mmpretrain": (
        "backbone.stem", "backbone.stage_{s}.{i}", "branch_3x3.conv", "branch_3x3.norm", "branch_1x1.conv",
        "branch_1x1.norm", "branch_norm", "branch_reparam", "se_layer.conv1.conv", "se_layer.conv2.conv", "head.fc",
        TORCH_BN,
    ),
    "mindcv": (
        "stage0", "stage{s}.{i}", "rbr_dense.0", "rbr_dense.1", "rbr_1x1.0", "rbr_1x1.1", "rbr_identity",
        "rbr_reparam", "se.conv_reduce", "se.conv_expand", "linear", MINDSPORE_BN,
    ),
    "modelzoo": (
        "stage0", "stage{s}.{i}", "rbr_dense.0", "rbr_dense.1", "rbr_1x1.0", "rbr_1x1.1", "rbr_identity",
        "rbr_reparam", "se.down", "se.up", "linear", MINDSPORE_BN,
    ),
    "basecls": (
        "stage0", "stage{s}.{i}", "rbr_dense.conv", "rbr_dense.bn", "rbr_1x1.conv", "rbr_1x1.bn", "rbr_identity",
        "rbr_reparam", "se.f_ex.0", "se.f_ex.2", "head.fc", MEGENGINE_BN,
    ),
    "mindrepvgg": (
        "stage0", "stage{s}.{i}", "rbr_dense.conv", "rbr_dense.bn", "rbr_1x1.conv", "rbr_1x1.bn", "rbr_identity",
        "rbr_reparam", "{post}se.down", "{post}se.up", "linear", MINDSPORE_BN,
    ),
}  # fmt: skip
AUX = {
    "repvggplus": ("0.conv", "0.bn", "3"),
    "mindrepvgg": ("downsample.conv", "downsample.bn", "linear"),
}

FAMILY = [name for name in variants.list_models() if name not in ("repvgg", "repvgg_nano")]
SMALL = {
    "plain": variants.custom((2, 2, 3, 1), (8, 8, 16, 24, 32)),
    "g2": variants.custom((2, 2, 4, 1), (8, 8, 16, 24, 32), group_size=2),
    "g4": variants.custom((2, 4, 2, 1), (8, 8, 16, 24, 32), group_size=4),
    "se": variants.custom((2, 2, 3, 1), (16, 16, 32, 48, 64), se="pre"),
    "plus": variants.custom((2, 2, 4, 1), (8, 8, 16, 24, 32), se="post", se_ratio=4, aux_heads=True),
}
FORMS = pytest.mark.parametrize("deploy", [False, True], ids=["train", "deploy"])


def knows(dialect, variant):
    return variant.aux_heads if dialect == "repvggplus" else not variant.aux_heads or dialect == "mindrepvgg"


def shapes_in(dialect, variant, deploy, classes=1000, channels=3, aux=True):
    """Name -> shape as the project has them, from the tables above and the paper's rules."""
    stem, block, conv3, bn3, conv1, bn1, identity, fused, down, up, head, leaves = NAMES[dialect]
    vector = (lambda n: (1, n, 1, 1)) if dialect == "basecls" else (lambda n: (n,))
    post = "post_" if variant.se == "post" else ""
    shapes = {}

    def bn(name, width):
        shapes.update({f"{name}.{leaf}": () if "batches" in leaf else vector(width) for leaf in leaves})

    def kernel(name, out, per_group, size, groups=1):
        grouped = dialect == "basecls" and groups > 1
        shapes[f"{name}.weight"] = (*((groups, out // groups) if grouped else (out,)), per_group, size, size)

    def biased(name, *sizes, **options):
        kernel(name, *sizes, **options)
        shapes[f"{name}.bias"] = vector(sizes[0])

    def add_block(prefix, width, out, groups, stride):
        if deploy:
            biased(f"{prefix}.{fused}", out, width // groups, 3, groups=groups)
        else:
            kernel(f"{prefix}.{conv3}", out, width // groups, 3, groups)
            bn(f"{prefix}.{bn3}", out)
            kernel(f"{prefix}.{conv1}", out, width // groups, 1, groups)
            bn(f"{prefix}.{bn1}", out)
            if stride == 1 and width == out:
                bn(f"{prefix}.{identity}", out)
        if variant.se:
            biased(f"{prefix}.{down.format(post=post)}", out // variant.se_ratio, out, 1)
            biased(f"{prefix}.{up.format(post=post)}", out, out // variant.se_ratio, 1)

    add_block(stem, channels, variant.widths[0], 1, 2)
    width, counted = variant.widths[0], 0
    for s, (depth, out) in enumerate(zip(variant.num_blocks, variant.widths[1:], strict=True), 1):
        for i in range(depth):
            counted += 1
            groups = variant.group_size if counted % 2 == 0 else 1
            half, index = "", i
            if s == 3 and variant.aux_heads:
                half, index = ("_first", i) if i < depth // 2 else ("_second", i - depth // 2)
            name = block.replace("{s-1}", str(s - 1)).format(s=f"{s}{half}", i=index)
            add_block(name, width, out, groups, 2 if i == 0 else 1)
            width = out
    if variant.aux_heads and aux and not deploy:
        conv, norm, linear = AUX[dialect]
        for name, out in zip(("stage1_aux", "stage2_aux", "stage3_first_aux"), variant.widths[1:], strict=False):
            kernel(f"{name}.{conv}", out, out, 3)
            bn(f"{name}.{norm}", out)
            shapes[f"{name}.{linear}.weight"], shapes[f"{name}.{linear}.bias"] = (classes, out), (classes,)
    shapes[f"{head}.weight"], shapes[f"{head}.bias"] = (classes, variant.widths[-1]), (classes,)
    return shapes


def zeros(shapes):
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


def random_arrays(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: np.array(0, np.int64) if "batches" in name else rng.normal(size=shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def names_alike(dialect, variant, deploy):
    """The first dialect that names this network as `dialect` does."""
    names = list(shapes_in(dialect, variant, deploy))
    return next(d for d in NAMES if knows(d, variant) and list(shapes_in(d, variant, deploy)) == names)


CASES = [(dialect, name) for dialect in NAMES for name in FAMILY if knows(dialect, variants.find(name))]


@FORMS
@pytest.mark.parametrize(("dialect", "name"), CASES)
def test_every_network_is_recognised_in_every_dialect(dialect, name, deploy):
    variant = variants.find(name)
    found = recognise(zeros(shapes_in(dialect, variant, deploy)))
    assert found.variant is variant
    assert (found.deploy, found.num_classes, found.in_channels) == (deploy, 1000, 3)
    assert found.has_aux == (variant.aux_heads and not deploy)
    assert found.dialect == names_alike(dialect, variant, deploy)
    assert {n: a.shape for n, a in found.arrays.items()} == parameter_shapes(variant, deploy)


@FORMS
@pytest.mark.parametrize(("dialect", "name"), CASES)
def test_every_network_is_written_under_the_project_s_names_or_refused(dialect, name, deploy):
    variant = variants.find(name)
    arrays = zeros(parameter_shapes(variant, deploy))
    no_such_form = deploy and (dialect == "mindcv" or (dialect == "mmpretrain" and variant.se))
    if no_such_form:
        with pytest.raises(CheckpointError, match="in deploy form cannot be written for "):
            from_house(arrays, dialect, variant)
    else:
        written = from_house(arrays, dialect, variant)
        assert {n: a.shape for n, a in written.items()} == shapes_in(dialect, variant, deploy)


@pytest.mark.parametrize(
    ("dialect", "name", "train", "deploy"),
    [
        ("official", "repvgg_a0", 351, 46),
        ("official", "repvgg_b3g4", 453, 58),
        ("official", "repvgg_d2se", 985, 290),
        ("timm", "repvgg_a0", 351, 46),
        ("mmpretrain", "repvgg_d2se", 985, None),
        ("mindcv", "repvgg_a0", 290, None),
    ],
)
def test_published_numbers_of_tensors(dialect, name, train, deploy):
    variant = variants.find(name)
    assert len(from_house(zeros(parameter_shapes(variant, False)), dialect, variant)) == train
    if deploy:
        assert len(from_house(zeros(parameter_shapes(variant, True)), dialect, variant)) == deploy


@FORMS
@pytest.mark.parametrize(("dialect", "kind"), [(d, kind) for d in NAMES for kind in SMALL if knows(d, SMALL[kind])])
def test_each_value_lands_under_its_name_and_comes_back_bit_for_bit(dialect, kind, deploy):
    variant = SMALL[kind]
    theirs = random_arrays(shapes_in(dialect, variant, deploy, 7))
    ours = to_house(theirs, dialect)
    renamed = [name for name in theirs if "batches" not in name]
    for name, original in zip(shapes_in("mindrepvgg", variant, deploy, 7), renamed, strict=True):
        assert ours[name].tobytes() == theirs[original].tobytes(), (name, original)
    found = recognise(theirs)
    assert found.variant == variant
    assert found.arrays.keys() == ours.keys()
    if DIALECTS[dialect].refusal(variant, deploy) is None:
        back = from_house(ours, dialect, variant)
        assert back.keys() == theirs.keys()
        for name, array in theirs.items():
            assert (back[name].shape, back[name].dtype) == (array.shape, array.dtype)
            assert back[name].tobytes() == array.tobytes()


def test_other_dtypes_stay_and_the_batch_count_can_be_given():
    variant = SMALL["plain"]
    ours = {n: a.astype(np.float16) for n, a in random_arrays(parameter_shapes(variant, False)).items()}
    written = from_house(ours, "official", variant, batches_tracked=400)
    counts = [array for name, array in written.items() if name.endswith("num_batches_tracked")]
    assert len(counts) == 2 * 9 + 4  # two in each block, and four identity branches
    assert all(count.shape == () and count.dtype == np.int64 and count == 400 for count in counts)
    assert {array.dtype for array in to_house(written, "official").values()} == {np.dtype(np.float16)}


def test_megengine_s_flat_bn_is_read_too():
    variant = SMALL["g4"]
    theirs = random_arrays(shapes_in("basecls", variant, False))
    flat = {n: a.reshape(-1) if a.shape[:1] == (1,) else a for n, a in theirs.items()}
    assert {n: a.shape for n, a in recognise(flat).arrays.items()} == parameter_shapes(variant, False)


def test_plus_without_auxiliary_heads_is_read_and_written():
    variant = variants.find("repvggplus_l2pse")
    shapes = shapes_in("repvggplus", variant, False, aux=False)
    found = recognise(zeros(shapes))
    assert (found.variant, found.deploy, found.has_aux) == (variant, False, False)
    assert from_house(found.arrays, "repvggplus", variant).keys() == shapes.keys()


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


@pytest.mark.parametrize("name", ["repvgg_a0", "repvgg_b1g4"])
def test_mindcv_s_own_networks(name):
    mindcv = pytest.importorskip("mindcv")
    with no_init_parameters():
        net = mindcv.create_model(name)
    assert real_shapes(net) == shapes_in("mindcv", variants.find(name), False)


def test_mindcv_s_own_network_with_se():
    repvgg = pytest.importorskip("mindcv.models.repvgg")
    variant = variants.custom((1, 1, 2, 1), (16, 16, 32, 64, 128), se="pre")
    net = repvgg.RepVGG([1, 1, 2, 1], width_multiplier=[0.25] * 4, use_se=True, num_classes=3)
    written = from_house(zeros(parameter_shapes(variant, False, 3)), "mindcv", variant)
    assert real_shapes(net) == {name: array.shape for name, array in written.items()}


def real_shapes(net):
    return {parameter.name: tuple(parameter.shape) for parameter in net.get_parameters()}


def test_timm_s_own_networks():
    timm = pytest.importorskip("timm")
    torch = pytest.importorskip("torch")
    models = timm.list_models("repvgg_*")
    assert "repvgg_d2se" in models
    for name in models:
        with torch.device("meta"):  # shapes without values
            net = timm.create_model(name)
        state = {key: tuple(tensor.shape) for key, tensor in net.state_dict().items()}
        assert state == shapes_in("timm", variants.find(name), False)
    for name in ("repvgg_a0", "repvgg_d2se"):
        fused = timm.utils.reparameterize_model(timm.create_model(name)).state_dict()
        assert {key: tuple(t.shape) for key, t in fused.items()} == shapes_in("timm", variants.find(name), True)


@pytest.mark.parametrize(
    ("dialect", "kind", "deploy", "text"),
    [
        ("timm", "plus", False, "repvgg in train form cannot be written for timm: it has no RepVGGplus; possible: "),
        ("repvggplus", "plain", False, "it has RepVGGplus only; possible: official, timm, mmpretrain, mindcv, "),
        ("mindcv", "plain", True, "for MindCV: its deploy form cannot be built (pad_mode 'zeros'); possible: official"),
        ("mmpretrain", "se", True, "its deploy form leaves SE out and computes something else"),
        ("official", "se4", False, "its SE squeezes to channels // 16, not // 4; possible: timm, mmpretrain, "),
        ("timm", "post", False, "it has no SE after the ReLU; possible: mindrepvgg"),
        ("official", "stem", False, "its stage 0 before a stage 1 of width 32 is 32 wide, not 8; possible: timm, "),
    ],
)  # fmt: skip
def test_what_a_project_cannot_hold_is_refused_with_those_that_can(dialect, kind, deploy, text):
    odd = {
        "se4": dataclasses.replace(SMALL["se"], se_ratio=4),
        "post": dataclasses.replace(SMALL["se"], se="post"),
        "stem": variants.custom((1, 1, 1, 1), (8, 32, 32, 32, 32)),
    }
    variant = {**SMALL, **odd}[kind]
    with pytest.raises(CheckpointError) as caught:
        from_house(zeros(parameter_shapes(variant, deploy)), dialect, variant)
    assert text in str(caught.value)


def test_four_input_channels_are_refused_where_the_stem_takes_three():
    variant = SMALL["plain"]
    arrays = zeros(parameter_shapes(variant, True, in_channels=4))
    with pytest.raises(CheckpointError, match="it takes 3 input channels, not 4; possible: timm, mmpretrain"):
        from_house(arrays, "official", variant)
    assert from_house(arrays, "timm", variant)["stem.reparam_conv.weight"].shape == (8, 4, 3, 3)


def test_auxiliary_heads_in_deploy_form_are_refused():
    variant = SMALL["plus"]
    heads = {name: shape for name, shape in parameter_shapes(variant, False).items() if "_aux." in name}
    arrays = zeros({**parameter_shapes(variant, True), **heads})
    with pytest.raises(CheckpointError, match=r"no repvgg in deploy form: 21 unexpected: stage1_aux\.downsample"):
        from_house(arrays, "repvggplus", variant)
    with pytest.raises(CheckpointError, match=r"21 unexpected: stage1_aux\.downsample"):
        recognise(arrays)


def test_an_incomplete_network_is_not_written():
    variant = SMALL["plain"]
    for missing in ("stage2.1.rbr_1x1.bn.beta", "stage0.rbr_dense.conv.weight", "linear.weight"):
        arrays = zeros(parameter_shapes(variant, False))
        del arrays[missing]
        with pytest.raises(CheckpointError, match=f"1 missing: {missing}"):
            from_house(arrays, "official", variant)


def test_unknown_dialects_and_foreign_names_are_named():
    with pytest.raises(UserError, match=r"dialect \(='tim'\) is unknown; did you mean timm\? known: official, "):
        find_dialect("tim")
    with pytest.raises(CheckpointError, match="1 names are not timm's: stages"):
        to_house({"stages.0.00.identity.weight": np.zeros(3)}, "timm")


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
    arrays = zeros(shapes_in("official", SMALL["plain"], False))
    del arrays["stage1.1.rbr_identity.weight"]
    with pytest.raises(CheckpointError) as caught:
        recognise(arrays)
    assert "the closest is repvgg of num_blocks [2, 2, 3, 1], widths [8, 8, 16, 24, 32] in train form" in str(
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
    arrays = zeros(shapes_in("official", SMALL["plain"], False))
    arrays["stage0.rbr_reparam.weight"] = np.zeros((8, 3, 3, 3))
    with pytest.raises(
        CheckpointError, match=r"half converted: 1 blocks are fused \(stage0.rbr_reparam.weight\) and 9 "
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
        # MobileOne of timm: built of the same parts under the same names
        ["stages.0.0.conv_kxk.0.conv.weight", "stages.0.0.identity.weight", "stages.0.0.conv_scale.conv.weight"],
        [],
    ],
    ids=["efficientnet", "resnet", "mobileone", "nothing"],
)
def test_other_networks_are_no_repvgg(names):
    with pytest.raises(CheckpointError, match=f"not a RepVGG: of {len(names)} tensors, "):
        recognise({name: np.zeros((2, 2)) for name in names})


def test_a_small_part_of_another_network_is_no_repvgg():
    arrays = zeros(shapes_in("mmpretrain", SMALL["plain"], True))
    arrays |= {f"neck.{i}.conv.weight": np.zeros((2, 2)) for i in range(len(arrays) + 1)}
    with pytest.raises(CheckpointError, match="not a RepVGG: of 41 tensors, 21 have no name that "):
        recognise(arrays)


# Wrappers. OFFICIAL stands for any network's state dict.

OFFICIAL = random_arrays(shapes_in("official", SMALL["plain"], False, 4))
AVERAGED = random_arrays(shapes_in("official", SMALL["plain"], False, 4), seed=1)


def prefixed(state, prefix):
    return {f"{prefix}{name}": array for name, array in state.items()}


def same(state, expected):
    return state.keys() == expected.keys() and all(state[name] is expected[name] for name in state)


def swapped(state):
    """As mmengine's EMA hook saves the raw weights: with a prefix, and a counter beside them."""
    return {"steps": np.array(3), **prefixed(state, "module.")}


@pytest.mark.parametrize(
    ("content", "wrapper", "prefix", "averaged", "ignored"),
    [
        (OFFICIAL, "", "", False, ()),
        (prefixed(OFFICIAL, "module.module."), "", "module.", False, ()),
        ({"state_dict": {**prefixed(OFFICIAL, "model."), "steps": np.ones(1), "model.steps": np.ones(1)}},
            "state_dict", "model.", False, ("state_dict: steps", "state_dict: model.steps")),
        (
            {"model": OFFICIAL, "optimizer": {}, "ema": AVERAGED, "config": Opaque("yacs.config.CfgNode", ())},
            "model, ema", "", True, ("optimizer", "config"),
        ),
        ({"model": OFFICIAL, "ema": None, "epoch": 3}, "model", "", False, ("ema", "epoch")),
        ({"epoch": 1, "state_dict": prefixed(OFFICIAL, "module.")}, "state_dict", "module.", False, ("epoch",)),
        (
            {"arch": "x", "state_dict": prefixed(OFFICIAL, "_orig_mod."), "state_dict_ema": AVERAGED},
            "state_dict, state_dict_ema", "_orig_mod.", True, ("arch",),
        ),
        ({"state_dict": OFFICIAL, "model_ema": prefixed(AVERAGED, "module._orig_mod.")},
            "state_dict, model_ema", "module._orig_mod.", True, ()),
        ({"meta": {}, "state_dict": OFFICIAL, "optimizer": {}}, "state_dict", "", False, ("meta", "optimizer")),
        (
            {"meta": {}, "state_dict": AVERAGED, "ema_state_dict": swapped(OFFICIAL)},
            "ema_state_dict, state_dict", "module.", True, ("meta", "ema_state_dict: steps"),
        ),
        ({"state_dict": OFFICIAL, "ema_state_dict": AVERAGED}, "state_dict, ema_state_dict", "", True, ()),
        ({"state_dict": OFFICIAL, "acc1": 72.4}, "state_dict", "", False, ("acc1",)),
    ],
    ids=["bare", "ddp-twice", "lightning", "main.py", "main.py-no-ema", "pth.tar", "timm", "timm-model_ema",
         "mmpretrain", "mmengine-ema", "ema_state_dict", "basecls"],
)  # fmt: skip
def test_wrappers(content, wrapper, prefix, averaged, ignored):
    found = unwrap(content)
    assert same(found.weights, OFFICIAL)
    assert same(found.averaged, AVERAGED) if averaged else found.averaged is None
    assert (found.wrapper, found.prefix, found.ignored) == (wrapper, prefix, ignored)


def mindcv_training_names(*, prefix=""):
    """As MindCV 0.3 writes them with momentum and EMA; with gradient accumulation, `optimizer.` before the learned."""
    weights = random_arrays(shapes_in("mindcv", SMALL["plain"], False, 4))
    averaged = random_arrays(shapes_in("mindcv", SMALL["plain"], False, 4), seed=1)
    learned = [name for name in weights if "moving" not in name]
    content = {f"{prefix if name in learned else ''}{name}": array for name, array in weights.items()}
    content |= {f"{prefix}moments.{name}": weights[name] for name in learned}
    content |= prefixed(averaged, "ema.")
    for name in (f"{prefix}global_step", f"{prefix}learning_rate", f"{prefix}momentum", "updates", "scale_sense"):
        content[name] = np.array(0.5)
    if prefix:
        content |= {f"grad_accumulation.{prefix}{name}": weights[name] for name in learned}
    return content, weights, averaged


@pytest.mark.parametrize("prefix", ["", "optimizer."])
def test_mindcv_s_training_checkpoints(prefix):
    content, weights, averaged = mindcv_training_names(prefix=prefix)
    found = unwrap(content)
    assert same(found.weights, weights)
    assert same(found.averaged, averaged)
    assert found.prefix == prefix
    assert {"updates", "scale_sense", f"{prefix}global_step", f"{prefix}momentum", "moments.* (64)"} <= {*found.ignored}
    assert recognise(found.weights).variant == recognise(found.averaged).variant == SMALL["plain"]


def test_mindcv_s_names_match_its_training_cell():
    repvgg, utils = pytest.importorskip("mindcv.models.repvgg"), pytest.importorskip("mindcv.utils")
    from mindspore import nn

    net = repvgg.RepVGG([1, 1, 2, 1], width_multiplier=[0.25] * 4, num_classes=3)
    expected = sorted(real_shapes(net))
    loss, optimizer = nn.CrossEntropyLoss(), nn.Momentum(net.trainable_params(), 0.1, 0.9)
    options = {"amp_level": "O0", "amp_cast_list": "[]", "loss_scale_type": "fixed", "drop_overflow_update": False}
    trainer = utils.create_trainer(net, loss, optimizer, {}, **options, ema=True, gradient_accumulation_steps=2)
    content = {p.name: p.asnumpy() for p in trainer.train_network.get_parameters()}
    assert "grad_accumulation.optimizer.linear.bias" in content
    found = unwrap(content)
    assert sorted(found.weights) == sorted(found.averaged) == expected
    assert recognise(found.weights).dialect == "mindcv"


def test_cells_around_parts_of_the_network():
    content = {
        name.replace("rbr_1x1.", "rbr_1x1._backbone."): array for name, array in prefixed(OFFICIAL, "network.").items()
    }
    found = unwrap(content)
    assert same(found.weights, OFFICIAL)
    assert found.prefix == "network._backbone."


def test_our_unfinished_runs():
    state = {"training_state.moments.linear.bias": np.zeros(4), "training_state.global_step": np.zeros(1)}
    found = unwrap({**OFFICIAL, **state})
    assert same(found.weights, OFFICIAL)
    assert found.ignored == ("training_state.* (2)",)


def test_averaged_weights_alone():
    found = unwrap({"state_dict_ema": AVERAGED})
    assert found.weights is None
    assert same(found.averaged, AVERAGED)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (Opaque("repvgg.RepVGG", ()), "holds a pickled network (repvgg.RepVGG), which needs its program to be read; "),
        ({"model": Opaque("repvgg.RepVGG", ()), "epoch": 3}, "holds a pickled network (repvgg.RepVGG)"),
        ([OFFICIAL], "holds a list, expected weights by name"),
        ({"epoch": 3, 4: {}}, "holds no weights by name; its entries: epoch, 4"),
        ({"lr": np.zeros(3)}, "holds no weights by name; its entries: lr"),
        ({}, "holds no weights by name"),
        ({"model": OFFICIAL, "state_dict": OFFICIAL}, "holds several state dicts (state_dict, model)"),
        ({**OFFICIAL, "module.linear.bias": np.zeros(4)}, "holds both linear.bias and module.linear.bias, which are "),
    ],
)  # fmt: skip
def test_what_cannot_be_unwrapped(content, text):
    with pytest.raises(CheckpointError) as caught:
        unwrap(content)
    assert text in str(caught.value)


def test_from_a_file_to_another_dialect(tmp_path):
    torch = pytest.importorskip("torch")
    state = {name: torch.from_numpy(array) for name, array in prefixed(OFFICIAL, "module.").items()}
    torch.save({"model": state, "epoch": 3}, tmp_path / "any.name")
    found = recognise(unwrap(read_torch_file(tmp_path / "any.name")).weights)
    assert (found.dialect, found.variant, found.num_classes) == ("official", SMALL["plain"], 4)
    written = from_house(found.arrays, "timm", found.variant)
    assert np.array_equal(written["stages.2.2.conv_1x1.bn.bias"], OFFICIAL["stage3.2.rbr_1x1.bn.bias"])
