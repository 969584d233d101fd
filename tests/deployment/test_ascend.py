"""What can be known of Ascend without one: the operators of every compiled graph, and the commands that are printed."""

import ast
import importlib
import importlib.util
import multiprocessing
import os
import re
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import yaml
from mindspore import Tensor, nn, ops
from support import OTHER_SMALL, ROOT, SMALL
from support.loaders import RGB, preprocessing

from mindrepvgg import create_model
from mindrepvgg.deployment.ascend import ascend_commands, lite_commands
from mindrepvgg.deployment.graph import GraphOptions
from mindrepvgg.deployment.written import Written
from mindrepvgg.measure import ascend_check
from mindrepvgg.measure.checked_networks import BLOCK_NETWORKS, network
from mindrepvgg.models.variants import PLAIN_FORMS, find
from mindrepvgg.recipe.schema import Recipe
from mindrepvgg.reparam.layers import set_grouped
from mindrepvgg.runtime.environment import mindspore_version
from mindrepvgg.runtime.ranks import Ranks
from mindrepvgg.training.assemble import build_network, build_step

OPERATORS = yaml.safe_load((ROOT / "tests" / "artefacts" / "ascend_operators.yaml").read_text("utf-8"))


KNOWN = {
    name
    for name, entry in {**OPERATORS["documented"], **OPERATORS["undocumented"]}.items()
    if "Ascend" in entry.get("platforms", ("Ascend",))
} | {*OPERATORS["compiler"], *OPERATORS["disputed"]}


# One block a stage: what is in the graph, not how often, is asked here.
TINY = {"num_blocks": [1, 1, 1, 1], "widths": [8, 8, 8, 8, 8], "group_size": 2, "se": "post", "se_ratio": 4}


USUAL = {
    "amp_level": "O2",
    "loss_scale": 1024.0,
    "loss_scale_type": "dynamic",
    "clip_grad": True,
    "label_smoothing": 0.1,
}


OTHERS = {
    "everything": {
        "model_args": {**TINY, "num_blocks": [1, 1, 2, 1], "aux_heads": True},
        **USUAL,
        "ema": True,
        "gradient_accumulation_steps": 2,
    },
    "plain": {"model_args": SMALL["plain"]},
    "g4": {"model_args": SMALL["g4"]},
    "d2se": {"model_args": SMALL["d2se"]},
    "plus": {"model_args": SMALL["plus"]},
    "nano": {"model": "repvgg_nano", "model_args": {}},
    "qarepvgg": {"model": "qarepvgg", "model_args": OTHER_SMALL["qarepvgg"]},
    "mobileone": {"model": "mobileone", "model_args": OTHER_SMALL["mobileone"]},
    "half precision in BN": {"amp_level": "O3", "loss_scale": 1024.0},
    "nesterov": {"use_nesterov": True},
    "adamw": {"opt": "adamw"},
    "binary cross-entropy": {"loss": "BCE", "mixup": 0.2, "label_smoothing": 0.1},
    "soft targets": {"mixup": 0.2},
    "frozen": {"freeze_bn": True},
    "recomputed": {"recompute": True},
    "custom L2": {"custom_l2": True},
    "inserted BN": {"quantization": "bn", "pretrained": "any.ckpt"},
    "QAT": {"quantization": "qat", "pretrained": "any.ckpt", "loss_scale": 1024.0},
}


# In a process of its own: MindSpore writes the graphs of everything that a process compiles afterwards, into the
# current folder, once it has been asked to write those of one cell.
@pytest.fixture(scope="module")
def operators(tmp_path_factory):
    """A function (f, *arguments) that calls a function of this module where graphs are kept, for what it returns."""
    folder = tmp_path_factory.mktemp("graphs")
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=keep_graphs, initargs=(folder,)) as pool:
        yield lambda function, *arguments: pool.submit(function, *arguments).result()


def keep_graphs(folder):
    """From now on this process writes the graphs it compiles, with the backward pass, before a backend changes them."""
    os.chdir(folder)
    os.environ.update(MS_DEV_SAVE_GRAPHS="1", MS_DEV_DUMP_IR_PASSES="validate")
    ms.set_context(mode=ms.GRAPH_MODE)


