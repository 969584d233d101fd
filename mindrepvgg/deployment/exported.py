"""An exported file in the place of a network, as validation, prediction and comparison take one."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mindrepvgg.deployment.engine import RUNS, check_options, engine_of, is_exported, open_engine
from mindrepvgg.deployment.engine_base import ENGINES, MINDSPORE, Engine
from mindrepvgg.errors import CheckpointError, UserError
from mindrepvgg.evaluation.inference import ArrayFunction
from mindrepvgg.models.variants import DEPLOY
from mindrepvgg.recipe.network import recipe_of
from mindrepvgg.reparam.compare import difference
from mindrepvgg.text import counted
from mindrepvgg.weights.load import load_weights

log = logging.getLogger(__name__)

_SMALLEST = float(np.finfo(np.float32).tiny)
_ONE = 1e-3  # how far probabilities may be from adding up to one; float16 rounds to less


class ExportedNetwork:
    """What an exported file tells of its network, and a function of images that gives logits.

    A file that has lost its description (another program wrote it, or a tool dropped its metadata) is said so in a line
    of the log. What it cannot tell is then taken from `overrides`, or from the network `like` it.

    Args:
        engine: the file, opened, in float32.
        run: what computes: the engine itself, or one of another precision in its place.
        overrides: recipe keys of the command line.
        like: another network of the same kind, which a file without a description is prepared as.

    Attributes:
        engine: as given.
        variant: the network's layout; None without a description.
        metadata: as a checkpoint's.
        num_classes, in_channels: the network's.
        form: that of every exported file.
        preprocesses: whether it takes uint8 (N, H, W, C).
        gives_probabilities: whether the file has a softmax.
        precision: of the weights, as "float32" or "int8"; "" where the file does not tell.

    Raises:
        UserError: the file gives maps; or it has lost its description, and `overrides` do not replace it.
    """

    form = DEPLOY

    def __init__(self, engine: Engine, run: ArrayFunction, overrides: Mapping, like=None):
        self.engine = engine
        self.preprocesses = engine.preprocesses
        self._run = run
        described = engine.description
        self.variant = described.variant if described else None
        self.metadata = described.to_dict() if described else {}
        told = engine.metadata
        self.precision = precision_of(told)
        self.gives_probabilities = told.get("output") == "probabilities"
        self.num_classes = described.num_classes if described else engine.num_classes
        self.in_channels = described.in_channels if described else engine.in_channels
        if described is None:
            self._describe(overrides, like)

    @property
    def name(self) -> str:
        """The file's path."""
        return self.engine.name

    def _describe(self, overrides, like):
        """Fill in what a file without a description does not tell."""
        lost = f"{self.name} has lost its description"
        if not self.in_channels:
            raise CheckpointError(f"{lost}, and leaves the channels of its input open; export it again")
        known = {name for name in ("image_resize", "mean", "std") if name in overrides}
        if self.engine.image_size:
            self.metadata["image_size"] = list(self.engine.image_size)
            known.add("image_resize")
        if like is not None:
            kept = ("class_names", "dataset", "image_size", "preprocessing", "recipe")
            self.metadata = {**{key: like.metadata[key] for key in kept if key in like.metadata}, **self.metadata}
        elif self.preprocesses:  # by itself; these values are not used
            self.metadata["preprocessing"] = {"mean": [0.0] * self.in_channels, "std": [1.0] * self.in_channels}
            known |= {"mean", "std"}
        if like is None and (missing := [name for name in ("image_resize", "mean", "std") if name not in known]):
            raise CheckpointError(f"{lost} (another program wrote it, or removed it): give --{', --'.join(missing)}")
        recipe = recipe_of(self, overrides)
        size = f"{recipe.image_size[0]}x{recipe.image_size[1]}"
        by = "as the other file's are" if like is not None else "as the options say"
        log.warning(
            f"{lost}: pictures are prepared {by}: {size}, crop_pct {recipe.crop_pct:g}, {recipe.interpolation}"
            + ("" if self.preprocesses else f", mean {_numbers(recipe.mean)}, std {_numbers(recipe.std)}")
        )
        scores = self.engine(self._noise(recipe.image_size))
        self.num_classes = scores.shape[-1]
        self.gives_probabilities = bool((scores >= 0).all() and (np.abs(scores.sum(-1) - 1) < _ONE).all())

    def _noise(self, size):
        """Two images that no network answers with numbers which add up to one by chance."""
        random = np.random.default_rng(0)
        if self.preprocesses:
            return random.integers(0, 256, (2, *size, self.in_channels), np.uint8)
        return random.standard_normal((2, self.in_channels, *size)).astype(np.float32)

    def __call__(self, images):
        """Logits (N, classes) of images as the file takes them; of a file with a softmax, their logarithms.

        The softmax of both is the file's probabilities.
        """
        scores = self._run(images)
        if not self.gives_probabilities:
            return scores
        # np.maximum keeps a NaN.
        return np.log(np.maximum(scores.astype(np.float32), _SMALLEST))


