"""The report of a validation: one page of HTML with its table, curves, confusions, classes, mistakes and both forms."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import mindspore as ms
from mindspore import nn

from mindrepvgg.data.loaders import loader_of, open_split
from mindrepvgg.data.source import spread
from mindrepvgg.drawing import page
from mindrepvgg.drawing.curves import LEAST_CLASSES_FOR_TOP5, draw_curves
from mindrepvgg.drawing.sheet import as_image
from mindrepvgg.errors import UserError
from mindrepvgg.evaluation.fold_picture import fold_of
from mindrepvgg.evaluation.run_log import read_records
from mindrepvgg.evaluation.validation_report import Validation
from mindrepvgg.models.variants import TRAIN
from mindrepvgg.recipe.network import recipe_of
from mindrepvgg.reparam.deploy import to_deploy
from mindrepvgg.reparam.equivalence import verify_equivalence
from mindrepvgg.reparam.precision import set_precision
from mindrepvgg.runtime.device import execution_mode
from mindrepvgg.text import counted, printable
from mindrepvgg.version import __version__

log = logging.getLogger(__name__)

_LOG = "log.jsonl"  # of a run, beside its checkpoints
_COMPARED = 32  # images on which both forms are compared
_THUMBNAIL = 224  # pixels of a mistake's longer side
_LONGEST_NAME = 200


def write_report(path, found: Validation, net, checkpoint, overrides: Mapping) -> None:
    """Write the report page, atomically.

    Args:
        path: of the page, .html.
        found: the validation, with classes and mistakes.
        net: what was validated: a network, or an exported file, see `validation_report.run_validation`. A network is
            in float32 afterwards.
        checkpoint: its file, beside which the log of its run is looked for.
        overrides: recipe keys of the command line.
    """
    classes = found.classes
    if classes is None:
        raise ValueError("a report needs a validation by class")
    parts = [
        page.heading(found.title, found.headlines()),
        _cards(found),
        *_curves(found, net, checkpoint),
        page.section("Confusions", page.drawing(lambda stream: classes.draw(stream, found.title), "confusion matrix")),
        _classes(found),
        _mistakes(found),
        *_both_forms(found, net, overrides),
        _settings(found, net, checkpoint, overrides),
        page.footer(f"mindrepvgg {__version__}; this page needs no network"),
    ]
    page.write_page(path, f"{found.title}: validation", parts)


def _cards(found):
    evaluation = found.evaluation
    top5 = {"top-5": f"{evaluation.top5:.2f}%"} if len(found.classes.names) >= LEAST_CLASSES_FOR_TOP5 else {}
    return page.cards(
        {
            "top-1": f"{evaluation.top1:.2f}%",
            **top5,
            "right": f"{evaluation.correct:,}",
            "images": f"{evaluation.num_images:,}",
            "loss": f"{evaluation.loss:.4f}",
            "images/s": f"{evaluation.images_per_second:,.0f}",
        }
    )


def _curves(found, net, checkpoint) -> Iterator[str]:
    """The curves of the run that the checkpoint comes from, where its log lies beside the file and reaches so far."""
    file = Path(checkpoint).parent / _LOG
    if "recipe" not in net.metadata or not file.is_file():
        return
    try:
        records = read_records(file)
    except UserError as error:
        log.warning("no curves in the report: %s", error)
        return
    if not records or records[-1]["step"] < net.metadata.get("step", 0):
        return
    count = len(found.classes.names)
    picture = page.drawing(lambda stream: draw_curves(records, stream, found.title, count), "curves of the training")
    yield page.section("Training", picture, page.paragraph(f"from {_LOG}, which lies beside the checkpoint", "grey"))


def _classes(found):
    """A line for each class, the worst first."""
    with_top5 = len(found.classes.names) >= LEAST_CLASSES_FOR_TOP5
    rows = []
    for result in sorted(found.classes.results, key=lambda result: 101 if result.top1 is None else result.top1):
        known = result.top1 is not None
        rates = [result.top1, result.top5] if with_top5 else [result.top1]
        rows.append(
            (
                printable(result.name, _LONGEST_NAME),
                f"{result.correct:,} of {result.images:,}",
                *("-" if rate is None else f"{rate:.1f}%" for rate in rates),
                result.top1 / 100 if known else None,
                f"{printable(result.taken_for, _LONGEST_NAME)} ({result.times:,})" if result.times else "",
            )
        )
    headings = ["class", "right", "top-1", *(["top-5"] if with_top5 else []), "", "most taken for"]
    bar = 3 + with_top5
    return page.section("Classes, the worst first", page.table(headings, rows, numbers=range(1, bar), bars=(bar,)))


def _mistakes(found):
    mistakes = found.mistakes.mistakes
    if not mistakes:
        return page.section("Worst mistakes", page.paragraph("every image is right"))
    items = []
    for mistake, picture in zip(mistakes, found.mistakes.pictures, strict=True):
        image = as_image(picture)
        image.thumbnail((_THUMBNAIL, _THUMBNAIL))
        sure, own = f"{mistake.confidence:.0%}", f"{mistake.true_confidence:.0%}"
        names = (printable(name, _LONGEST_NAME) for name in (mistake.predicted_class, mistake.true_class))
        first, second = (f"{share}: {name}" for share, name in zip((sure, own), names, strict=True))
        items.append((image, first, f"{second} (true)", printable(Path(mistake.file).name, _LONGEST_NAME)))
    text = f"the {counted(len(items), 'wrong image')} of which the network was most sure, as it saw them"
    return page.section("Worst mistakes", page.paragraph(text, "grey"), page.pictures(items))


def _both_forms(found, net, overrides) -> Iterator[str]:
    """How far the train form and the deploy form are apart, on images of the split, and a block before and after."""
    if found.form != TRAIN or not isinstance(net, nn.Cell):
        yield page.section("Both forms", page.paragraph(f"The file has one: {found.form}.", "grey"))
        return
    set_precision(net, "O0")
    recipe = recipe_of(net, overrides)
    images = next(iter(loader_of(recipe, spread(open_split(recipe, "val"), _COMPARED))))[0][:_COMPARED]
    try:
        with execution_mode(ms.PYNATIVE_MODE):
            deployed = to_deploy(net)
            report = verify_equivalence(net, deployed, images, raise_on_failure=False)
    except UserError as error:
        yield page.section("Both forms", page.paragraph(str(error), "grey"))
        return
    same = "" if report.class_agreement is None else f", the same class on {report.class_agreement:.2%} of them"
    verdict = (
        f"On {counted(report.num_inputs, 'image')} of the split, the logits of the train form and of its deploy form "
        f"differ by {report.max_rel:.1e} of the largest (tolerance {report.rtol:g}){same}."
    )
    rows = [(b.name, f"{b.max_abs:.1e}", f"{b.max_rel:.1e}", f"{b.weight_rel:.1e}") for b in report.blocks]
    headings = ("block", "outputs differ by", "of the largest", "weights, of the largest")
    parts = [
        page.paragraph("equivalent", "good")
        if report.passed
        else page.paragraph(f"NOT equivalent: {'; '.join(report.failures)}", "bad"),
        page.paragraph(verdict),
    ]
    try:
        fold = fold_of(net)
    except UserError:  # its blocks are of another kind
        pass
    else:
        parts.append(
            page.drawing(lambda stream: fold.draw(stream, found.model), "kernels of a block, before and after")
        )
    yield page.section("Both forms", *parts, page.table(headings, rows, numbers=(1, 2, 3)))


def _settings(found, net, checkpoint, overrides):
    """How it was measured."""
    recipe, options = recipe_of(net, overrides), found.options
    height, width = recipe.image_size
    rows = [
        ("file", printable(checkpoint, _LONGEST_NAME)),
        ("network", f"{found.model}, {found.form} form"),
        ("data", f"{found.dataset}{f' in {printable(recipe.data_dir, _LONGEST_NAME)}' if recipe.data_dir else ''}"),
        ("images", f"{found.chosen_images:,} of {found.split_images:,}{found.evaluation.not_counted}"),
        ("input", f"{width}x{height} pixels, crop_pct {recipe.crop_pct:g}, {recipe.interpolation}"),
        ("computed by", f"{options.engine} on {found.device}, {options.precision}"),
        ("half precision", options.amp_level if options.amp_level != "O0" else "no"),
        ("mirror images averaged", "yes" if options.flip else "no"),
        ("processes", found.processes),
        *((f"trained with {name}", version) for name, version in (net.metadata.get("versions") or {}).items()),
    ]
    return page.section("How it was measured", page.table((), rows))
