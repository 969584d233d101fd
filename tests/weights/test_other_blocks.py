"""The projects' names of MobileOne, QARepVGG and RepOpt-VGG, written out a second time; values go there and back."""

import dataclasses
import json

import numpy as np
import pytest
from mindspore import Tensor
from support import FORM, OTHER_SMALL, images, randomise_bn, relative_difference, weights
from support.dialect_names import MINDSPORE_BN, TORCH_BN, random_arrays, zeros
from support.golden import OTHER_GOLDEN
from support.other_projects import other_project

from mindrepvgg import create_model, load_weights, to_deploy
from mindrepvgg.errors import CheckpointError
from mindrepvgg.evaluation.torch_reference import TorchReference
from mindrepvgg.models import variants
from mindrepvgg.models.parameters import network_arrays
from mindrepvgg.models.shapes import parameter_shapes
from mindrepvgg.weights.containers import write_weights
from mindrepvgg.weights.convert import convert_checkpoint
from mindrepvgg.weights.recognise import recognise
from mindrepvgg.weights.rename import from_ours, to_ours

pytestmark = pytest.mark.usefixtures("pynative_mode")

# Of MobileOne: stem, block, skip, convolutions, scale, conv, bn, fused, SE's two layers, head, BN's leaves
NAMES = {
    "official": (
        "stage0", "stage{s}.{i}", "rbr_skip", "rbr_conv", "rbr_scale", "conv", "bn", "reparam_conv", "se.reduce",
        "se.expand", "linear", TORCH_BN,
    ),
    "timm": (
        "stem", "stages.{t}.{i}", "identity", "conv_kxk", "conv_scale", "conv", "bn", "reparam_conv", "attn.fc1",
        "attn.fc2", "head.fc", TORCH_BN,
    ),
    "mmpretrain": (
        "backbone.stage0", "backbone.stage{s}.{i}", "branch_norm", "branch_conv_list", "branch_scale", "conv", "norm",
        "branch_reparam", "se.conv1.conv", "se.conv2.conv", "head.fc", TORCH_BN,
    ),
    "mindrepvgg": (
        "stage0", "stage{s}.{i}", "rbr_skip", "rbr_conv", "rbr_scale", "conv", "bn", "reparam_conv", "se.down",
        "se.up", "linear", MINDSPORE_BN,
    ),
}  # fmt: skip
MOBILEONES = [name for name in OTHER_GOLDEN if name.startswith("mobileone")]
# Of width 16 at least: the official SE squeezes to a sixteenth.
SMALL_ONE = variants.find(
    "mobileone", num_blocks=(2, 1, 2, 1), widths=(16, 16, 32, 48, 64), branches=3, se_blocks=(0, 0, 1, 1)
)


