"""Weights of any project: the file's network is recognised by its content, built, and filled."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mindspore import nn

from mindrepvgg.errors import CheckpointError, UserError
from mindrepvgg.models.building import build_network
from mindrepvgg.models.feature_layout import FEATURE_KEYS
from mindrepvgg.models.network_spec import BLOCK_KEYS, is_mindcvs
from mindrepvgg.models.networks import find_network
from mindrepvgg.models.parameters import load_arrays, network_arrays
from mindrepvgg.models.qat import fold_bn, set_per_channel
from mindrepvgg.models.shapes import check_finite, parameter_shapes
from mindrepvgg.models.variants import BN, DEPLOY, QAT, SHAPE_KEYS, STRIDES, TRAIN, Variant
from mindrepvgg.reparam.deploy import to_deploy
from mindrepvgg.reparam.layers import NATIVE, set_grouped
from mindrepvgg.text import listed, nearest, printable, quoted
from mindrepvgg.weights import cache, mindcv_weights
from mindrepvgg.weights.checkpoint import check_form, save_checkpoint, split_state
from mindrepvgg.weights.containers import read_weights
from mindrepvgg.weights.description import Description
from mindrepvgg.weights.dialects import OURS
from mindrepvgg.weights.pickles import is_pickle_file, read_pickle_file
from mindrepvgg.weights.recognise import Recognised, recognise, recognise_described
from mindrepvgg.weights.torchfile import is_torch_file, read_torch_file
from mindrepvgg.weights.unwrap import unwrap

log = logging.getLogger(__name__)

WEIGHTS = ("raw", "ema")


@dataclass(frozen=True)
class ImportedWeights:
    """A file's weights under our names, and what was found around them.

    Attributes:
        path: the file.
        container: 'torch', 'pickle', 'ckpt' or 'safetensors'.
        recognised: the network, with the arrays.
        weights: 'raw' or 'ema', which of the two `recognised` holds.
        has_raw, has_ema: which the file holds.
        wrapper, prefix, ignored: see `unwrap.Unwrapped`.
        description: what a checkpoint of this package tells of itself; None for others.
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
    description: Description | None = field(repr=False)

    def network(self, form: str | None = None) -> nn.Cell:
        """Build the network and fill it; the arrays become its memory. BN of 'bn' and 'qat' form is folded.

        Args:
            form: 'train' or 'deploy', to refuse the other one.

        Returns:
            The network in train or deploy form, set to inference.

        Raises:
            CheckpointError: the network is in the other form.
        """
        found = self.recognised
        check_form(self.path, DEPLOY if found.form in (BN, QAT) else found.form, form)
        facts = found.variant, found.num_classes, found.in_channels, found.form
        knows_heads = found.variant.aux_heads and not found.variant.features
        has_heads = found.has_aux or not knows_heads or found.form != TRAIN
        if not has_heads:
            log.warning("%s has no auxiliary heads; the network is built without them", self.path)
        without: dict[str, Any] = {} if has_heads else {"aux_heads": False}
        net = build_network(*facts, found.arrays, source=self.path, copy=False, **without)
        net.metadata = self.description.to_dict() if self.description else {}
        recipe = net.metadata.get("recipe") or {}
        if found.form == QAT:
            set_per_channel(net, recipe.get("quantization_per_channel", True))
        if found.form in (BN, QAT):
            net = fold_bn(net)
        set_grouped(net, recipe.get("grouped", NATIVE))
        return net.set_train(False)


