"""A checkpoint as an ONNX, MindIR or AIR file of the deploy form, run and compared before it gets its name."""

from __future__ import annotations

import copy
import hashlib
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindrepvgg.deployment.ascend import ascend_commands
from mindrepvgg.deployment.engine import OnnxEngine, network_facts
from mindrepvgg.deployment.graph import INPUT, GraphOptions, build_onnx, check_onnx_file, check_opset, require_onnx
from mindrepvgg.deployment.pictures import Pictures
from mindrepvgg.errors import CheckpointError, EquivalenceError, UserError
from mindrepvgg.evaluation.crosscheck import CrossCheck, cross_check
from mindrepvgg.files import atomic_path, write_json
from mindrepvgg.models.parameters import network_arrays
from mindrepvgg.reparam.deploy import to_deploy
from mindrepvgg.reparam.equivalence import EquivalenceReport, verify_equivalence
from mindrepvgg.weights.load import import_weights

SUFFIXES = (".onnx", ".mindir", ".air")

# What the file's outputs may differ by from the network's, over the largest of them.
TOLERANCES = {"float32": 1e-4, "float16": 1e-2}


@dataclass(frozen=True)
class Export:
    """What was read and written, and how far the written file's outputs are from the network's.

    fusion: the proof of the fusion, None where the checkpoint was in deploy form. operators: of an ONNX file, counted.
    check: the comparison on `images`, None for AIR, which nothing but Ascend's tools reads. metadata: what the file, or
    the JSON beside it, says of itself. commands: for Ascend's tools, see `ascend_tools`.
    """

    source: Path
    destination: Path
    options: GraphOptions
    metadata: dict
    fusion: EquivalenceReport | None
    operators: dict[str, int] | None
    check: CrossCheck | None
    images: str
    commands: tuple[tuple[str, str], ...]

    def to_dict(self) -> dict:
        """Plain types, for JSON."""
        told = self.options.preprocess
        return {
            "source": str(self.source),
            "destination": str(self.destination),
            "bytes": self.destination.stat().st_size,
            "options": {**asdict(self.options), "preprocess": told and (told.mean, told.std)},
            "metadata": self.metadata,
            "fusion": self.fusion and self.fusion.to_dict(),
            "operators": self.operators,
            "check": self.check and self.check.to_dict(),
            "images": self.images,
            "commands": dict(self.commands),
        }

    def format(self) -> str:
        """A few lines for people, the commands for Ascend's tools last."""
        options, facts = self.options, self.metadata
        shape = options.input_shape(facts["in_channels"])
        lines = [f"{facts['model']}, {facts['num_classes']} classes, deploy form"]
        if self.fusion:
            lines[0] += f": fused from {self.source.name}, logits differ by {self.fusion.max_rel:.1e} of the largest"
        lines.append(
            f"written: {self.destination} ({self.destination.stat().st_size / 2**20:.1f} MiB, {options.precision})"
        )
        lines.append(
            f"input {INPUT}: {options.input_type} ({', '.join(map(str, shape))}); output {options.output}: float32 "
            f"({shape[0]}, {facts['num_classes']})"
        )
        if self.operators:
            counts = ", ".join(f"{count} {operator}" for operator, count in self.operators.items())
            lines.append(f"opset {options.opset}: {counts}")
        if self.check:
            lines.append(f"run on {self.images}, in batches of each kind it takes, and compared with the network:")
            lines.append(self.check.format())
        lines.append("for Ascend, not run here:")
        lines += [f"# {title}\n{command}" for title, command in self.commands]
        return "\n".join(lines)


def export_checkpoint(
    source,
    destination,
    options=None,
    *,
    preprocess=False,
    fixed_size=True,
    weights="raw",
    overrides=None,
    rtol=None,
    soc_version="Ascend310P3",
) -> Export:
    """Export a checkpoint of any project; the suffix of `destination` says how: `.onnx`, `.mindir` or `.air`.

    options: `GraphOptions`; its `preprocess` (mean and std) and `image_size` are filled in from the checkpoint where
    `preprocess` and `fixed_size` ask for them. overrides: recipe keys of the command line that stand
    above what the checkpoint tells, see `recipe.network.recipe_of`. rtol: tolerance, by precision unless given.
    A MindIR file's metadata are written beside it as JSON, named as the file with `.json` behind it.
    Raises EquivalenceError, and leaves no new file, when the written file computes something else; UserError when the
    checkpoint cannot be used, a package is missing, or the destination cannot be written.
    """
    source, destination = Path(source), Path(destination)
    options = options or GraphOptions()
    check_destination(source, destination, options, fixed_size)
    imported = import_weights(source, weights)
    net = imported.network()
    pictures = Pictures(net, overrides or {})
    if fixed_size and options.image_size is None:
        options = replace(options, image_size=pictures.preprocessing.image_size)
    if preprocess:
        options = replace(options, preprocess=pictures.known_preprocessing())
    deployed, fusion = net, None
    if not net.deploy:
        deployed = to_deploy(net)
        fusion = verify_equivalence(net, deployed, pictures.normalised(pictures.pixels[:2]))
    metadata = facts_of(deployed, pictures, options, source)
    write = _write_onnx if destination.suffix == ".onnx" else _write_mindir
    with atomic_path(destination) as temporary:
        operators, run = write(deployed, temporary, options, metadata, destination.suffix)
        check = None
        if run:
            tolerance = TOLERANCES[options.precision] if rtol is None else rtol
            check = _compare(run, net, pictures, options, tolerance)
            if not check.passed:
                raise EquivalenceError(
                    f"{destination} was not written: its {options.output} differ from the network's by "
                    f"{check.max_rel:.1e} of the largest, more than {tolerance:g}",
                    check,
                )
    if destination.suffix != ".onnx":
        write_json(f"{destination}.json", {**metadata, "file_sha256": _sha256(destination)})
    size = options.image_size or pictures.preprocessing.image_size
    commands = ascend_commands(destination, options, net.in_channels, size, soc_version)
    return Export(source, destination, options, metadata, fusion, operators, check, pictures.origin, commands)