def mobileone_shapes(dialect, variant, deploy, classes=1000):
    """Name -> shape as the project has them, from the table above and the paper's rules."""
    stem, block, skip, convs, scale, conv, norm, fused, down, up, head, leaves = NAMES[dialect]
    shapes = {}

    def bn(name, width):
        shapes.update({f"{name}.{leaf}": () if "batches" in leaf else (width,) for leaf in leaves})

    def biased(name, *sizes):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = sizes, sizes[:1]

    def add(prefix, width, out, size, groups, stride, branches, excited):
        if deploy:
            biased(f"{prefix}.{fused}", out, width // groups, size, size)
        else:
            if width == out and stride == 1:
                bn(f"{prefix}.{skip}", out)
            places = [(f"{prefix}.{convs}.{n}", size) for n in range(branches)]
            for place, kernel in (*places, *([(f"{prefix}.{scale}", 1)] if size > 1 else [])):
                shapes[f"{place}.{conv}.weight"] = (out, width // groups, kernel, kernel)
                bn(f"{place}.{norm}", out)
        if excited:
            biased(f"{prefix}.{down}", out // variant.se_ratio, out, 1, 1)
            biased(f"{prefix}.{up}", out, out // variant.se_ratio, 1, 1)

    width = variant.widths[0]
    add(stem, 3, width, 3, 1, 2, 1, False)
    for s, (depth, out) in enumerate(zip(variant.num_blocks, variant.widths[1:], strict=True), 1):
        for pair in range(depth):
            excited = pair >= depth - variant.se_blocks[s - 1]
            own = variant.branches, excited
            add(block.format(s=s, t=s - 1, i=2 * pair), width, width, 3, width, 2 if pair == 0 else 1, *own)
            add(block.format(s=s, t=s - 1, i=2 * pair + 1), width, out, 1, 1, 1, *own)
            width = out
    biased(head, classes, width)
    shapes[f"{head}.bias"] = (classes,)
    return shapes


def qarepvgg_shapes(dialect, variant, deploy, classes=1000):
    """The same of QARepVGG, from RepVGG's."""
    leaves = TORCH_BN if dialect == "official" else MINDSPORE_BN
    shapes, width = {}, 3
    for spec in dataclasses.replace(variant, block="repvgg").block_specs():
        out, per_group = spec.out_channels, width // spec.groups
        if deploy:
            shapes[f"{spec.name}.rbr_reparam.weight"] = (out, per_group, 3, 3)
            shapes[f"{spec.name}.rbr_reparam.bias"] = (out,)
        else:
            shapes[f"{spec.name}.rbr_dense.conv.weight"] = (out, per_group, 3, 3)
            shapes[f"{spec.name}.rbr_1x1.weight"] = (out, per_group, 1, 1)
            for bn in ("rbr_dense.bn", "bn"):
                shapes |= {f"{spec.name}.{bn}.{leaf}": () if "batches" in leaf else (out,) for leaf in leaves}
        width = out
    return shapes | {"linear.weight": (classes, width), "linear.bias": (classes,)}


def repopt_shapes(dialect, variant, deploy, classes=1000):
    """The same of RepOpt-VGG, which has SE after the ReLU if at all."""
    leaves = TORCH_BN if dialect == "official" else MINDSPORE_BN
    shapes, width = {}, 3
    for spec in variant.block_specs():
        out = spec.out_channels
        conv = "rbr_reparam" if deploy else "conv"
        shapes[f"{spec.name}.{conv}.weight"] = (out, width, 3, 3)
        if deploy:
            shapes[f"{spec.name}.{conv}.bias"] = (out,)
        else:
            shapes |= {f"{spec.name}.bn.{leaf}": () if "batches" in leaf else (out,) for leaf in leaves}
        if variant.se:
            for layer, (many, few) in {
                "down": (out // variant.se_ratio, out),
                "up": (out, out // variant.se_ratio),
            }.items():
                shapes[f"{spec.name}.post_se.{layer}.weight"] = (many, few, 1, 1)
                shapes[f"{spec.name}.post_se.{layer}.bias"] = (many,)
        width = out
    return shapes | {"linear.weight": (classes, width), "linear.bias": (classes,)}


CASES = [
    *(("mobileone", dialect) for dialect in NAMES),
    *((kind, dialect) for kind in ("qarepvgg", "repopt_vgg") for dialect in ("official", "mindrepvgg")),
]
SHAPES = {"mobileone": mobileone_shapes, "qarepvgg": qarepvgg_shapes, "repopt_vgg": repopt_shapes}
VARIANTS = {
    "mobileone": SMALL_ONE,
    **{kind: variants.find(kind, **OTHER_SMALL[kind]) for kind in ("qarepvgg", "repopt_vgg")},
}
# The code of RepOptimizer's authors fuses no network.
FUSED = [case for case in CASES if case != ("repopt_vgg", "official")]
FORMS = [*((*case, False) for case in CASES), *((*case, True) for case in FUSED)]


@pytest.mark.parametrize(("kind", "dialect", "deploy"), FORMS)
def test_values_go_there_and_back(kind, dialect, deploy):
    variant = VARIANTS[kind]
    theirs = random_arrays(SHAPES[kind](dialect, variant, deploy, 7))
    ours = to_ours(theirs, dialect, kind)
    assert {name: array.shape for name, array in ours.items()} == parameter_shapes(variant, FORM[deploy], 7)
    back = from_ours(ours, dialect, variant)
    assert back.keys() == theirs.keys()
    assert all(np.array_equal(back[name], theirs[name]) for name in theirs)
    found = recognise(theirs, variant)
    assert (found.variant, found.form, found.num_classes) == (variant, FORM[deploy], 7)
    assert all(found.arrays[name] is array for name, array in ours.items())


@pytest.mark.parametrize("deploy", [False, True], ids=["train", "deploy"])
@pytest.mark.parametrize("name", OTHER_GOLDEN)
def test_every_network_is_told_by_its_arrays(name, deploy):
    """A fused QARepVGG is a fused RepVGG: it takes its name from what is expected, a description or a wish."""
    variant = variants.find(name)
    for dialect in (own for kind, own, form in FORMS if (kind, form) == (variant.family, deploy)):
        arrays = zeros(SHAPES[variant.family](dialect, variant, deploy))
        expected = name
        if deploy and variant.family != "mobileone":
            expected = {"qarepvgg": name.removeprefix("qa"), "repopt_vgg": name.replace("opt_", "")}[variant.family]
        if expected[:-1] == "repvgg_l":  # RepVGG has no networks of these sizes
            expected = "repvgg"
        assert recognise(arrays).variant.name == expected
        assert recognise(arrays, variant).variant.name == name


@pytest.mark.parametrize("kind", VARIANTS)
def test_own_sizes_are_derived(kind):
    assert recognise(zeros(parameter_shapes(VARIANTS[kind], "train"))).variant == VARIANTS[kind]
    deployed = recognise(zeros(parameter_shapes(VARIANTS[kind], "deploy"))).variant
    fused = {
        "mobileone": dataclasses.replace(SMALL_ONE, branches=1),  # it does not show how many there were
        **{
            kind: dataclasses.replace(VARIANTS[kind], name="repvgg", family="repvgg")
            for kind in ("qarepvgg", "repopt_vgg")
        },
    }
    assert deployed == fused[kind]


KERNEL = np.zeros((48, 1, 3, 3), np.float32)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda a: a.pop("stages.1.0.conv_kxk.2.bn.bias"), "not quite a MobileOne: the closest is mobileone_s0 in "),
        (lambda a: a.update({"stages.1.0.conv_kxk.4.conv.weight": KERNEL}), "1 unexpected: stages.1.0.conv_kxk.4."),
        (lambda a: a.update({"stages.1.0.reparam_conv.weight": KERNEL}), "half converted: 1 blocks are fused"),
        (lambda a: [a.pop(f"head.fc.{leaf}") for leaf in ("weight", "bias")], "this is the backbone of a mobileone_s0"),
    ],
)  # fmt: skip
def test_what_is_not_quite_one_is_named(change, text):
    arrays = zeros(mobileone_shapes("timm", variants.find("mobileone_s0"), False))
    change(arrays)
    with pytest.raises(CheckpointError) as caught:
        recognise(arrays)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("name", "dialect", "text"),
    [
        ("mobileone_s0", "mindcv", "for MindCV: it has no MobileOne; possible: official, timm, mmpretrain, mindrepvgg"),
        ("repopt_vgg_b1", "timm", "for timm: it has no RepOpt-VGG; possible: official, mindrepvgg"),
        ("qarepvgg_a0", "timm", "qarepvgg_a0 in train form cannot be written for timm: it has no QARepVGG; possible: "),
    ],
)
def test_what_a_project_has_not_is_refused(name, dialect, text):
    variant = variants.find(name)
    with pytest.raises(CheckpointError) as caught:
        from_ours(zeros(parameter_shapes(variant, "train")), dialect, variant)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "dialect"),
    [
        pytest.param(*case, marks=() if case in (("mobileone", "timm"), ("qarepvgg", "official")) else pytest.mark.slow)
        for case in FUSED
        if case[1] != "mindrepvgg"
    ],
)
def test_a_file_of_each_project_computes_the_same(kind, dialect, tmp_path):
    """Through a file and back, fused on the way; the judge reads the file's own tensors."""
    torch = pytest.importorskip("torch")
    shape = {**VARIANTS[kind].model_args}
    net = randomise_bn(create_model(kind, 7, **shape)).set_train(False)
    x = images()
    source = tmp_path / "theirs.pth"
    arrays = from_ours(network_arrays(net), dialect, net.variant)
    theirs = {name: torch.tensor(array) for name, array in arrays.items()}
    torch.save(theirs, source)
    expected = TorchReference(theirs)(x)
    loaded = load_weights(source)
    assert loaded.variant == net.variant
    assert all(np.array_equal(array, weights(net)[name]) for name, array in weights(loaded).items())
    done = convert_checkpoint(source, tmp_path / "fused.ckpt", form="deploy")
    assert done.report.passed
    fused = load_weights(tmp_path / "fused.ckpt")
    assert fused.deploy
    assert fused.variant == net.variant
    judged = TorchReference({name: torch.tensor(array) for name, array in weights(fused).items()})
    assert relative_difference(judged(x), expected) < 1e-5
    convert_checkpoint(tmp_path / "fused.ckpt", tmp_path / "back.safetensors", dialect=dialect)
    told = json.loads((tmp_path / "back.safetensors.json").read_text())
    assert (told["model"], told["form"]) == (kind, "deploy")
    again = create_model(kind, 7, deploy=True, weights=tmp_path / "back.safetensors", **shape)
    assert all(np.array_equal(array, weights(fused)[name]) for name, array in weights(again).items())


