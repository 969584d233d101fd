"""Files that version 0.1 wrote are read as it read them, and its stopped runs go on.

artefacts/frozen_0_1/README.md tells of the files. Public names and the commands only: whatever moves inside the
package, this module stays as it is.
"""

import functools
import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from mindspore import Tensor

from mindrepvgg import create_model, load_checkpoint, load_weights, save_checkpoint, to_deploy, verify_equivalence

ROOT = Path(__file__).parents[1]
FROZEN = Path(__file__).parent / "artefacts" / "frozen_0_1"

FILES = sorted(path.relative_to(FROZEN).as_posix() for path in FROZEN.rglob("*") if path.is_file())
CHECKPOINTS = [name for name in FILES if name.endswith((".ckpt", ".safetensors"))]
# Those that are read as the network they fold into.
FOLDED = [name for name in CHECKPOINTS if name.startswith(("bn", "qat")) and "_deploy" not in name]
PLAIN = [name for name in CHECKPOINTS if name not in FOLDED]
TWINS = [path.stem for path in sorted(FROZEN.glob("*.ckpt")) if path.with_suffix(".safetensors").exists()]
FUSED = {
    "train.ckpt": "deploy.ckpt",
    "train.safetensors": "deploy.safetensors",
    "grouped_se.ckpt": "grouped_se_deploy.safetensors",
    "plus.safetensors": "plus_deploy.ckpt",
}

# Differences over the largest magnitude: of logits and trained weights on another CPU, of float64 rounded to float32.
LOGITS, ROUNDING = 1e-5, 3e-7

pytestmark = pytest.mark.usefixtures("pynative_mode")


@functools.cache
def logits():
    """By file, and the two inputs."""
    with np.load(FROZEN / "expected.npz") as file:
        return dict(file)


def _of(expected, name):
    """What is expected of a file; of a twin it is kept once."""
    return expected[name if name in expected else str(Path(name).with_suffix(".ckpt"))]


def expected_metadata(name):
    found = dict(_of(json.loads((FROZEN / "expected.json").read_text("utf-8")), name))
    if "recipe" in found:
        found["recipe"] = yaml.safe_load((FROZEN / found["recipe"] / "recipe.yaml").read_text("utf-8"))
    return found


def compute(net):
    return net(Tensor(logits()["input_gray" if net.in_channels == 1 else "input_colour"])).asnumpy()


def arrays(net):
    return {parameter.name: parameter.asnumpy() for parameter in net.get_parameters()}


def difference(found, expected):
    """The largest, over the largest magnitude expected."""
    assert found.shape == expected.shape
    largest = np.abs(expected).max(initial=0)
    return np.abs(found - expected).max(initial=0) / (largest if largest else 1)


def assert_same_weights(found, expected, most):
    """Of two networks, in the same order; most: as of `difference`, 0 for the same bits."""
    found, expected = arrays(found), arrays(expected)
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        if most == 0:
            assert found[name].tobytes() == array.tobytes(), name
        assert difference(found[name], array) <= most, name


def train(*arguments, cwd):
    """train.py in a process of its own, whose age has a say in the last bit of a loss."""
    command = [sys.executable, ROOT / "train.py", *arguments]
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_nothing_is_missing():
    """The tests below go by what is there."""
    assert TWINS == ["bn", "deploy", "ema", "qat", "train"]
    assert set(CHECKPOINTS) == {
        *(f"{stem}{suffix}" for stem in TWINS for suffix in (".ckpt", ".safetensors")),
        *("bn_deploy.ckpt", "qat_deploy.ckpt", "plus_deploy.ckpt", "grouped_se_deploy.safetensors"),
        *("grouped_se.ckpt", "plus.safetensors"),
        *(f"{folder}/repvgg_last.ckpt" for folder in ("run", "bn_run", "qat_run")),
    }
    assert sum((FROZEN / name).stat().st_size for name in FILES) < 400 * 1024


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_weights_and_metadata(name):
    net = load_weights(FROZEN / name)
    assert net.metadata == expected_metadata(name)
    assert difference(compute(net), _of(logits(), name)) <= LOGITS


