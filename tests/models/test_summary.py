"""The summary's layers against PyTorch's own count of a network that shares no code, and against built networks."""

import csv
import dataclasses
import json
import math
import operator
import re
import subprocess
import sys

import pytest
import torch
from mindspore.nn.utils import no_init_parameters
from support import ROOT
from support.dialect_names import VARIANTS
from support.foreign import theirs, wrapped_file, write
from support.golden import GOLDEN, MOBILEONE_MACS, OTHER_GOLDEN
from support.torch_reference import Block, Network, SqueezeExcite
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.utils.flop_counter import FlopCounterMode

from mindrepvgg import create_model, load_weights, save_checkpoint, to_deploy
from mindrepvgg.cli import entry
from mindrepvgg.cli import summary as command
from mindrepvgg.errors import UserError
from mindrepvgg.models import summary, variants
from mindrepvgg.models.feature_layout import FeatureLayout

MAIN = command.main

FAMILY = {name: variants.find(name) for name in (*GOLDEN, "repvgg_nano")}
# (variant, classes, channels, (height, width)): odd sides too, which are rounded up where they are halved.
CASES = {
    **{name: (variant, 1000, 3, (224, 224)) for name, variant in FAMILY.items()},
    **{f"small-{kind}": (variant, 7, 4, (75, 49)) for kind, variant in VARIANTS.items()},
    "one-pixel": (VARIANTS["d2se"], 7, 1, (1, 1)),
}
# All of them take a minute; the long names repeat what the short ones show.
QUICK = ("repvgg_a0", *(case for case in CASES if case not in FAMILY))
EVERY_CASE = pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case in QUICK else pytest.mark.slow) for case in CASES]
)
EVERY_FORM = pytest.mark.parametrize("form", variants.PLAIN_FORMS)
# The paper's tables 4 and 5: Wino MULs of the deploy form, in G.
PUBLISHED_WINO = {
    **{"repvgg_a0": 0.7, "repvgg_a1": 1.3, "repvgg_a2": 2.7, "repvgg_b0": 1.6, "repvgg_b1": 5.9, "repvgg_b1g2": 4.6},
    **{"repvgg_b1g4": 3.9, "repvgg_b2": 9.1, "repvgg_b2g4": 6.0, "repvgg_b3": 12.9, "repvgg_b3g4": 8.4},
}