def import_weights(
    path, weights: str = "raw", allow_nonfinite: bool = False, expected: Variant | None = None
) -> ImportedWeights:
    """Read a checkpoint of any project: torch `.pth` in both forms, `.safetensors`, MindSpore `.ckpt`, `.pkl`.

    Container, dialect, network, form and class count are told by content, never by the file's name.

    Args:
        path: the file; or the name of released weights ('repvgg_a1', 'timm/repvgg_a1'), or an https address, which are
            downloaded once, see `weights.cache`.
        weights: 'raw', or 'ema' for the averaged copy that some training scripts keep beside it.
        allow_nonfinite: take NaN and infinite values.
        expected: the layout to take where several fit the arrays alike; None: the one that the file tells of.

    Raises:
        CheckpointError: the file cannot be read, is no RepVGG or not quite one, has no such copy, or holds NaN or
            infinite values; the message is one line.
    """
    path, weights = local_file(path, weights)
    container, content, description = _read(path)
    if description and not description.variant.is_family:
        return _as_described(path, container, content, description, weights, allow_nonfinite)
    try:
        found = unwrap(content)
        chosen = found.averaged if weights == "ema" else found.weights
        if chosen is None:
            kind, other = ("averaged (EMA)", "raw") if weights == "ema" else ("raw", "ema")
            raise CheckpointError(f"holds no {kind} weights; take the others with --weights {other}")
        if not allow_nonfinite:
            check_finite(chosen)
        told = description.variant.family_layout("telling a network by its arrays") if description else None
        # No other project has these.
        if description and told and (description.form in (BN, QAT) or told.features or told.block):
            recognised = recognise_described(chosen, description)
        else:
            recognised = recognise(chosen, expected or told)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    heads = len(recognised.left_out)
    if heads:
        log.warning("%s is fused and still holds auxiliary heads, which inference does not use: left out", path)
    return ImportedWeights(
        path=path,
        container=container,
        recognised=recognised,
        weights=weights,
        has_raw=found.weights is not None,
        has_ema=found.averaged is not None,
        wrapper=found.wrapper,
        prefix=found.prefix,
        ignored=(*found.ignored, *([f"auxiliary heads ({heads})"] if heads else [])),
        description=description,
    )


def _as_described(path, container, arrays, description, weights, allow_nonfinite) -> ImportedWeights:
    """A network whose arrays do not tell what it is."""
    if weights != "raw":
        raise CheckpointError(f"{path}: holds no averaged (EMA) weights; take the others with --weights raw")
    if not allow_nonfinite:
        try:
            check_finite(arrays)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from None
    spec, num_classes, in_channels, form = description.network
    return ImportedWeights(
        path=path,
        container=container,
        recognised=Recognised(OURS.name, spec, form, num_classes, in_channels, False, arrays),
        weights=weights,
        has_raw=True,
        has_ema=False,
        wrapper="",
        prefix="",
        ignored=(),
        description=description,
    )


def _seal(wanted: cache.Seal):
    """Write a downloaded file as a checkpoint of this package."""
    imported = import_weights(wanted.source, wanted.weights)
    found = imported.recognised.variant.name
    if wanted.model not in (None, found):
        raise CheckpointError(f"{wanted.source} holds a {found}, expected a {wanted.model}")
    save_checkpoint(imported.network(), wanted.destination, **wanted.facts)


def local_file(spec, weights: str = "raw") -> tuple[Path, str]:
    """The file that a path, a name or an address means, and which of its weights to take; see `import_weights`."""
    return cache.local_file(spec, weights, _seal)


def _read(path) -> tuple[str, Any, Description | None]:
    """A file's container, its nested content, and its description."""
    if is_torch_file(path):
        return "torch", read_torch_file(path), None
    if is_pickle_file(path):
        return "pickle", read_pickle_file(path), None
    found = read_weights(path)
    description = Description.read(found.description, path) if found.description else None
    if description:
        description.check_family(path)
    else:
        _check_entries(path, found.arrays)
    return found.container, split_state(found.arrays)[0], description


def _check_entries(path, arrays):
    """Refuse arrays that are neither a network's, whose names have a dot, nor an optimizer's numbers."""
    for name, array in arrays.items():
        if "." not in name and array.size > 1 and array.dtype.kind != "f":
            raise CheckpointError(
                f"{path} holds {printable(name)} ({array.dtype} {array.shape}), which is no weight; get a fresh copy"
            )


