"""A checkpoint as an INT8 ONNX file: post-training quantisation, checked against the float file on labelled images."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from pathlib import Path
from typing import NamedTuple

from mindrepvgg.deployment.engine import open_engine
from mindrepvgg.deployment.engine_base import ONNXRUNTIME
from mindrepvgg.deployment.export import check_destination
from mindrepvgg.deployment.graph import GraphOptions, set_metadata
from mindrepvgg.deployment.int8.integer_targets import integer_target
from mindrepvgg.deployment.int8.noise import KernelNoise, LayerChain
from mindrepvgg.deployment.int8.prepare import NOISE_IMAGES, Prepared, QuantizeOptions, prepared
from mindrepvgg.deployment.int8.progress import INT8_SHARE, Progress
from mindrepvgg.deployment.int8.repairs import Repairs
from mindrepvgg.deployment.int8.report import FileFigures, LayerNoise, Quantization, latencies
from mindrepvgg.deployment.int8.search import Attempt, Evaluator, Search
from mindrepvgg.deployment.int8.splitting import extra_multiplications
from mindrepvgg.errors import EquivalenceError, UserError
from mindrepvgg.files import atomic_path, write_json


def quantize_checkpoint(
    source,
    destination,
    options: QuantizeOptions | None = None,
    *,
    overrides: dict | None = None,
    weights: str = "raw",
    report=None,
    show_progress: bool = False,
) -> Quantization:
    """Write the deploy form of a checkpoint of any project as an INT8 ONNX file, and measure what it lost.

    Accuracy is measured on the validation split. The layers that stay in float are chosen by it too. In a folder of
    pictures without classes, the class that float32 gives counts as right; without other pictures to calibrate on,
    every second one is taken for that.

    Args:
        source: the checkpoint.
        destination: the file to write, .onnx.
        options: how; the defaults if None.
        overrides: recipe keys that stand above what the checkpoint says, see `recipe_of`.
        weights: 'raw', or 'ema' for the averaged copy in the checkpoint.
        report: a path for the measurements as JSON, written whether the target is kept or not.
        show_progress: whether to show bars on a terminal.

    Returns:
        What was read, written and measured.

    Raises:
        EquivalenceError: the target is not kept and `allow_drop` is off, or equalisation changed the logits. No ONNX
            file is written.
        UserError: checkpoint, data and options do not go together, or a package is missing.
    """
    destination = Path(destination)
    options = options or QuantizeOptions()
    target = integer_target(options.target)
    target.require()
    check_destination(Path(source), destination, GraphOptions())
    if destination.suffix != ".onnx":
        raise UserError(f"{destination} must end in .onnx: INT8 is written in no other format")
    with Progress(show_progress) as progress, prepared(source, options, overrides, weights, progress) as ready:
        best, evaluator = _best(ready, options, progress)
        judged = _for_target(target, best.attempt, evaluator, progress)
        facts = _facts(options, target, best, ready)
        metadata = {**ready.exported.metadata, "precision": "int8", "quantization": facts}
        model = _finish(judged.path, metadata)
        float32, int8 = _figures(ready, evaluator, judged, target.engine)
        found = Quantization(
            source=ready.source,
            destination=destination,
            model=ready.net.variant.name,
            dataset=ready.validation.title,
            images=evaluator.reference.num_images,
            unreadable=evaluator.reference.unreadable,
            facts=facts,
            float32=float32,
            int8=int8,
            drop=judged.drop,
            agreement=judged.agreement,
            target_drop=options.target_drop,
            budget=options.search,
            layers=best.layers,
            attempts=best.attempts,
            chosen=best.attempts.index(best.attempt),
            kernels=best.kernels,
            largest_scale=ready.builder.largest_scale(best.attempt.repairs),
            written=judged.drop <= options.target_drop or options.allow_drop,
            engine=target.engine,
            check=target.check and target.check(model, str(destination)),
            commands=_commands(target, destination, ready.exported, options.soc_version),
            not_run=target.not_run,
        )
        if report:
            write_json(report, found.to_dict())
        _write(found, judged)
    return found


def _for_target(target, attempt, evaluator, progress) -> Attempt:
    """The chosen file as the target takes it, judged by the target's engine; the attempt itself where it is that."""
    import onnx

    if target.form is None and target.engine == ONNXRUNTIME:
        return attempt
    step = f"for {target.name}"
    progress.expect(evaluator.num_images * INT8_SHARE)
    progress.phase(f"INT8, {step}")
    path = attempt.path
    if target.form is not None:
        path = path.with_name(f"{target.name}.onnx")
        path.write_bytes(target.form(onnx.load(str(attempt.path))).SerializeToString())
    return evaluator(path, attempt.repairs, step, target.engine)


def _commands(target, destination, exported, soc_version):
    facts = exported.metadata
    return target.commands(destination, exported.options, facts["in_channels"], facts["image_size"], soc_version)


class _Best(NamedTuple):
    """The INT8 file that was chosen, and what was found on the way; see `Quantization`."""

    attempt: Attempt
    kernels: dict[int, KernelNoise]
    layers: tuple[LayerNoise, ...]
    attempts: tuple[Attempt, ...]