@pytest.mark.parametrize("name", PLAIN)
def test_load_checkpoint_reads_the_same(name):
    net = load_checkpoint(FROZEN / name)
    assert net.metadata == expected_metadata(name)
    assert_same_weights(net, load_weights(FROZEN / name), 0)
    assert load_checkpoint(FROZEN / name, net=net) is net


@pytest.mark.parametrize(
    "name", [name for name in CHECKPOINTS if name.endswith(".ckpt") or Path(name).stem not in TWINS]
)
def test_another_kernel_would_be_noticed(name):
    """The logits depend on the first kernel, by more than they may differ."""
    net = load_weights(FROZEN / name)
    kernel = next(parameter for parameter in net.get_parameters() if parameter.name.endswith("weight"))
    kernel.set_data(Tensor(kernel.asnumpy() * np.float32(1.01)))
    assert difference(compute(net), _of(logits(), name)) > 10 * LOGITS


@pytest.mark.parametrize("name", ["train.ckpt", "train.safetensors"])
def test_an_altered_byte_is_noticed(name, tmp_path):
    content = bytearray((FROZEN / name).read_bytes())
    content[-5] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Exception, match="altered"):
        load_weights(tmp_path / name)


@pytest.mark.parametrize("stem", TWINS)
def test_both_containers_hold_the_same(stem):
    one, other = (load_weights(FROZEN / f"{stem}{suffix}") for suffix in (".ckpt", ".safetensors"))
    assert_same_weights(one, other, 0)
    assert one.metadata == other.metadata


@pytest.mark.parametrize("name", FUSED)
def test_fusing_gives_the_frozen_deploy_form(name):
    net = load_checkpoint(FROZEN / name, form="train")
    deployed = to_deploy(net)
    assert verify_equivalence(net, deployed, logits()["input_gray" if net.in_channels == 1 else "input_colour"]).passed
    assert_same_weights(deployed, load_checkpoint(FROZEN / FUSED[name], form="deploy"), ROUNDING)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("kind", ["bn", "qat"])
def test_int8_forms_fold_as_they_did(kind, suffix):
    folded, expected = load_weights(FROZEN / f"{kind}{suffix}"), load_weights(FROZEN / f"{kind}_deploy.ckpt")
    assert_same_weights(folded, expected, ROUNDING)
    scales = "quantization_parameters"
    assert (scales in folded.metadata) == (kind == "qat")
    assert folded.metadata.get(scales) == expected.metadata.get(scales)


def test_create_model_takes_them():
    told = expected_metadata("train.ckpt")
    shape = {"num_classes": 10, "in_channels": 1, **told["model_args"]}
    net = create_model(told["model"], weights=FROZEN / "train.ckpt", **shape).set_train(False)
    assert_same_weights(net, load_weights(FROZEN / "train.ckpt"), 0)
    deployed = create_model(told["model"], deploy=True, weights=FROZEN / "train.ckpt", **shape)
    assert_same_weights(deployed, load_weights(FROZEN / "deploy.ckpt"), ROUNDING)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("name", ["train.ckpt", "deploy.ckpt", "plus.safetensors"])
def test_saved_again_they_stay_what_they_are(name, suffix, tmp_path):
    net = load_checkpoint(FROZEN / name)
    save_checkpoint(net, tmp_path / f"again{suffix}")
    again = load_checkpoint(tmp_path / f"again{suffix}")
    assert_same_weights(again, net, 0)
    assert {**again.metadata, "versions": None} == {**net.metadata, "versions": None}


@pytest.mark.parametrize("name", ["ema.safetensors", "deploy.ckpt"])
def test_validate(name, call):
    """As accurate as the run found it; fusing may turn an image or two."""
    told = expected_metadata(name)["metrics"]
    status, out, err = call("validate", "--ckpt_path", FROZEN / name, "--json")
    assert status == 0, err
    found = json.loads(out)
    assert (found["dataset"], found["num_images"]) == ("mnist5k", 1000)
    assert found["top1"] == pytest.approx(told["top1"], abs=0.2)
    assert found["top5"] == pytest.approx(told["top5"], abs=0.2)
    assert found["loss"] == pytest.approx(told["loss"], rel=1e-5)


