"""Checkpoints that know what they are: saved whole or not at all, loaded completely or not at all."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from mindspore import nn

from mindrepvgg.errors import CheckpointError
from mindrepvgg.models.building import build_network
from mindrepvgg.models.parameters import load_arrays, network_arrays
from mindrepvgg.models.variants import DEPLOY, TRAIN
from mindrepvgg.text import printable
from mindrepvgg.weights.containers import WeightFile, read_weights, write_weights
from mindrepvgg.weights.description import Description
from mindrepvgg.weights.pickles import is_pickle_file
from mindrepvgg.weights.torchfile import is_torch_file

# Arrays of an unfinished run stand beside the network's under this prefix.
_STATE_PREFIX = "training_state."


def save_checkpoint(net: nn.Cell, path, training_state: Mapping | None = None, **metadata):
    """Save a network with what is needed to build it, feed it and judge it.

    The file appears only when it is complete. A file that was there survives any failure.

    Args:
        net: what `create_model` makes, in any form, or a Cell of your own that holds RepVGG blocks.
        path: `.ckpt` or `.safetensors`, which says how the file is written.
        training_state: arrays by name that `--resume` needs (the optimizer's).
        **metadata: JSON-able facts, over those that the network carries already (`net.metadata`). Those of
            `Description` are checked; others are kept as they are.

    Raises:
        CheckpointError: the suffix is another one, a fact cannot be used, or a Cell of your own holds no RepVGG block.
        ValueError: two parameters of the network have one name.
    """
    arrays = network_arrays(net)
    for name, array in (training_state or {}).items():
        arrays[_STATE_PREFIX + name] = np.asarray(array)
    write_weights(path, arrays, Description.of(net, **metadata).to_dict())


def load_checkpoint(path, net: nn.Cell | None = None, form: str | None = None) -> nn.Cell:
    """Load a checkpoint of this package.

    Args:
        path: the file.
        net: a network to fill instead of building one; it must be of the same kind, form and class count. A Cell of
            your own can only be filled.
        form: one of `variants.FORMS`, to refuse the others.

    Returns:
        The network, set to inference; `net.metadata` holds what is known of it.

    Raises:
        CheckpointError: the file is no such checkpoint; every parameter that is missing, unexpected or of another
            shape is named.
    """
    return load_checkpoint_and_state(path, net, form)[0]


def load_checkpoint_and_state(path, net=None, form=None) -> tuple[nn.Cell, dict[str, np.ndarray]]:
    """`load_checkpoint`, and the arrays that were saved as `training_state` (none in a finished checkpoint)."""
    found, description = read_checkpoint(path)
    check_form(path, description.form, form)
    weights, state = split_state(found.arrays)
    if net is None:
        description.check_family(path)
        net = build_network(*description.network, weights, source=path)
    else:
        _check_same_network(path, description, net)
        load_arrays(net.get_parameters(), weights, path)
    if isinstance(getattr(net, "metadata", {}), Mapping):  # a Cell of one's own may call something else so
        net.metadata = description.to_dict()
    return net.set_train(False), state


def read_checkpoint(path) -> tuple[WeightFile, Description]:
    """Read a file that `save_checkpoint` wrote.

    Raises:
        CheckpointError: the file cannot be read, or another program wrote it.
    """
    try:
        found = read_weights(path)
    except CheckpointError:
        if is_torch_file(path) or is_pickle_file(path):
            raise CheckpointError(
                f"{printable(path, 200)} is a file of PyTorch or a pickle; mindrepvgg.load_weights reads it"
            ) from None
        raise
    return found, Description.read(found.description, path)


def split_state(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Part a file's arrays into the network's and those of an unfinished run, under their own names."""
    weights, state = {}, {}
    for name, array in arrays.items():
        if name.startswith(_STATE_PREFIX):
            state[name.removeprefix(_STATE_PREFIX)] = array
        else:
            weights[name] = array
    return weights, state


def check_form(path, actual: str, expected: str | None):
    """Refuse one form where another is needed.

    Raises:
        CheckpointError: says what to do.
    """
    if expected in (None, actual):
        return
    if expected == TRAIN:
        raise CheckpointError(
            f"{path} is in {actual} form: its branches are fused and cannot be recovered; give the train-form "
            f"checkpoint it was converted from"
        )
    hint = "; make one with mindrepvgg convert" if expected == DEPLOY else ""
    raise CheckpointError(f"{path} is in {actual} form, a {expected} checkpoint is needed{hint}")


def _check_same_network(path, description, net):
    """Refuse a checkpoint of another network than the given one, naming what differs."""
    own = Description.of(net)
    if own.cell is None and description.cell is None:
        check_form(path, description.form, own.form)
        for key in ("model", "num_classes", "in_channels", "model_args", "features"):
            has, wanted = getattr(description, key), getattr(own, key)
            if has != wanted:
                raise CheckpointError(f"{path} holds {key} {has}, the network it is loaded into has {key} {wanted}")
    elif own.form != description.form:
        raise CheckpointError(
            f"{path} is in {description.form} form, the network it is loaded into in {own.form} form; fill it in "
            f"{description.form} form"
        )
