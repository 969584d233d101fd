"""Weights of any project: the file's network is recognised by its content, built, and filled."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

from mindspore import nn
from mindspore.nn.utils import no_init_parameters

from mindrepvgg.errors import CheckpointError
from mindrepvgg.models import repvgg
from mindrepvgg.models.qat import FORMS, QAT, fold_bn, to_fake_quantized, to_trainable_deploy
from mindrepvgg.models.repvgg import RepVGG, build
from mindrepvgg.models.shapes import check_finite
from mindrepvgg.models.variants import find
from mindrepvgg.reparam.deploy import to_deploy
from mindrepvgg.weights.checkpoint import STATE_PREFIX, check_form, load_arrays, network_arrays
from mindrepvgg.weights.containers import read_weights
from mindrepvgg.weights.pickles import is_pickle_file, read_pickle_file
from mindrepvgg.weights.recognise import Recognised, recognise
from mindrepvgg.weights.torchfile import is_torch_file, read_torch_file
from mindrepvgg.weights.unwrap import unwrap


def empty_network(description):
    """The network a checkpoint's description with a `quantization` tells of, to be filled.

    Raises CheckpointError when it tells of none.
    """
    form = description.get("quantization")
    if form not in FORMS:
        raise CheckpointError(f"the checkpoint holds no network for INT8 training: its form is {form!r}")
    facts = (description[key] for key in ("model", "num_classes", "in_channels"))
    net = to_trainable_deploy(build(*facts, deploy=True, **description.get("model_args", {})))
    return to_fake_quantized(net) if form == QAT else net


def load_quantization(path):
    """The network of a checkpoint in 'bn' or 'qat' form, which `save_checkpoint` wrote; set to inference.

    Raises CheckpointError when it is another or does not fit.
    """
    return network_of(read_weights(path), path)


def network_of(found, path):
    """`load_quantization` of what `weights.read_weights` found in the file at `path`."""
    try:
        net = empty_network(found.description)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    load_arrays(net, {k: v for k, v in found.arrays.items() if not k.startswith(STATE_PREFIX)}, path)
    net.metadata = found.description
    return net.set_train(False)


log = logging.getLogger(__name__)

WEIGHTS = ("raw", "ema")


@dataclass(frozen=True)
class ImportedWeights:
    """A file's weights under our names, and what was found around them.

    container: 'torch', 'pickle', 'ckpt' or 'safetensors'. weights: 'raw' or 'ema', which of the two `recognised` holds;
    has_raw, has_ema: which the file holds. wrapper, prefix, ignored: see `unwrap.Unwrapped`. description: what a
    checkpoint of this package says of itself, empty for others.
    """

    path: Path
    container: str
    recognised: Recognised
    weights: str
    has_raw: bool
    has_ema: bool
    wrapper: str
    prefix: str
    ignored: tuple[str, ...]
    description: dict = field(repr=False)


def import_weights(path, weights="raw", allow_nonfinite=False) -> ImportedWeights:
    """Read a checkpoint of any project: torch `.pth` in both forms, `.safetensors`, MindSpore `.ckpt`, `.pkl`.

    Container, dialect, network, form and class count are told by content, never by the file's name. weights: 'raw', or
    'ema' for the averaged copy that some training scripts keep beside it.
    Raises CheckpointError, in one line, when the file cannot be read, is no RepVGG or not quite one, has no such copy,
    or holds NaN or infinite values (unless allowed).
    """
    path = Path(path)
    container, content, description = _read(path)
    try:
        found = unwrap(content)
        chosen = {"raw": found.weights, "ema": found.averaged}
        if chosen[weights] is None:
            kind, other = ("averaged (EMA)", "raw") if weights == "ema" else ("raw", "ema")
            raise CheckpointError(f"holds no {kind} weights; take the others with --weights {other}")
        if not allow_nonfinite:
            check_finite(chosen[weights])
        recognised = recognise(chosen[weights])
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return ImportedWeights(
        path=path,
        container=container,
        recognised=recognised,
        weights=weights,
        has_raw=found.weights is not None,
        has_ema=found.averaged is not None,
        wrapper=found.wrapper,
        prefix=found.prefix,
        ignored=found.ignored,
        description=description,
    )


def _read(path):
    """(container, nested content, description) of a file."""
    if is_torch_file(path):
        return "torch", read_torch_file(path), {}
    if is_pickle_file(path):
        return "pickle", read_pickle_file(path), {}
    found = read_weights(path)
    container = found.container
    if "quantization" in found.description:  # fine-tuned for INT8; what is of use elsewhere is the folded network
        net = fold_bn(network_of(found, path))
        return container, network_arrays(net), net.metadata
    arrays = {name: array for name, array in found.arrays.items() if not name.startswith(STATE_PREFIX)}
    return container, arrays, found.description


def load_weights(path, weights="raw", form=None, allow_nonfinite=False) -> RepVGG:
    """A network ready to use from a checkpoint of any project; set to inference.

    weights, allow_nonfinite: see `import_weights`. form: 'train' or 'deploy' to refuse the other one.
    What the file tells of itself is in `net.metadata`. Raises CheckpointError.
    """
    return build_network(import_weights(path, weights, allow_nonfinite), form)


def build_network(imported: ImportedWeights, form=None) -> RepVGG:
    """The network of imported weights, filled with them: their memory becomes the network's."""
    found = imported.recognised
    check_form(imported.path, "deploy" if found.deploy else "train", form)
    shape = found.variant.to_dict() if found.variant.name == "repvgg" else {}
    with no_init_parameters():  # every one of them is about to be filled
        net = repvgg.build(found.variant.name, found.num_classes, found.in_channels, found.deploy, **shape)
    if found.variant.aux_heads and not found.deploy and not found.has_aux:
        log.warning("%s has no auxiliary heads; the network is built without them", imported.path)
        net.drop_aux_heads()
    load_arrays(net, found.arrays, imported.path, copy=False)
    net.metadata = dict(imported.description)
    return net.set_train(False)


