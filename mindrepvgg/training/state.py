"""The state of a run besides its network: the optimizer's moments and counts, the loss scale, the moving average."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from mindspore import Parameter

from mindrepvgg.models.parameters import load_arrays
from mindrepvgg.models.repvgg import RepVGG
from mindrepvgg.training.step import TrainStep


class TrainingState:
    """What a checkpoint must hold besides the network, so that a run goes on exactly.

    net: the network in training; step: its `TrainStep`, with the optimizer.
    """

    def __init__(self, net: RepVGG, step: TrainStep):
        weights = {parameter.name for parameter in net.get_parameters()}
        own = {p.name: p for p in step.optimizer.get_parameters() if p.name not in weights}
        self._parameters: dict[str, Parameter] = {**own, **step.state}

    def arrays(self) -> dict[str, np.ndarray]:
        """The values by name."""
        return {name: parameter.asnumpy() for name, parameter in self._parameters.items()}

    def put_back(self, arrays: Mapping[str, np.ndarray], source):
        """Take the values that `arrays` gave; source: the checkpoint they are from, for messages."""
        load_arrays(self._parameters.values(), arrays, f"the optimizer's state in {source}")
