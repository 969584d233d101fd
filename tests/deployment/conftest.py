"""Checkpoints to export, and what PyTorch computes of them."""

import dataclasses

import pytest
from support import context_mode
from support.exports import FACTS, KINDS, make

from mindrepvgg import save_checkpoint, to_deploy
from mindrepvgg.data.samples import labelled_photos
from mindrepvgg.data.source import ImageFiles
from mindrepvgg.deployment.graph import GraphOptions, build_onnx
from mindrepvgg.evaluation.torch_reference import TorchReference, read_tensors
from mindrepvgg.models.parameters import network_arrays


@pytest.fixture(scope="module")
def few_photos():
    """PyNative mode, and three photos instead of twenty."""
    photos = labelled_photos()
    few = photos and dataclasses.replace(photos, labels=photos.labels[:3], files=ImageFiles(photos.files.paths[:3]))
    with context_mode("pynative"), pytest.MonkeyPatch.context() as patch:
        patch.setattr("mindrepvgg.deployment.pictures.labelled_photos", lambda: few)
        yield


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """A train-form checkpoint of each kind, by name; 'deploy' is the plain one, fused."""
    folder = tmp_path_factory.mktemp("checkpoints")
    gray = {"mean": [0.2], "std": [0.4], "crop_pct": 1.0, "interpolation": "bilinear"}
    for kind in KINDS:
        facts = {**FACTS, "preprocessing": gray} if kind == "nano" else FACTS
        save_checkpoint(make(kind), folder / f"{kind}.ckpt", **facts)
    save_checkpoint(to_deploy(make("plain")), folder / "deploy.ckpt", **FACTS)
    save_checkpoint(to_deploy(make("nano")), folder / "silent.ckpt")
    return {path.stem: path for path in folder.iterdir()}


@pytest.fixture(scope="session")
def truth(checkpoints):
    """Images -> logits of a checkpoint, evaluated by PyTorch from the file's own tensors, branches and all."""
    return {kind: TorchReference(read_tensors(path)) for kind, path in checkpoints.items()}


@pytest.fixture(scope="session")
def fused(checkpoints):
    """A function (kind, **options): the ONNX model of a kind's deploy form."""
    nets = {kind: to_deploy(make(kind)) for kind in ("plain", "d2se", "plus", "nano")}
    return lambda kind, **options: build_onnx(nets[kind].variant, network_arrays(nets[kind]), GraphOptions(**options))