def check_destination(source, destination, options, fixed_size=True):
    """Refuse, before anything is read, what could not be written at the end."""
    if destination.suffix not in SUFFIXES:
        raise UserError(f"{destination} must end in one of {', '.join(SUFFIXES)}: the suffix says how it is written")
    if destination.exists() and source.exists() and destination.samefile(source):
        raise UserError(f"{destination} is the checkpoint itself; give the result another name")
    if destination.suffix == ".onnx":
        require_onnx()
        check_opset(options.opset)
    if destination.suffix == ".air":
        if ms.get_context("device_target") != "Ascend":
            raise UserError("MindSpore writes AIR on Ascend only (--device_target Ascend); export to .onnx or .mindir")
        if not (options.batch_size and fixed_size):
            raise UserError("an AIR file has a fixed batch and image size: give --batch_size N, no dynamic image_size")


def facts_of(net, pictures, options, source) -> dict:
    """The metadata of an exported file, plain types by name.

    model, form, num_classes, in_channels, class_names (where known), image_size [height, width], mean, std (where
    known), interpolation, crop_pct, what goes in and comes out, precision, the checkpoint's name and SHA-256, and under
    'mindrepvgg' the version that wrote it.
    """
    preprocessing = pictures.preprocessing
    prepared = {"mean": list(preprocessing.mean), "std": list(preprocessing.std)} if pictures.known else {}
    return {
        **network_facts(net),
        "image_size": list(options.image_size or preprocessing.image_size),
        **prepared,
        "interpolation": preprocessing.interpolation,
        "crop_pct": preprocessing.crop_pct,
        "input": "uint8 NHWC" if options.preprocess else "normalised float32 NCHW",
        "output": options.output,
        "precision": options.precision,
        "checkpoint": source.name,
        "checkpoint_sha256": _sha256(source),
    }


def _sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _compare(run, net, pictures, options, rtol):
    """Compare a file's function with the network it was made from, on every batch."""

    def file_outputs(pixels):
        return run(pixels if options.preprocess else pictures.normalised(pixels))

    def network_outputs(pixels):
        logits = net(Tensor(pictures.normalised(pixels)))
        return (ops.softmax(logits, -1) if options.softmax else logits).asnumpy()

    batches = [(pixels, None, np.ones(len(pixels), bool)) for pixels in pictures.batches(options)]
    return cross_check(file_outputs, network_outputs, batches, rtol)


def _write_onnx(net, path, options, metadata, _suffix):
    """Write and check an ONNX file; gives its operators and the function it computes."""
    model = build_onnx(net.variant, network_arrays(net), options, metadata)
    path.write_bytes(model.SerializeToString())
    del model  # large networks: it is a copy of all weights
    operators = check_onnx_file(path, net.variant, options)
    try:
        return operators, OnnxEngine(path)
    except CheckpointError:  # a valid file that is too new
        import onnxruntime

        raise UserError(
            f"onnxruntime {onnxruntime.__version__} does not run opset {options.opset}; take an older one"
        ) from None


def _write_mindir(net, path, options, _metadata, suffix):
    """Write a MindIR or AIR file; gives no operators, and the function of a MindIR file."""
    served = _Served(net, options)
    shape = options.input_shape(net.in_channels, None, None, None)
    kind = ms.uint8 if options.preprocess else ms.float32
    example = Tensor(shape=shape, dtype=kind) if None in shape else Tensor(np.zeros(shape), kind)
    # In a folder of its own: MindSpore takes the right to write from what it exports, and for some formats from the
    # folder's other users.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export.") as folder:
        written = Path(folder, f"model{suffix}")
        ms.export(served, example, file_name=str(written), file_format=suffix[1:].upper())
        others = [found.name for found in Path(folder).iterdir() if found != written]
        if others:
            raise UserError(
                f"the weights are too many for one {suffix} file: MindSpore wrote {', '.join(others)} as well"
            )
        graph = nn.GraphCell(ms.load(str(written))) if suffix == ".mindir" else None
        os.chmod(written, 0o600)
        shutil.move(written, path)
    return None, (lambda images: graph(Tensor(images)).asnumpy()) if graph else None


class _Served(nn.Cell):
    """A deploy network with what an exported file has around it: preprocessing, precision, softmax.

    Its parameters keep their names, and `net` stays as it was.
    """

    def __init__(self, net, options):
        super().__init__(auto_prefix=False)  # which would rename the network's own parameters
        self.preprocesses = options.preprocess is not None
        if self.preprocesses:
            self.gain, self.bias = (Tensor(values) for values in options.preprocess.gain_and_bias())
        self.dtype = getattr(ms, options.precision)
        if options.precision == "float16":
            net = copy.deepcopy(net)
            for parameter in net.get_parameters():
                parameter.set_dtype(ms.float16)
        self.net = net
        self.softmax = nn.Softmax(-1) if options.softmax else None
        self.set_train(False)

    def construct(self, images):
        x = images
        if self.preprocesses:
            x = x.transpose(0, 3, 1, 2).astype(ms.float32) * self.gain + self.bias
        outputs = self.net(x.astype(self.dtype)).astype(ms.float32)
        return outputs if self.softmax is None else self.softmax(outputs)
