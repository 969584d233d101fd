"""Every kind of exported file under MindSpore Lite 2.0.0, the only release in the public package index.

python benchmarks/lite.py --python /usr/bin/python3.7    # or report.py --only lite, python3.7 being on PATH

Its wheel is for Python 3.7, so it gets an environment of its own, which is kept in `outputs`. A file is converted
and run in a process of its own: some make Lite crash. The truth is as in `file_kinds`.
"""

import functools
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import file_kinds
import numpy as np
from sections import replace_section

from mindrepvgg import api
from mindrepvgg.cli import entry
from mindrepvgg.deployment.engine import OnnxEngine
from mindrepvgg.deployment.folding import folded_input
from mindrepvgg.deployment.pictures import Pictures
from mindrepvgg.errors import UserError
from mindrepvgg.reparam.compare import difference
from mindrepvgg.runtime import device
from mindrepvgg.runtime.environment import processor
from mindrepvgg.text import markdown_table
from mindrepvgg.weights.checkpoint import load_checkpoint

RELEASE = "2.0.0"
_ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = _ROOT / "outputs" / f"lite-{RELEASE}"
_PROGRAM = Path(__file__).with_name("lite_program.py")
_RECIPE = _ROOT / "configs" / "quickstart.yaml"
_BATCH = 4


class NoLiteError(UserError):
    """MindSpore Lite cannot be had on this machine."""


class Kind(NamedTuple):
    """A kind of file: options of `export`, suffix, the converter's layout, and what makes it of a plain ONNX file."""

    options: Mapping = MappingProxyType({})
    suffix: str = ".onnx"
    layout: str | None = "NCHW"
    made_of: Callable | None = None


def _without_strides(source, destination, net, images):
    """A Conv without strides, as exporters write that leave out what equals ONNX's defaults."""
    import onnx

    model = onnx.load(str(source))
    node = next(node for node in model.graph.node if node.op_type == "Conv" and _strides(node) == [1, 1])
    kept = [attribute for attribute in node.attribute if attribute.name != "strides"]
    del node.attribute[:]
    node.attribute.extend(kept)
    onnx.save(model, str(destination))


def _strides(node):
    return next(list(attribute.ints) for attribute in node.attribute if attribute.name == "strides")


_FIXED = MappingProxyType({"batch_size": _BATCH})
KINDS = {
    "float32, any batch and size": Kind({"image_size": "dynamic"}),
    "float32, fixed batch": Kind(_FIXED),
    "mean and std folded, fixed batch": Kind({**_FIXED, "fold_normalisation": True}),
    "pixels in": Kind({"preprocess": True}, layout=None),
    "float16, fixed batch": Kind({**_FIXED, "precision": "float16"}),
}
# What is known not to work; the first network of the family shows it.
TRAPS = {
    "float16, any batch": Kind({"precision": "float16"}),
    "float32, the layout left to the converter": Kind(_FIXED, layout=None),
    "float32, a Conv without strides": Kind(made_of=_without_strides),
    "INT8": Kind(made_of=file_kinds.as_int8),
    "MindIR": Kind(_FIXED, ".mindir", layout=None),
}


def measure(recipe_path=_RECIPE, networks=file_kinds.NETWORKS, python=None) -> str:
    """Return a markdown table with a row for each network and kind of file.

    Args:
        recipe_path: a recipe, whose trained network takes part too.
        networks: names of the family; their weights and BN statistics are random.
        python: Python 3.7; None: the `python3.7` on PATH.

    Raises:
        NoLiteError: there is none, or MindSpore Lite cannot be installed in an environment of it.
    """
    lite = environment(python)
    device.setup("CPU", seed=0)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, checkpoint in file_kinds.checkpoints(recipe_path, networks, folder):
            kinds = {**KINDS, **TRAPS} if name == networks[0] else KINDS
            rows += rows_of(name, checkpoint, folder, lite, kinds)
    headings = ("network", "file", "from float64", "from onnxruntime", "same class as float64")
    return (
        f"MindSpore Lite {RELEASE} for Python 3.7, converter and CPU; the largest difference over the largest logit; "
        f"{processor()}:\n\n{markdown_table(headings, rows)}"
    )


