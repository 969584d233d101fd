"""Weight files of both containers, as this package writes them and put together by hand."""

import json
import struct

import numpy as np
import pytest
from mindspore.train.checkpoint_pb2 import Checkpoint

from mindrepvgg.errors import CheckpointError
from mindrepvgg.weights.containers import read_weights

SUFFIXES = (".ckpt", ".safetensors")
DTYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64"),
)
DESCRIPTION = {
    "model": "repvgg_nano",
    "class_names": ["Größe", "猫", "\U0001f600"],
    "epoch": 3,
    "none": None,
    "x": [1.5],
}


def make_arrays():
    """Named arrays like a small network's; the names are neither sorted nor of one length."""
    rng = np.random.default_rng(0)
    return {
        "stage1.0.rbr_dense.conv.weight": rng.normal(size=(4, 3, 3, 3)).astype(np.float32),
        "stage0.rbr_identity.gamma": rng.normal(size=4).astype(np.float32),
        "linear.bias": rng.normal(size=10).astype(np.float16),
        "global_step": np.array([7], np.int32),
    }


def assert_same(found, expected):
    """The same names, types, shapes and bits."""
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        assert found[name].shape == array.shape, name
        assert found[name].tobytes() == array.tobytes(), name


def refusal(path):
    """The text of the CheckpointError that reading gives; any other outcome fails the test."""
    with pytest.raises(CheckpointError) as caught:
        read_weights(path)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert str(path) in text
    return text


def ckpt(*entries):
    """The bytes of a .ckpt with these (name, type, dims, content)."""
    message = Checkpoint()
    for name, kind, dims, content in entries:
        value = message.value.add()
        value.tag = name
        value.tensor.tensor_type = kind
        value.tensor.dims.extend(dims)
        value.tensor.tensor_content = content
    return message.SerializeToString()


def safetensors(header, content):
    """The bytes of a .safetensors file with this header."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content