def cell_operators(cell, *inputs):
    """The operators of a cell's graph and all subgraphs; a convolution of several groups is called 'Conv2D grouped'."""
    folder = Path(tempfile.mkdtemp(dir="."))
    os.environ["MS_DEV_SAVE_GRAPHS_PATH"] = str(folder)
    cell.compile(*inputs)
    (file,) = folder.glob("*_validate_*.ir")
    found = set()
    for line in file.read_text("utf-8").splitlines():
        call = re.match(r"\s+%\d+\(.*?\) = (?:PrimFunc_)?(\w+)\(", line)
        if call:
            groups = re.search(r"\bgroup: I64\((\d+)\)", line)
            found.add(call[1] + (" grouped" if groups and int(groups[1]) > 1 else ""))
    return found


def network_operators(recipe):
    """The operators of every graph a recipe leads to: training, both halves of it, and validation; then deployment."""
    chosen = Recipe(**{"model": "repvgg", "model_args": TINY, "num_classes": 10, "image_resize": 32, **recipe})
    net = build_network(chosen, Ranks())
    step = build_step(chosen, net, np.full(10, 0.1, np.float32), Ranks())
    images = Tensor(np.zeros((2, 3, 32, 32), np.float32))
    soft = Tensor(np.full((2, 10), 0.1, np.float32))
    targets = soft if chosen.mixup else Tensor(np.zeros(2, np.int32))
    found = cell_operators(step, images, targets)
    if chosen.gradient_accumulation_steps > 1:
        found |= cell_operators(step.accumulate, images, targets)
    found |= cell_operators(net.set_train(False), images)
    deployed = create_model(chosen.model, 10, deploy=True, **chosen.model_args).set_train(False)
    return found | cell_operators(deployed, images)


def block_operators(name, grouped):
    """The operators of a small network with one kind of block: of a training step, and of both forms in inference."""
    images, labels = Tensor(np.zeros((2, 3, 32, 32), np.float32)), Tensor(np.zeros(2, np.int32))
    nets = [set_grouped(network(name, form, images), grouped) for form in PLAIN_FORMS]
    found = cell_operators(ascend_check._Step(nets[0], 1.0), images, labels)
    return found.union(*(cell_operators(net.set_train(False), images) for net in nets))


@pytest.mark.processes
def test_every_operator_of_a_network_is_known_on_ascend(operators):
    found = operators(network_operators, USUAL)
    assert {"Conv2DBackpropFilter grouped", "BatchNormGrad", "ApplyMomentum", "SigmoidGrad"} <= found, "backward pass"
    assert {"IsFinite", "Switch", "Sqrt"} <= found, "loss scale, its two branches, clipping"
    assert found - KNOWN == set(), "add them to ascend_operators.yaml with their source, if Ascend has them"


@pytest.mark.slow
@pytest.mark.parametrize("recipe", OTHERS.values(), ids=OTHERS)
def test_every_operator_of_other_recipes_is_known_on_ascend(operators, recipe):
    assert operators(network_operators, recipe) - KNOWN == set()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "grouped"),
    [*((name, "native") for name in BLOCK_NETWORKS), ("block_mobileone", "split"), ("block_repvggdw", "split")],
)
def test_every_operator_of_a_block_is_known_on_ascend(operators, name, grouped):
    found = operators(block_operators, name, grouped)
    assert {"Conv2D", "Conv2DBackpropFilter", "BatchNormGrad", "SiLUGrad"} <= {part.split()[0] for part in found}
    assert ("Split" in found) == (grouped == "split")
    assert not (grouped == "split" and "Conv2D grouped" in found)
    assert found - KNOWN == set()


class OnCpuOnly(nn.Cell):
    """Ends in an operator that MindSpore documents for CPU alone."""

    def __init__(self):
        super().__init__()
        self.dense = nn.Dense(4, 4)

    def construct(self, x):
        return ops.fmax(self.dense(x), x)


def cpu_only_operators():
    return cell_operators(OnCpuOnly(), Tensor(np.zeros((2, 4), np.float32)))


def test_an_operator_that_ascend_has_not_would_be_noticed(operators):
    assert documented_platforms("mindspore.ops.fmax") == ["CPU"]
    assert operators(cpu_only_operators) - KNOWN == {"Fmax"}


def test_operators_used_by_name_are_known_on_ascend():
    """Collectives too, whose graphs compile in a run of several processes only."""
    found = set()
    for path in (ROOT / "mindrepvgg").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ops":
                found.add(node.attr)
    primitives = {name for name in found if name[0].isupper() and name not in ("MultitypeFuncGraph", "HyperMap")}
    assert {"AllReduce", "AllGather", "Broadcast"} <= primitives
    assert primitives - KNOWN == set()