@functools.cache
def environment(python=None) -> Path:
    """Make the environment, unless it is there.

    Args:
        python: see `measure`.

    Returns:
        Its Python, which can import mindspore_lite.
    """
    own = ENVIRONMENT / "bin" / "python"
    if _works(own):
        return own
    python = python or shutil.which("python3.7")
    if python is None:
        raise NoLiteError(
            f"MindSpore Lite {RELEASE} needs Python 3.7, and there is no python3.7 on PATH: give --python"
        )
    shutil.rmtree(ENVIRONMENT, ignore_errors=True)
    for command in ([python, "-m", "venv", ENVIRONMENT], [own, "-m", "pip", "install", f"mindspore-lite=={RELEASE}"]):
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise NoLiteError(f"{python} does not start: {error}") from None
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise NoLiteError(f"{' '.join(map(str, command))} failed: {reason}")
    if not _works(own):
        raise NoLiteError(f"{own} cannot import mindspore_lite")
    return own


def _works(python):
    command = [python, "-c", "import mindspore_lite"]
    return python.exists() and subprocess.run(command, capture_output=True, check=False).returncode == 0


def rows_of(name, checkpoint, folder, lite, kinds):
    """Yield a row for each kind of file.

    Args:
        name: of the network.
        checkpoint: in train form.
        folder: for the files.
        lite: see `environment`.
        kinds: title -> Kind.
    """
    net = load_checkpoint(checkpoint)
    pictures = Pictures(net, {})
    images = pictures.normalised(pictures.pixels)
    truth = file_kinds.truth_of(net, images)
    plain = Path(folder, "plain.onnx")
    api.export(checkpoint, plain)
    for title, kind in kinds.items():
        path = Path(folder, f"made{kind.suffix}")
        if kind.made_of:
            kind.made_of(plain, path, net, images)
        else:
            api.export(checkpoint, path, **kind.options)
        yield name, title, *_cells(path, kind, pictures, truth, lite)


def _cells(path, kind, pictures, truth, lite):
    fed = taken(kind.options, pictures)
    found = run(lite, path, fed, kind.layout)
    if isinstance(found, str):
        return found, "", ""
    engine = OnnxEngine(path)
    expected = engine(pictures.pixels if engine.preprocesses else fed)
    distances = (f"{difference(reference, found)[1]:.1e}" for reference in (truth, expected.astype(np.float64)))
    return *distances, f"{100 * np.mean(found.argmax(1) == truth.argmax(1)):.0f} %"


def taken(options, pictures):
    """The pictures as a file of these options takes them."""
    if options.get("preprocess"):
        return pictures.pixels
    if options.get("fold_normalisation"):
        return folded_input(pictures.pixels)
    return pictures.normalised(pictures.pixels)


def run(lite, path, images, layout) -> np.ndarray | str:
    """Convert a file and run it, in batches of four.

    Args:
        lite: see `environment`.
        path: the file.
        images: (N, ...) as the file takes them.
        layout: the converter's input format; None leaves it to the converter.

    Returns:
        The logits (N, classes), float64; or in words why there are none.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder, "images.npy"), Path(folder, "outputs.npy")
        count = -(-len(images) // _BATCH)
        np.save(given, np.resize(images, (count, _BATCH, *images.shape[1:])))  # which repeats the first ones at the end
        command = [lite, _PROGRAM, path, given, made, *([layout] if layout else [])]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
        if done.returncode < 0:
            return f"crashes: {signal.Signals(-done.returncode).name}"
        if done.returncode:
            return (done.stderr.strip().splitlines() or ["no message"])[-1]
        outputs = np.load(made)
        return outputs.reshape(-1, outputs.shape[-1])[: len(images)].astype(np.float64)


def main(argv=None):
    """Measure, and write the section of docs/performance.md."""
    parser = entry.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", metavar="PYTHON3.7", help="default: the python3.7 on PATH")
    parser.add_argument("--networks", default=",".join(file_kinds.NETWORKS), metavar="NAME,...")
    parser.add_argument("--page", type=Path, default=_ROOT / "docs" / "performance.md")
    arguments = parser.parse_args(argv)
    table = measure(networks=arguments.networks.split(","), python=arguments.python)
    replace_section(arguments.page, "lite", table)
    return 0


if __name__ == "__main__":
    sys.exit(entry.run(main))
