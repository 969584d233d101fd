"""Two implementations on the same images: how far their logits lie apart, and whether they judge alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

import numpy as np

from mindrepvgg.data.loaders import check_classes, eval_loader, loader_of
from mindrepvgg.data.samples import labelled_photos
from mindrepvgg.errors import CheckpointError, UserError
from mindrepvgg.evaluation.inference import ArrayFunction, as_function
from mindrepvgg.evaluation.metrics import MetricSum, softmax
from mindrepvgg.evaluation.torch_reference import TorchReference, import_torch, read_tensors
from mindrepvgg.models.parameters import network_arrays
from mindrepvgg.recipe.network import recipe_of
from mindrepvgg.reparam.compare import check_tolerance, difference, largest, relative
from mindrepvgg.runtime.device import inference_mode
from mindrepvgg.runtime.optional import import_optional
from mindrepvgg.text import counted, printable
from mindrepvgg.weights.load import load_weights
from mindrepvgg.weights.rename import from_ours

_TOP = 5
_NOISE_IMAGES = 8


@dataclass(frozen=True)
class CrossCheck:
    """What two networks made of the same images.

    Attributes:
        max_abs: largest difference of two logits.
        max_rel: the same over the reference's largest logit.
        top1_agreement: share of the images with the same first class.
        top5_agreement: share of the images with the same set of first five classes (all, where there are fewer).
        num_images: images compared.
        rtol: the largest `max_rel` that passes.
        ours, reference: accuracies where the images carry labels, else None.
    """

    max_abs: float
    max_rel: float
    top1_agreement: float
    top5_agreement: float
    num_images: int
    rtol: float
    ours: dict | None
    reference: dict | None

    @property
    def passed(self) -> bool:
        """Whether the logits agree within the tolerance; NaN does not."""
        return self.max_rel <= self.rtol

    def to_dict(self) -> dict:
        """Plain types, for JSON."""
        return {**asdict(self), "passed": self.passed}

    def format(self) -> str:
        """A few lines for people."""
        lines = [
            f"logits differ by at most {self.max_abs:.2e}, {self.max_rel:.2e} of the largest (tolerance {self.rtol:g})",
            f"same top-1 on {self.top1_agreement:.2%}, same top-5 on {self.top5_agreement:.2%} of "
            f"{counted(self.num_images, 'image')}",
        ]
        for name, accuracy in (("ours", self.ours), ("reference", self.reference)):
            if accuracy:
                lines.append(f"{name:<9} top-1 {accuracy['top1']:.2f}%  top-5 {accuracy['top5']:.2f}%")
        lines.append("the two agree" if self.passed else "the two DIFFER")
        return "\n".join(lines)


def cross_check(
    ours: ArrayFunction,
    reference: ArrayFunction,
    batches: Iterable[tuple],
    rtol: float = 1e-4,
    probabilities: bool = False,
) -> CrossCheck:
    """Run two networks over the same batches and compare them, batch by batch.

    Args:
        ours, reference: images (N, C, H, W) float32 -> logits (N, classes), both arrays.
        batches: (images, labels, valid) as an `EvalLoader` gives them; labels are None where there are none.
        rtol: the largest difference over the reference's largest logit that passes.
        probabilities: whether the differences are those of the probabilities, the softmax of both.

    Raises:
        UserError: `rtol` is negative, infinite or NaN.
        ValueError: the two have other class counts, or there is no image.
    """
    check_tolerance(rtol)
    max_abs = scale = 0.0
    same_top1 = same_top5 = num_images = 0
    sums = {"ours": MetricSum(), "reference": MetricSum()}
    labelled = True
    for images, labels, valid in batches:
        a, b = ours(images)[valid].astype(np.float64), reference(images)[valid].astype(np.float64)
        if a.shape != b.shape:
            raise ValueError(f"logits of shapes {a.shape} and {b.shape} do not compare")
        actual, expected = (softmax(a), softmax(b)) if probabilities else (a, b)
        # np.maximum keeps a NaN, where max() would lose it.
        max_abs = float(np.maximum(max_abs, difference(expected, actual)[0]))
        scale = max(scale, largest(expected))
        tops = [np.argsort(-logits, axis=1, kind="stable")[:, :_TOP] for logits in (a, b)]
        same_top1 += int((tops[0][:, 0] == tops[1][:, 0]).sum())
        same_top5 += int((np.sort(tops[0], 1) == np.sort(tops[1], 1)).all(1).sum())
        num_images += len(a)
        if labels is None:
            labelled = False
        else:
            sums["ours"].update(a, labels[valid])
            sums["reference"].update(b, labels[valid])
    if not num_images:
        raise ValueError("there was no image to compare on")
    accuracies = {
        name: {"top1": 100 * total.top1, "top5": 100 * total.top5, "loss": total.loss} if labelled else None
        for name, total in sums.items()
    }
    return CrossCheck(
        max_abs=max_abs,
        max_rel=relative(max_abs, scale),
        top1_agreement=same_top1 / num_images,
        top5_agreement=same_top5 / num_images,
        num_images=num_images,
        rtol=rtol,
        **accuracies,
    )


def cross_check_file(
    path,
    net,
    overrides: Mapping,
    reference=None,
    against: str = "torch",
    averaged: bool = False,
    rtol: float = 1e-4,
) -> tuple[CrossCheck, str]:
    """Compare a network with PyTorch's evaluation of a checkpoint.

    Args:
        path: the checkpoint that `net` was made from.
        net: the network.
        overrides: recipe keys of the command line, see `recipe.network.recipe_of`.
        reference: the file that PyTorch reads; None: `path`. The original of a fused or converted checkpoint.
        against: "torch" for the functional evaluation of the file's own tensors, "timm" for timm's network filled with
            them.
        averaged: compare the averaged (EMA) weights.
        rtol: see `cross_check`.

    Returns:
        The comparison, and what the images were.

    Raises:
        UserError: a package is missing, or a file does not fit.
    """
    source = reference or path
    if against == "timm":
        other, num_classes, in_channels = _timm_network(source, averaged)
    else:
        tensors = read_tensors(source, averaged)
        try:
            other = TorchReference(tensors, net.variant.strides)
        except CheckpointError as error:
            raise CheckpointError(f"{source}: {error}") from None
        num_classes, in_channels = other.num_classes, other.in_channels
    if (num_classes, in_channels) != (net.num_classes, net.in_channels):
        raise CheckpointError(
            f"{source} has {num_classes} classes and {in_channels} input channels, the network of {path} "
            f"{net.num_classes} and {net.in_channels}: they do not compare"
        )
    batches, images = _batches(net, overrides)
    with inference_mode(net):
        return cross_check(as_function(net), other, batches, rtol), images


def _timm_network(path, averaged):
    """A network of timm, filled with the file's weights (images -> logits), and its classes and input channels."""
    torch = import_torch()
    timm = import_optional("timm", "timm", "--cross_check timm", "plain --cross_check needs PyTorch only")
    found = load_weights(path, "ema" if averaged else "raw")
    arrays = from_ours(network_arrays(found), "timm", found.variant.family_layout("--cross_check timm"))
    options = {"num_classes": found.num_classes, "in_chans": found.in_channels}
    try:
        model = timm.create_model(found.variant.name, **options)
    except Exception as error:  # it imports further packages, which may raise anything
        reason = printable(" ".join(str(error).split()), 200) or type(error).__name__
        raise UserError(f"timm {timm.__version__} cannot build {found.variant.name}: {reason}") from error
    if found.deploy:
        model = timm.utils.model.reparameterize_model(model)
    model.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in arrays.items()})
    model.eval()

    def run(images):
        with torch.no_grad():
            return model(torch.from_numpy(images)).numpy()

    return run, found.num_classes, found.in_channels


def _batches(net, overrides):
    """Batches to compare on, and what they are: the data set if one is named, else photos, else noise."""
    if overrides.get("data_dir") or overrides.get("dataset") or net.metadata.get("dataset") == "mnist5k":
        recipe = recipe_of(net, overrides)
        loader = eval_loader(recipe)
        check_classes(net, loader.source)
        return loader, f"{counted(loader.num_images, 'image')} of {loader.source.title}"
    photos = labelled_photos() if net.in_channels == 3 else None
    if photos is not None:
        loader = loader_of(recipe_of(net, overrides), photos)
        labelled = photos.num_classes == net.num_classes
        batches = ((images, labels if labelled else None, valid) for images, labels, valid in loader)
        return batches, f"{len(photos)} photos of the package foolbox, as no data set was named"
    # Noise needs no more of the preprocessing than the size.
    channels = net.in_channels
    recipe = recipe_of(net, {**overrides, "mean": [0.0] * channels, "std": [1.0] * channels})
    shape = (_NOISE_IMAGES, channels, *recipe.image_size)
    noise = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return [(noise, None, np.ones(len(noise), bool))], f"{len(noise)} images of seeded noise, as no data set was named"
