"""The state of a run besides its network: the optimizer's moments and counts, the loss scale, the moving average."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from mindspore import Parameter

from mindrepvgg.models.parameters import load_arrays
from mindrepvgg.models.repvgg import RepVGG
from mindrepvgg.training.repoptimizer import Multiplied
from mindrepvgg.training.step import TrainStep
from mindrepvgg.weights.scales import STATE_PREFIX


class TrainingState:
    """What a checkpoint must hold besides the network, so that a run goes on exactly.

    net: the network in training; step: its `TrainStep`, with the optimizer.
    """

    def __init__(self, net: RepVGG, step: TrainStep):
        weights = {parameter.name for parameter in net.get_parameters()}
        optimizer = step.optimizer
        # RepOptimizer's multipliers are as large as the weights, and follow from the scales.
        self._scaled = optimizer if isinstance(optimizer, Multiplied) else None
        left_out = weights | ({p.name for p in self._scaled.multipliers} if self._scaled else set())
        own = {p.name: p for p in optimizer.get_parameters() if p.name not in left_out}
        self._parameters: dict[str, Parameter] = {**own, **step.state}

    def arrays(self) -> dict[str, np.ndarray]:
        """The values by name, those of `constants` among them."""
        return {**{name: parameter.asnumpy() for name, parameter in self._parameters.items()}, **self.constants}

    @property
    def constants(self) -> dict[str, np.ndarray]:
        """What does not change in a run, and every checkpoint of it keeps: RepOptimizer's scales."""
        scales = self._scaled.scales if self._scaled else {}
        return {f"{STATE_PREFIX}{name}": values for name, values in scales.items()}

    def put_back(self, arrays: Mapping[str, np.ndarray], source):
        """Take the values that `arrays` gave; source: the checkpoint they are from, for messages."""
        arrays, scales = dict(arrays), {}
        if self._scaled:
            names = [name for name in arrays if name.startswith(STATE_PREFIX)]
            scales = {name.removeprefix(STATE_PREFIX): arrays.pop(name) for name in names}
        load_arrays(self._parameters.values(), arrays, f"the optimizer's state in {source}")
        if self._scaled:
            self._scaled.put_back(scales, source)
