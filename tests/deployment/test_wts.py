"""Files for TensorRT programs: the tensors are the fused ones bit for bit, and a damaged file is refused."""

import struct

import mindspore as ms
import numpy as np
import pytest
from support.exports import make

import mindrepvgg
from mindrepvgg import create_model, to_deploy
from mindrepvgg.deployment import wts
from mindrepvgg.deployment.wts import read_wts, write_wts
from mindrepvgg.errors import CheckpointError, EquivalenceError
from mindrepvgg.models.parameters import network_arrays
from mindrepvgg.models.shapes import parameter_shapes
from mindrepvgg.models.variants import DEPLOY, find

# The networks that the programs build.
NAMES = [
    *(f"repvgg_{name}" for name in ("a0", "a1", "a2", "b0")),
    *(f"repvgg_b{size}{groups}" for size in "123" for groups in ("", "g2", "g4")),
]


def parsed(path):
    """The file as its readers take it, without a line of ours: name -> the values' bits."""
    first, *lines = path.read_text("ascii").splitlines()
    assert int(first) == len(lines)
    found = {}
    for line in lines:
        name, count, *values = line.split(" ")
        assert int(count) == len(values)
        found[name] = [struct.unpack(">f", bytes.fromhex(value))[0] for value in values]
    return found


@pytest.mark.parametrize("kind", ["plain", "g4", "nano"])
def test_the_file_holds_the_fused_network(kind, call, checkpoints, tmp_path):
    status, out, err = call("export", checkpoints[kind], tmp_path / "out.wts")
    assert (status, err) == (0, "")
    expected = network_arrays(to_deploy(make(kind)))
    assert f"{len(expected)} tensors, read back: the network's bit for bit; not run on a GPU" in out
    assert "not run here" not in out
    found = parsed(tmp_path / "out.wts")
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert np.array_equal(np.float32(found[name]), array.ravel()), name
    assert (tmp_path / "out.wts.json").exists()


@pytest.mark.parametrize("name", NAMES)
def test_the_names_of_every_variant(name, tmp_path):
    """Of each network of the programs: its names in their order, and its counts; the values are few, for speed."""
    variant = find(name)
    shapes = parameter_shapes(variant, DEPLOY)
    rng = np.random.default_rng(0)
    arrays = {key: rng.normal(size=shape[:1]).astype(np.float32) for key, shape in shapes.items()}
    assert write_wts(tmp_path / "out.wts", arrays) == len(shapes) == 2 * (len(variant.block_specs()) + 1)
    found = read_wts(tmp_path / "out.wts")
    assert all(found[key].tobytes() == array.tobytes() for key, array in arrays.items())
    assert {"stage0.rbr_reparam.weight", "stage1.0.rbr_reparam.bias", "stage4.0.rbr_reparam.weight"} <= found.keys()
    assert {"linear.weight", "linear.bias"} <= found.keys()


@pytest.mark.slow
def test_a_released_size(tmp_path):
    ms.set_seed(0)
    mindrepvgg.save_checkpoint(create_model("repvgg_a0"), tmp_path / "a0.ckpt")
    done = mindrepvgg.export(tmp_path / "a0.ckpt", tmp_path / "a0.wts")
    assert done.tensors == 46
    assert read_wts(tmp_path / "a0.wts")["linear.weight"].size == 1280 * 1000


@pytest.fixture
def written(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=(2, 3)).astype(np.float32) for name in ("linear.weight", "linear.bias")}
    write_wts(tmp_path / "out.wts", arrays)
    return tmp_path / "out.wts"


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lambda text: text[: text.rindex("linear")], "announces 2 tensors and has 1; get a fresh copy"),
        (lambda text: text[:-10] + "\n", "line 3 does not hold the 6 values"),
        (lambda text: text[:-2] + "g\n", "line 3 is not hexadecimal"),
        (lambda text: text.replace("bias", "weight"), "has 'linear.weight' twice"),
        (lambda text: text.replace(" 6 ", " six "), "line 2 has no count"),
        (lambda text: text.replace("linear.bias 6", "linear.bias"), "line 3 has no count where one is expected"),
        (lambda text: "", "line 1 has no count"),
    ],
)
def test_a_damaged_file_is_refused(damage, error, written):
    whole = written.read_text("ascii")
    read_wts(written)
    written.write_text(damage(whole), "ascii")
    with pytest.raises(CheckpointError, match=error):
        read_wts(written)


def test_a_file_that_holds_something_else_is_not_kept(call, checkpoints, tmp_path, monkeypatch):
    """Negative control: the check after writing sees one value that changed."""

    def changed(path):
        found = read_wts(path)
        found["linear.bias"] = found["linear.bias"] + np.float32(1e-3)
        return found

    monkeypatch.setattr(wts, "read_wts", changed)
    with pytest.raises(EquivalenceError, match=r"does not hold the network: linear.bias"):
        write_wts(tmp_path / "own.wts", {"linear.bias": np.ones(3, np.float32)})
    status, _, err = call("export", checkpoints["plain"], tmp_path / "out.wts")
    assert (status, "does not hold the network" in err) == (1, True)
    assert not (tmp_path / "out.wts").exists()


@pytest.mark.parametrize(
    ("kind", "options", "error"),
    [
        ("d2se", (), "a .wts is for networks of plain 3x3 blocks that classify"),
        ("plain", ("--precision", "float16"), "a .wts holds float32 weights and nothing else"),
        ("plain", ("--softmax",), "a .wts holds float32 weights and nothing else"),
        ("plain", ("--for", "tensorrt"), "must end in one of .onnx"),
    ],
)
def test_what_it_cannot_hold_is_refused(kind, options, error, call, checkpoints, tmp_path):
    status, _, err = call("export", checkpoints[kind], tmp_path / "out.wts", *options)
    assert status == 2
    assert error in err
    assert not (tmp_path / "out.wts").exists()
