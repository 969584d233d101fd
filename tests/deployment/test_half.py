"""A float16 file is computed as a chip does, and blocks may stay in float32: an overflow is found, and mended."""

import json

import numpy as np
import onnx
import pytest
import torch
from support import images, relative_difference
from support.exports import FACTS, SIZE, make
from support.onnx_files import session

from mindrepvgg import create_model, save_checkpoint, to_deploy
from mindrepvgg.deployment import half
from mindrepvgg.deployment.graph import GraphOptions, build_onnx, check_operators
from mindrepvgg.models.parameters import network_arrays

pytestmark = pytest.mark.usefixtures("few_photos")

HALF = GraphOptions(precision="float16")
FIRST = ("stage0", "stage1.0", "stage1.1")


@pytest.fixture(scope="module")
def plain():
    """A network's layout, and its fused arrays."""
    net = to_deploy(make("plain"))
    return net.variant, network_arrays(net)


def by_torch(variant, arrays, x, exact=()):
    """The network with every convolution's, ReLU's and mean's output rounded, but for blocks in `exact`."""
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}

    def rounded(tensor):
        return tensor.half().float()

    def kept(tensor):
        return tensor

    x = torch.from_numpy(x)
    for spec in variant.block_specs():
        to = kept if spec.name in exact else rounded
        weight, bias = (to(tensors[f"{spec.fused}.{leaf}"]) for leaf in ("weight", "bias"))
        x = to(torch.relu(to(torch.nn.functional.conv2d(to(x), weight, bias, spec.stride, padding=1))))
    pooled = rounded(rounded(x).mean((2, 3)))
    return rounded(
        torch.nn.functional.linear(pooled, *(rounded(tensors[f"linear.{leaf}"]) for leaf in ("weight", "bias")))
    )


@pytest.mark.parametrize("exact", [(), FIRST, ("stage2.0", "stage4.0")])
def test_layers_are_rounded_as_pytorch_rounds_them(exact, plain):
    """And nearer to that than to float32, and than what onnxruntime makes of the file itself."""
    variant, arrays = plain
    x = images(4, 3, *SIZE)
    model = build_onnx(variant, arrays, GraphOptions(precision="float16", float32_blocks=exact))
    onnx.checker.check_model(model, full_check=True)
    (found,), _ = half._run(half._rounded(onnx.ModelProto.FromString(model.SerializeToString())), [], x)
    expected = by_torch(variant, arrays, x, exact).numpy()
    distance = relative_difference(found, expected)
    assert distance < 3e-4
    assert relative_difference(session(build_onnx(variant, arrays))(x), expected) > 2 * distance


@pytest.mark.parametrize("kind", ["plain", "d2se", "plus", "g4"])
def test_every_kind_of_network(kind):
    net = to_deploy(make(kind))
    found = half.check_half(net.variant, network_arrays(net), HALF, images(2, 3, *SIZE))
    assert 1e-5 < found.max_rel < 1e-2
    assert (found.all_float16, found.overflowing) == (None, None)
    assert all(largest > 0 and relative < 1e-2 for largest, relative in found.blocks.values())


def test_which_operators_and_types(plain):
    """A Cast at each change of type, and only there; weights of the kept blocks are float32."""
    variant, arrays = plain
    for blocks, casts in (((), 2), (FIRST, 2), (("stage2.0",), 4), (("stage4.0",), 4)):
        options = GraphOptions(precision="float16", float32_blocks=blocks)
        model = build_onnx(variant, arrays, options)
        assert check_operators(model, variant, options)["Cast"] == casts
        kept = {f"{name}.rbr_reparam.{leaf}" for name in blocks for leaf in ("weight", "bias")}
        types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
        assert {name for name, kind in types.items() if kind == onnx.TensorProto.FLOAT} == kept


def test_maps_of_both_types():
    net = create_model("repvgg", features_only=True, num_blocks=(2, 1, 2, 1), widths=(8, 8, 16, 24, 32), deploy=True)
    options = GraphOptions(precision="float16", float32_blocks=("stage4.0",))
    model = build_onnx(net.variant, network_arrays(net), options)
    onnx.checker.check_model(model, full_check=True)
    found = check_operators(model, net.variant, options)
    assert found["Identity"] == 1
    assert half.check_half(net.variant, network_arrays(net), options, images(1, 3, 64, 64)).max_rel < 1e-2


@pytest.fixture
def overflowing(plain, tmp_path):
    """A checkpoint that computes what the plain one does, with outputs of one block that float16 cannot hold."""
    _, arrays = plain
    factor = np.float32(2**15)
    changed = dict(arrays)
    for leaf in ("weight", "bias"):
        changed[f"stage1.0.rbr_reparam.{leaf}"] = arrays[f"stage1.0.rbr_reparam.{leaf}"] * factor
    changed["stage1.1.rbr_reparam.weight"] = arrays["stage1.1.rbr_reparam.weight"] / factor
    net = to_deploy(make("plain"))
    for parameter in net.get_parameters():
        parameter.set_data(type(parameter)(changed[parameter.name]))
    save_checkpoint(net, tmp_path / "net.ckpt", **FACTS)
    return tmp_path / "net.ckpt"


def test_an_overflow_is_found_and_mended(overflowing, call, tmp_path, monkeypatch):
    line = ("export", overflowing, tmp_path / "out.onnx", "--precision", "float16")
    status, out, err = call(*line)
    assert (status, out) == (1, "")
    assert "rounded to float16, as on a chip, its outputs differ by nan" in err
    assert "stage1.0 overflows; keep blocks in float32 with --float32_layers stage1.0" in err
    assert not (tmp_path / "out.onnx").exists()

    status, out, _ = call(*line, "--float32_layers", "stage1.*", "--json")
    found = json.loads(out)
    assert status == 0
    assert found["half"]["max_rel"] < 1e-2
    assert found["half"]["all_float16"] == "NaN"
    assert found["half"]["blocks"]["stage1.0"][0] > half.LARGEST
    assert found["metadata"]["float32_layers"] == ["stage1.0", "stage1.1"]
    status, out, _ = call(*line, "--float32_layers", "stage1.*")
    assert "without float32 layers by nan" in out
    assert "of stage1.0; float16 holds 65504" in out


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("out.onnx", "--float32_layers", "stage1.*"), "--float32_layers is for .onnx with --precision float16"),
        (("out.mindir", "--precision", "float16", "--float32_layers", "stage0"), "--float32_layers is for .onnx"),
        (("out.onnx", "--precision", "float16", "--float32_layers", "stage9"), "(='stage9') matches no block of"),
    ],
)
def test_what_is_refused(arguments, error, call, checkpoints, tmp_path):
    name, *options = arguments
    status, out, err = call("export", checkpoints["deploy"], tmp_path / name, *options)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert error in err