@pytest.mark.parametrize(("name", "expected"), [("train.safetensors", "deploy.ckpt"), ("qat.ckpt", "qat_deploy.ckpt")])
def test_convert(name, expected, tmp_path, call):
    assert call("convert", FROZEN / name, tmp_path / expected)[0] == 0
    converted, expected = (load_checkpoint(folder / expected, form="deploy") for folder in (tmp_path, FROZEN))
    assert_same_weights(converted, expected, ROUNDING)
    scales = "quantization_parameters"
    assert converted.metadata.get(scales) == expected.metadata.get(scales)


class TestONNX:
    @staticmethod
    def open(name):
        """(logits, metadata) of a file, by onnxruntime."""
        onnxruntime = pytest.importorskip("onnxruntime")
        session = onnxruntime.InferenceSession(str(FROZEN / name), providers=["CPUExecutionProvider"])
        told = {key: json.loads(text) for key, text in session.get_modelmeta().custom_metadata_map.items()}
        return session.run(None, {session.get_inputs()[0].name: logits()["input_gray"]})[0], told

    def test_float32(self):
        found, told = self.open("float32.onnx")
        assert told == expected_metadata("float32.onnx")
        assert difference(found, logits()["float32.onnx"]) <= LOGITS
        assert difference(found, compute(load_weights(FROZEN / "deploy.ckpt"))) <= LOGITS

    def test_int8(self):
        """Where another CPU rounds an activation to the next integer, the logits move a little."""
        found, told = self.open("int8.onnx")
        assert told == expected_metadata("int8.onnx")
        assert difference(found, logits()["int8.onnx"]) <= 0.02
        assert difference(found, logits()["float32.onnx"]) > 0.02, "so that it is not the float network"

    @pytest.mark.parametrize("name", ["float32.onnx", "int8.onnx"])
    def test_they_were_made_from_the_frozen_checkpoint(self, name):
        digest = hashlib.sha256((FROZEN / "deploy.ckpt").read_bytes()).hexdigest()
        assert self.open(name)[1]["checkpoint_sha256"] == digest


# What a training step is made of, by MindSpore alone: the same bits, and the machine computes as the one that wrote the
# files. They change with the instruction set and with the number of cores.
_PROBE = """
import hashlib
import numpy as np
import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops

ms.set_context(mode=ms.PYNATIVE_MODE)
rng = np.random.default_rng(0)

def normal(*shape):
    return Tensor((0.5 * rng.normal(size=shape)).astype(np.float32))

class Net(nn.Cell):
    def __init__(self):
        super().__init__()
        self.convs, self.norms = nn.CellList(), nn.CellList()
        for into, out, size in ((1, 4, 3), (4, 4, 3), (4, 4, 1), (4, 8, 3)):
            kernel = normal(out, into, size, size)
            self.convs.append(nn.Conv2d(into, out, size, 2, "pad", size // 2, weight_init=kernel))
            self.norms.append(nn.BatchNorm2d(out))
        self.linear = nn.Dense(8, 10, weight_init=normal(10, 8), bias_init=normal(10))

    def construct(self, x, y):
        for i in range(4):
            x = ops.relu(self.norms[i](self.convs[i](x)))
        return ops.cross_entropy(self.linear(x.mean((2, 3))), y, label_smoothing=0.1)

net = Net().set_train()
weights = net.trainable_params()
optimizer = nn.Momentum(weights, 0.1, 0.9)
step = ms.value_and_grad(net, None, weights)
x, y = normal(200, 1, 16, 16), Tensor(rng.integers(0, 10, 200).astype(np.int32))
digest = hashlib.sha256()
for _ in range(3):
    loss, gradients = step(x, y)
    optimizer(gradients)
    for value in (loss, *gradients):
        digest.update(value.asnumpy().tobytes())
for parameter in net.get_parameters():
    digest.update(parameter.asnumpy().tobytes())
print(digest.hexdigest())
"""

_WRITTEN_WITH = {"mindspore": "2.10.0", "numpy": "1.26.4", "pillow": "13.0.0", "probe": "11b739c1c3224728"}


