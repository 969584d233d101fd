"""Which BN follows which convolution: found by running a network, never by the order of its attributes.

In one forward pass each convolution's output is remembered, and a BN that is given that very tensor follows it. A BN
that is nobody's, or a convolution whose output is used elsewhere too, cannot be folded away. So in a second pass each
convolution of a pair gives noise, and its BN is handed what the convolution gave in the first pass. Whatever else uses
the convolution's output, changes what the network computes.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from mindrepvgg.errors import FusionError
from mindrepvgg.reparam.compare import leaves, worst_difference
from mindrepvgg.reparam.maps import is_convolution, is_norm
from mindrepvgg.runtime.device import execution_mode, inference_mode
from mindrepvgg.text import first_line

# The size of the noise that stands for a network's inputs where none are given.
_NOISE = 2, 64, 64

# How far two outputs for one input may lie apart, over the largest, for anything to be told.
_MOST_ROUNDING = 1e-4


class Trace(NamedTuple):
    """What was found.

    Attributes:
        pairs: the path of each convolution that a BN follows, and the path of that BN; in the order of their calls.
        refused: the path of each other convolution, and the reason why it has no BN that could be its own.
    """

    pairs: dict[str, str]
    refused: dict[str, str]


def trace(net: nn.Cell, inputs=None) -> Trace:
    """Find the BN that follows each convolution of a network, and takes all that the convolution gives.

    The network runs in PyNative mode and in inference, two times, or once more for each pair where one of them is not
    alone; it is left as it was. What only training runs is not seen.

    Args:
        net: any cell.
        inputs: what `net` is called with, a Tensor or array, or a tuple of arguments. None: noise (2, C, 64, 64), with
            the channels of the first convolution.

    Raises:
        FusionError: the network cannot be run on the inputs, or on noise.
    """
    convs = {path: cell for path, cell in net.cells_and_names() if _is_conv2d(cell)}
    norms = {path: cell for path, cell in net.cells_and_names() if is_norm(cell)}
    arguments = example_inputs(net, inputs)
    with inference_mode(net), execution_mode(ms.PYNATIVE_MODE):
        run = _Run(convs, norms)
        try:
            expected = run.output_of(net, arguments)
        except Exception as error:
            raise cannot_run(net, inputs, arguments, error) from error
        pairs, refused = _pairs_of(run, convs, norms)
        refused |= _with_other_consumers(net, arguments, run, pairs, expected)
    order = [path for path in run.calls if path in convs]
    found = {path: pairs[path] for path in order if path in pairs and path not in refused}
    return Trace(found, {path: refused[path] for path in convs if path in refused})


def cannot_run(net: nn.Cell, inputs, arguments: tuple, error: Exception) -> FusionError:
    """What to raise for a network that raised `error` on `arguments`, which are `example_inputs(net, inputs)`."""
    if inputs is None:
        on, remedy = f"noise {arguments[0].shape}", "give example inputs"
    else:
        on, remedy = "the inputs that were given", "several arguments are given as a tuple"
    return FusionError(f"{type(net).__name__} cannot be run on {on}: {first_line(error)}; {remedy}")


def example_inputs(net: nn.Cell, inputs=None) -> tuple:
    """The arguments of a network's call: those given, arrays as tensors; None: noise, see `trace`."""
    if inputs is None and hasattr(net, "example_images"):
        inputs = net.example_images()
    if inputs is None:
        channels = next((cell.in_channels for _, cell in net.cells_and_names() if _is_conv2d(cell)), 3)
        count, height, width = _NOISE
        noise = np.random.default_rng(0).standard_normal((count, channels, height, width))
        inputs = noise.astype(np.float32)
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    return tuple(Tensor(x) if isinstance(x, np.ndarray) else x for x in inputs)


def _is_conv2d(cell):
    """Whether a cell is a two-dimensional convolution, and no transposed one."""
    return is_convolution(cell) and hasattr(cell, "conv2d") and not hasattr(cell, "conv2d_transpose")


