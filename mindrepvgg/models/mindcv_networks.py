"""MindCV's networks as this package's layers take them: with a form, metadata, and a deploy form that is folded."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from mindrepvgg.errors import CheckpointError, UserError
from mindrepvgg.models.images import ImageNetwork
from mindrepvgg.models.mindcv_spec import MindCVNetwork
from mindrepvgg.models.parameters import load_arrays
from mindrepvgg.models.repvgg import check_count
from mindrepvgg.models.variant_check import MOST_CHANNELS, MOST_CLASSES
from mindrepvgg.models.variants import DEPLOY, PLAIN_FORMS, TRAIN
from mindrepvgg.reparam.deploy import to_deploy
from mindrepvgg.reparam.insertion import insert
from mindrepvgg.runtime.device import execution_mode, inference_mode
from mindrepvgg.runtime.optional import import_optional
from mindrepvgg.text import first_line

# Sides of pictures to try a network on: few pixels are quick, and some networks take one size alone.
_SIDES = (64, 224)


class MindCVClassifier(ImageNetwork):
    """A network of MindCV, with what this package asks of one: (N, in_channels, H, W) -> logits (N, num_classes).

    Parameters are called as in MindCV's network, which is the attribute `network`. `variant` says which network it is,
    `metadata` is what a checkpoint told of it, `deploy` whether it is in deploy form: blocks and BN folded.

    Args:
        spec: which network.
        network: MindCV's cell.
        num_classes, in_channels: that it was made for.
    """

    # `to_deploy` folds every BN that follows a convolution.
    folds_bn = True

    def __init__(self, spec: MindCVNetwork, network: nn.Cell, num_classes: int, in_channels: int):
        super().__init__(auto_prefix=False)
        self.variant = spec
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.metadata = {}
        self.deploy = False
        self.network = network

    def construct(self, x):
        """Classify images: (N, in_channels, H, W) -> (N, num_classes); with auxiliary logits where MindCV has them."""
        return self.network(x)

    def drop_aux_heads(self):
        """Be in deploy form; `to_deploy` calls this on the copy that it has folded."""
        self.deploy = True

    def example_images(self) -> Tensor:
        """Noise that the network can be run on, (2, in_channels, side, side)."""
        return _example(self, self.in_channels)


def build_mindcv(
    spec: MindCVNetwork,
    num_classes: int = 1000,
    in_channels: int = 3,
    form: str = TRAIN,
    arrays: Mapping[str, np.ndarray] | None = None,
    *,
    source="the arrays",
    copy: bool = True,
) -> MindCVClassifier:
    """Build a network of MindCV: filled with `arrays`, or freshly initialised.

    The deploy form is made as it was made first: the network is built, gets its blocks, and is folded.

    Args:
        spec: which network.
        num_classes, in_channels, form, arrays, source, copy: see `repvgg.build`; form is 'train' or 'deploy'.

    Raises:
        UserError: MindCV cannot make it, or a number cannot be used.
        CheckpointError: the arrays are not the network's; the message names each that is not.
        FusionError: the block fits no convolution, or nothing can be folded.
    """
    check_count("num_classes", num_classes, MOST_CLASSES)
    check_count("in_channels", in_channels, MOST_CHANNELS)
    if form not in PLAIN_FORMS:
        raise UserError(f"{spec.name} has no {form} form: fine-tuning for INT8 is for this package's own networks")
    if arrays is not None and not any(len(array.shape) and array.shape[0] == num_classes for array in arrays.values()):
        # Before memory is taken for what a damaged file tells.
        raise CheckpointError(f"{source} does not fit the network: none of its arrays is for num_classes {num_classes}")
    network = _made(spec, num_classes, in_channels)
    if spec.block is not None:
        network = insert(network, spec.block, spec.block_where, _example(network, in_channels))
    net = MindCVClassifier(spec, network, num_classes, in_channels)
    if form == DEPLOY:
        net = to_deploy(net)
    if arrays is not None:
        load_arrays(net.get_parameters(), arrays, source, copy)
    return net


def _made(spec, num_classes, in_channels) -> nn.Cell:
    """What MindCV's function makes."""
    make = import_optional("mindcv", None, f"the network {spec.name}").create_model
    try:
        return make(spec.mindcv_name, num_classes=num_classes, in_channels=in_channels, **spec.size_args)
    except (TypeError, ValueError, AssertionError, AttributeError, RuntimeError) as error:
        told = {"num_classes": num_classes, "in_channels": in_channels, **spec.size_args}
        given = ", ".join(f"{key} {value}" for key, value in told.items())
        raise UserError(f"MindCV cannot make its {spec.mindcv_name} with {given}: {first_line(error)}") from error


def _example(net, channels) -> Tensor:
    """See `MindCVClassifier.example_images`."""
    for side in _SIDES:
        images = np.random.default_rng(0).standard_normal((2, channels, side, side)).astype(np.float32)
        with inference_mode(net), execution_mode(ms.PYNATIVE_MODE), contextlib.suppress(Exception):
            net(Tensor(images))
            return Tensor(images)
    sides = " and ".join(map(str, _SIDES))
    raise UserError(f"{type(net).__name__} runs on no noise of {sides} pixels a side: its convolutions cannot be told")