@pytest.fixture
def call(capsys):
    """A function (*arguments) that runs the command in this process: (exit status, stdout, stderr)."""

    def run(*arguments):
        status = entry.run(MAIN, [str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return run


def summarised(case):
    variant, classes, channels, size = CASES[case]
    return summary.summarise(variant, classes, channels, size)


def torch_network(case, deploy):
    """The reference and two images, on PyTorch's device that computes shapes only."""
    variant, classes, channels, size = CASES[case]
    with torch.device("meta"):
        return Network(variant, classes, channels, deploy), torch.zeros(2, channels, *size)


def our_name(path):
    """Our name of one of the reference's modules."""
    return path.replace(".blocks.", ".")


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


# ------------------------------------------------------------------------------------------------------------- totals


@pytest.mark.parametrize("name", GOLDEN)
def test_totals_are_the_published_ones(name):
    found = summary.summarise(FAMILY[name])
    train, deploy = found.total("train"), found.total("deploy")
    assert (train.params, deploy.params) == GOLDEN[name][:2]
    for total, expected in zip((train, deploy), GOLDEN[name][2:], strict=True):
        assert expected is None or round(total.macs / 1e9, 3) == expected
    if name in PUBLISHED_WINO:
        assert round(deploy.wino_muls / 1e9, 1) == PUBLISHED_WINO[name]


@pytest.mark.parametrize("name", OTHER_GOLDEN)
def test_the_command_prints_the_published_counts_of_other_blocks(call, name):
    status, out, _ = call(name)
    found = summary.summarise(variants.find(name))
    assert status == 0
    assert [line.split()[2:4] for line in out.splitlines() if line.startswith("total")] == [
        [f"{count:,}" for count in OTHER_GOLDEN[name]]
    ]
    macs = found.total("deploy").macs
    if name in MOBILEONE_MACS:
        assert abs(macs / 1e9 - MOBILEONE_MACS[name]) < 0.01
    elif name.startswith("repopt"):
        assert macs == found.total("train").macs
    else:
        assert macs == summary.summarise(FAMILY[name.removeprefix("qa")]).total("deploy").macs


def test_a_block_of_one_convolution_keeps_one_output():
    """MobileOne's 1x1 blocks of one branch; with two there is a sum."""
    sizes = {"num_blocks": (1, 1, 1, 1), "widths": (8, 16, 16, 16, 16)}
    for branches in (1, 2):
        layers = summary.summarise(variants.find("mobileone", **sizes, branches=branches), image_size=32).layers
        block = next(layer for layer in layers if layer.name == "stage1.1")
        assert block.train.activations == 8 * 8 * (8 + 16 * branches)
        assert block.deploy.activations == 8 * 8 * (8 + 16)


def test_plus_without_its_auxiliary_heads():
    assert summary.summarise(FAMILY["repvggplus_l2pse"], aux_heads=False).total("train").params == 140_099_224


@EVERY_FORM
@EVERY_CASE
def test_parameters_are_those_of_the_built_network(case, form):
    variant, classes, channels, _ = CASES[case]
    shape = variant.to_dict() if variant.name == "repvgg" else {}
    with no_init_parameters():
        net = create_model(variant.name, classes, channels, deploy=form == "deploy", **shape)
    found = summarised(case)
    assert found.weights[form] == sum(math.prod(p.shape) for p in net.get_parameters())
    cells = dict(net.cells_and_names())
    for layer in found.layers:
        if layer.name != "pool" and (figures := getattr(layer, form)):
            inner = sum(
                getattr(other, form).params for other in found.layers if other.name.startswith(layer.name + ".")
            )
            own = sum(math.prod(p.shape) for p in cells[layer.name].trainable_params())
            assert figures.params == own - inner, layer.name


# ------------------------------------------------------------------------------------------------------------- layers


def counted_by_torch(case, deploy):
    """Layer -> (output shape, parameters, MACs) of the reference while it trains, auxiliary heads and all."""
    net, x = torch_network(case, deploy)
    shapes = {}
    modules = {
        path: module
        for path, module in net.named_modules()
        if isinstance(module, (Block, SqueezeExcite)) or path == "linear" or path.endswith("_aux")
    }
    for path, module in modules.items():
        module.register_forward_hook(lambda _, __, output, path=path: shapes.update({path: tuple(output.shape[1:])}))
    # Inference of BN, which needs no spread of values, and yet the heads of a network that trains.
    net.eval().training = True
    with FlopCounterMode(display=False, depth=None) as counter:
        net(x)
    flops = {path: sum(counter.flop_counts[f"Network.{path}"].values()) for path in modules}
    found = {}
    for path, module in modules.items():
        inside = [inner for inner in modules if inner.startswith(f"{path}.")]
        params = parameters(module) - sum(parameters(modules[inner]) for inner in inside)
        # Two operations a MAC, two images.
        macs = (flops[path] - sum(flops[inner] for inner in inside)) / 4
        found[our_name(path)] = (shapes[path], params, macs)
    return found


@EVERY_FORM
@EVERY_CASE
def test_layers_are_those_torch_counts(case, form):
    found = {
        layer.name: (layer.output_shape, figures.params, figures.macs)
        for layer in summarised(case).layers
        if (figures := getattr(layer, form)) and layer.name != "pool"
    }
    assert found == counted_by_torch(case, form == "deploy")


def test_the_count_sees_a_group():
    """Grouped and plain networks differ in the grouped blocks alone."""
    plain, grouped = (summarised(f"small-{kind}").layers for kind in ("plain", "g4"))
    assert [a.name for a, b in zip(plain, grouped, strict=True) if a != b] == ["stage1.1", "stage3.0", "stage4.0"]


@EVERY_FORM
@EVERY_CASE
def test_winograd_spares_convolutions_of_stride_1(case, form):
    """By running F(2x2, 3x3)'s rule over the reference's modules: 16 multiplications for 36."""
    net, x = torch_network(case, form == "deploy")
    muls = []

    def count(module, _inputs, output):
        macs = output.numel() // len(x) * math.prod(module.weight.shape[1:])
        spared = isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) and module.stride == (1, 1)
        muls.append(macs * 16 // 36 if spared else macs)

    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(count)
    net.eval().training = True
    net(x)
    assert summarised(case).total(form).wino_muls == sum(muls)


# ------------------------------------------------------------------------------------------------- activations at once

# Operations that write over an operand, which nothing reads later.
_IN_PLACE = (operator.add, operator.mul, nn.functional.relu, torch.sigmoid, nn.BatchNorm2d)


def alive_by_tracing(case, deploy, in_place=_IN_PLACE):
    """Layer -> most elements alive at once, of one image, by PyTorch's trace of the reference and its values' uses."""
    net, x = torch_network(case, deploy)
    traced = fx.symbolic_trace(net.eval())
    modules = {node: net.get_submodule(node.target) for node in traced.graph.nodes if node.op == "call_module"}
    for node, module in modules.items():
        if isinstance(module, nn.Identity):
            node.replace_all_uses_with(node.args[0])
            traced.graph.erase_node(node)
    ShapeProp(traced).propagate(x)
    *nodes, _ = traced.graph.nodes
    last_use = {value: i for i, node in enumerate(traced.graph.nodes) for value in node.all_input_nodes}
    alive, peaks = {}, {}
    for i, node in enumerate(nodes):
        size = math.prod(node.meta["tensor_meta"].shape[1:])
        kind = type(modules[node]) if node in modules else node.target
        dying = [value for value in node.all_input_nodes if last_use[value] == i and alive[value] == size]
        if kind in in_place and dying:
            del alive[dying[0]]
        alive[node] = size
        layer = owner(node)
        peaks[layer] = max(peaks.get(layer, 0), sum(alive.values()))
        alive = {value: size for value, size in alive.items() if last_use[value] > i}
    return peaks


def owner(node):
    """The layer an operation belongs to; the network's own only operation is the pooling."""
    if node.op == "placeholder":
        return "input"
    scopes = [our_name(path) for path, _ in node.meta.get("nn_module_stack", {}).values()]
    layers = [path for path in scopes if re.fullmatch(r"linear|stage0|.*\.(\d+|se|post_se)", path)]
    return layers[-1] if layers else "pool"


@EVERY_FORM
@EVERY_CASE
def test_activations_are_those_a_trace_keeps_alive(case, form):
    traced = alive_by_tracing(case, form == "deploy")
    traced.pop("input")
    found = {layer.name: figures.activations for layer in summarised(case).layers if (figures := getattr(layer, form))}
    assert {name: count for name, count in found.items() if not name.endswith("_aux")} == traced
    assert summarised(case).total(form).activations == max(traced.values())


def test_the_trace_sees_what_is_kept():
    """Were nothing written over, four maps would be alive, not three; and auxiliary heads are none of inference."""
    block = next(layer for layer in summarised("small-plain").layers if layer.name == "stage1.1")
    in_place, kept = (alive_by_tracing("small-plain", False, kinds)[block.name] for kinds in (_IN_PLACE, ()))
    assert [in_place, kept] == [maps * math.prod(block.output_shape) for maps in (3, 4)]
    assert {layer.train.activations for layer in summarised("small-plus").layers if layer.name.endswith("_aux")} == {0}


# ---------------------------------------------------------------------------------------------------------- the command


@pytest.mark.parametrize("name", FAMILY)
def test_the_table_fits_a_page_and_holds_the_totals(call, name):
    status, out, err = call(name, "--image_size", "320", "--batch_size", 32)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert max(map(len, lines)) <= 120
    found = summary.summarise(FAMILY[name], image_size=320)
    total = next(line for line in lines if line.startswith("total")).split()
    train, deploy = found.total("train"), found.total("deploy")
    assert total[2:6] == [
        f"{train.params:,}",
        f"{deploy.params:,}",
        f"{train.macs / 1e6:.2f}",
        f"{deploy.macs / 1e6:.2f}",
    ]
    assert f"{32 * 2 * train.activations / 2**20:,.2f}" in next(x for x in lines if "32 images, float16" in x)
    assert [line.split()[0] for line in lines[5 : 5 + len(found.layers)]] == [layer.name for layer in found.layers]


def test_json_and_csv_hold_the_exact_figures(call, tmp_path):
    mapping = json.dumps(VARIANTS["plus"].to_dict())
    status, out, _ = call(
        *("RepVGG", "--model_args", mapping, "--num_classes", 7, "--image_size", "75,49", "--batch_size", 3),
        *("--json", "--csv", tmp_path / "layers.csv"),
    )
    assert status == 0
    found, expected = json.loads(out), summary.summarise(VARIANTS["plus"], 7, 3, (75, 49), 3)
    assert found["checkpoint"] is None
    assert (found["image_size"], found["model_args"]) == ([75, 49], json.loads(mapping))
    train = found["total"]["train"]
    assert (train["params"], train["macs"]) == expected.total("train")[:2]
    peak = expected.total("train").activations
    assert train["bytes"]["image_activations"] == {"float32": 4 * peak, "float16": 2 * peak}
    assert train["bytes"]["batch_activations"] == {"float32": 12 * peak, "float16": 6 * peak}
    assert train["bytes"]["weights"]["float32"] == 4 * expected.weights["train"] > 4 * train["params"]
    rows = list(csv.DictReader((tmp_path / "layers.csv").open()))
    assert [row["layer"] for row in rows] == [layer["name"] for layer in found["layers"]]
    for row, layer in zip(rows, found["layers"], strict=True):
        assert row["output_shape"] == "x".join(map(str, layer["output_shape"]))
        for form in variants.PLAIN_FORMS:
            figures = layer[form] or dict.fromkeys(train.keys() - {"bytes"}, "")
            assert {key: row[f"{form}_{key}"] for key in figures} == {key: str(value) for key, value in figures.items()}
    assert sum(int(row["train_params"]) for row in rows) == train["params"]
    assert [layer["name"] for layer in found["layers"] if layer["deploy"] is None] == [
        *("stage1_aux", "stage2_aux", "stage3_first_aux"),
    ]


def test_a_name_needs_no_mindspore():
    code = (
        "import sys; from mindrepvgg.cli.summary import main; assert main(['repvgg_b3']) == 0; "
        "assert not sys.modules.keys() & {'mindspore', 'torch', 'cv2'}"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("repvgg_b3: 1,000 classes, images of 3 x 224 x 224\n")


@pytest.mark.parametrize(
    ("dialect", "kind", "deploy", "suffix"),
    [("official", "g4", False, ".pth"), ("timm", "d2se", True, ".safetensors"), ("mindcv", "plain", False, ".ckpt")],
)
def test_a_checkpoint_of_any_project(call, tmp_path, dialect, kind, deploy, suffix):
    path = write(tmp_path / f"x{suffix}", theirs(dialect, kind, deploy, channels=4))
    status, out, err = call(path, "--image_size", 64, "--json")
    assert (status, err) == (0, "")
    found = json.loads(out)
    told = {key: found["checkpoint"][key] for key in ("form", "num_classes", "in_channels")}
    assert told == {"form": "deploy" if deploy else "train", "num_classes": 7, "in_channels": 4}
    expected = summary.summarise(VARIANTS[kind], 7, 4, 64).to_dict()
    assert {key: found[key] for key in expected} == json.loads(json.dumps(expected))


def test_a_checkpoint_of_ours_knows_its_image_size(call, tmp_path):
    source = write(tmp_path / "x.pt", theirs("repvggplus", "plus"))
    net = load_weights(source)
    net.drop_aux_heads()
    save_checkpoint(net, tmp_path / "ours.ckpt", image_size=[64, 48])
    status, out, _ = call(tmp_path / "ours.ckpt")
    assert status == 0
    assert out.startswith("repvgg: 7 classes, images of 3 x 64 x 48\n")
    assert out.endswith(f"{tmp_path / 'ours.ckpt'}: repvgg in train form, written by mindrepvgg\n")
    assert "_aux" not in out
    assert "_aux" in call(source)[1]
    assert "7 classes, images of 3 x 32 x 32" in call(tmp_path / "ours.ckpt", "--image_size", 32)[1]
    save_checkpoint(to_deploy(net), tmp_path / "deploy.ckpt")
    assert call(tmp_path / "deploy.ckpt")[1].endswith(": repvgg in deploy form, written by mindrepvgg\n")


def test_the_averaged_copy(call, tmp_path):
    path = wrapped_file(tmp_path, "main.py")
    assert json.loads(call(path, "--weights", "ema", "--json")[1])["checkpoint"]["averaged_weights"] is True


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["repvgg_a3"], "model (='repvgg_a3') is not a network of the family; did you mean repvgg_b3 or repvgg_a2"),
        (["repvgg"], "model_args on the command line: repvgg needs num_blocks (four numbers, stages 1-4) and widths"),
        (["repvgg_a0", "--model_args", "{se: pre}"], "repvgg_a0 has a fixed shape and takes no se"),
        (["none.ckpt"], "none.ckpt does not exist"),
        (["{folder}"], " is a folder, expected a checkpoint"),
        (["{folder}/text"], "text is damaged or no checkpoint"),
        (["{folder}/seven.ckpt", "--num_classes", "8"], "seven.ckpt is for 7 classes, not 8; drop --num_classes"),
        (
            ["{folder}/seven.ckpt", "--model_args", "{se: pre}"],
            "--model_args is for the names of networks; a checkpoint, as",
        ),
        (["repvgg_a0", "--image_size", "0"], "image_size (='0') must be a whole number from 1 to 16384, or two ["),
        (["repvgg_a0", "--image_size", "8,0"], "image_size (='8,0') must be a whole number from 1 to 16384"),
        (["repvgg_a0", "--num_classes", "x"], "num_classes (='x') must be a whole number of at least 1"),
        (["repvgg_a0", "--batch_size", "0"], "batch_size (='0') must be a whole number of at least 1"),
        (["repvgg_a0", "--image", "8"], "unknown option --image; did you mean --image_size?"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(call, tmp_path, arguments, text):
    (tmp_path / "text").write_text("not a checkpoint\n")
    write(tmp_path / "seven.ckpt", theirs("mindrepvgg", "plain"))
    status, out, err = call(*(argument.replace("{folder}", str(tmp_path)) for argument in arguments))
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert text in err
    assert err.count("\n") == 1


def test_sizes_are_checked_without_the_command_too():
    with pytest.raises(UserError, match=r"in_channels \(=0\) must be a whole number of at least 1"):
        summary.summarise(FAMILY["repvgg_a0"], in_channels=0)


def test_a_features_network_has_no_head_and_keeps_its_maps():
    shape = {"num_blocks": (1, 1, 1, 1), "widths": (8, 8, 16, 24, 32)}
    whole = variants.find("repvgg", **shape)
    features = dataclasses.replace(whole, features=FeatureLayout(out_indices=(0, 2), output_stride=32))
    found = {layer.name: layer.deploy for layer in summary.summarise(features, image_size=32).layers}
    plain = {layer.name: layer.deploy for layer in summary.summarise(whole, image_size=32).layers}
    assert list(found) == ["stage0", "stage1.0", "stage2.0"]
    # The stem's map, 8 x 16 x 16, is stage 1's input, and has to stay alive during stage 2.
    alive = {name: figures.activations for name, figures in found.items()}
    assert alive == {"stage0": 3 * 32**2 + 2048, "stage1.0": 2048 + 512, "stage2.0": 512 + 256 + 2048}
    assert [figures[:3] for figures in found.values()] == [plain[name][:3] for name in found]


def test_a_dilated_convolution_works_at_more_places_and_not_by_winograd(call, tmp_path):
    net = create_model("repvgg_nano", features_only=True, output_stride=8)
    found = {layer.name: layer.deploy for layer in summary.summarise(net.variant, image_size=64).layers}
    plain = {
        layer.name: layer.deploy for layer in summary.summarise(variants.find("repvgg_nano"), image_size=64).layers
    }
    times = {name: figures.macs / plain[name].macs for name, figures in found.items()}
    assert times == {name: {"3": 4, "4": 16}.get(name[5], 1) for name in found}
    spared = {name for name, figures in found.items() if figures.wino_muls < figures.macs}
    # Stage 3's first block has stride 1 now and is not dilated; the others of it, and stage 4, are.
    assert spared == {"stage1.1", "stage2.1", "stage3.0"}
    save_checkpoint(net, tmp_path / "features.ckpt")
    status, printed, _ = call(tmp_path / "features.ckpt", "--image_size", "64")
    assert status == 0
    assert printed.startswith("repvgg_nano: 5 maps, images of 3 x 64 x 64")
