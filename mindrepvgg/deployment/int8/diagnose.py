"""Why INT8 is bad for a network: ranges, outliers, dead channels and noise by layer, and what each repair brings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import mindspore as ms
import numpy as np

from mindrepvgg.deployment.graph import INPUT
from mindrepvgg.deployment.int8.diagnosis import Diagnosis, Effect, LayerDiagnosis
from mindrepvgg.deployment.int8.noise import LayerChain, signal_to_noise
from mindrepvgg.deployment.int8.prepare import NOISE_IMAGES, Prepared, prepared, split_settings
from mindrepvgg.deployment.int8.progress import INT8_SHARE, Progress
from mindrepvgg.deployment.int8.repairs import Builder, Repairs
from mindrepvgg.deployment.int8.sessions import session_of
from mindrepvgg.deployment.int8.splitting import split_gains
from mindrepvgg.evaluation.class_report import check_suffix
from mindrepvgg.files import write_json
from mindrepvgg.models.dead_channels import constant_channels
from mindrepvgg.reparam.finding import rep_blocks
from mindrepvgg.runtime import device

# A channel is an outlier where its largest value is so many times the median of the layer's channels.
_OUTLIER = 8


def diagnose(
    source,
    picture=None,
    *,
    weights: str = "raw",
    report=None,
    show_progress: bool = False,
    **settings: Any,
) -> Diagnosis:
    """Find out why INT8 is bad for a network: layer by layer, with what each repair brings and in words what to do.

    Args:
        source: a checkpoint of this or any RepVGG project. The gain of the identity's BN is known of train form only.
        picture: a PNG file for ranges, dead channels and noise by layer.
        weights: "raw", or "ema" for the averaged copy in the source.
        report: a JSON file for all that was found.
        show_progress: draw a progress bar on a terminal.
        **settings: as in `mindrepvgg.quantize`; the repairs among them are left out, because all are tried.

    Returns:
        The layers, the repairs' effects on calibration pictures, and the advice.

    Raises:
        UserError: checkpoint, data and settings do not go together, or a package is missing.
    """
    if picture is not None:
        check_suffix(picture, (".png",))
    options, overrides = split_settings(settings)
    with device.execution_mode(ms.PYNATIVE_MODE):  # nothing here is worth compiling
        device.setup("CPU", ms.PYNATIVE_MODE)
        found = _diagnose(source, options, overrides, weights, show_progress)
    if picture is not None:
        found.draw(picture)
    if report is not None:
        write_json(report, found.to_dict())
    return found


def _diagnose(source, options, overrides, weights, show_progress) -> Diagnosis:
    with Progress(show_progress) as progress, prepared(source, options, overrides, weights, progress) as ready:
        builder = ready.builder
        progress.expect(builder.pictures(Repairs()) + NOISE_IMAGES * len(builder.layers) / 2)
        progress.phase("calibration")
        kernels = builder.choose_bits(options.weight_bits, Repairs())
        progress.phase("layers alone")
        layers = _layers(ready, progress.step)
        effects = _effects(builder, progress)
        return Diagnosis(
            source=Path(source),
            model=ready.net.variant.name,
            per_channel=options.per_channel,
            weight_bits=builder.options.weight_bits,
            method=options.method,
            calibration=ready.calibration,
            images=sum(map(len, builder.batches)),
            layers=layers,
            effects=effects,
            saturates=next(iter(kernels.values())).saturates,
        )


def _layers(ready: Prepared, step: Callable[[float], None]) -> tuple[LayerDiagnosis, ...]:
    builder = ready.builder
    quantizer = builder.quantizer()
    graph, images = quantizer.graph, builder.batches[0][:NOISE_IMAGES]
    noise = LayerChain(quantizer, quantizer.model(builder.layers), builder.layers, by_weights=True).noise(images, step)
    arrays = {f"{spec.fused}.weight": graph.arrays[f"{spec.fused}.weight"] for spec in builder.layout.block_specs()}
    splits = split_gains(builder.layout, arrays, builder.options.per_channel)
    gains = identity_gains(ready.net)
    found = []
    for name, layer in graph.layers.items():
        kernel, _ = graph.weights(layer.parts[0])
        low, high = quantizer.extremes[layer.given]
        dead = [] if layer.given == next(iter(graph.layers.values())).given else constant_channels(low, high)
        found.append(
            LayerDiagnosis(
                name=name,
                weight_largest=float(np.abs(kernel).max()),
                weight_deviation=float(kernel.std()),
                weight_outliers=_outliers(np.abs(kernel.reshape(len(kernel), -1)).max(1)),
                identity_gain=gains.get(name),
                lowest=float(low.min()),
                highest=float(high.max()),
                activation_outliers=_outliers(np.maximum(np.abs(low), np.abs(high))),
                dead=len(dead),
                channels=len(low),
                split_gain=splits.get(name),
                noise=noise[name],
            )
        )
    return tuple(found)


def _outliers(largest) -> int:
    """How many of the channels' largest values are far above the median of those that are not 0."""
    alive = largest[largest > 0]
    return int((alive > _OUTLIER * np.median(alive)).sum()) if len(alive) else 0


