"""What the layers of MindCV's networks cost, in both forms: built, run once on noise, and watched."""

from __future__ import annotations

import math

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from mindrepvgg.errors import UserError
from mindrepvgg.models.costs import Figures, Layer, Summary
from mindrepvgg.models.mindcv_networks import build_mindcv
from mindrepvgg.models.mindcv_spec import MindCVNetwork
from mindrepvgg.models.variants import DEPLOY, TRAIN
from mindrepvgg.reparam.adapters import FusedCell, adapted
from mindrepvgg.reparam.deploy import to_deploy
from mindrepvgg.reparam.finding import is_block
from mindrepvgg.reparam.layers import pair
from mindrepvgg.reparam.maps import is_convolution
from mindrepvgg.runtime.device import execution_mode, inference_mode
from mindrepvgg.text import first_line

_STATISTICS = ("moving_mean", "moving_variance")


def summarise_mindcv(
    spec: MindCVNetwork, num_classes: int, in_channels: int, image_size: tuple[int, int], batch_size: int
) -> Summary:
    """The layers of a network of MindCV and their costs, see `summary.summarise`.

    A layer is a block, a cell that an adapter knows, or another cell with parameters. Activations are not known: what
    is alive beside a layer, only the graph tells.

    Raises:
        UserError: the network cannot be built, or not run on images of this size.
    """
    net = build_mindcv(spec, num_classes, in_channels)
    deployed = to_deploy(net)
    watched = {form: _watch(one, in_channels, image_size) for form, one in ((TRAIN, net), (DEPLOY, deployed))}
    layers = tuple(
        Layer(path, shape, figures, watched[DEPLOY].get(path, (None, None))[1])
        for path, (shape, figures) in watched[TRAIN].items()
    )
    weights = {
        form: sum(parameter.size for parameter in one.get_parameters())
        for form, one in ((TRAIN, net), (DEPLOY, deployed))
    }
    return Summary(spec, num_classes, in_channels, image_size, batch_size, layers, weights)


def _watch(net, channels, size) -> dict[str, tuple[tuple[int, ...], Figures]]:
    """Each layer's output shape and figures, by its path in MindCV's network."""
    cells = dict(net.network.cells_and_names())
    owner = _owners(cells)
    shapes: dict[str, list[tuple[int, ...]]] = {}
    watched = {*owner, *owner.values()}
    handles = [cells[path].register_forward_hook(_note(shapes, path)) for path in watched]
    images = np.random.default_rng(0).standard_normal((1, channels, *size)).astype(np.float32)
    try:
        with inference_mode(net), execution_mode(ms.PYNATIVE_MODE):
            net(Tensor(images))
    except UserError:
        raise
    except Exception as error:  # MindCV's networks may raise anything for a size that they cannot take
        height, width = size
        raise UserError(f"{net.variant.name} cannot be run on {width}x{height} pixels: {first_line(error)}") from error
    finally:
        for handle in handles:
            handle.remove()
    found: dict[str, tuple[tuple[int, ...], Figures]] = {}
    for path, layer in owner.items():
        cost = _cost(cells[path], shapes.get(path, []))
        before = found.get(layer, ((), Figures(0, 0, 0, None)))[1]
        calls = shapes.get(layer) or [()]
        params, macs, winograd = (a + b for a, b in zip(before[:3], cost, strict=True))
        found[layer] = calls[-1][1:], Figures(params, macs, winograd, None)
    return found


def _owners(cells) -> dict[str, str]:
    """The cells with parameters of their own, by path, and the path of the layer that each counts for."""
    layers = [path for path, cell in cells.items() if is_block(cell) or isinstance(cell, FusedCell) or adapted(cell)]
    owner = {}
    for path, cell in cells.items():
        if next(iter(cell.parameters_and_names(expand=False)), None) is None:
            continue
        around = [layer for layer in layers if path == layer or path.startswith(f"{layer}.")]
        owner[path] = min(around, key=len) if around else path
    return owner


def _note(shapes, path):
    """A hook that keeps the shapes of a cell's outputs."""

    def hook(_cell, _inputs, output):
        shapes.setdefault(path, []).append(tuple(output.shape) if isinstance(output, Tensor) else ())

    return hook


def _cost(cell, shapes) -> tuple[int, int, int]:
    """Parameters, MACs and Winograd's multiplications of a cell without the cells in it, over all its calls."""
    own = [p for _, p in cell.parameters_and_names(expand=False)]
    learned = sum(p.size for p in own if not p.name.endswith(_STATISTICS))
    places = 0
    if is_convolution(cell):
        places = sum(math.prod(shape[2:]) for shape in shapes)
    elif isinstance(cell, nn.Dense):
        places = sum(math.prod(shape[1:-1]) for shape in shapes)
    macs = cell.weight.size * places if places else 0
    fast = macs and is_convolution(cell) and cell.weight.shape[2:] == (3, 3)
    fast = fast and pair(cell.stride) == pair(cell.dilation) == (1, 1)
    return learned, macs, macs // 9 * 4 if fast else macs
