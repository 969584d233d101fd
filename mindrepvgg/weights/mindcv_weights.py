"""Starting a network of MindCV from a file: of this package's training, or of MindCV's."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mindrepvgg.errors import CheckpointError, UserError
from mindrepvgg.models.mindcv_networks import MindCVClassifier
from mindrepvgg.models.mindcv_spec import MindCVNetwork
from mindrepvgg.models.parameters import load_arrays, network_arrays
from mindrepvgg.runtime.optional import import_optional
from mindrepvgg.text import quoted
from mindrepvgg.weights.description import Description

log = logging.getLogger(__name__)


def weights_file(spec: MindCVNetwork, pretrained) -> Path:
    """The file that a user's words mean for a network of MindCV; only a file that is there will do.

    Raises:
        UserError: it is not there; the message has the address of MindCV's own weights where it has any.
    """
    if isinstance(pretrained, (str, Path)) and Path(pretrained).is_file():
        return Path(pretrained)
    registry = import_optional("mindcv.models.registry", None, f"the network {spec.name}")
    address = registry.get_pretrained_cfg_value(spec.mindcv_name, "url")
    hint = f"; MindCV has its own at {address}" if address else ""
    raise UserError(
        f"pretrained (={quoted(str(pretrained))}) must be a file for {spec.name}: weights of MindCV's networks are not "
        f"downloaded here{hint}"
    )


def check_described(description: Description, wanted: MindCVNetwork, source):
    """Refuse a file of this package that holds another network.

    Raises:
        CheckpointError: names both.
    """
    if description.variant != wanted:
        has, wants = (
            " with ".join([spec.name, *([f"{spec.model_args}"] if spec.model_args else [])])
            for spec in (description.variant, wanted)
        )
        raise CheckpointError(f"{source} does not fit: it holds a {has}, not a {wants}")


def fill(net: MindCVClassifier, arrays: Mapping[str, np.ndarray], source):
    """Fill a fresh network. What is for another number of classes stays fresh, which is said in the log.

    Args:
        net: it stays in the form it is in.
        arrays: name -> array, under MindCV's names.
        source: the file; it starts the message.

    Raises:
        CheckpointError: the arrays are not the network's; the message names each that is not.
    """
    own = network_arrays(net)
    fresh = {
        name: own[name]
        for name, array in arrays.items()
        if name in own
        and own[name].shape[:1] == (net.num_classes,) != array.shape[:1]
        and own[name].shape[1:] == array.shape[1:]
    }
    if fresh:
        log.warning("%s is not for %d classes: fresh weights for %s", source, net.num_classes, ", ".join(fresh))
    load_arrays(net.get_parameters(), {**arrays, **fresh}, source)
