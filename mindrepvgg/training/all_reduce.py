"""The mean of the gradients over the ranks of a run, inside the compiled step."""

from __future__ import annotations

from collections.abc import Sequence

import mindspore as ms
from mindspore import Tensor, nn, ops

from mindrepvgg.errors import UserError

# Gradients up to these bytes travel together: an all-reduce of a BN's gamma is all latency. Larger ones are sent as
# soon as the backward pass has made them, while it is at work on the layers before.
BUNDLED_BYTES = 2**18

_FUSED_MEGABYTES = 16  # of MindSpore's own reducer on Ascend; its 64 would hold all gradients of a small network

_reshape, _shape, _slice = ops.Reshape(), ops.Shape(), ops.Slice()
_flatten = ops.MultitypeFuncGraph("flatten")
_mean = ops.MultitypeFuncGraph("mean")


@_flatten.register("Tensor")
def _flatten_one(gradient):
    return _reshape(gradient, (-1,))


@_mean.register("Function", "Tensor", "Tensor", "Number", "Number", "Tensor")
def _mean_of_one(all_reduce, share, bundle, start, size, gradient):
    """A gradient's mean: from the bundle, where it starts there, or by an all-reduce of its own if `start` is -1."""
    if start < 0:
        return all_reduce(gradient) * share
    return _reshape(_slice(bundle, (start,), (size,)), _shape(gradient))


def gradient_mean(kind: str, weights: Sequence, ranks: int) -> nn.Cell:
    """A cell that takes the tuple of a rank's gradients and gives their means over the ranks, the same on every rank.

    Args:
        kind: a key of `choices.ALL_REDUCES`.
        weights: the parameters that the gradients are of.
        ranks: the number of processes, which have been joined.

    Raises:
        UserError: `kind` asks for MindSpore's own reducer, and the installed version has none.
    """
    if kind != "mindspore":
        return GradientMean([weight.size for weight in weights], ranks, BUNDLED_BYTES if kind == "bundled" else 0)
    if not hasattr(nn, "DistributedGradReducer") or not hasattr(ms, "set_auto_parallel_context"):
        raise UserError(
            f"all_reduce (=mindspore) needs MindSpore's nn.DistributedGradReducer, which {ms.__version__} no longer "
            f"has; leave all_reduce at bundled"
        )
    ms.set_auto_parallel_context(parallel_mode=ms.ParallelMode.DATA_PARALLEL, gradients_mean=True)
    if ms.get_context("device_target") == "Ascend":
        fusion = {"mode": "size", "config": _FUSED_MEGABYTES}
        ms.set_auto_parallel_context(comm_fusion={"allreduce": fusion})
    return nn.DistributedGradReducer(weights, mean=True, degree=ranks)


class GradientMean(nn.Cell):
    """Gradients, a tuple of float32 tensors -> their means over the ranks, in the same order.

    Args:
        sizes: the number of elements of each gradient.
        ranks: the number of processes.
        bundled_bytes: gradients of no more bytes are sent as one tensor; 0: each is sent by itself.
    """

    def __init__(self, sizes: Sequence[int], ranks: int, bundled_bytes: int = BUNDLED_BYTES):
        super().__init__()
        self.sizes = tuple(sizes)
        self.runs, self.starts = _bundle(self.sizes, bundled_bytes // 4)
        self.all_reduce = ops.AllReduce()
        self.share = Tensor(1 / ranks, ms.float32)
        self.hyper_map = ops.HyperMap()
        # In PyNative mode: a tuple of tensors is not a constant, for each value of which `jit` would compile anew.
        self.enable_tuple_broaden = True

    @ms.jit  # in PyNative mode too: it is some hundred small operations
    def construct(self, gradients):
        """Average the gradients."""
        bundle = self.share
        if self.runs:
            flat, small = self.hyper_map(_flatten, gradients), ()
            for start, stop in self.runs:
                small += flat[start:stop]
            bundle = self.all_reduce(ops.cat(small)) * self.share
        one = ops.partial(_mean, self.all_reduce, self.share, bundle)
        return self.hyper_map(one, self.starts, self.sizes, gradients)


def _bundle(sizes: Sequence[int], most: int) -> tuple[tuple[tuple[int, int], ...], tuple[int, ...]]:
    """Find the sizes of `most` at the most.

    Returns:
        Their runs of neighbours, as (start, stop), and for each size where it starts among them, -1 for a larger one.
    """
    runs: list[list[int]] = []
    starts, taken = [], 0
    for index, size in enumerate(sizes):
        if size > most:
            starts.append(-1)
            continue
        starts.append(taken)
        taken += size
        if runs and runs[-1][1] == index:
            runs[-1][1] += 1
        else:
            runs.append([index, index + 1])
    return tuple((start, stop) for start, stop in runs), tuple(starts)
