"""MindIR files compute what the checkpoint does, judged by PyTorch on the original."""

import json
import os
import stat

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn
from support import images, relative_difference
from support.exports import CLASSES, SIZE, normalised, pixels

from mindrepvgg.deployment.export import export_checkpoint
from mindrepvgg.deployment.graph import GraphOptions
from mindrepvgg.reparam.layers import GROUPED

pytestmark = pytest.mark.usefixtures("few_photos")


def test_mindir(checkpoints, truth, tmp_path):
    """Any size, bytes in, probabilities out; the facts lie beside it, and no mode is left changed."""
    mode = stat.S_IMODE(tmp_path.stat().st_mode)
    target = tmp_path / "out.mindir"
    done = export_checkpoint(checkpoints["plus"], target, GraphOptions(softmax=True), preprocess=True, fixed_size=False)
    graph = nn.GraphCell(ms.load(str(target)))
    pictures = pixels(2, 37, 50, 3)
    logits = truth["plus"](normalised(pictures))
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert np.abs(graph(Tensor(pictures)).asnumpy() - expected).max() < 2e-5
    facts = json.loads((tmp_path / "out.mindir.json").read_text(encoding="utf-8"))
    assert facts.pop("file_sha256")
    assert facts == done.metadata
    assert facts["class_names"] == CLASSES
    assert stat.S_IMODE(tmp_path.stat().st_mode) == mode
    assert os.access(target, os.W_OK)
    assert sorted(os.listdir(tmp_path)) == ["out.mindir", "out.mindir.json"]


def test_mindir_in_float16(checkpoints, truth, tmp_path):
    """Half the size inside, float32 outside."""
    export_checkpoint(checkpoints["deploy"], tmp_path / "half.mindir", GraphOptions(2, precision="float16"))
    x = images(2, 3, *SIZE)
    found = nn.GraphCell(ms.load(str(tmp_path / "half.mindir")))(Tensor(x))
    assert found.dtype == ms.float32
    assert 1e-5 < relative_difference(found, truth["plain"](x)) < 5e-3
    # Smaller than the float32 weights alone, though the graph comes on top, with the paths of its sources.
    assert (tmp_path / "half.mindir").stat().st_size < checkpoints["deploy"].stat().st_size


@pytest.mark.slow
def test_mindir_with_groups_split(checkpoints, truth, tmp_path):
    """The same output from plain convolutions alone."""
    x, splits = images(2, 3, *SIZE), {}
    for way in GROUPED:
        target = tmp_path / f"{way}.mindir"
        export_checkpoint(checkpoints["g4"], target, GraphOptions(2), overrides={"grouped": way})
        assert relative_difference(nn.GraphCell(ms.load(str(target)))(Tensor(x)), truth["g4"](x)) < 1e-5
        splits[way] = target.read_bytes().count(b"Split")
    assert splits["split"] > splits["native"]
