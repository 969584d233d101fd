"""Predictions for pictures of one's own: the most probable classes of each."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mindspore import nn
from tqdm import tqdm

from mindrepvgg.data.faults import BadImages
from mindrepvgg.data.loader import EvalLoader
from mindrepvgg.data.loaders import loader_of
from mindrepvgg.data.source import ImageFiles, Source
from mindrepvgg.errors import UserError
from mindrepvgg.evaluation.inference import ArrayFunction, as_function
from mindrepvgg.evaluation.metrics import softmax
from mindrepvgg.files import MEGABYTE, read_regular
from mindrepvgg.recipe.network import recipe_of
from mindrepvgg.text import counted, printable

_LONGEST_LINE = 9000  # characters; two paths
_LARGEST_NAMES = 16 * MEGABYTE


@dataclass(frozen=True)
class Prediction:
    """One picture's classes: (name, index, probability) each, the most probable first; or why there are none.

    drawn: the picture with its classes on it, where one was written.
    """

    file: str
    top: tuple[tuple[str, int, float], ...] = ()
    error: str | None = None
    drawn: Path | None = None

    def to_dict(self) -> dict:
        """Plain types, for JSON."""
        if self.error is not None:
            return {"file": self.file, "error": self.error}
        keys = ("class", "index", "probability")
        drawn = {"drawn": str(self.drawn)} if self.drawn else {}
        return {"file": self.file, "top": [dict(zip(keys, entry, strict=True)) for entry in self.top], **drawn}

    def format(self) -> str:
        """The file, and below it a line for each class: probability, index, name."""
        lines = [self.file]
        if self.error is not None:
            lines.append(f"  error: {self.error}")
        width = max((len(str(index)) for _, index, _ in self.top), default=0)
        for name, index, probability in self.top:
            shown = "" if name == str(index) else f"  {printable(name, 200)}"
            lines.append(f"  {probability:7.2%}  {index:>{width}}{shown}")
        if self.drawn:
            lines.append(f"  drawn: {self.drawn}")
        # A file's name may hold bytes that are no text, and control characters.
        return "\n".join(printable(line, _LONGEST_LINE) for line in lines)


class _Reasons(BadImages):
    """Keeps why each picture cannot be read, whatever their share."""

    def __init__(self, source):
        super().__init__(source, "skip", 1.0)
        self.by_index = {}

    def add(self, number, index, error):
        self.by_index[index] = str(error)


def loader_for(net, files: ImageFiles, overrides: Mapping | None = None) -> EvalLoader:
    """Batches of the files' pictures, prepared as the network's checkpoint says; `overrides`: recipe keys over that.

    An exported file with preprocessing inside gets uint8 pixels.

    Raises RecipeError when these do not go together.
    """
    names = tuple(str(index) for index in range(net.num_classes))
    source = Source("pictures", names, np.zeros(len(files), np.int32), files=files)
    return loader_of(recipe_of(net, overrides or {}), source, as_uint8=getattr(net, "preprocesses", False))


def predictions(
    net: nn.Cell | ArrayFunction,
    loader: EvalLoader,
    class_names: Sequence[str] | None = None,
    topk: int = 5,
    show_progress: bool = False,
) -> Iterator[Prediction]:
    """Predict a loader's pictures one after the other, in the source's order.

    Args:
        net: a network in inference, or a function, see `as_function`. It sees batches of one shape only.
        loader: the pictures, normalised.
        class_names: by index; None: the indices.
        topk: the most probable classes of each picture, or all classes where there are fewer.
        show_progress: draw a progress bar on a terminal.

    Yields:
        For each picture its classes with softmax(logits), computed in float64. Among equal ones the lower index comes
        first. A picture that cannot be read, or whose logits are not finite, has an error in their place.
    """
    run = as_function(net)
    source, reasons = loader.source, _Reasons(loader.source)
    loader.bad_images = reasons
    hidden = not (show_progress and sys.stderr.isatty() and loader.steps > 1)
    with tqdm(total=len(source), unit="image", desc="predict", leave=False, disable=hidden) as bar:
        start = 0
        for images, _, _ in loader:
            logits = run(images).astype(np.float64)
            for index, row in enumerate(logits[: len(source) - start], start):
                yield _prediction(source.name(index), row, reasons.by_index.get(index), class_names, topk)
            bar.update(min(len(images), len(source) - start))
            start += len(images)


def _prediction(file, logits, error, class_names, topk):
    if error is None and not np.isfinite(logits).all():
        error = f"the network's logits for {file} are not finite"
    if error is not None:
        return Prediction(file, error=error)
    probabilities = softmax(logits)
    first = [int(index) for index in np.argsort(-logits, kind="stable")[:topk]]
    names = range(len(logits)) if class_names is None else class_names
    return Prediction(file, tuple((str(names[index]), index, float(probabilities[index])) for index in first))


def class_names_of(net, path=None) -> list[str] | None:
    """The class names in a file, else those the checkpoint tells, else None.

    path: UTF-8 text with one name a line, or a JSON list of names. Raises UserError when it cannot be read or does not
    have as many names as the network has classes.
    """
    if path is None:
        return net.metadata.get("class_names")
    content = read_regular(path, "a file of class names", most=_LARGEST_NAMES)
    try:
        text = content.decode("utf-8-sig")
        names = json.loads(text) if text.lstrip().startswith("[") else text.rstrip().splitlines()
    except (ValueError, RecursionError) as error:  # ValueError: also what is not UTF-8
        raise UserError(f"class names {path} are neither UTF-8 text nor a JSON list: {error}") from None
    if not all(isinstance(name, str) for name in names):
        raise UserError(f"class names {path}: all items of the JSON list must be text")
    if len(names) != net.num_classes:
        raise UserError(
            f"{path} has {counted(len(names), 'class name')}, the network {counted(net.num_classes, 'class')}"
        )
    return [name.strip() for name in names]