def create_model(
    name, num_classes=1000, in_channels=3, deploy=False, weights=None, norm=nn.BatchNorm2d, **shape
) -> RepVGG:
    """The network called `name` ('repvgg_a0', or as the paper writes it, 'RepVGG-A0').

    weights: a checkpoint of any project to fill it with; None leaves the fresh initialisation. Where its class count
    is another than `num_classes`, the heads stay fresh, which is said in the log: the start of fine-tuning. A
    train-form file fills a deploy-form network through fusion.
    shape: for the name 'repvgg' only: `num_blocks` and `widths`, and optionally `group_size`, `se`, `se_ratio`,
    `aux_heads`; see `mindrepvgg.models.variants.Variant`.
    Raises UserError when the name or a number cannot be used; CheckpointError when the file is of another network.
    """
    if weights is None:
        return repvgg.build(name, num_classes, in_channels, deploy, norm, **shape)
    imported = import_weights(weights)
    found = imported.recognised
    wanted = find(name, **shape)
    has = {**found.variant.to_dict(), "in_channels": found.in_channels}
    wants = {**wanted.to_dict(), "in_channels": in_channels}
    if has != wants:
        differing = [f"{key} {has[key]}, expected {wants[key]}" for key in has if has[key] != wants[key]]
        raise CheckpointError(
            f"{weights} holds a {found.variant.name}, not the {wanted.name} asked for: {'; '.join(differing)}"
        )
    if not deploy or found.deploy:
        check_form(weights, "deploy" if found.deploy else "train", "deploy" if deploy else "train")
    net = repvgg.build(name, num_classes, in_channels, found.deploy, norm, **shape)
    arrays = dict(found.arrays)
    fresh = _fresh_heads(net, found)
    if fresh:
        log.warning(
            "%s is for %d classes, the network for %d: %s start fresh",
            *(weights, found.num_classes, num_classes, ", ".join(fresh)),
        )
        for parameter in net.get_parameters():
            if parameter.name.startswith(fresh):
                arrays[parameter.name] = parameter.asnumpy()
    load_arrays(net, arrays, weights)
    return to_deploy(net) if deploy and not found.deploy else net


def _fresh_heads(net, found) -> tuple[str, ...]:
    """The prefixes of the heads that the file's weights cannot fill."""
    heads = []
    if found.num_classes != net.num_classes:
        heads.append("linear.")
    if found.variant.aux_heads and not found.deploy:
        for stage in found.variant.stages:
            if stage.aux and not found.has_aux:
                heads.append(f"{stage.name}_aux.")
            elif stage.aux and heads:
                heads.append(f"{stage.name}_aux.linear.")
    return tuple(heads)
