"""Turning a train-form checkpoint into a deploy checkpoint, proven before it is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .checkpoint import TRAIN, load_checkpoint, save_checkpoint
from .deploy import EquivalenceReport, to_deploy, verify_equivalence
from .errors import CheckpointError

_VERIFIED_INPUTS = 4
_DEFAULT_IMAGE_SIZE = (224, 224)


def convert_checkpoint(source, destination, rtol=1e-4) -> EquivalenceReport:
    """Fuse the train-form checkpoint `source` into the deploy checkpoint `destination`; both `.ckpt` or `.safetensors`.

    The two forms are compared on seeded noise of the checkpoint's input size; the report goes into the metadata.
    Raises EquivalenceError, and writes nothing, when they differ by more than rounding; CheckpointError when `source`
    cannot be used or is in deploy form already.
    """
    source, destination = Path(source), Path(destination)
    if destination.exists() and source.exists() and destination.samefile(source):
        raise CheckpointError(f"{destination} is the source itself; give the deploy checkpoint another name")
    net = load_checkpoint(source, form=TRAIN)
    deployed = to_deploy(net)
    report = verify_equivalence(net, deployed, _noise(net), rtol)
    facts = {"max_abs": report.max_abs, "max_rel": report.max_rel, "rtol": rtol, "inputs": report.num_inputs}
    save_checkpoint(deployed, destination, converted_from=source.name, equivalence=facts)
    return report


def _noise(net):
    """Standard normal images (4, C, H, W) of the network's input size, about as normalised photos are spread."""
    height, width = net.metadata.get("image_size", _DEFAULT_IMAGE_SIZE)
    shape = (_VERIFIED_INPUTS, net.in_channels, height, width)
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)