def _best(ready: Prepared, options, progress) -> tuple[_Best, Evaluator]:
    """Settle the weights' bits, find which repairs help, and which layers have to stay in float."""
    builder, images = ready.builder, ready.builder.batches[0][:NOISE_IMAGES]
    count, passes = len(ready.loader.source), len(images) * (len(builder.layers) + 1) / 2
    given = {name: getattr(options, name) for name in ("zero_dead", "equalize", "bias_correction")}
    start = Repairs(**given)
    progress.expect(builder.pictures(start) + count * (1 + INT8_SHARE) + passes + 16)
    progress.phase("calibration")
    kernels = builder.choose_bits(options.weight_bits, start)
    split = builder.worth_splitting(start) if options.split == "auto" else tuple(dict.fromkeys(options.split))
    start = dataclasses.replace(start, split=split)
    progress.phase("float, judged")
    evaluator = Evaluator(ready.exported.destination, ready.loader, progress, ready.float_logits)
    search = Search(builder, evaluator, progress, options.search)
    named = tuple(dict.fromkeys(options.keep_float)) if isinstance(options.keep_float, tuple) else ()
    start = dataclasses.replace(start, keep_float=named)
    chosen = None
    if options.search is not None:
        chosen = search.repair(start, options.target_drop)
        start = chosen.repairs
    progress.phase("layers alone")
    quantizer = builder.quantizer(start)
    alone = LayerChain(quantizer, quantizer.model(builder.layers), builder.layers).noise(images, progress.step)
    worst_first = sorted(alone, key=lambda name: alone[name].alone)
    if isinstance(options.keep_float, int):
        kept = tuple(worst_first[: options.keep_float])
        start = dataclasses.replace(start, keep_float=kept)
        chosen = search.attempt(start, f"{len(kept)} in float") if kept or chosen is None else chosen
    elif options.keep_float is None:
        chosen = search.fewest(chosen, start, worst_first, options.target_drop)
    elif chosen is None:
        chosen = search.attempt(start, "as asked for")
    layers = _layer_noise(builder, chosen, alone, images)
    return _Best(chosen, kernels, layers, tuple(search.attempts)), evaluator


def _layer_noise(builder, chosen, alone, images) -> tuple[LayerNoise, ...]:
    """The noise of each layer in the chosen file, beside what it makes alone."""
    import onnx

    repairs, found = chosen.repairs, alone
    if repairs.keep_float or repairs.bias_correction:
        integer = [name for name in builder.layers if name not in repairs.keep_float]
        chain = LayerChain(builder.quantizer(repairs), onnx.load(str(chosen.path)), integer)
        found = chain.noise(images, alone=False)
    return tuple(
        LayerNoise(name, found[name].output, found[name].weights, alone[name].alone, name in repairs.keep_float)
        for name in builder.layers
    )


def _facts(options, target, best, ready) -> dict:
    """Return how a file was quantised, for its metadata."""
    repairs, integers = best.attempt.repairs, ready.builder.options
    size = ready.exported.metadata["image_size"]
    dead = {name: len(channels) for name, channels in ready.builder.dead().items()} if repairs.zero_dead else {}
    scales = "per channel" if options.per_channel else "per tensor"
    if options.per_channel and not target.linear_per_channel:
        scales += ", the linear layer per tensor"
    return {
        "method": options.method,
        **({"percentile": options.percentile} if options.method == "percentile" else {}),
        "weights": f"int8, {scales}, {integers.weight_bits} bits",
        "activations": target.activations,
        "target": target.name,
        "float_layers": list(repairs.keep_float),
        "equalized": repairs.equalize,
        "bias_corrected": repairs.bias_correction,
        "dead_channels": dead,
        "split_layers": list(repairs.split),
        "extra_multiplications": extra_multiplications(ready.builder.layout, repairs.split, size),
        "calibration": ready.calibration,
        "onnxruntime": importlib.metadata.version("onnxruntime"),
    }


def _finish(path, metadata):
    """Give an INT8 file its metadata, check that it is valid, and return its model."""
    import onnx

    model = onnx.load(str(path))
    set_metadata(model, metadata)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return model


def _figures(ready, evaluator, attempt, engine) -> tuple[FileFigures, FileFigures]:
    """Return accuracy, size and speed of the float file and of the INT8 file."""
    paths, image = (ready.exported.destination, attempt.path), ready.builder.batches[0][:1]
    milliseconds = latencies([open_engine(path, engine) for path in paths], image)
    top1 = evaluator.reference.top1, attempt.top1
    float32, int8 = (
        FileFigures(accuracy, path.stat().st_size, time)
        for accuracy, path, time in zip(top1, paths, milliseconds, strict=True)
    )
    return float32, int8


def _write(found: Quantization, attempt):
    """Copy the file to its destination, or raise EquivalenceError where it lost too much."""
    if not found.written:
        raise EquivalenceError(
            f"{found.destination} was not written: INT8 lost {found.drop:.2f} points of top-1 at best (with "
            f"{attempt.repairs.describe()}), more than target_drop ({found.target_drop:g}); --search 12 tries the "
            "repairs, --diagnose says what is wrong, and --allow_drop writes it all the same",
            found,
        )
    if found.check is not None and not found.check.passed:
        raise EquivalenceError(f"{found.destination} was not written: {found.check.breaches[0].format()}", found)
    with atomic_path(found.destination) as temporary:
        temporary.write_bytes(attempt.path.read_bytes())