def test_a_fused_qarepvgg_fills_one_of_the_same_sizes_only(tmp_path):
    variant = VARIANTS["qarepvgg"]
    arrays = from_ours(zeros(parameter_shapes(variant, "deploy", 7)), "official", variant)
    write_weights(tmp_path / "fused.safetensors", {name: array.copy() for name, array in arrays.items()})
    assert create_model("qarepvgg", 7, deploy=True, weights=tmp_path / "fused.safetensors", **variant.model_args)
    with pytest.raises(CheckpointError, match="does not fit"):
        create_model("mobileone", 7, deploy=True, weights=tmp_path / "fused.safetensors", **SMALL_ONE.model_args)


@pytest.mark.parametrize("name", ["mobileone_s0", *(pytest.param(n, marks=pytest.mark.slow) for n in MOBILEONES[1:])])
def test_timm_computes_the_same_logits(name):
    timm, torch = other_project("timm"), pytest.importorskip("torch")
    net, x = randomise_bn(create_model(name)).set_train(False), images(2, 3, 64, 64)
    for form in (net, to_deploy(net)):
        model = timm.create_model(name).eval()
        if form.deploy:
            model = timm.utils.model.reparameterize_model(model)
        arrays = from_ours(network_arrays(form), "timm", form.variant)
        model.load_state_dict({key: torch.from_numpy(np.array(array)) for key, array in arrays.items()})
        with torch.no_grad():
            expected = model(torch.from_numpy(x)).numpy()
        assert relative_difference(form(Tensor(x)), expected) < 1e-5
