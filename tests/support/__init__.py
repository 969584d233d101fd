"""What several test modules need: weights that hide nothing, and numbers to compare."""

import contextlib
import importlib.util
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindrepvgg import create_model

ROOT = Path(__file__).parents[2]

# What version 0.1 wrote.
FROZEN = ROOT / "tests" / "artefacts" / "frozen_0_1"

MODES = {"graph": ms.GRAPH_MODE, "pynative": ms.PYNATIVE_MODE}

# Small networks of every kind, for create_model("repvgg", **SMALL[kind]).
SMALL = {
    "plain": {"num_blocks": (2, 1, 2, 1), "widths": (8, 8, 16, 24, 32)},
    "g4": {"num_blocks": (2, 1, 2, 1), "widths": (8, 8, 16, 24, 32), "group_size": 4},
    "d2se": {"num_blocks": (2, 1, 2, 1), "widths": (16, 16, 32, 48, 64), "se": "pre"},
    "plus": {
        "num_blocks": (2, 1, 3, 1),
        "widths": (8, 8, 16, 24, 32),
        "se": "post",
        "se_ratio": 4,
        "aux_heads": True,
    },
}


# Small networks of the other blocks, for create_model(kind, **OTHER_SMALL[kind]).
OTHER_SMALL = {
    "qarepvgg": {"num_blocks": (2, 1, 2, 1), "widths": (8, 8, 16, 24, 32), "group_size": 4},
    "mobileone": {
        "num_blocks": (2, 1, 2, 1),
        "widths": (8, 8, 16, 24, 32),
        "branches": 3,
        "se_blocks": (0, 0, 1, 1),
        "se_ratio": 4,
    },
    "repopt_vgg": {"num_blocks": (2, 1, 2, 1), "widths": (8, 8, 16, 24, 32), "se": "post", "se_ratio": 4},
}

# What `validate --json` tells, in its order.
VALIDATION_KEYS = (
    *("model", "form", "dataset", "device", "processes", "engine", "precision", "amp_level", "flip", "split_images"),
    *("top1", "top5", "loss", "num_images", "correct", "images_per_second", "unreadable"),
)

# A form by whether it is the deploy form.
FORM = {False: "train", True: "deploy"}
BOTH_FORMS = pytest.mark.parametrize("deploy", [False, True], ids=["train", "deploy"])

# A recipe for real digits on a network of a few thousand parameters, to which a test adds what it is about.
TINY_DIGITS = {
    "model": "repvgg",
    "model_args": {"num_blocks": [1, 1, 1, 1], "widths": [4, 4, 8, 8, 16]},
    "num_classes": 10,
    "in_channels": 1,
    "dataset": "mnist5k",
    "image_resize": 16,
    "crop_pct": 1.0,
    "mean": [0.1307],
    "std": [0.3081],
}


def paired(ones, others):
    """All pairs of two lists, to parametrise with; slow ones but for so few that each value is there."""
    return [
        pytest.param(one, other, marks=() if i % len(others) == j % len(ones) else pytest.mark.slow)
        for i, one in enumerate(ones)
        for j, other in enumerate(others)
    ]


@contextlib.contextmanager
def context_mode(mode):
    """Run the body in 'graph' or 'pynative' mode, then return to the mode of before."""
    before = ms.get_context("mode")
    ms.set_context(mode=MODES[mode])
    try:
        yield
    finally:
        ms.set_context(mode=before)


def script(name):
    """A script of the repository as a module, by its path without .py: 'constraints/lock'."""
    path = ROOT / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def randomise_bn(net, seed=0):
    """Give every BN a history, as training would: nothing may pass only because a fresh BN does nothing.

    gamma +-(0.5..1.5), a quarter of them negative; beta and mean N(0, 0.1); variance 0.2..2. The signal is kept alive,
    so that the logits depend on the input after 47 blocks too: SE's last bias becomes 2..4 (fresh SE halves every map),
    and a deploy convolution gets He's variance. Returns `net`.
    """
    rng = np.random.default_rng(seed)
    for parameter in net.get_parameters():
        shape, leaf = parameter.shape, parameter.name.rpartition(".")[2]
        if leaf == "gamma":
            value = rng.uniform(0.5, 1.5, shape) * rng.choice([1, 1, 1, -1], shape)
        elif leaf in ("beta", "moving_mean"):
            value = rng.normal(0, 0.1, shape)
        elif leaf == "moving_variance":
            value = rng.uniform(0.2, 2, shape)
        elif parameter.name.endswith("se.up.bias"):
            value = rng.uniform(2, 4, shape)
        elif leaf == "weight" and len(shape) == 1:  # the scale of a branch
            value = rng.uniform(0.5, 1.5, shape)
        elif parameter.name.endswith(("rbr_reparam.weight", "reparam_conv.weight")):
            value = rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
        else:
            continue
        parameter.set_data(Tensor(value, parameter.dtype))
    return net


def small(kind="plain", seed=0, **options):
    """A small RepVGG of a kind of SMALL with a random history, in inference; the same one for the same seed."""
    ms.set_seed(seed)
    return randomise_bn(create_model("repvgg", 10, **{**SMALL[kind], **options}), seed).set_train(False)


def images(*shape, seed=0):
    """Noise as a float32 array, (2, 3, 32, 32) unless told; every image has a contrast and a colour of its own."""
    rng, shape = np.random.default_rng(seed), shape or (2, 3, 32, 32)
    ones = (1,) * (len(shape) - 2)
    contrast, colour = rng.uniform(0.5, 2, (shape[0], 1, *ones)), rng.normal(size=(*shape[:2], *ones))
    return (contrast * rng.normal(size=shape) + colour).astype(np.float32)


def noise(*shape, seed=0):
    """Normal noise as a float32 array."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def array(x):
    """A MindSpore or PyTorch tensor, or an array, as float64."""
    if isinstance(x, Tensor):
        x = x.asnumpy()
    elif hasattr(x, "detach"):
        x = x.detach().numpy()
    return np.asarray(x, np.float64)


def relative_difference(actual, expected):
    """Largest difference over the largest expected magnitude; NaN when either has one."""
    actual, expected = array(actual), array(expected)
    assert actual.shape == expected.shape, f"shapes {actual.shape} and {expected.shape}"
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def weights(net):
    """The parameters by name, as copies; the names must be unique."""
    found = [(parameter.name, parameter.asnumpy().copy()) for parameter in net.get_parameters()]
    assert len(dict(found)) == len(found), "two parameters share a name"
    return dict(found)


def same_weights(before, after):
    """Whether two sets of named arrays are the same, bit for bit."""
    return before.keys() == after.keys() and all(np.array_equal(before[name], after[name]) for name in before)


def assert_same(got, want, where="root"):
    """Compare nested plain values; arrays bit for bit, with dtype, shape and layout."""
    assert type(got) is type(want), f"{where}: {type(got)} for {type(want)}"
    if isinstance(want, np.ndarray):
        assert (got.dtype, got.shape) == (want.dtype, want.shape), where
        assert got.flags.c_contiguous, where
        assert got.flags.writeable, where
        assert got.tobytes() == want.tobytes(), where
    elif isinstance(want, dict):
        assert list(got) == list(want), where
        for key in want:
            assert_same(got[key], want[key], f"{where}[{key!r}]")
    elif isinstance(want, (list, tuple)):
        assert len(got) == len(want), where
        for i, (a, b) in enumerate(zip(got, want, strict=True)):
            assert_same(a, b, f"{where}[{i}]")
    else:
        assert got == want or (got != got and want != want), where


def contents(folder):
    """Every file below a folder, with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
