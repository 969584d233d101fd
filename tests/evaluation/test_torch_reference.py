"""The reference, which PyTorch computes from a file's own tensors, is right on its own."""

import pickle

import numpy as np
import pytest
import torch
from support import BOTH_FORMS, images
from support.dialect_names import NAMES, VARIANTS, knows
from support.foreign import (
    PROJECTS,
    SUFFIXES,
    logits_of,
    official_state,
    theirs,
    torch_network,
    variant_of,
    wrapped_file,
    write,
)

from mindrepvgg.errors import CheckpointError
from mindrepvgg.evaluation.torch_reference import TorchReference, read_tensors

pytestmark = pytest.mark.usefixtures("pynative_mode")


CASES = [*((d, k) for k in VARIANTS for d in NAMES if knows(d, variant_of(k))), ("official", "repvgg_a0")]


@BOTH_FORMS
@pytest.mark.parametrize(("dialect", "kind"), CASES)
def test_the_reference_understands_every_dialect(dialect, kind, deploy):
    reference = TorchReference(theirs(dialect, kind, deploy))
    x = images(2, 3, 64, 48)
    expected = logits_of(torch_network(kind, deploy), x)
    np.testing.assert_allclose(reference(x), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert (reference.num_classes, reference.in_channels) == (7, 3)


@pytest.mark.parametrize("name", ["stage1.1.rbr_identity.bias", "stage0.rbr_1x1.conv.weight", "linear.bias"])
def test_the_reference_uses_every_tensor(name):
    """Negative control: it is no constant."""
    state = official_state(torch_network("g4"))
    x = images(2, 3, 64, 48)
    before = TorchReference(state)(x)
    changed = TorchReference({**state, name: state[name] + 0.1})(x)
    assert np.abs(changed - before).max() > 1e-3


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda s: s.pop("linear.bias"), "the reference finds 7 RepVGG blocks and head parts ['weight'] in the file"),
        (lambda s: s.clear(), "the reference finds 0 RepVGG blocks and head parts [] in the file"),
        (lambda s: s.pop("stage3.1.rbr_1x1.bn.running_var"), "the reference misses parts of block 1 in stage 3.0: "),
        (lambda s: s.pop("stage3.1.rbr_dense.conv.weight"), "the reference misses parts of block 1 in stage 3.0: "),
        (lambda s: s.update({"stage3.1.neck.weight": torch.ones(1)}), "does not know what stage3.1.neck.weight is"),
        (lambda s: s.update({"stage3.1.rbr_1x1.bn.w": torch.ones(1)}), "misses parts of block 1 in stage 3.0"),
    ],
)
def test_the_reference_refuses_what_is_no_repvgg(change, text):
    state = official_state(torch_network("plain"))
    change(state)
    with pytest.raises(CheckpointError) as caught:
        TorchReference(state)
    assert text in str(caught.value)


@pytest.mark.parametrize("averaged", [False, True], ids=["raw", "ema"])
@pytest.mark.parametrize("project", PROJECTS)
def test_the_reference_reads_training_files(tmp_path, project, averaged):
    """Of two sets of weights it takes the one that is asked for; mmpretrain's hook had swapped them."""
    path = wrapped_file(tmp_path, project)
    if project in ("main.py", "timm", "timm, model_ema"):  # with a configuration's class in the file
        with pytest.raises(pickle.UnpicklingError):
            torch.load(path, weights_only=True)
    seed = int(averaged and project != "pth.tar")
    x = images(2, 3, 64, 48)
    expected = logits_of(torch_network("plain", seed=seed), x)
    found = TorchReference(read_tensors(path, averaged))(x)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_the_reference_reads_megengine_s_pickle(tmp_path):
    tensors = theirs("basecls", "g4")
    found = read_tensors(write(tmp_path / "net.pkl", tensors, "pickle"))
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_the_reference_reads_what_we_write(tmp_path, call):
    given = write(tmp_path / "given.safetensors", theirs("timm", "d2se"))
    for path in (tmp_path / "ours.ckpt", tmp_path / "ours.safetensors"):
        assert call("convert", given, path, "--form", "train")[0] == 0
        found, expected = read_tensors(path), theirs("mindrepvgg", "d2se")
        named = {name: found[name] for name in expected}
        assert all(torch.equal(named[name], tensor) for name, tensor in expected.items())
        assert TorchReference(found)(images(1, 3, 32, 32)).shape == (1, 7)


def test_the_reference_reads_what_mindspore_refuses_for_want_of_memory(tmp_path, monkeypatch):
    def refuse(_):
        raise ValueError("the checkpoint protobuf content size 492761793 bytes exceeds current available memory")

    tensors = theirs("mindcv", "plain")
    path = write(tmp_path / "net.ckpt", tensors)
    monkeypatch.setattr("mindspore.load_checkpoint", refuse)
    found = read_tensors(path)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_the_reference_reads_a_mindspore_file_of_any_name(tmp_path):
    found = read_tensors(write(tmp_path / "net.bin", theirs("mindcv", "plain"), "ckpt"))
    assert found.keys() == theirs("mindcv", "plain").keys()


@pytest.mark.parametrize("container", SUFFIXES)
def test_the_reference_answers_in_words_to_a_damaged_file(tmp_path, container):
    path = write(tmp_path / "weights", theirs("timm", "plain"), container)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError) as caught:
        read_tensors(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
