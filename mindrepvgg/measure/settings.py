"""What a benchmark is asked for: networks, forms, engines, sizes."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import NamedTuple

from mindrepvgg.deployment.engine_base import MINDSPORE, ONNXRUNTIME, OPENVINO
from mindrepvgg.errors import UserError
from mindrepvgg.models import variants
from mindrepvgg.models.preprocessing import LARGEST_SIDE
from mindrepvgg.models.variants import PLAIN_FORMS
from mindrepvgg.recipe.kinds import Kind, kind_of
from mindrepvgg.recipe.rules import MOST_PIXELS
from mindrepvgg.text import quoted

TORCH = "torch"
TORCH_COMPILED = "torch.compile"
# The precisions that each engine computes a network in. OpenVINO computes a float16 file in float32.
PRECISIONS = {
    MINDSPORE: ("float32", "float16"),
    ONNXRUNTIME: ("float32", "float16"),
    OPENVINO: ("float32", "bfloat16"),
    TORCH: ("float32", "float16"),
    TORCH_COMPILED: ("float32", "float16"),
}
ENGINES = tuple(PRECISIONS)
FILE = "file"  # in place of a form: an exported file, which has no other
REFERENCE = "resnet18"  # whose speed is 1, as one may read the paper's table 4; without it, the first row's

# ImageNet-1k, percent, released weights at 224x224; RepVGGplus is published at 320x320 only. Source: the tables of the
# authors' repository.
PUBLISHED_TOP1 = {
    **{"repvgg_a0": 72.41, "repvgg_a1": 74.47, "repvgg_a2": 76.48, "repvgg_b0": 75.14, "repvgg_b1": 78.37},
    **{"repvgg_b1g2": 77.79, "repvgg_b1g4": 77.58, "repvgg_b2": 78.78, "repvgg_b2g4": 79.38, "repvgg_b3": 80.52},
    **{"repvgg_b3g4": 80.22, "repvgg_d2se": 81.81},
}

# The same of MindCV's ResNets, trained on Ascend 910. Source: configs/resnet/README.md in its repository.
MINDCV_TOP1 = {"resnet18": 70.21, "resnet34": 74.15, "resnet50": 76.69, "resnet101": 78.24, "resnet152": 78.72}


class Contestant(NamedTuple):
    """What is measured.

    Attributes:
        network: a network's name, or the path of a checkpoint or an exported file.
        form: 'train' or 'deploy'; '' for a network of MindCV, FILE for an exported file.
        engine, batch_size: as in `Settings`.
        precision: as in `Settings`; of an exported file its own, "int8" or "" (not known) too.
    """

    network: str
    form: str
    engine: str
    precision: str
    batch_size: int

    def format(self) -> str:
        """Return the contestant in words, for a message."""
        form = f"{self.form} form, " if self.form in PLAIN_FORMS else ""
        precision = f"{self.precision}, " if self.precision else ""
        return f"{self.network}, {form}{self.engine}, {precision}batch {self.batch_size}"


_LISTS = {
    "models": Kind(lambda name: variants.find(name).name, "a network of the family", "NAME"),
    "ckpt_paths": Kind(os.fspath, "a path", "FILE"),
    "forms": kind_of("str", *PLAIN_FORMS),
    "batch_sizes": kind_of("int", least=1),
    "precisions": kind_of("str", "float32", "float16", "bfloat16"),
    "engines": kind_of("str", *ENGINES),
    "baselines": kind_of("str"),
}
_NUMBERS = {
    "image_size": kind_of("int", least=1, most=LARGEST_SIDE),
    "rounds": kind_of("int", least=1),
    "warmup": kind_of("int", least=0),
    "num_threads": kind_of("int | None", least=1),
}


@dataclass(frozen=True)
class Settings:
    """What to measure, and how. A list may be given as a command line's text, with commas.

    Without models, checkpoints and baselines, repvgg_a0 is measured.

    Attributes:
        models: names of the family; the networks are filled by a rule.
        ckpt_paths: checkpoints of any project, and exported files: `.onnx`, `.xml` of OpenVINO, `.mindir`.
        forms: of `variants.PLAIN_FORMS`.
        batch_sizes: images of a call.
        precisions: of a network; those of PRECISIONS that an engine has. An exported file has its own, and under
            openvino bfloat16 as well.
        engines: of ENGINES. An exported file is run by those of them that run it, or else by its first.
        baselines: networks of MindCV, freshly initialised, under MindSpore.
        image_size: pixels of a side.
        rounds: how many rounds count.
        warmup: rounds before them, which do not count.
        num_threads: cores that each contestant is held to; None for all.
        device_target: of MindSpore: 'auto', 'CPU' or 'Ascend'.
        alone: one contestant at a time, where memory or a device has no room for all of a batch size. A slow spell of
            the machine then meets one of them only.
        top1: accuracies by network, which stand above the published ones.

    Raises:
        UserError: a value cannot be used.
    """

    models: tuple[str, ...] = ()
    ckpt_paths: tuple[str, ...] = ()
    forms: tuple[str, ...] = PLAIN_FORMS
    batch_sizes: tuple[int, ...] = (1, 16)
    precisions: tuple[str, ...] = ("float32",)
    engines: tuple[str, ...] = (MINDSPORE,)
    baselines: tuple[str, ...] = ()
    image_size: int = 224
    rounds: int = 20
    warmup: int = 3
    num_threads: int | None = None
    device_target: str = "auto"
    alone: bool = False
    top1: dict[str, float] = field(default_factory=dict)

    def __post_init__(self):
        read = {name: _read_list(name, getattr(self, name), kind) for name, kind in _LISTS.items()}
        read |= {name: _read(name, getattr(self, name), kind) for name, kind in _NUMBERS.items()}
        if not (read["models"] or read["ckpt_paths"] or read["baselines"]):
            read["models"] = ("repvgg_a0",)
        for name in ("forms", "batch_sizes", "precisions", "engines"):
            if not read[name]:
                raise UserError(f"{name} is empty; give at least one")
        batch, side = max(read["batch_sizes"]), read["image_size"]
        if batch * 3 * side**2 > MOST_PIXELS:
            raise UserError(f"batch_sizes (={batch}) of image_size (={side}) need more than {MOST_PIXELS >> 28} GiB")
        read["top1"] = _read_top1(self.top1)
        for name in read["top1"].keys() - {*read["models"], *read["ckpt_paths"], *read["baselines"]}:
            raise UserError(f"top1 tells of {name}, which is not among the networks to measure")
        for name, value in read.items():
            object.__setattr__(self, name, value)
        cores = len(os.sched_getaffinity(0))
        if (self.num_threads or 0) > cores:
            raise UserError(f"num_threads (={self.num_threads}) must be at most {cores}, the cores of this process")

    def published(self, contestant: Contestant) -> float | None:
        """Return the ImageNet top-1 of a contestant's network in percent, None where none is known."""
        network = contestant.network
        own = contestant.form and network in self.models
        known = PUBLISHED_TOP1 if own else {} if contestant.form else MINDCV_TOP1
        return self.top1.get(network, known.get(network))


def _read(option, value, kind):
    try:
        return kind.read(value)
    except (TypeError, ValueError):
        raise UserError(f"{option} (={quoted(value)}) must be {kind.expected}") from None


def _read_list(option, value, kind):
    items = value.split(",") if isinstance(value, str) else value
    return tuple(dict.fromkeys(_read(option, item, kind) for item in items if item != ""))


def _read_top1(value) -> dict[str, float]:
    """Read accuracies in percent by network, from a mapping or from text: 'resnet18=70.1,own.ckpt=66'."""
    pairs = [item.rpartition("=")[::2] for item in value.split(",")] if isinstance(value, str) else value.items()
    kind = kind_of("float", least=0, most=100)
    if any(not name for name, _ in pairs):
        raise UserError(f"top1 (={quoted(value)}) must be NAME=PERCENT,...")
    return {name: _read(f"top1 of {name}", percent, kind) for name, percent in pairs}