def load_weights(path, weights: str = "raw", form: str | None = None, allow_nonfinite: bool = False) -> Any:
    """Build a network, ready to use, from a checkpoint of any project.

    Args:
        path: the file.
        weights, allow_nonfinite: see `import_weights`.
        form: 'train' or 'deploy', to refuse the other one.

    Returns:
        The network, set to inference; `net.metadata` holds what the file tells of itself.

    Raises:
        CheckpointError: see `import_weights`; or the network is in the other form.
    """
    return import_weights(path, weights, allow_nonfinite).network(form)


def create_model(
    name: str,
    num_classes: int = 1000,
    in_channels: int = 3,
    deploy: bool = False,
    weights=None,
    norm: type = nn.BatchNorm2d,
    grouped: str = NATIVE,
    pretrained: bool | str = False,
    features_only: bool = False,
    **shape,
) -> Any:
    """Create a network of the family, or one of MindCV.

    Args:
        name: one of `list_models()`, such as 'repvgg_a0', or as the paper writes it, 'RepVGG-A0'; or one of the
            installed MindCV, 'mindcv/resnet18'.
        num_classes: outputs of the classifier.
        in_channels: channels of the images.
        deploy: build the deploy form. A train-form file fills it through fusion.
        weights: a checkpoint of any project to fill it with, see `import_weights`; None leaves the fresh
            initialisation. Where its class count is not `num_classes`, the heads stay fresh, which is said in the log:
            the start of fine-tuning.
        norm: the BN's class, see `RepVGGBlock`.
        grouped: how convolutions in groups are computed: 'native', or 'split' for a device that has plain ones only.
        pretrained: True: released weights of this network, from its default source, which `mindrepvgg weights` names;
            or a source, such as 'timm'; or what `weights` takes. They are downloaded once.
        features_only: make a network that gives the maps of its levels, and has no classes: weights of a head are left
            out. With `out_indices` and the others of `mindrepvgg.models.feature_layout.FeatureLayout`.
        **shape: `block`, the kind of blocks in the place of the network's own ('repvgg', 'qarepvgg', 'mobileone',
            'acb', 'dbb', 'linear_addition', or 'plain' for one convolution), and `block_where`, a pattern of blocks'
            names, or several, as of `fnmatch` ('stage1.*'), for some blocks only. For the names 'repvgg', 'qarepvgg',
            'mobileone' and 'repopt_vgg': also `num_blocks` and `widths`, and optionally the others of
            `mindrepvgg.models.variants.SHAPE_KEYS`, which `Variant` there explains.

    Raises:
        UserError: the name or a number cannot be used.
        CheckpointError: the file is of another network.
    """
    if not is_mindcvs(name):
        _check_arguments(shape)
    layout = {key: shape.pop(key) for key in FEATURE_KEYS if key in shape and not _is_of_five(key, shape[key])}
    if layout and not features_only:
        raise UserError(f"{listed(sorted(layout))} needs features_only=True")
    wanted = find_network(name, **shape)
    if features_only:
        wanted = wanted.with_features(layout)
    if not wanted.is_family:
        if norm is not nn.BatchNorm2d or grouped != NATIVE:
            raise UserError(f"norm and grouped are for this package's own networks, and {wanted.name} is MindCV's")
        return _create_mindcv(wanted, num_classes, in_channels, deploy, pretrained or weights)
    return _create(
        wanted.family_layout("create_model"), num_classes, in_channels, deploy, weights, norm, grouped, pretrained
    )


