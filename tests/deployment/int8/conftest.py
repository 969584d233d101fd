"""A network that reads digits, trained by PyTorch; in float and as INT8."""

import functools

import numpy as np
import pytest
from PIL import Image
from support import context_mode
from support.int8 import FACTS, SHAPE, digits

from mindrepvgg import create_model, load_checkpoint, save_checkpoint
from mindrepvgg.data.datasets import DATASETS, open_source
from mindrepvgg.deployment.export import export_checkpoint
from mindrepvgg.deployment.int8 import quantize, report
from mindrepvgg.deployment.int8.prepare import QuantizeOptions
from mindrepvgg.deployment.int8.quantize import quantize_checkpoint
from mindrepvgg.models.parameters import load_arrays, network_arrays
from mindrepvgg.models.variants import find

_CACHED = functools.lru_cache(DATASETS["mnist5k"])


@pytest.fixture(autouse=True, scope="module")
def _quick():
    """PyNative mode, digits read once, and a look at the speed."""
    with context_mode("pynative"), pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATASETS, "mnist5k", _CACHED)
        patch.setattr(quantize, "latencies", functools.partial(report.latencies, rounds=2))
        yield


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A network in deploy form that reads digits, trained by PyTorch for a few seconds."""
    torch = pytest.importorskip("torch")  # here, so that this folder's modules load without it
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more of them wait longer for each other than such layers take
    specs, layers = find("repvgg", **SHAPE).block_specs(1), []
    for spec in specs:
        conv = torch.nn.Conv2d(spec.in_channels, spec.out_channels, 3, spec.stride, 1)
        torch.nn.init.kaiming_normal_(conv.weight)
        layers += [conv, torch.nn.ReLU()]
    linear = torch.nn.Linear(64, 10)
    model = torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), linear)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    x, labels = digits("train")
    x, labels = torch.tensor(x[::2]), torch.tensor(labels[::2], dtype=torch.long)
    for _ in range(4):
        for rows in torch.randperm(len(x)).split(50):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x[rows]), labels[rows]).backward()
            optimizer.step()
    torch.set_num_threads(threads)
    names = [*(f"{spec.name}.rbr_reparam" for spec in specs), "linear"]
    convolutions = [*layers[::2], linear]
    net = create_model("repvgg", 10, 1, deploy=True, **SHAPE)
    arrays = {
        f"{name}.{leaf}": getattr(layer, leaf).detach().numpy()
        for name, layer in zip(names, convolutions, strict=True)
        for leaf in ("weight", "bias")
    }
    load_arrays(net.get_parameters(), arrays, "PyTorch")
    path = tmp_path_factory.mktemp("checkpoint") / "digits.ckpt"
    save_checkpoint(net, path, **FACTS)
    return path


@pytest.fixture(scope="session")
def written(checkpoint, tmp_path_factory):
    """What `quantize_checkpoint` found and wrote with 7 bits, which no CPU's kernels saturate with."""
    path = tmp_path_factory.mktemp("written") / "digits.onnx"
    options = QuantizeOptions(weight_bits=7, calibration_images=100, keep_float=(), target_drop=2)
    return quantize_checkpoint(checkpoint, path, options, report=path.with_suffix(".json"))


@pytest.fixture(scope="session")
def float_path(checkpoint, tmp_path_factory):
    """The same network in float, exported."""
    return export_checkpoint(checkpoint, tmp_path_factory.mktemp("float") / "float.onnx").destination


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Digits 0 ... 9 as an image folder with train and val, two each."""
    root, source = tmp_path_factory.mktemp("folders"), open_source("mnist5k", None, "val")
    for split, first in (("train", 0), ("val", 2)):
        for digit in range(10):
            folder = root / split / str(digit)
            folder.mkdir(parents=True)
            for index in np.flatnonzero(source.labels == digit)[first : first + 2]:
                Image.fromarray(source.images[index][..., 0]).save(folder / f"{index}.png")
    (root / "empty").mkdir()
    return root


@pytest.fixture(scope="session")
def sick_arrays(checkpoint):
    """(layout, arrays) of the digits' network with what makes INT8 collapse: channels without a signal, read loudly.

    Of stage3.0's channels 1, 5 and 9 are always 0, and 12 is always 0.75. The next layer multiplies them by hundreds.
    """
    arrays = {name: array.copy() for name, array in network_arrays(load_checkpoint(checkpoint)).items()}
    for channel, value in ((1, -1.0), (5, -1.0), (9, -1.0), (12, 0.75)):
        arrays["stage3.0.rbr_reparam.weight"][channel] = 0
        arrays["stage3.0.rbr_reparam.bias"][channel] = value
        arrays["stage3.1.rbr_reparam.weight"][channel, channel, 1, 1] = 300 if value < 0 else 40
    arrays["stage3.1.rbr_reparam.bias"][12] -= 0.75 * 40
    return find("repvgg", **SHAPE), arrays


@pytest.fixture(scope="session")
def sick(sick_arrays, tmp_path_factory):
    """The checkpoint of `sick_arrays`."""
    net = create_model("repvgg", 10, 1, deploy=True, **SHAPE)
    load_arrays(net.get_parameters(), sick_arrays[1], "the sick network")
    path = tmp_path_factory.mktemp("sick") / "sick.ckpt"
    save_checkpoint(net, path, **FACTS)
    return path
