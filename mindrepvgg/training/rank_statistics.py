"""BN's moving statistics on several ranks: the only parameters of a run in which its ranks differ."""

from __future__ import annotations

import numpy as np
from mindspore import Parameter, Tensor

from mindrepvgg.errors import TrainingError
from mindrepvgg.models.repvgg import RepVGG
from mindrepvgg.runtime.ranks import Ranks
from mindrepvgg.training.step import TrainStep, bn_statistics, is_bn_statistic

# Their name among the arrays of a checkpoint.
KEY = "statistics_of_ranks"


class RankStatistics:
    """BN's moving statistics of the network and of its moving average: averaged, gathered and put back.

    Each rank's statistics are those of the images it has seen. They are averaged where an epoch ends, so that the
    network that is saved is the one that was validated.

    Args:
        net: the network in training.
        step: its `TrainStep`.
        ranks: the processes of the run.
    """

    def __init__(self, net: RepVGG, step: TrainStep, ranks: Ranks):
        self._step = step
        self._ranks = ranks
        self._parameters: list[Parameter] = bn_statistics(net)
        self._parameters += [parameter for parameter in step.state.values() if is_bn_statistic(parameter)]

    def average(self):
        """Give every rank the mean over the ranks."""
        self._ranks.average(self._parameters)
        self._step.accept_statistics()

    def gather(self) -> dict[str, np.ndarray]:
        """Every rank's own statistics, (ranks, elements), for a checkpoint between two averagings; {} on one rank."""
        if self._ranks.size == 1:
            return {}
        own = np.concatenate([parameter.asnumpy() for parameter in self._parameters])
        return {KEY: self._ranks.gather(own)}

    def put_back(self, of_ranks: np.ndarray | None, source):
        """Take this rank's part of what `gather` gave; None, or of another number of ranks: keep what is there.

        source: the checkpoint it is from. Raises TrainingError for an array that `gather` cannot have given.
        """
        ends = np.cumsum([parameter.size for parameter in self._parameters])
        if of_ranks is not None and (of_ranks.ndim != 2 or of_ranks.shape[1] != ends[-1]):
            raise TrainingError(f"{source} holds {KEY} of the impossible shape {of_ranks.shape}; get a fresh copy")
        if of_ranks is not None and len(of_ranks) == self._ranks.size:
            own = np.split(of_ranks[self._ranks.rank], ends[:-1])
            for parameter, values in zip(self._parameters, own, strict=True):
                parameter.set_data(Tensor(values))
        self._step.accept_statistics()
