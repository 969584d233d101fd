"""The Python side of the command: what each verb calls, with the recipe's keys as keyword arguments.

    import mindrepvgg

    run = mindrepvgg.train("quickstart", epoch_size=5)
    print(mindrepvgg.validate(run.best).format())
    mindrepvgg.convert(run.best, "digits.ckpt")

Each function chooses the process's device, as the command does; a process keeps the device that it has used. The
functions import what they need when they are called, so that `help(mindrepvgg.train)` answers at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mindrepvgg.deployment.export import Export
    from mindrepvgg.deployment.int8.report import Quantization
    from mindrepvgg.evaluation.predictions import Prediction
    from mindrepvgg.evaluation.validation_report import Validation
    from mindrepvgg.recipe.schema import Recipe
    from mindrepvgg.training.result import RunResult
    from mindrepvgg.weights.convert import Conversion

    StrPath = str | PathLike[str]


def train(
    recipe: Recipe | StrPath | None = None,
    *,
    resume: StrPath | bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    profile: bool = False,
    **overrides: Any,
) -> RunResult | None:
    """Train a network.

    Args:
        recipe: a recipe, the name of one in `configs/`, such as "quickstart", or a yaml file's path. None: the
            defaults, or where a run is resumed, its own recipe.
        resume: continue an interrupted run exactly. True: the run in `ckpt_save_dir`; a path: the run in this folder,
            or the one that saved this checkpoint (`*_last.ckpt`). A larger `epoch_size` prolongs the run.
        overwrite: start anew in a folder that already holds a run.
        dry_run: compile, run a few steps, print their memory and time, and write nothing.
        profile: record the first steps after compilation with MindSpore's profiler.
        **overrides: recipe keys, which replace the recipe's values: `epoch_size=5`, `data_dir="photos"`.

    Returns:
        How the run ended and where its checkpoints are; None after a dry run.

    Raises:
        UserError: recipe, data, checkpoint and folder do not go together.
    """
    from mindrepvgg.recipe.rules import check_data_dir
    from mindrepvgg.recipe.schema import Recipe
    from mindrepvgg.recipe.sources import load_recipe
    from mindrepvgg.training.resume import find_run
    from mindrepvgg.training.trainer import Trainer

    if recipe is not None and not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe)
    checkpoint = None
    if resume is False:
        chosen = (recipe or Recipe()).replace(**overrides)
    else:
        chosen, checkpoint = find_run(resume, recipe, overrides)
    check_data_dir(chosen)
    return Trainer(chosen, checkpoint, overwrite, dry_run).run(profile)


def validate(
    checkpoint: StrPath,
    *,
    weights: str = "raw",
    limit: int | None = None,
    flip: bool = False,
    amp_level: str = "O0",
    engine: str | None = None,
    precision: str = "float32",
    num_threads: int | None = None,
    by_class: bool = False,
    mistakes: bool = False,
    report: StrPath | None = None,
    device_target: str = "auto",
    mode: int = 0,
    distribute: str | bool = "auto",
    show_progress: bool = False,
    **overrides: Any,
) -> Validation:
    """Measure a checkpoint's, or an exported file's, accuracy on the validation split of its training, or on another.

    Args:
        checkpoint: a file of this or any RepVGG project, in train or deploy form; or an exported file: `.onnx`,
            OpenVINO's `.xml`, or `.mindir`.
        weights: "raw", or "ema" for the averaged copy in the file.
        limit: at most so many images, spread over all classes; None: all.
        flip: average the logits of each image and its mirror image.
        amp_level: "O0" computes in float32; "O2" and "O3" in float16.
        engine: what computes: "mindspore", or on the CPU "onnxruntime" or "openvino"; None: mindspore for a checkpoint,
            and for an exported file the first that runs it, see `deployment.engine.RUNS`.
        precision: of openvino's arithmetic: "float32" or "bfloat16", whose difference is logged.
        num_threads: threads of onnxruntime or openvino; None: their choice.
        by_class: count for each class too, see `Validation.classes`.
        mistakes: keep the worst mistakes with their pictures, see `Validation.mistakes`.
        report: a page of HTML to write, with curves, confusions, classes, mistakes and the comparison of both forms.
        device_target: "CPU", "Ascend", or "auto": Ascend where the machine has one.
        mode: 0: graph mode; 1: PyNative mode.
        distribute: "auto": share the work with the processes that msrun started; False: do all of it here.
        show_progress: draw a progress bar on a terminal.
        **overrides: recipe keys, such as `data_dir` or `batch_size`, which replace what the checkpoint says.

    Returns:
        The accuracies and how they were measured; all processes get the same.

    Raises:
        UserError: checkpoint, data and options do not go together, or a package is missing.
    """
    from mindrepvgg.deployment.exported import Computing
    from mindrepvgg.evaluation.validation_report import EvalOptions, run_validation
    from mindrepvgg.runtime import device, ranks

    computing = Computing.of(checkpoint, engine, num_threads, precision)
    if report is not None:
        from mindrepvgg.evaluation.class_report import SUFFIXES, check_suffix
        from mindrepvgg.evaluation.report_page import write_report

        check_suffix(report, SUFFIXES["report"])
        by_class = mistakes = True
    options = EvalOptions(limit, flip, amp_level, computing.engine, by_class, precision, mistakes)
    ways = {"weights": weights, "amp_level": amp_level, "mode": mode, "device_target": device_target}
    computing.check(checkpoint, overrides, **ways)
    target = device.setup(computing.device(device_target), mode)
    group = ranks.start(distribute)
    net, make = computing.open(checkpoint, overrides, weights)
    found = run_validation(net, overrides, options, target, group, make, show_progress)
    if report is not None and group.is_first:
        write_report(report, found, net, checkpoint, overrides)
    group.leave()
    return found


def predict(
    checkpoint: StrPath,
    inputs: StrPath | Sequence[StrPath],
    *,
    topk: int = 5,
    class_names: StrPath | None = None,
    out: StrPath | None = None,
    weights: str = "raw",
    engine: str | None = None,
    precision: str = "float32",
    num_threads: int | None = None,
    device_target: str = "auto",
    show_progress: bool = False,
    **overrides: Any,
) -> Iterator[Prediction]:
    """Predict the classes of pictures.

    Args:
        checkpoint: a file of this or any RepVGG project, or an exported file, see `validate`.
        inputs: pictures and folders of pictures; "-" is one picture from standard input.
        topk: the most probable classes to tell of each picture.
        class_names: a file of names, one a line or a JSON list; None: those that the checkpoint knows.
        out: a folder to write each picture to, with its classes on it.
        weights: "raw", or "ema" for the averaged copy in the file.
        engine: what computes, see `validate`.
        precision: of openvino's arithmetic, see `validate`.
        num_threads: threads of onnxruntime or openvino.
        device_target: "CPU", "Ascend", or "auto": Ascend where the machine has one.
        show_progress: draw a progress bar on a terminal.
        **overrides: recipe keys, such as `image_resize` or `batch_size`, which replace what the checkpoint says.

    Returns:
        The predictions, one picture after the other, computed as they are asked for. A picture that cannot be read has
        an `error` in place of classes.

    Raises:
        UserError: checkpoint, pictures and options do not go together, or a package is missing.
    """
    from mindrepvgg.data.inputs import InputFiles
    from mindrepvgg.deployment.exported import Computing
    from mindrepvgg.errors import UserError
    from mindrepvgg.evaluation.draw import Drawer
    from mindrepvgg.evaluation.predictions import class_names_of, loader_for, predictions
    from mindrepvgg.reparam.layers import set_grouped
    from mindrepvgg.runtime import device

    if topk < 1:
        raise UserError(f"topk (={topk}) must be at least 1")
    files = InputFiles([inputs] if isinstance(inputs, (str, PathLike)) else inputs)
    drawer = Drawer(out, files) if out else None
    computing = Computing.of(checkpoint, engine, num_threads, precision)
    computing.check(checkpoint, overrides, weights=weights, device_target=device_target)
    device.setup(computing.device(device_target))
    net, make = computing.open(checkpoint, overrides, weights)
    names = class_names_of(net, class_names)
    loader = loader_for(net, files, {"batch_size": 32, **overrides})
    if "grouped" in overrides:  # no exported file comes here with it
        set_grouped(net, overrides["grouped"])
    found = predictions(make(net) if make else net, loader, names, topk, show_progress)
    return found if drawer is None else _drawn(found, drawer)


def _drawn(predictions, drawer):
    """Draw each picture, and tell where."""
    for index, found in enumerate(predictions):
        yield found if found.error else replace(found, drawn=drawer.write(index, found))


def convert(
    source: StrPath,
    destination: StrPath,
    *,
    form: str | None = None,
    dialect: str = "mindrepvgg",
    weights: str = "raw",
    num_classes: int | None = None,
    rtol: float = 1e-4,
    allow_nonfinite: bool = False,
    device_target: str = "CPU",
) -> Conversion:
    """Convert a checkpoint of any RepVGG project to another form, project and container; by default, fuse it.

    Args:
        source: .pth, .pt, .safetensors, .ckpt or .pkl of any project.
        destination: the file to write: .ckpt, .safetensors, or with PyTorch .pth.
        form: "deploy" fuses the branches and compares both forms first; "train" keeps the branches. None: "deploy", but
            "train" for timm.
        dialect: the project whose parameter names the destination gets, such as "official" or "timm".
        weights: "raw", or "ema" for the averaged copy in the source.
        num_classes: refuse a source of another class count.
        rtol: the largest difference of the two forms, over the largest output.
        allow_nonfinite: accept NaN and infinite weights.
        device_target: where both forms run.

    Returns:
        What was read and written, and the comparison of both forms.

    Raises:
        EquivalenceError: the two forms differ by more than `rtol`; nothing was written.
        UserError: the source cannot be used, or the destination cannot be written.
    """
    from mindrepvgg.weights.convert import convert_checkpoint

    with _compiling_nothing(device_target):
        return convert_checkpoint(source, destination, dialect, form, weights, num_classes, rtol, allow_nonfinite)


def export(
    source: StrPath,
    destination: StrPath,
    *,
    batch_size: int | str | None = None,
    image_size: int | tuple[int, int] | str | None = None,
    precision: str = "float32",
    preprocess: bool = False,
    fold_normalisation: bool = False,
    softmax: bool = False,
    opset: int | None = None,
    weights: str = "raw",
    rtol: float | None = None,
    float32_layers: str | Sequence[str] | None = None,
    soc_version: str = "Ascend310P3",
    target: str | None = None,
    device_target: str = "CPU",
    **overrides: Any,
) -> Export:
    """Write the deploy form of a checkpoint as an ONNX, MindIR, AIR or .wts file, run the file and compare it.

    Args:
        source: a checkpoint of this or any RepVGG project, in train or deploy form.
        destination: the file to write: .onnx, .mindir, .wts, or on Ascend .air. For the target "triton", a folder.
        batch_size: a number, or "dynamic"; None: as the target says, otherwise dynamic.
        image_size: pixels: a side, (height, width), or "dynamic"; None: as the checkpoint says.
        precision: "float32" or "float16", of weights and arithmetic.
        preprocess: the file takes uint8 (N, H, W, C) and normalises it.
        fold_normalisation: the file takes float32 (N, C, H, W) of 0 to 255; mean and std are in the first convolution.
            It takes a fixed batch and image size.
        softmax: the file gives probabilities, not logits.
        opset: of ONNX; None: the newest that Ascend's tools document.
        weights: "raw", or "ema" for the averaged copy in the source.
        rtol: the largest difference over the largest output; None: by precision.
        float32_layers: in a float16 ONNX file, the blocks that stay in float32: a pattern of names as "stage1.*", or
            several.
        soc_version: the chip in the commands for Ascend's ATC.
        target: what the file is for: "ascend", "lite", "tensorrt" or "triton", see `docs/deploy.md`; it chooses the
            batch, and the files and commands that come with the file.
        device_target: where the network runs that the file is compared with.
        **overrides: recipe keys, such as `mean` and `std`, which replace what the checkpoint says.

    Returns:
        What was written, how far it is from the network, and the commands to run next.

    Raises:
        EquivalenceError: the file computes something else; it was not kept.
        UserError: the source cannot be used, a package is missing, or the destination cannot be written.
    """
    from mindrepvgg.deployment.export import export_checkpoint
    from mindrepvgg.deployment.graph import DEFAULT_OPSET, GraphOptions
    from mindrepvgg.deployment.targets import DYNAMIC, read_batch_size, target_of

    chosen = target_of(target)
    options = GraphOptions(
        batch_size=chosen.batch_size if batch_size is None else read_batch_size(batch_size),
        precision=precision,
        softmax=softmax,
        opset=DEFAULT_OPSET if opset is None else opset,
    )
    if image_size not in (None, DYNAMIC):
        overrides["image_resize"] = image_size
    with _compiling_nothing(device_target):
        return export_checkpoint(
            source,
            destination,
            options,
            preprocess=preprocess,
            fold=fold_normalisation,
            fixed_size=image_size != DYNAMIC,
            weights=weights,
            overrides=overrides,
            rtol=rtol,
            float32_layers=float32_layers,
            soc_version=soc_version,
            target=chosen,
        )


def quantize(
    source: StrPath,
    destination: StrPath,
    *,
    weights: str = "raw",
    report: StrPath | None = None,
    show_progress: bool = False,
    **settings: Any,
) -> Quantization:
    """Write the deploy form of a checkpoint as an INT8 ONNX file, and measure what INT8 loses.

    Args:
        source: a checkpoint of this or any RepVGG project, in train or deploy form.
        destination: the file to write, .onnx.
        weights: "raw", or "ema" for the averaged copy in the source.
        report: a JSON file for all that was measured; it is written whether the target is kept or not.
        show_progress: draw progress bars on a terminal.
        **settings: fields of `deployment.int8.prepare.QuantizeOptions`, such as `equalize=True` or `target_drop=1`;
            and recipe keys, such as `data_dir`, which replace what the checkpoint says.

    Returns:
        What was written, the accuracy of float32 and INT8, and the noise of each layer.

    Raises:
        EquivalenceError: INT8 loses more than `target_drop`; no ONNX file was written.
        UserError: checkpoint, data and settings do not go together, or a package is missing.
    """
    from mindrepvgg.deployment.int8.prepare import split_settings
    from mindrepvgg.deployment.int8.quantize import quantize_checkpoint

    options, overrides = split_settings(settings)
    with _compiling_nothing("CPU"):
        return quantize_checkpoint(
            source,
            destination,
            options,
            overrides=overrides,
            weights=weights,
            report=report,
            show_progress=show_progress,
        )


@contextlib.contextmanager
def _compiling_nothing(device_target: str):
    """Choose the device; PyNative mode in the body, where a graph that runs a few times is not worth compiling."""
    import mindspore as ms

    from mindrepvgg.runtime import device

    with device.execution_mode(ms.PYNATIVE_MODE):
        device.setup(device_target, ms.PYNATIVE_MODE)
        yield
