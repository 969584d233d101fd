"""Checkpoints that know what they are: saved whole or not at all, loaded completely or not at all."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mindrepvgg.errors import CheckpointError
from mindrepvgg.models.parameters import load_arrays, network_arrays
from mindrepvgg.models.qat import form_of
from mindrepvgg.models.repvgg import RepVGG, build
from mindrepvgg.models.variants import DEPLOY, TRAIN
from mindrepvgg.weights.containers import read_weights, write_weights
from mindrepvgg.weights.description import Description

# Arrays of an unfinished run stand beside the network's under this prefix.
_STATE_PREFIX = "training_state."


def save_checkpoint(net: RepVGG, path, training_state: Mapping | None = None, **metadata):
    """Save a network with what is needed to build it, feed it and judge it.

    The file appears only when it is complete. A file that was there survives any failure.

    Args:
        net: a RepVGG or RepVGGPlus, in any form.
        path: `.ckpt` or `.safetensors`, which says how the file is written.
        training_state: arrays by name that `--resume` needs (the optimizer's).
        **metadata: JSON-able facts, over those that the network carries already (`net.metadata`). Those of
            `Description` are checked; others are kept as they are.

    Raises:
        CheckpointError: the suffix is another one, or a fact cannot be used.
        ValueError: two parameters of the network have one name.
    """
    arrays = network_arrays(net)
    for name, array in (training_state or {}).items():
        arrays[_STATE_PREFIX + name] = np.asarray(array)
    write_weights(path, arrays, Description.of(net, **metadata).to_dict())


def load_checkpoint(path, net: RepVGG | None = None, form: str | None = None) -> RepVGG:
    """Load a checkpoint of this package.

    Args:
        path: the file.
        net: a network to fill instead of building one; it must be of the same kind, form and class count.
        form: one of `variants.FORMS`, to refuse the others.

    Returns:
        The network, set to inference; `net.metadata` holds what is known of it.

    Raises:
        CheckpointError: the file is no such checkpoint; every parameter that is missing, unexpected or of another
            shape is named.
    """
    return load_checkpoint_and_state(path, net, form)[0]


def load_checkpoint_and_state(path, net=None, form=None) -> tuple[RepVGG, dict[str, np.ndarray]]:
    """`load_checkpoint`, and the arrays that were saved as `training_state` (none in a finished checkpoint)."""
    found = read_weights(path)
    description = Description.read(found.description, path)
    check_form(path, description.form, form)
    weights, state = split_state(found.arrays)
    if net is None:
        facts = description.variant, description.num_classes, description.in_channels, description.form
        net = build(*facts, weights, source=path)
    else:
        _check_same_network(path, description, net)
        load_arrays(net.get_parameters(), weights, path)
    net.metadata = description.to_dict()
    return net.set_train(False), state


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
    check_form(path, description.form, form_of(net))
    own = Description.of(net)
    for key in ("model", "num_classes", "in_channels", "model_args"):
        has, wanted = getattr(description, key), getattr(own, key)
        if has != wanted:
            raise CheckpointError(f"{path} holds {key} {has}, the network it is loaded into has {key} {wanted}")
