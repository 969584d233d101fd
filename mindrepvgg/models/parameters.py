"""A network's parameters as named arrays, and named arrays as a network's parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from mindspore import Parameter, Tensor

from mindrepvgg.models.shapes import check_fit
from mindrepvgg.reparam.layers import fill_parameter


def network_arrays(net) -> dict[str, np.ndarray]:
    """Read a network's parameters.

    Raises:
        ValueError: two parameters have one name; a file would keep only one of them.
    """
    arrays = {}
    for parameter in net.get_parameters():
        if parameter.name in arrays:
            raise ValueError(f"two parameters of the network are called {parameter.name}; a file can keep only one")
        arrays[parameter.name] = parameter.asnumpy()
    return arrays


def load_arrays(parameters: Iterable[Parameter], arrays: Mapping[str, np.ndarray], source, copy: bool = True):
    """Fill parameters from named arrays, all of them or none.

    Args:
        parameters: `net.get_parameters()`, or others.
        arrays: name -> array; a parameter keeps its own type.
        source: where the arrays are from; it starts the message.
        copy: False lets an array of the parameter's type become the parameter's memory; nobody else may use it then.

    Raises:
        CheckpointError: lists every name that is missing, unexpected or of another shape.
    """
    parameters = {parameter.name: parameter for parameter in parameters}
    check_fit({name: tuple(parameter.shape) for name, parameter in parameters.items()}, arrays, source)
    for name, parameter in parameters.items():
        array = arrays[name]
        shared = not copy and array.flags.writeable and array.flags.c_contiguous and array.dtype == np.float32
        tensor = Tensor.from_numpy(array) if shared else Tensor(array)
        fill_parameter(parameter, tensor if tensor.dtype == parameter.dtype else tensor.astype(parameter.dtype))