def identity_gains(net) -> dict[str, float]:
    """Block -> the largest |gamma| / sqrt(variance + eps) by which its identity branch multiplies a channel.

    Of a RepVGG that is the BN of the identity, of a QARepVGG the BN after the sum. Blocks without an identity branch,
    and networks in deploy form, have none.
    """
    found = {}
    for name, block in rep_blocks(net).items():
        if block.deploy:
            continue
        bn = next((getattr(block, name) for name in ("rbr_identity", "rbr_skip") if hasattr(block, name)), None)
        if bn is None and _keeps(block):
            bn = getattr(block, "bn", None)
        if bn is not None and hasattr(bn, "moving_variance"):
            gain = np.abs(bn.gamma.asnumpy()) / np.sqrt(bn.moving_variance.asnumpy().astype(np.float64) + bn.eps)
            found[name] = float(gain.max())
    return found


def _keeps(block) -> bool:
    """Whether a block's output has its input's shape."""
    stride = block.stride if isinstance(block.stride, tuple) else (block.stride,)
    return block.in_channels == block.out_channels and set(stride) == {1}


class _Trial(NamedTuple):
    """A repair that is tried: what a user writes for it, and how it is made of what was good so far."""

    option: str
    repairs: Repairs


def _effects(builder: Builder, progress) -> tuple[Effect, ...]:
    """What INT8 does to the logits of the calibration pictures, as it is and with each repair."""
    count, found = sum(map(len, builder.batches)), []
    progress.expect(count)
    expected = _logits(builder.quantizer().graph.model, builder.batches)
    progress.step(count)
    trials = list(_trials(builder))
    progress.expect(sum(builder.pictures(trial.repairs) + INT8_SHARE * count for trial in trials))
    for trial in trials:
        progress.phase(f"INT8 {trial.option}")
        logits = _logits(builder.model(trial.repairs), builder.batches)
        same = float((logits.argmax(1) == expected.argmax(1)).mean())
        found.append(Effect(trial.option, trial.repairs, signal_to_noise(expected, logits), same))
        progress.step(INT8_SHARE * count)
    return tuple(found)


def _trials(builder):
    """The repairs that are worth a trial, one by one and together."""
    zero_dead = bool(builder.dead())
    yield _Trial("", Repairs())
    if zero_dead:
        yield _Trial("--zero_dead", Repairs(zero_dead=True))
        yield _Trial("--zero_dead --bias_correction", Repairs(zero_dead=True, bias_correction=True))  # of the same form
    yield _Trial("--bias_correction", Repairs(bias_correction=True))
    yield _Trial("--equalize", Repairs(equalize=True))
    if split := builder.worth_splitting(Repairs()):
        yield _Trial("--split auto", Repairs(split=split))
    if zero_dead and (split := builder.worth_splitting(Repairs(zero_dead=True))):
        yield _Trial("--zero_dead --split auto", Repairs(zero_dead=True, split=split))


def _logits(model, batches):
    session = session_of(model)
    return np.concatenate([session.run(None, {INPUT: batch})[0] for batch in batches])