class _Run:
    """What a network's convolutions gave and what its BNs got in one forward pass.

    Attributes:
        calls: how many times each cell was called, by its path; in the order of the first calls.
        outputs: each convolution's last output.
        takers: for each convolution, the BNs that were given its output.
    """

    def __init__(self, convs, norms):
        self.calls: Counter = Counter()
        self.outputs, self.takers = {}, {path: [] for path in convs}
        self._convs, self._norms = convs, norms
        self._givers = {}

    def output_of(self, net, arguments):
        """Run the network with hooks; the arrays of its output."""
        after = {path: self._gave(path) for path in self._convs}
        before = {path: self._got(path) for path in self._norms}
        with _hooked({**self._convs, **self._norms}, after, before):
            return leaves(net(*arguments))

    def _gave(self, path):
        def hook(_cell, _inputs, output):
            self.calls[path] += 1
            self.outputs[path] = output
            self._givers[id(output)] = path, output  # the tensor is kept, so that no other one gets its id

        return hook

    def _got(self, path):
        def hook(_cell, inputs):
            self.calls[path] += 1
            giver, output = self._givers.get(id(inputs[0]), (None, None))
            if output is inputs[0]:
                self.takers[giver].append(path)

        return hook


@contextlib.contextmanager
def _hooked(cells, after, before):
    """Run the body with hooks on cells, all by path: after(cell, inputs, output), before(cell, inputs)."""
    handles = [cells[path].register_forward_hook(hook) for path, hook in after.items()]
    handles += [cells[path].register_forward_pre_hook(hook) for path, hook in before.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _pairs_of(run, convs, norms):
    """(pairs, refused), as far as one run tells."""
    owners = _owners([*convs.items(), *norms.items()])
    pairs, refused = {}, {}
    for path, conv in convs.items():
        takers = run.takers[path]
        if run.calls[path] != 1:
            refused[path] = _not_once(run.calls[path])
        elif not takers:
            refused[path] = "no BN takes its output as it is"
        elif len(takers) > 1:
            refused[path] = f"its output goes into {len(takers)} BNs: {', '.join(takers)}"
        elif run.calls[takers[0]] != 1:
            refused[path] = f"the BN after it, {takers[0]}, {_not_once(run.calls[takers[0]])}"
        elif len(set(_parameter_owners(owners, conv, norms[takers[0]]))) > 2:
            refused[path] = "another cell has a parameter of it, or of its BN"
        else:
            pairs[path] = takers[0]
    return pairs, refused


def _not_once(count):
    return f"is called {count} times, and one block cannot stand for that" if count else "is not called on these inputs"


def _owners(cells):
    """The paths of the cells that own each parameter, by its id."""
    owners: dict[int, list[str]] = {}
    for path, cell in cells:
        for parameter in cell.get_parameters():
            owners.setdefault(id(parameter), []).append(path)
    return owners


def _parameter_owners(owners, *cells) -> Iterable[str]:
    for cell in cells:
        for parameter in cell.get_parameters():
            yield from owners[id(parameter)]


def _with_other_consumers(net, arguments, run, pairs, expected):
    """{path: reason} of the convolutions of pairs whose outputs not only their BNs use."""
    convs, norms = run._convs, run._norms
    noise = np.random.default_rng(1)

    def apart(paths):
        """How far the network's output moves, over the largest, where these convolutions give noise."""

        def gives(_cell, _inputs, output):
            given = output.asnumpy()
            spread = np.abs(given).max() + 1
            return Tensor((given + spread * noise.standard_normal(given.shape)).astype(given.dtype))

        after = dict.fromkeys(paths, gives)
        before = {pairs[path]: _hands(run.outputs[path]) for path in paths}
        with _hooked({**convs, **norms}, after, before):
            actual = leaves(net(*arguments))
        same = all(np.array_equal(a, b, equal_nan=True) for a, b in zip(expected, actual, strict=True))
        return 0.0 if same else worst_difference(expected, actual)[1]

    if not pairs or apart(pairs) == 0:
        return {}
    rounding = apart(())  # zero, but for devices that add up in another order each time
    if not rounding <= _MOST_ROUNDING:
        return dict.fromkeys(pairs, "the network does not compute the same twice, so that nothing can be told")
    return {path: f"not only {pairs[path]} uses its output" for path in pairs if not apart((path,)) <= 10 * rounding}


def _hands(output):
    """A hook that gives a BN this tensor."""
    return lambda _cell, _inputs: (output,)
