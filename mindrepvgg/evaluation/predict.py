"""Predictions for pictures of one's own: the most probable classes of each, and pictures with them written on."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
from mindspore import Tensor
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from mindrepvgg.data.datasets import IMAGE_SUFFIXES, ImageFiles, Source, image_files
from mindrepvgg.data.decode import decode
from mindrepvgg.data.faults import BadImages
from mindrepvgg.data.loader import EvalLoader
from mindrepvgg.errors import DataError, UserError
from mindrepvgg.evaluation.evaluate import loader_of, recipe_of
from mindrepvgg.files import atomic_write

STDIN = "-"

_JPEG_SUFFIXES = (".jpg", ".jpeg")
_JPEG_QUALITY = 95
_SMALLEST_FONT = 8  # pixels; smaller letters cannot be read
_LINES_PER_SIDE = 24  # of text, that would fit on the shorter side
_LINE_HEIGHT = 1.3  # of the font's size
_SHADE = 0.35  # what the panel behind the text leaves of the picture's brightness


class InputFiles(ImageFiles):
    """The pictures of a command line as a source's files.

    inputs: files, whatever their names end in; folders, for the pictures in them at any depth, sorted; and "-" for one
    picture read from `stdin`, a binary stream (None: the process's).
    targets: for each picture a relative path that is its own among them, ending in .jpg for JPEGs, in .png otherwise:
    the path inside the named folder, or the file's name, with _2, _3 ... where it is taken.
    Raises DataError for what does not exist, and for a folder without pictures.
    """

    def __init__(self, inputs: Sequence[str], stdin=None):
        paths, places = [], []
        for name in map(os.fspath, inputs):
            if name != STDIN and os.path.isdir(name):
                found = image_files(name)
                if not found:
                    raise DataError(f"no pictures in {name}: none of its files ends in {' '.join(IMAGE_SUFFIXES)}")
                paths += found
                places += [os.path.relpath(path, name) for path in found]
            elif name == STDIN or os.path.exists(name):
                paths.append(name)
                places.append("stdin" if name == STDIN else os.path.basename(name))
            else:
                raise DataError(f"{name} does not exist; give pictures, folders of them, or - for standard input")
        super().__init__(paths)
        self.targets = _unique(places)
        self._stdin = None
        if STDIN in self.paths:
            self._stdin = np.frombuffer((stdin or sys.stdin.buffer).read(), np.uint8)

    def name(self, index):
        """Return the picture's path, or 'standard input'."""
        return "standard input" if self.paths[index] == STDIN else super().name(index)

    def read(self, index):
        """Return the encoded picture."""
        return self._stdin if self.paths[index] == STDIN else super().read(index)


def _unique(places):
    """The places with a suffix that can be written, each another, also where the case of letters does not count."""
    taken, targets = set(), []
    for place in map(PurePath, places):
        suffix = ".jpg" if place.suffix.lower() in _JPEG_SUFFIXES else ".png"
        target, number = place.with_suffix(suffix), 1
        while str(target).lower() in taken:
            number += 1
            target = place.with_name(f"{place.stem}_{number}{suffix}")
        taken.add(str(target).lower())
        targets.append(str(target))
    return tuple(targets)


@dataclass(frozen=True)
class Prediction:
    """One picture's classes: (name, index, probability) each, the most probable first; or why there are none."""

    file: str
    top: tuple[tuple[str, int, float], ...] = ()
    error: str | None = None

    def to_dict(self) -> dict:
        """Plain types, for JSON."""
        if self.error is not None:
            return {"file": self.file, "error": self.error}
        keys = ("class", "index", "probability")
        return {"file": self.file, "top": [dict(zip(keys, entry, strict=True)) for entry in self.top]}

    def format(self) -> str:
        """The file, and below it a line for each class: probability, index, name."""
        lines = [self.file]
        if self.error is not None:
            lines.append(f"  error: {self.error}")
        width = max((len(str(index)) for _, index, _ in self.top), default=0)
        for name, index, probability in self.top:
            lines.append(f"  {probability:7.2%}  {index:>{width}}{'' if name == str(index) else f'  {name}'}")
        # A file's name may hold bytes that are no text.
        return "\n".join(lines).encode("utf-8", "backslashreplace").decode("utf-8")


class _Reasons(BadImages):
    """Keeps why each picture cannot be read, whatever their share."""

    def __init__(self, source):
        super().__init__(source, "skip", 1.0)
        self.by_index = {}

    def add(self, number, index, error):
        self.by_index[index] = str(error)


def loader_for(net, files: ImageFiles, overrides=None) -> EvalLoader:
    """Batches of the files' pictures, prepared as the network's checkpoint says; `overrides`: recipe keys over that.

    Raises RecipeError when these do not go together.
    """
    # The built-in data set's name stands for "no folder needed": the recipe is for the preprocessing alone.
    recipe = recipe_of(net, {**(overrides or {}), "dataset": "mnist5k"})
    names = tuple(str(index) for index in range(net.num_classes))
    return loader_of(recipe, Source("pictures", names, np.zeros(len(files), np.int32), files=files))


def runner(net, engine="mindspore") -> Callable[[np.ndarray], np.ndarray]:
    """The network, set to inference, as a function: images (N, C, H, W) float32 -> logits (N, classes), both arrays.

    engine: 'mindspore' or 'onnxruntime'. Raises UserError when its package is missing.
    """
    if engine == "onnxruntime":
        from mindrepvgg.deployment.engine import engine_of  # needs a package that MindSpore's users may not have

        return engine_of(net)

    net.set_train(False)
    return lambda images: net(Tensor(images)).asnumpy()


def predict(run, loader: EvalLoader, class_names=None, topk=5, show_progress=False) -> Iterator[Prediction]:
    """The loader's pictures one after the other, in source order, each as a `Prediction`.

    run: see `runner`; it sees batches of one shape only. class_names: by index; None for the indices themselves.
    topk: at most as many classes as there are. Probabilities are softmax(logits) in float64; among equal ones the lower
    index comes first. A picture that cannot be read, or whose logits are not finite, has an error in their place.
    """
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
    exponentials = np.exp(logits - logits.max())
    probabilities = exponentials / exponentials.sum()
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
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        names = json.loads(text) if text.lstrip().startswith("[") else text.rstrip().splitlines()
    except OSError as error:
        raise UserError(f"class names {path} cannot be read: {error.strerror}") from None
    except ValueError as error:  # also what is not UTF-8
        raise UserError(f"class names {path} are neither UTF-8 text nor a JSON list: {error}") from None
    if not all(isinstance(name, str) for name in names):
        raise UserError(f"class names {path}: all items of the JSON list must be text")
    if len(names) != net.num_classes:
        raise UserError(f"{path} has {len(names)} class names, the network {net.num_classes} classes")
    return [name.strip() for name in names]


class Drawer:
    """Writes each picture with its classes on it into a folder, under `InputFiles.targets`.

    The picture keeps its size, and its orientation tag is not applied: it is what the network saw before cropping. As
    JPEG where the input is one by its name, else PNG.
    Raises DataError when the folder is a file, or a picture would be written over an input.
    """

    def __init__(self, folder, files: InputFiles):
        self._folder, self._files = Path(folder), files
        if self._folder.exists() and not self._folder.is_dir():
            raise DataError(f"{folder} is a file; give a folder to write pictures into")
        inputs = {os.path.realpath(path) for path in files.paths if path != STDIN}
        for target in files.targets:
            if os.path.realpath(self._folder / target) in inputs:
                raise DataError(f"{self._folder / target} is one of the pictures to predict; give another folder")

    def write(self, index, prediction: Prediction) -> Path:
        """Draw picture `index`; returns the file written."""
        picture = decode(self._files.read(index), self._files.name(index), in_channels=3)
        path = self._folder / self._files.targets[index]
        drawn = draw(picture, [f"{probability:.1%} {name}" for name, _, probability in prediction.top])
        with atomic_write(path) as stream:
            if path.suffix == ".jpg":
                drawn.save(stream, "JPEG", quality=_JPEG_QUALITY)
            else:
                drawn.save(stream, "PNG")
        return path


def draw(picture: np.ndarray, lines: Sequence[str]) -> Image.Image:
    """The picture (H, W, 3) uint8 with lines of text at its top left, on a darkened panel; its size stays.

    Lines are cut to the picture's width, and those that its height has no room for are left out, but never the first.
    The font is DejaVu Sans: Latin, Greek, Cyrillic, Hebrew, Arabic letters and more, but no Chinese or Japanese.
    """
    import matplotlib  # for its font

    height, width = picture.shape[:2]
    size = max(_SMALLEST_FONT, min(height, width) // _LINES_PER_SIDE)
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)
    step, margin = int(size * _LINE_HEIGHT), size // 3
    # A name may hold line breaks, which Pillow would obey.
    shown = [_fitting(" ".join(line.split()), font, width - 2 * margin) for line in lines[: max(1, height // step)]]
    right = min(width, int(max((font.getlength(line) for line in shown), default=0)) + 2 * margin)
    picture = picture.copy()
    panel = picture[: len(shown) * step + margin, :right]
    panel[:] = panel * _SHADE
    image = Image.fromarray(picture)
    pen = ImageDraw.Draw(image)
    for row, line in enumerate(shown):
        pen.text((margin, row * step + margin // 2), line, font=font, fill="white")
    return image


def _fitting(line, font, width):
    """The line, or as much of it as fits into width pixels, with an ellipsis."""
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(f"{line}…") > width:
        line = line[:-1]
    return f"{line}…"
