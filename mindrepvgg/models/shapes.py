"""A network's parameters, told without building it: their names and shapes, and how arrays differ from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mindrepvgg.errors import CheckpointError, UserError
from mindrepvgg.models.block_kinds import BlockSpec
from mindrepvgg.models.variants import DEPLOY, QAT, TRAIN, Variant
from mindrepvgg.reparam.leaves import BN_LEAVES
from mindrepvgg.text import listed, printable

_MOST_PARAMETERS = 1 << 31  # 8 GiB in float32; the largest network of the family has 133 million


def parameter_shapes(
    variant: Variant, form: str, num_classes: int = 1000, in_channels: int = 3, aux_heads: bool = True
) -> dict[str, tuple[int, ...]]:
    """List the parameters of a network, BN statistics included, from input to output.

    Args:
        variant: the layout.
        form: one of `variants.FORMS`.
        num_classes: outputs of the classifier; a features network has none.
        in_channels: channels of the images.
        aux_heads: False leaves the auxiliary heads of a train-form RepVGGplus out; other networks have none.

    Returns:
        Name -> shape.
    """
    shapes = {}
    specs = variant.block_specs(in_channels)
    for spec in specs:
        _add_block(shapes, spec, variant, form)
        if form == QAT:
            _add_quantizer(shapes, f"{spec.name}.input_quantizer")
    if form == QAT:
        _add_quantizer(shapes, f"{specs[-1].name}.output_quantizer")
    if aux_heads and form == TRAIN:
        for stage in variant.stages:
            if stage.aux:
                _add_conv_bn(shapes, f"{stage.name}_aux.downsample", (stage.width, stage.width, 3, 3))
                _add_affine(shapes, f"{stage.name}_aux.linear", (num_classes, stage.width))
    if variant.features:
        return shapes
    _add_affine(shapes, "linear", (num_classes, variant.widths[-1]))
    if form == QAT:
        _add_quantizer(shapes, "linear.input_quantizer")
    return shapes


def check_size(shapes: Mapping[str, tuple[int, ...]]):
    """Refuse a network that fits no memory.

    Args:
        shapes: see `parameter_shapes`.

    Raises:
        UserError: it has more parameters than `_MOST_PARAMETERS`.
    """
    count = sum(map(math.prod, shapes.values()))
    if count > _MOST_PARAMETERS:
        raise UserError(
            f"the network has {count / 1e9:.1f} billion parameters, more than {_MOST_PARAMETERS / 1e9:.1f}; lower its "
            "widths, num_blocks or num_classes"
        )


def _add_block(shapes, spec: BlockSpec, variant, form):
    out = spec.out_channels
    if form == DEPLOY:
        _add_affine(shapes, spec.fused, spec.kernel_shape)
    elif form == TRAIN:
        for part in (part for branch in spec.train_branches for part in branch):
            if part.is_norm:
                _add_bn(shapes, f"{spec.name}.{part.name}", *part.shape)
            else:
                shapes[f"{spec.name}.{part.name}.weight"] = part.shape
    else:
        _add_conv_bn(shapes, f"{spec.name}.rbr_dense", spec.kernel_shape)
    if spec.se:
        squeezed = out // variant.se_ratio
        _add_affine(shapes, f"{spec.squeeze_excite}.down", (squeezed, out, 1, 1))
        _add_affine(shapes, f"{spec.squeeze_excite}.up", (out, squeezed, 1, 1))


def _add_conv_bn(shapes, name, kernel):
    shapes[f"{name}.conv.weight"] = kernel
    _add_bn(shapes, f"{name}.bn", kernel[0])


def _add_bn(shapes, name, channels):
    shapes.update({f"{name}.{leaf}": (channels,) for leaf in BN_LEAVES})


def _add_quantizer(shapes, name):
    shapes.update({f"{name}.moving_{extreme}": (1,) for extreme in ("minimum", "maximum")})


def _add_affine(shapes, name, weight):
    """A convolution or linear layer with a bias."""
    shapes[f"{name}.weight"] = weight
    shapes[f"{name}.bias"] = weight[:1]


@dataclass(frozen=True)
class Misfits:
    """How arrays differ from expected parameters: name -> shape, and for `reshaped` name -> (shape, expected shape)."""

    missing: dict[str, tuple]
    unexpected: dict[str, tuple]
    reshaped: dict[str, tuple]

    @property
    def count(self) -> int:
        """How many names are concerned."""
        return len(self.missing) + len(self.unexpected) + len(self.reshaped)

    def text(self, shown=3) -> str:
        """The first few of each kind, in one line: '2 missing: a (3,), b (4,); 1 unexpected: c (5,)'.

        Args:
            shown: how many of each.
        """
        kinds = (
            ("missing", [f"{printable(name)} {shape}" for name, shape in self.missing.items()]),
            ("unexpected", [f"{printable(name)} {shape}" for name, shape in self.unexpected.items()]),
            (
                "of another shape",
                [f"{printable(n)} {has}, expected {shape}" for n, (has, shape) in self.reshaped.items()],
            ),
        )
        return "; ".join(f"{len(found)} {kind}: {listed(found, shown)}" for kind, found in kinds if found)


def find_misfits(expected: Mapping[str, tuple], arrays: Mapping[str, np.ndarray]) -> Misfits:
    """Compare arrays with expected shapes by name."""
    return Misfits(
        {name: shape for name, shape in expected.items() if name not in arrays},
        {name: array.shape for name, array in arrays.items() if name not in expected},
        {
            name: (arrays[name].shape, shape)
            for name, shape in expected.items()
            if name in arrays and arrays[name].shape != shape
        },
    )


def check_fit(expected: Mapping[str, tuple], arrays: Mapping[str, np.ndarray], source):
    """Refuse arrays that are not exactly the expected parameters.

    Raises:
        CheckpointError: lists the names that are missing, unexpected or of another shape, after `source`.
    """
    found = find_misfits(expected, arrays)
    if found.count:
        raise CheckpointError(f"{source} does not fit the network: {found.text(shown=200)}")


def check_finite(arrays: dict[str, np.ndarray]):
    """Raise CheckpointError when weights are NaN or infinite, naming the first tensors; who allows them skips it."""
    found = []
    for name, array in arrays.items():
        bad = array.size - np.count_nonzero(np.isfinite(array))
        if bad:
            found.append(f"{printable(name)} ({bad} of {array.size})")
    if found:
        raise CheckpointError(
            f"{len(found)} of {len(arrays)} tensors hold NaN or infinite values: {listed(found)}; the training that "
            f"wrote them diverged, or the file is damaged: take an earlier checkpoint"
        )
