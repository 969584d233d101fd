"""The repairs of a network for INT8 that need no training, and the INT8 files that they make."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mindrepvgg.deployment.engine import OnnxEngine
from mindrepvgg.deployment.graph import build_onnx
from mindrepvgg.deployment.int8.equalize import equalize
from mindrepvgg.deployment.int8.grids import IntegerOptions
from mindrepvgg.deployment.int8.integers import Quantizer, layer_nodes
from mindrepvgg.deployment.int8.noise import KernelNoise, kernel_noise
from mindrepvgg.deployment.int8.progress import Progress
from mindrepvgg.deployment.int8.splitting import split_layers, worth_splitting
from mindrepvgg.errors import EquivalenceError
from mindrepvgg.evaluation.crosscheck import cross_check
from mindrepvgg.models.dead_channels import Zeroed, zero_dead
from mindrepvgg.text import counted

# What a repair may change the float logits by, over the largest of them: float32's rounding and no more.
_EXACT = 1e-5

# Kernels of the CPU and exact repairs are checked on so many pictures.
_CHECKED = 8


@dataclass(frozen=True)
class Repairs:
    """What is done to a network beside rounding it.

    Attributes:
        zero_dead: see `dead_channels.zero_dead`.
        equalize: see `equalize.equalize`.
        bias_correction: see `integers.correct_biases`.
        split: the layers whose centre tap is a convolution of its own, see `splitting`.
        keep_float: the layers that stay in float.
    """

    zero_dead: bool = False
    equalize: bool = False
    bias_correction: bool = False
    split: tuple[str, ...] = ()
    keep_float: tuple[str, ...] = ()

    def describe(self) -> str:
        """In words."""
        kept = f"{', '.join(self.keep_float)} in float" if self.keep_float else "every layer in INT8"
        return ", ".join((*self.words(), kept))

    def words(self) -> list[str]:
        """What is done to layers that are INT8, in words."""
        found = {
            "dead channels zeroed": self.zero_dead,
            "equalised": self.equalize,
            f"centre split in {counted(len(self.split), 'layer')}": self.split,
            "biases corrected": self.bias_correction,
        }
        return [text for text, done in found.items() if done]


def _float_form(repairs: Repairs) -> Repairs:
    """Those of some repairs that change the float network."""
    return dataclasses.replace(repairs, bias_correction=False, keep_float=())


class _Repaired(NamedTuple):
    """A float network with repairs: its quantizer, and the factor that equalising scaled a channel by at most."""

    quantizer: Quantizer
    largest_scale: float | None


class Builder:
    """Makes INT8 files of a network, with any repairs.

    Args:
        layout: the network's.
        exported: the `Export` of the float file.
        arrays: of its deploy form.
        batches: the pictures to calibrate on.
        options: how real numbers become integers; `choose_bits` may change them.
        folder: where files are written.
        progress: the work's bar.

    Attributes:
        layers: the names of the layers.
    """

    def __init__(self, layout, exported, arrays, batches, options: IntegerOptions, folder, progress: Progress):
        self.layout, self.options, self.batches = layout, options, batches
        self.layers = tuple(layer_nodes(layout, exported.options.output))
        self._exported, self._arrays, self._folder, self._progress = exported, arrays, Path(folder), progress
        # Of two networks at most: the plain one, and the one that was asked for last.
        self._plain: _Repaired | None = None
        self._last: tuple[Repairs, _Repaired] | None = None
        self._files = 0

    def quantizer(self, repairs: Repairs = Repairs()) -> Quantizer:
        """The quantizer of the network with these repairs."""
        return self._repaired(repairs).quantizer

    def largest_scale(self, repairs: Repairs) -> float | None:
        """The factor that equalising scaled a channel by at most; None without it."""
        return self._repaired(repairs).largest_scale

    def dead(self) -> dict[str, np.ndarray]:
        """Layer -> the numbers of the dead channels that it reads; layers without any are left out."""
        return self._zeroed().dead

    def worth_splitting(self, repairs: Repairs) -> tuple[str, ...]:
        """The layers that are worth it, after the other repairs; see `splitting.worth_splitting`."""
        arrays, _ = self._unsplit(repairs)
        return worth_splitting(self.layout, arrays, self.options.per_channel)

    def pictures(self, repairs: Repairs) -> int:
        """How many pictures are to be run before the files with these repairs can be made; 0 where that was done."""
        count, form = sum(map(len, self.batches)), _float_form(repairs)
        if form == Repairs():
            return 0 if self._plain else count
        if self._last and self._last[0] == form:
            return 0
        return count + 2 * _CHECKED + (self.pictures(Repairs()) if repairs.zero_dead else 0)

    def write(self, repairs: Repairs) -> Path:
        """Write the INT8 file with these repairs."""
        self._files += 1
        path = self._folder / f"int8_{self._files}.onnx"
        path.write_bytes(self.model(repairs).SerializeToString())
        return path

    def model(self, repairs: Repairs):
        """The INT8 `onnx.ModelProto` with these repairs."""
        quantizer = self.quantizer(repairs)
        integer = [name for name in self.layers if name not in repairs.keep_float]
        return quantizer.corrected(integer)[0] if repairs.bias_correction else quantizer.model(integer)

    def choose_bits(self, bits: int | None, repairs: Repairs) -> dict[int, KernelNoise]:
        """Settle the bits of a weight in the options.

        Args:
            bits: 7 or 8; None: 8, or 7 where 8 bits saturate in the int8 kernels of this CPU.
            repairs: of the network that is tried.

        Returns:
            Bits that were tried -> `KernelNoise`.
        """
        found, images = {}, self.batches[0][:_CHECKED]
        for tried in [bits] if bits else [8, 7]:
            self._set_bits(tried)
            quantizer = self.quantizer(repairs)
            found[tried] = kernel_noise(quantizer.graph.model, quantizer.model(self.layers), images)
            self._progress.step(2 * len(images))
            if not found[tried].saturates:
                break
        return found

    def _set_bits(self, bits):
        self.options = dataclasses.replace(self.options, weight_bits=bits)
        for repaired in (self._plain, self._last and self._last[1]):
            if repaired:
                repaired.quantizer.options = self.options

    def _zeroed(self) -> Zeroed:
        quantizer = self.quantizer()
        inputs = {name: quantizer.extremes[layer.given] for name, layer in quantizer.graph.layers.items()}
        return zero_dead(self.layout, self._arrays, inputs)

    def _repaired(self, repairs) -> _Repaired:
        """The network with those of the repairs that change its float form."""
        key = _float_form(repairs)
        if key == Repairs():
            if self._plain is None:
                self._plain = _Repaired(self._calibrated(self._exported.destination, ()), None)
            return self._plain
        if self._last is None or self._last[0] != key:
            self._last = None  # before the next one takes its room
            self._last = key, self._repair(key)
        return self._last[1]

    def _unsplit(self, repairs) -> tuple[dict[str, np.ndarray], float | None]:
        """The arrays with the repairs that keep each kernel in one, and the largest scale of equalising."""
        arrays = self._zeroed().arrays if repairs.zero_dead else self._arrays
        if not repairs.equalize:
            return arrays, None
        equalized = equalize(self.layout, arrays)
        return equalized.arrays, equalized.largest

    def _repair(self, repairs) -> _Repaired:
        arrays, scale = self._unsplit(repairs)
        if repairs.split:
            arrays = split_layers(self.layout, arrays, repairs.split, self.options.per_channel)
        path = self._folder / "repaired.onnx"
        model = build_onnx(self.layout, arrays, self._exported.options, self._exported.metadata)
        path.write_bytes(model.SerializeToString())
        del model  # it is a copy of all weights
        self._check(path, repairs)
        return _Repaired(self._calibrated(path, repairs.split), scale)

    def _calibrated(self, path, split) -> Quantizer:
        layers = layer_nodes(self.layout, self._exported.options.output, split)
        return Quantizer(path, layers, self.batches, self.options, self._progress.step)

    def _check(self, path, repairs):
        """Raise EquivalenceError where the repaired float file computes something else."""
        images = self.batches[0][:_CHECKED]
        batch = images, None, np.ones(len(images), bool)
        check = cross_check(OnnxEngine(path), OnnxEngine(self._exported.destination), [batch], _EXACT)
        self._progress.step(2 * len(images))
        if not check.passed:
            raise EquivalenceError(
                f"a repair ({', '.join(repairs.words())}) changed the float logits by {check.max_rel:.1e} of the "
                f"largest, more than {_EXACT:g}",
                check,
            )