def documented_platforms(source):
    """What the docstring of a MindSpore object lists as its platforms."""
    module, _, name = source.rpartition(".")
    text = getattr(importlib.import_module(module), name).__doc__
    return re.findall(r"``(\w+)``", re.search(r"Supported Platforms:\s*\n(.+)", text)[1])


@pytest.mark.compat
@pytest.mark.parametrize(("name", "entry"), OPERATORS["documented"].items(), ids=lambda value: str(value)[:24])
def test_the_installed_documentation_says_the_same(name, entry):
    assert documented_platforms(entry["source"]) == entry["platforms"], name


@pytest.mark.skipif((mindspore_version() or (0, 0)) < (2, 10), reason="the file speaks of MindSpore 2.10")
def test_the_kernels_of_undocumented_operators_are_in_the_package():
    library = (Path(ms.__file__).parent / "lib" / "plugin" / "libmindspore_ops_ascend.so").read_bytes()
    kernels = [entry["kernel"] for entry in OPERATORS["undocumented"].values() if "kernel" in entry]
    assert len(kernels) >= 8
    assert [kernel for kernel in kernels if kernel.encode() not in library] == []
    assert b"aclnnNoSuchKernel" not in library


def written(suffix=".onnx", **options):
    return Written(Path(f"a b/out{suffix}"), GraphOptions(**options), {}, find("repvgg_a0"), 3, (224, 224))


def commands(suffix=".onnx", made=ascend_commands, **options):
    return "\n".join(text for _, text in made(written(suffix, **options)))


def test_commands_for_ascend():
    """As the documentation of ATC and converter_lite has them."""
    static = commands(batch_size=1, image_size=(224, 224))
    assert static.splitlines() == [
        "atc '--model=a b/out.onnx' --framework=5 '--output=a b/out' --soc_version=Ascend310P3 --input_format=NCHW "
        "--input_shape=images:1,3,224,224 --precision_mode_v2=origin",
        r"printf '%s\n' '[ascend_context]' precision_mode=enforce_origin > 'a b/out.lite.ini'",
        "converter_lite --fmk=ONNX '--modelFile=a b/out.onnx' --inputDataFormat=NCHW '--outputFile=a b/out_lite' "
        "--saveType=MINDIR --optimize=ascend_oriented --inputShape=images:1,3,224,224 '--configFile=a b/out.lite.ini'",
    ]
    batch = commands(image_size=(224, 224), precision="float16")
    assert "--input_shape=images:-1,3,224,224 --dynamic_batch_size=1,2,4,8,16 --precision_mode_v2=fp16" in batch
    assert "'input_shape=images:[-1,3,224,224]' 'dynamic_dims=[1],[2],[4],[8],[16]'" in batch
    size = commands(batch_size=4)
    assert "--input_shape=images:4,3,-1,-1 '--dynamic_image_size=224,224;256,256'" in size
    both = commands(preprocess=preprocessing(**RGB))
    assert "--input_format=ND --input_shape=images:-1,-1,-1,3 '--dynamic_dims=1,224,224;1,256,256;2,224,224" in both
    assert "--inputDataFormat" not in both
    assert "atc" not in commands(".mindir")
    assert "--inputDataFormat" not in commands(".mindir", image_size=(224, 224))
    assert commands(".wts") == ""
    assert "--framework=1" in commands(".air", batch_size=1, image_size=(224, 224))


def test_the_float16_file_that_lite_dies_of_is_said():
    def titles(**options):
        return [title for title, _ in ascend_commands(written(image_size=(224, 224), precision="float16", **options))]

    assert "crashes with a float16 file of any batch" in titles()[-1]
    assert "crashes" not in titles(batch_size=1)[-1]


def test_commands_for_lite_keep_nchw():
    """Without --inputDataFormat the converter makes a file that takes NHWC, and says nothing."""
    for_cpu, *_ = commands(made=lite_commands, image_size=(224, 224)).splitlines()
    assert for_cpu == (
        "converter_lite --fmk=ONNX '--modelFile=a b/out.onnx' --inputDataFormat=NCHW '--outputFile=a b/out'"
    )
    both = commands(made=lite_commands, image_size=(224, 224), batch_size=2)
    assert both.count("--inputDataFormat=NCHW") == 2
    assert both.splitlines()[0].endswith("--inputShape=images:2,3,224,224")