def precision_of(metadata: Mapping) -> str:
    """The precision of an exported file's weights: "float32", "float16" or "int8"; "" where it does not tell."""
    return "int8" if "quantization" in metadata else metadata.get("precision", "")


class BesideFloat32:
    """A function that computes in another precision, and says once in the log how far from float32 it is.

    Args:
        engine: what computes.
        exact: the same network in float32, which is let go after the first call.
    """

    def __init__(self, engine, exact):
        self._run, self._exact = engine, exact

    def __call__(self, images):
        """As the engine; the first call is computed in float32 too."""
        found, exact = self._run(images), self._exact
        if exact is not None:
            self._exact = None
            expected = exact(images)
            max_abs, max_rel = difference(expected, found)
            same = int((expected.argmax(1) == found.argmax(1)).sum())
            log.warning(
                f"{self._run.precision} differs from float32 by at most {max_abs:.2e}, {max_rel:.2e} of the largest "
                f"output; same class on {same} of the first {counted(len(found), 'image')}"
            )
        return found


@dataclasses.dataclass(frozen=True)
class Computing:
    """What computes a checkpoint or an exported file.

    Attributes:
        engine: one of ENGINES.
        num_threads: of onnxruntime or openvino; None: the engine's choice.
        precision: of openvino's arithmetic, "float32" or "bfloat16".
    """

    engine: str
    num_threads: int | None = None
    precision: str = "float32"

    @classmethod
    def of(cls, path, engine: str | None = None, num_threads: int | None = None, precision: str = "float32"):
        """Choose the engine of a file, unless one is given; raise UserError for options that it does not have."""
        own = RUNS[Path(path).suffix] if is_exported(path) else ENGINES
        chosen = own[0] if engine is None else engine
        check_options(chosen, num_threads, precision)
        if chosen not in own:
            raise UserError(f"--engine {chosen} does not run {path}; leave it out for {' or '.join(own)}")
        return cls(chosen, num_threads, precision)

    def check(self, path, overrides: Mapping, **options):
        """Raise UserError for options that mean nothing for an exported file, or for the engine.

        Args:
            path: the file.
            overrides: recipe keys of the command line.
            **options: weights, amp_level, mode, device_target, where a caller has them.
        """
        if is_exported(path):
            plain = {"weights": "raw", "amp_level": "O0", "mode": 0}
            given = [f"--{name} {options[name]}" for name in plain if options.get(name, plain[name]) != plain[name]]
            given += ["--grouped"] if "grouped" in overrides else []
            if given:
                raise UserError(f"{given[0]} is for checkpoints; {path} computes as it was exported: leave it out")
        on_cpu = options.get("amp_level", "O0") == "O0" and options.get("device_target") != "Ascend"
        if self.engine != MINDSPORE and not on_cpu:
            raise UserError(f"--engine {self.engine} computes on the CPU; leave out --amp_level and Ascend with it")

    def device(self, device_target: str) -> str:
        """The device to choose: the other engines compute on the CPU, and MindSpore then only reads a checkpoint."""
        return device_target if self.engine == MINDSPORE else "CPU"

    def open(self, path, overrides: Mapping, weights: str = "raw"):
        """Read a file.

        Args:
            path: a checkpoint or an exported file.
            overrides: recipe keys of the command line.
            weights: of a checkpoint, "raw" or "ema".

        Returns:
            The network; and a function that makes of it what computes in its place, None where it does that itself.

        Raises:
            UserError: the file cannot be used, or a package is missing.
        """
        if not is_exported(path):
            return load_weights(path, weights), None if self.engine == MINDSPORE else self._replace

        engine, run = self.open_engine(path)
        net = ExportedNetwork(engine, run, overrides)
        for name in ("mean", "std"):
            if net.preprocesses and name in overrides:
                raise UserError(f"--{name} has no effect: {path} normalises by itself; leave it out")
        return net, None

    def open_engine(self, path) -> tuple[Engine, ArrayFunction]:
        """An exported file's engine in float32, and what computes in its place: itself, or one of another precision."""
        return self._beside_float32(lambda precision: open_engine(path, self.engine, self.num_threads, precision))

    def _replace(self, net) -> ArrayFunction:
        """What computes in a network's place."""
        return self._beside_float32(lambda precision: engine_of(net, self.num_threads, self.engine, precision))[1]

    def _beside_float32(self, make):
        exact = make("float32")
        return exact, exact if self.precision == "float32" else BesideFloat32(make(self.precision), exact)


def _numbers(values) -> str:
    return ",".join(f"{value:g}" for value in values)
