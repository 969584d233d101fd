"""A checkpoint as a file of the deploy form, run and compared before it gets its name."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from mindrepvgg.deployment.engine import OnnxEngine, network_facts
from mindrepvgg.deployment.folding import folded_input
from mindrepvgg.deployment.graph import (
    INPUT,
    GraphOptions,
    build_onnx,
    check_onnx_file,
    check_opset,
    map_shapes,
    require_onnx,
)
from mindrepvgg.deployment.half import HalfCheck, check_half
from mindrepvgg.deployment.maps_check import MapsCheck, check_maps
from mindrepvgg.deployment.mindir import write_mindir
from mindrepvgg.deployment.pictures import Pictures
from mindrepvgg.deployment.targets import ANY, Target, write_files
from mindrepvgg.deployment.written import Written
from mindrepvgg.deployment.wts import check_wts, write_wts
from mindrepvgg.errors import CheckpointError, EquivalenceError, UserError
from mindrepvgg.evaluation.crosscheck import CrossCheck, cross_check
from mindrepvgg.files import atomic_path, open_regular, write_json
from mindrepvgg.models.block_kinds import matches, patterns_of
from mindrepvgg.models.parameters import network_arrays
from mindrepvgg.reparam.deploy import to_deploy
from mindrepvgg.reparam.equivalence import EquivalenceReport, verify_equivalence
from mindrepvgg.reparam.layers import set_grouped
from mindrepvgg.text import counted, quoted
from mindrepvgg.weights.load import import_weights, local_file

# The pictures of a brief comparison.
_FEW = 4

# What the file's outputs may differ by from the network's, over the largest of them.
TOLERANCES = {"float32": 1e-4, "float16": 1e-2}


@dataclass(frozen=True)
class Export:
    """What was read and written, and how far the written file's outputs are from the network's.

    Attributes:
        options: what the file takes and gives.
        metadata: what the file, or the JSON beside it, says of itself.
        fusion: the proof of the fusion; None where the checkpoint was in deploy form.
        operators: how many of each an ONNX file holds; None for other files.
        tensors: how many a .wts file holds, read back bit for bit; None for other files.
        check: the comparison; None for AIR, which nothing but Ascend's tools reads, and .wts.
        half: of a float16 ONNX file, how it computes on a chip; None for other files.
        images: what it was compared on, in words.
        target: what it is for.
        files: written beside it for the target.
        commands: what to run next, see `Target.commands`.
    """

    source: Path
    destination: Path
    options: GraphOptions
    metadata: dict
    fusion: EquivalenceReport | None
    operators: dict[str, int] | None
    tensors: int | None
    check: CrossCheck | MapsCheck | None
    half: HalfCheck | None
    images: str
    target: Target
    files: tuple[Path, ...]
    commands: tuple[tuple[str, str], ...]

    def to_dict(self) -> dict:
        """Plain types, for JSON."""
        told = {name: getattr(self.options, name) for name in ("preprocess", "folded")}
        return {
            "source": str(self.source),
            "destination": str(self.destination),
            "bytes": self.destination.stat().st_size,
            "options": {
                **asdict(self.options),
                **{name: known and (known.mean, known.std) for name, known in told.items()},
            },
            "metadata": self.metadata,
            "fusion": self.fusion and self.fusion.to_dict(),
            "operators": self.operators,
            "tensors": self.tensors,
            "check": self.check and self.check.to_dict(),
            "half": self.half and self.half.to_dict(),
            "images": self.images,
            "files": [str(path) for path in self.files],
            "commands": dict(self.commands),
        }

    def format(self) -> str:
        """Return a few lines for people; the commands come last."""
        options, facts = self.options, self.metadata
        shape = options.input_shape(facts["in_channels"])
        maps = facts.get("outputs")
        gives = counted(len(maps), "map") if maps else counted(facts["num_classes"], "class")
        lines = [f"{facts['model']}, {gives}, deploy form"]
        if self.fusion:
            word = "maps" if maps else "logits"
            lines[0] += f": fused from {self.source.name}, {word} differ by {self.fusion.max_rel:.1e} of the largest"
        lines.append(
            f"written: {self.destination} ({self.destination.stat().st_size / 2**20:.1f} MiB, {options.precision})"
        )
        outputs = maps or {options.output: (shape[0], facts["num_classes"])}
        given = ", ".join(f"{name}: float32 ({', '.join(map(str, size))})" for name, size in outputs.items())
        lines.append(f"input {INPUT}: {options.input_type} ({', '.join(map(str, shape))}); output {given}")
        if self.operators:
            counts = ", ".join(f"{count} {operator}" for operator, count in self.operators.items())
            lines.append(f"opset {options.opset}: {counts}")
        if self.tensors:
            lines.append(f"{counted(self.tensors, 'tensor')}, read back: the network's bit for bit; not run on a GPU")
        if self.check:
            batches = f"in batches of each kind it takes ({counted(self.check.num_images, 'image')} in all)"
            lines.append(f"run on {self.images}, {batches}, and compared with the network:")
            lines.append(self.check.format())
        lines += [self.half.format()] if self.half else []
        lines += [f"beside it: {path}" for path in self.files]
        lines += [self.target.heading] if self.commands else []
        lines += [f"# {title}\n{command}" for title, command in self.commands]
        return "\n".join(lines)


def export_checkpoint(
    source,
    destination,
    options: GraphOptions | None = None,
    *,
    preprocess: bool = False,
    fold: bool = False,
    fixed_size: bool = True,
    weights: str = "raw",
    overrides: dict | None = None,
    rtol: float | None = None,
    float32_layers: str | Sequence[str] | None = None,
    soc_version: str = "Ascend310P3",
    target: Target = ANY,
    brief: bool = False,
) -> Export:
    """Export a checkpoint of any project.

    Args:
        source: the checkpoint.
        destination: the file to write; its suffix says how: `.onnx`, `.mindir`, `.air` or `.wts`. The metadata of
            any but an ONNX file are written beside it as JSON, under its name with `.json` behind it.
        options: what the file takes and gives.
        preprocess: whether to fill in `options.preprocess` from the checkpoint.
        fold: the same of `options.folded`.
        fixed_size: whether to fill in `options.image_size` from the checkpoint, unless it is given.
        weights: 'raw', or 'ema' for the averaged copy in the checkpoint.
        overrides: recipe keys that stand above what the checkpoint says, see `recipe.network.recipe_of`.
        rtol: what the outputs may differ by, over the largest of them; None: as TOLERANCES says.
        float32_layers: patterns of blocks' names, to fill in `options.float32_blocks`.
        soc_version: the chip in the commands for Ascend's tools.
        target: what the file is for; it may put the file somewhere below `destination`.
        brief: for a file that is measured further. It is compared on a few pictures, with the network as it was given,
            and that is the proof of the fusion too, which has no report of its own.

    Raises:
        EquivalenceError: the written file computes something else; no file is left.
        UserError: the checkpoint cannot be used, a package is missing, or the destination cannot be written.
    """
    destination = target.place(Path(destination), Path(source))
    options = options or GraphOptions()
    check_destination(Path(source), destination, options, fixed_size, target)
    if fold and (preprocess or destination.suffix != ".onnx"):
        raise UserError("--fold_normalisation is for .onnx, without --preprocess: one of the two normalises")
    if float32_layers is not None and (options.precision == "float32" or destination.suffix != ".onnx"):
        raise UserError("--float32_layers is for .onnx with --precision float16: leave it out")
    grouped = (overrides or {}).get("grouped")
    if grouped and destination.suffix == ".onnx":
        raise UserError(f"grouped (={quoted(grouped)}) is for .mindir and .air: ONNX has its own grouped convolutions")
    source, weights = local_file(source, weights)
    net = import_weights(source, weights).network()
    if destination.suffix in (".onnx", ".wts"):
        _layout(net)
    if net.variant.features and options.softmax:
        raise UserError(f"softmax is for networks that classify, and {source} gives maps; leave it out")
    pictures = Pictures(net, overrides or {})
    if grouped:
        set_grouped(net, grouped)
    if fixed_size and options.image_size is None:
        options = replace(options, image_size=pictures.preprocessing.image_size)
    if preprocess:
        options = replace(options, preprocess=pictures.known_preprocessing("--preprocess"))
    if fold:
        options = replace(options, folded=pictures.known_preprocessing("--fold_normalisation"))
    if float32_layers is not None:
        options = replace(options, float32_blocks=_matching(float32_layers, net.variant))
    target.check(options)
    if destination.suffix == ".wts":
        check_wts(net.variant, options)
    deployed, fusion = net, None
    if not net.deploy:
        deployed = to_deploy(net)
        fusion = None if brief else verify_equivalence(net, deployed, pictures.normalised(pictures.pixels[:2]))
    metadata = facts_of(deployed, pictures, options, source)
    known = pictures.preprocessing if pictures.known else None
    size = options.image_size or pictures.preprocessing.image_size
    written = Written(destination, options, metadata, net.variant, net.in_channels, size, known, soc_version)
    files = target.files(written)  # raises what a target refuses, before anything is written
    operators, tensors, check, half, run = None, None, None, None, None
    with atomic_path(destination) as temporary:
        if destination.suffix == ".onnx":
            operators, run = _write_onnx(deployed, temporary, options, metadata)
        elif destination.suffix == ".wts":
            tensors = write_wts(temporary, network_arrays(deployed))
        else:
            run = write_mindir(deployed, temporary, options, destination.suffix)
        tolerance = TOLERANCES[options.precision] if rtol is None else rtol
        if run:
            batches = [pictures.pixels[:_FEW]] if brief else pictures.batches(options)
            check = _compare(run, net, pictures, options, tolerance, batches)
            if not check.passed:
                word = "maps" if net.variant.features else options.output
                raise EquivalenceError(
                    f"{destination} was not written: its {word} differ from the network's by "
                    f"{check.max_rel:.1e} of the largest, more than {tolerance:g}",
                    check,
                )
        if options.precision == "float16" and destination.suffix == ".onnx":
            half = _check_half(deployed, pictures, options, destination, tolerance)
    if destination.suffix != ".onnx":
        write_json(f"{destination}.json", {**metadata, "file_sha256": _sha256(destination)})
    return Export(
        source=source,
        destination=destination,
        options=options,
        metadata=metadata,
        fusion=fusion,
        operators=operators,
        tensors=tensors,
        check=check,
        half=half,
        images=pictures.origin,
        target=target,
        files=write_files(files),
        commands=target.commands(written),
    )


def check_destination(
    source: Path, destination: Path, options: GraphOptions, fixed_size: bool = True, target: Target = ANY
):
    """Raise UserError, before anything is read, for a file that could not be written at the end."""
    if destination.suffix not in target.suffixes:
        ends = ", ".join(target.suffixes)
        raise UserError(f"{destination} must end in one of {ends}: the suffix says how it is written")
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
    """Return the metadata of an exported file: plain types by name; docs/deploy.md lists them."""
    preprocessing = pictures.preprocessing
    prepared = {"mean": list(preprocessing.mean), "std": list(preprocessing.std)} if pictures.known else {}
    return {
        **network_facts(net),
        "image_size": list(options.image_size or preprocessing.image_size),
        **prepared,
        "interpolation": preprocessing.interpolation,
        "crop_pct": preprocessing.crop_pct,
        "input": options.takes,
        **({"outputs": map_shapes(net.variant, options)} if net.variant.features else {"output": options.output}),
        "precision": options.precision,
        **({"float32_layers": list(options.float32_blocks)} if options.float32_blocks else {}),
        "checkpoint": source.name,
        "checkpoint_sha256": _sha256(source),
    }


def _sha256(path):
    digest = hashlib.sha256()
    with open_regular(path, "a file", CheckpointError) as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _compare(run, net, pictures, options, rtol, batches) -> CrossCheck | MapsCheck:
    """Compare the function of a file with the network that it was made from, on batches of pixels."""

    def file_outputs(pixels):
        return run(pixels if options.preprocess or options.folded else pictures.normalised(pixels))

    if net.variant.features:

        def network_maps(pixels):
            return tuple(one.asnumpy() for one in net(Tensor(pictures.normalised(pixels))))

        names = [*map_shapes(net.variant, options)]
        return check_maps(file_outputs, network_maps, batches, names, rtol)

    def network_outputs(pixels):
        logits = net(Tensor(pictures.normalised(pixels)))
        return (ops.softmax(logits, -1) if options.softmax else logits).asnumpy()

    labelled = [(pixels, None, np.ones(len(pixels), bool)) for pixels in batches]
    return cross_check(file_outputs, network_outputs, labelled, rtol)


def _matching(patterns, variant) -> tuple[str, ...]:
    """The names of blocks that match one of the patterns; UserError where a pattern matches none."""
    names = [spec.name for spec in variant.block_specs()]
    chosen = patterns_of(patterns, names, variant.name, "float32_layers") or ()
    return tuple(name for name in names if matches(name, chosen))


def _check_half(net, pictures, options, destination, tolerance) -> HalfCheck:
    """Compute the float16 file as a chip does; raise EquivalenceError where it is further off than allowed."""
    pixels = pictures.batches(options)[0]
    images = pixels if options.preprocess else pictures.normalised(pixels)
    if options.folded:
        images = folded_input(pixels)
    half = check_half(_layout(net), network_arrays(net), options, images)
    if not half.max_rel <= tolerance:
        where = f": {half.overflowing} overflows" if half.overflowing else ""
        raise EquivalenceError(
            f"{destination} was not written: with every layer rounded to float16, as on a chip, its outputs differ by "
            f"{half.max_rel:.1e} of the largest, more than {tolerance:g}{where}; "
            f"keep blocks in float32 with --float32_layers {half.overflowing or 'NAME,...'}",
            half,
        )
    return half


def _layout(net):
    """The layout of an ONNX file's network; UserError where there is none."""
    return net.variant.deploy_layout("writing ONNX or .wts", "a .mindir takes any network")


def _write_onnx(net, path, options, metadata):
    """Write and check an ONNX file; returns how many of each operator it holds, and the function it computes."""
    layout = _layout(net)
    # Of MindCV's RepVGGs too the file is read where no MindCV is.
    model = build_onnx(layout, network_arrays(net), options, {**metadata, "model": layout.name})
    path.write_bytes(model.SerializeToString())
    del model  # it is a copy of all weights
    operators = check_onnx_file(path, layout, options)
    try:
        return operators, OnnxEngine(path)
    except CheckpointError:  # the file is valid, and its opset is too new
        import onnxruntime

        raise UserError(
            f"onnxruntime {onnxruntime.__version__} does not run opset {options.opset}; take an older one"
        ) from None
