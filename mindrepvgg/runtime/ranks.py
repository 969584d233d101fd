"""The processes of a data-parallel run: who they are, and what they tell each other."""

from __future__ import annotations

import contextlib
import os
import time

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.communication import get_group_size, get_rank, init

from mindrepvgg.errors import UserError
from mindrepvgg.runtime import gathering, peers
from mindrepvgg.runtime.environment import launched_processes

# A scheduler that has to give up stays so long: workers that load more slowly must still see it, and then its end.
_NOTICE_SECONDS = 3


class Ranks:
    """A process's `rank` among the `size` of a run; one that was started alone is rank 0 of 1.

    Every process must call the same methods in the same order.
    """

    def __init__(self, rank=0, size=1):
        self.rank = rank
        self.size = size
        self.watch = None

    def leave(self):
        """Wait until every rank is here; from then on each may end when it likes."""
        self.any(False)  # all have done their work ...
        if self.watch:
            self.watch.stop()
        self.any(False)  # ... and none takes the end of another for a death any more
        self.watch = None  # not before: its connections end with it

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def gather(self, array) -> np.ndarray:
        """Every rank's array (all of one shape and type, of 4 or 8 bytes an item), stacked by rank, bit for bit."""
        array = np.asarray(array, order="C")  # ascontiguousarray makes a row of a scalar
        if self.size == 1:
            return array[None]
        # As 32-bit integers: a device may flush or canonicalise floats, and MindSpore 2.10's AllGather on CPU keeps the
        # lower half only of an int64.
        bits = array.reshape(1, -1).view(np.int32)
        gathered = ops.AllGather()(Tensor(bits)).asnumpy()
        return gathered.view(array.dtype).reshape(self.size, *array.shape)

    def union(self, numbers) -> list[int]:
        """The whole numbers of all ranks, each once, sorted."""
        own = np.array(sorted(numbers), np.int64)
        counts = self.gather(np.int64(len(own)))
        padded = np.zeros(max(int(counts.max()), 1), np.int64)
        padded[: len(own)] = own
        return sorted({int(n) for row, count in zip(self.gather(padded), counts, strict=True) for n in row[:count]})

    def any(self, flag) -> bool:
        """Whether the flag is set on any rank; the answer is the same on all."""
        return bool(self.gather(np.int32(flag)).any())

    def broadcast(self, parameters):
        """Give every rank the first one's values of the parameters."""
        if self.size > 1:
            broadcast = ops.Broadcast(0)
            for parameter in parameters:
                # One by one: of several at once, MindSpore 2.10 returns garbage after the first outside of a graph.
                # A copy: the value lies in a buffer of the collective.
                parameter.set_data(Tensor(broadcast((parameter,))[0].asnumpy()))

    def average(self, parameters):
        """Replace the parameters' values, on every rank, by their mean over the ranks."""
        parameters = list(parameters)
        if self.size > 1 and parameters:
            for parameter, total in zip(parameters, _Sum()(*parameters), strict=True):
                # Not set_data: a compiled step would go on writing a moving average to the memory of before.
                ops.assign(parameter, Tensor(total.asnumpy() / np.float32(self.size)))


class _Sum(nn.Cell):
    """Sums of tensors over the ranks."""

    def __init__(self):
        super().__init__()
        self.all_reduce = ops.AllReduce()

    def construct(self, *tensors):
        sums = ()  # type: tuple
        for tensor in tensors:
            sums += (self.all_reduce(tensor),)
        return sums


def start(distribute="auto") -> Ranks:
    """Join the other processes of a data-parallel run, if there are any; call it before the first network is built.

    distribute: 'auto': if a launcher started this process, True: it must have; False: stay alone, whatever
    RANK_TABLE_FILE says, which one may have exported for other programs; msrun and mpirun must not have started it.
    Raises UserError when a launcher is missing or there against the request, or the processes do not find each other.
    """
    processes = launched_processes()
    if distribute is False and processes is not None and not os.environ.get("RANK_TABLE_FILE"):
        # Each would write its own run into the same folder, and msrun's scheduler would train as well.
        raise UserError(
            f"distribute (=False) trains in one process, but a launcher started {processes}: start it without "
            f"msrun or mpirun, or leave distribute at auto"
        )
    if distribute is False or (distribute == "auto" and processes is None):
        return Ranks()
    if processes is None:
        raise UserError(
            "distribute (=True) needs a launcher: msrun --worker_num 8 --local_worker_num 8 python -m mindrepvgg train "
            "...; leave distribute at auto to train on one device when there is none"
        )
    global _joined
    with gathering.watched(processes) if _joined is None else contextlib.nullcontext():
        if _joined is None:
            _joined = _join(processes)
        if _joined.size > 1 and _joined.watch is None:
            _joined.watch = peers.Watch(_joined.rank, _joined.size, _joined.gather)
    return _joined


# A process joins once; whoever starts again gets the same.
_joined: Ranks | None = None


def joined() -> Ranks:
    """The run that this process has joined; a process alone where it has joined none."""
    return _joined or Ranks()


def _join(processes) -> Ranks:
    """Find the other processes."""
    reason = gathering.port_in_use() if gathering.is_scheduler() else None
    if reason:
        time.sleep(_NOTICE_SECONDS)
        raise UserError(reason)
    try:
        init()
    except (RuntimeError, ValueError, TypeError) as error:
        # Of MindSpore's text the first sentence: the next ones announce a list of possible reasons.
        reason = str(error).strip().splitlines()[0].partition(". ")[0]
        if gathering.is_scheduler():
            raise UserError(f"the scheduler of this run's {processes} processes lost one of them: {reason}") from None
        raise UserError(
            f"the {processes} processes of this run did not find each other: {reason}; what the scheduler and the "
            f"other processes print tells why"
        ) from None
    return Ranks(get_rank(), get_group_size())