def _create(wanted: Variant, num_classes, in_channels, deploy, weights, norm, grouped, pretrained):
    """See `create_model`; a network of the family."""
    if pretrained:
        if weights is not None:
            raise UserError(f"create_model got both weights (={quoted(weights)}) and pretrained; give one of them")
        weights = cache.name_of(pretrained, wanted.name)
    if weights is None:
        net = build_network(wanted, num_classes, in_channels, DEPLOY if deploy else TRAIN, norm=norm)
        return set_grouped(net, grouped)
    imported = import_weights(weights, expected=wanted)
    found = imported.recognised
    if not found.variant.is_family or found.variant.family != wanted.family:
        raise CheckpointError(f"{weights} does not fit: it holds a {found.variant.name}, not a {wanted.name}")
    has = {**found.variant.to_dict(), "in_channels": found.in_channels}
    wants = {**wanted.to_dict(), "in_channels": in_channels}
    if has != wants:
        keys = [key for key in {**wants, **has} if has.get(key) != wants.get(key)]
        differing = [f"{key} {has.get(key)}, expected {wants.get(key)}" for key in keys]
        raise CheckpointError(
            f"{weights} does not fit: it holds a {found.variant.name}, not a {wanted.name}: {'; '.join(differing)}"
            if found.variant.name != wanted.name
            else f"{weights} holds a {wanted.name} of another shape: {'; '.join(differing)}"
        )
    arrays, form = dict(found.arrays), found.form
    if form in (BN, QAT):
        arrays, form = network_arrays(imported.network()), DEPLOY
    if not deploy:
        check_form(weights, form, TRAIN)
    net = build_network(wanted, num_classes, in_channels, form, norm=norm)
    if wanted.features:
        known = parameter_shapes(wanted, form, in_channels=in_channels)
        arrays = {name: array for name, array in arrays.items() if name in known}
    elif fresh := _fresh_heads(net, found):
        text = "%s is for %d classes, the network for %d: fresh weights for %s"
        log.warning(text, weights, found.num_classes, num_classes, ", ".join(f"{prefix}*" for prefix in fresh))
        arrays |= {name: array for name, array in network_arrays(net).items() if name.startswith(fresh)}
    load_arrays(net.get_parameters(), arrays, weights)
    return set_grouped(to_deploy(net) if deploy and form == TRAIN else net, grouped)


def _is_of_five(key, value) -> bool:
    """Whether strides are a network's own, which count the stem, and not those of a features network's stages."""
    return key == "strides" and isinstance(value, (list, tuple)) and len(value) == len(STRIDES)


def _create_mindcv(wanted, num_classes, in_channels, deploy, weights):
    """See `create_model`; `weights`: None, or what to fill the network with."""
    if not weights:
        return build_network(wanted, num_classes, in_channels, DEPLOY if deploy else TRAIN)
    path = mindcv_weights.weights_file(wanted, weights)
    _, content, description = _read(path)
    if description:
        mindcv_weights.check_described(description, wanted, path)
        arrays, form = content, description.form
    else:
        arrays, form = unwrap(content).weights or {}, TRAIN
    check_finite(arrays)
    if not deploy:
        check_form(path, form, TRAIN)
    net = build_network(wanted, num_classes, in_channels, form)
    mindcv_weights.fill(net, arrays, path)
    return to_deploy(net) if deploy and form == TRAIN else net


def _check_arguments(shape):
    """Raise UserError for what `create_model` does not take, whatever the network of the family is."""
    sizes = dict.fromkeys(key for keys in (BLOCK_KEYS, *SHAPE_KEYS.values()) for key in keys)
    unknown = sorted(set(shape) - {*sizes, *FEATURE_KEYS})
    if unknown:
        own = ("num_classes", "in_channels", "deploy", "weights", "norm", "grouped", "pretrained", "features_only")
        taken = tuple(dict.fromkeys((*own, *FEATURE_KEYS, *sizes)))  # strides are of both
        near = nearest(unknown[0], taken)
        hint = f"did you mean {near}?" if near else f"it takes {', '.join(taken)}"
        raise UserError(f"create_model does not know {printable(unknown[0])}; {hint}")


def _fresh_heads(net, found) -> tuple[str, ...]:
    """The prefixes of the heads that the file's weights cannot fill."""
    heads = []
    if found.num_classes != net.num_classes:
        heads.append("linear.")
    if found.variant.aux_heads and found.form == TRAIN:
        for stage in found.variant.stages:
            if stage.aux and not found.has_aux:
                heads.append(f"{stage.name}_aux.")
            elif stage.aux and heads:
                heads.append(f"{stage.name}_aux.linear.")
    return tuple(heads)