@functools.cache
def another_machine() -> str:
    """In what this machine is not the one that wrote the files; empty when it computes the same bits."""
    here = {name: importlib.metadata.version(name) for name in _WRITTEN_WITH if name != "probe"}
    done = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    here["probe"] = done.stdout.split()[-1][:16]
    return ", ".join(f"{key} {here[key]}, not {value}" for key, value in _WRITTEN_WITH.items() if here[key] != value)


def records(path):
    """A log's lines without what no two runs share."""
    varies = ("images_per_second", "data_wait")
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key not in varies} for line in lines]


@pytest.mark.parametrize(
    ("name", "arguments", "ends", "most", "images", "exact"),
    [
        # In the default suite training/test_resume.py takes all three up, and the second goes on to its end.
        pytest.param(
            *("run", ["--resume", "run/repvgg_last.ckpt"], {"best": "train", "ema_best": "ema"}, LOGITS, 2, True),
            marks=pytest.mark.slow,
        ),
        ("bn_run", ["-c", "bn_run/recipe.yaml", "--resume"], {"best": "bn"}, LOGITS, 2, True),
        # The README of the files says why not exactly.
        pytest.param(
            *("qat_run", ["--resume", "qat_run/repvgg_last.ckpt"], {"best": "qat"}, 1e-3, 10, False),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["run", "bn_run", "qat_run"],
)
def test_a_stopped_run_goes_on_to_its_end(name, arguments, ends, most, images, exact, tmp_path, monkeypatch, call):
    """As in 0.1: to `most` and a few of 1,000 images on any machine, bit for bit where it computes the same."""
    before, folder = FROZEN / name, tmp_path / name
    shutil.copytree(before, folder)
    (folder / "log_of_the_end.jsonl").unlink()
    if exact:
        train(*arguments, cwd=tmp_path)
    else:
        monkeypatch.chdir(tmp_path)
        status, _, err = call("train", *arguments)
        assert status == 0, err

    logged, expected = records(folder / "log.jsonl"), records(before / "log_of_the_end.jsonl")
    earlier = records(before / "log.jsonl")
    assert len(earlier) < len(expected)
    assert logged[: len(earlier)] == earlier == expected[: len(earlier)]
    assert [(r["event"], r["step"]) for r in logged] == [(r["event"], r["step"]) for r in expected]
    for found, line in zip(logged, expected, strict=True):
        assert found.keys() >= line.keys()
        for key in line.keys() - {"event"}:
            slack = {"top1": images / 10, "top5": images / 10, "correct": images}
            wanted = pytest.approx(line[key], abs=slack[key]) if key in slack else pytest.approx(line[key], rel=most)
            assert found[key] == wanted, (key, line)

    networks = {}
    for what, frozen in ends.items():
        found, wanted = networks[what] = (
            load_weights(folder / f"repvgg_{what}.ckpt"),
            load_weights(FROZEN / f"{frozen}.ckpt"),
        )
        assert_same_weights(found, wanted, most)
        assert_same_facts(found.metadata, wanted.metadata)
        start = load_weights(before / "repvgg_last.ckpt")
        with pytest.raises(AssertionError):
            assert_same_weights(start, wanted, 2 * most)  # what the steps since have changed is noticed

    if not exact:
        return
    if other := another_machine():
        pytest.skip(f"it agrees to {most}; not compared bit for bit, as the machine is another: {other}")
    assert [{key: found[key] for key in line} for found, line in zip(logged, expected, strict=True)] == expected
    for found, wanted in networks.values():
        assert_same_weights(found, wanted, 0)


def assert_same_facts(found, expected):
    """What a new checkpoint tells is what 0.1 told, and possibly more; but for versions and measured numbers."""
    assert found.keys() >= expected.keys()
    for key in expected.keys() - {"versions", "metrics", "quantization_parameters"}:
        if isinstance(expected[key], dict):
            # In 0.1 the recipe's word for no quantisation was "none", which is read as null since.
            wanted = {
                name: None if (name, value) == ("quantization", "none") else value
                for name, value in expected[key].items()
            }
            assert found[key].items() >= wanted.items()
        else:
            assert found[key] == expected[key], key
