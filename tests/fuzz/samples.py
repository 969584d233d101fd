"""One small network, in files of every kind: what the corpora break."""

from __future__ import annotations

import functools
import io
import pickle
import struct
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save
from support.hostile_pickles import dumps, tensor

from mindrepvgg.deployment.engine import network_facts
from mindrepvgg.deployment.graph import GraphOptions, build_onnx
from mindrepvgg.models.parameters import network_arrays
from mindrepvgg.models.preprocessing import Preprocessing
from mindrepvgg.recipe.sources import recipe_from_dict
from mindrepvgg.reparam.deploy import to_deploy
from mindrepvgg.training.trainer import Trainer
from mindrepvgg.weights.checkpoint import save_checkpoint
from mindrepvgg.weights.containers import read_weights, write_weights
from mindrepvgg.weights.load import create_model

RECIPE = {"model": "repvgg", "model_args": {"num_blocks": [1, 1, 1, 1], "widths": [4] * 5}, "num_classes": 10}
RECIPE |= {"in_channels": 1, "dataset": "mnist5k", "image_resize": 16, "mean": [0.1], "std": [0.3], "batch_size": 400}
RECIPE |= {"mode": 1, "num_parallel_workers": 1, "val_while_train": False}
TOLD = {
    "class_names": [f"digit {number}" for number in range(10)],
    "dataset": "mnist5k",
    "image_size": [16, 16],
    "preprocessing": {"mean": [0.1], "std": [0.3], "crop_pct": 1.0, "interpolation": "bilinear"},
    "recipe": RECIPE,
    "epoch": 1,
    "step": 12,
    "metrics": {"top1": 97.5, "loss": 0.1},
    "position": {"ranks": 1, "images_per_step": 400, "epoch": 1, "step_in_epoch": 2, "kept": [[1, 97.5]]},
}


@functools.cache
def network():
    """The network in train form."""
    return create_model("repvgg", num_classes=10, in_channels=1, **RECIPE["model_args"])


@functools.cache
def deployed():
    """The network in deploy form."""
    return to_deploy(network())


def in_file(write, suffix) -> bytes:
    """What `write(path)` writes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"x{suffix}")
        write(path)
        return path.read_bytes()


@functools.cache
def described(suffix=".ckpt"):
    """The arrays and the description of an unfinished run's checkpoint."""
    run = Trainer(recipe_from_dict({**RECIPE, "ckpt_save_dir": "nowhere"}))
    state = run.state.arrays()
    found = read_weights_of(in_file(lambda path: save_checkpoint(run.net, path, state, **TOLD), suffix), suffix)
    return found.arrays, found.description


def read_weights_of(content, suffix):
    """Read a checkpoint's bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"x{suffix}")
        path.write_bytes(content)
        return read_weights(path)


def sealed(description, suffix) -> bytes:
    """A whole checkpoint that tells `description`."""
    return in_file(lambda path: write_weights(path, described()[0], description), suffix)


def zipped(data_pickle: bytes, storages) -> bytes:
    """The bytes of a torch.save zip."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("archive/data.pkl", data_pickle)
        archive.writestr("archive/byteorder", "little")
        for index, data in enumerate(storages):
            archive.writestr(f"archive/data/{index}", data)
        archive.writestr("archive/version", "3\n")
    return content.getvalue()


def legacy(data_pickle: bytes, storages) -> bytes:
    """The bytes of a torch.save file as before PyTorch 1.6."""
    head = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    parts = [pickle.dumps(value, protocol=2) for value in head]  # by whose first bytes the form is told
    parts += [data_pickle, dumps([str(index) for index in range(len(storages))])]
    return b"".join([*parts, *(struct.pack("<q", len(data) // 4) + data for data in storages)])


def _strides(shape):
    return tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))


@functools.cache
def checkpoints() -> dict[str, tuple[bytes, ...]]:
    """Whole files by container, in train and in deploy form."""
    files = {suffix: (sealed(described()[1], suffix),) for suffix in (".ckpt", ".safetensors")}
    foreign: dict[str, list] = {
        ".plain.safetensors": [],
        ".plain.ckpt": [],
        ".pkl": [],
        ".zip.pth": [],
        ".legacy.pth": [],
    }
    for net in (network(), deployed()):
        arrays = network_arrays(net)
        state = {name: tensor(str(i), a.size, a.shape, _strides(a.shape)) for i, (name, a) in enumerate(arrays.items())}
        storages = [array.tobytes() for array in arrays.values()]
        foreign[".plain.safetensors"].append(save(arrays))
        foreign[".plain.ckpt"].append(in_file(lambda path, a=arrays: write_weights(path, a), ".ckpt"))
        foreign[".pkl"].append(pickle.dumps({"state_dict": arrays}))
        foreign[".zip.pth"].append(zipped(dumps({"state_dict": state}), storages))
        foreign[".legacy.pth"].append(legacy(dumps(state), storages))
    return files | {kind: tuple(contents) for kind, contents in foreign.items()}


@functools.cache
def onnx_models() -> tuple:
    """The network as ONNX models of several options."""
    arrays, net = network_arrays(deployed()), deployed()
    facts = network_facts(net) | {"class_names": TOLD["class_names"], "preprocessing": TOLD["preprocessing"]}
    normalise = Preprocessing(image_size=16, in_channels=1, mean=(0.1,), std=(0.3,))
    options = [GraphOptions(), GraphOptions(batch_size=2, image_size=(16, 16), precision="float16")]
    options.append(GraphOptions(preprocess=normalise, softmax=True))
    return tuple(build_onnx(net.variant, arrays, chosen, facts) for chosen in options)
