"""Compare what a device computes with what a CPU computed: a training step and an inference of each network.

Parameters, images and labels follow from their names by a rule. The reference keeps a few numbers of each network:
losses, logits, and gradients and BN statistics of every stage, as samples and norms.
"""

from __future__ import annotations

import functools
import json
import math
import platform
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindrepvgg.errors import UserError
from mindrepvgg.files import MEGABYTE, read_regular
from mindrepvgg.measure.ascend_check_report import CheckFailed, CheckSkipped, versions
from mindrepvgg.measure.checked_networks import BLOCK_NETWORKS, NETWORKS, network
from mindrepvgg.measure.device_checks import (
    check_collectives,
    check_gradient_mean,
    check_grouped,
    check_mixed_precision,
    check_overflow,
    check_qat,
    check_repoptimizer,
    request_float32,
)
from mindrepvgg.measure.om_checks import KINDS, check_om
from mindrepvgg.models.synthetic import parameter_value, uniform
from mindrepvgg.models.variants import DEPLOY, PLAIN_FORMS, TRAIN
from mindrepvgg.reparam.compare import difference
from mindrepvgg.reparam.layers import GROUPED
from mindrepvgg.reparam.precision import DTYPES, set_precision
from mindrepvgg.runtime.ranks import Ranks

# What is checked unless told otherwise: on Ascend, and on a CPU, where all is known to be right.
ON_ASCEND = (*NETWORKS, *BLOCK_NETWORKS)
ON_CPU = ("repvgg_nano", "inserted_dbb")

# For each precision: its level in `precision.set_precision`, the scale of the loss, and the tolerances of gradients and
# of everything else, over the largest magnitude of the quantity in the CPU's float32. Gradients differ most: where
# rounding moves the input of a ReLU over zero, its gradient is turned on or off. A CPU with other instructions (SSE4.1,
# not AVX2) differs by 5e-4 and 4e-6 at most in float32, by 0.23 and 7e-3 in float16.
PRECISIONS = {"float32": ("O0", 1.0, (1e-2, 1e-4)), "float16": ("O2", 1024.0, (0.5, 3e-2))}

# To be counted up when a change of the rule makes older reference files useless.
RULE = 1
_BATCH, _SIZE, _SAMPLED = 4, 64, 8
_LEARNING_RATE, _MOMENTUM, _AUX_WEIGHT = 0.01, 0.9, 0.1

_BN_RATE = 0.1  # the weight of a step's own statistics in the moving ones


def _images():
    """Return noise of unit variance; every image has a colour of its own."""
    shape = (_BATCH, 3, _SIZE, _SIZE)
    return (math.sqrt(3) * uniform("images", shape) + uniform("colours", (*shape[:2], 1, 1))).astype(np.float32)


def network_figures(model: str, form: str, precision: str = "float32") -> dict[str, list[float]]:
    """Run one network on the current device, with the rule's parameters and images of 64x64.

    Args:
        model: see `checked_networks.names`.
        form: 'train' or 'deploy'.
        precision: one of PRECISIONS.

    Returns:
        Quantity -> numbers. Of the deploy form the 'logits', and those of the train form of a network that was folded
        here. Of the train form the 'loss' before and after an update, the 'logits' before it, and the 'gradients' and
        BN 'statistics' of every stage. 8 numbers are sampled of each; 'all ...' is the norm of all numbers of a kind.
    """
    images = Tensor(_images())
    level, scale, _ = PRECISIONS[precision]
    net = set_precision(network(model, form, images), level)
    if form == DEPLOY:
        figures = _logit_figures(net.set_train(False)(images))
        if model in BLOCK_NETWORKS:
            unfolded = set_precision(network(model, TRAIN, images), level).set_train(False)
            figures |= {f"unfolded {label}": numbers for label, numbers in _logit_figures(unfolded(images)).items()}
        return figures
    step = _Step(net, scale)
    labels = Tensor(np.arange(_BATCH) * 7, ms.int32)
    loss, logits = step(images, labels)
    figures = {**_logit_figures(logits), **_stage_figures(step)}
    losses = loss, step(images, labels)[0]
    return {"loss": [_rounded(loss.asnumpy()) for loss in losses], **figures}


class _Step(nn.Cell):
    """A training step of SGD with momentum: images, labels (N,) int32 -> (loss before the update, logits)."""

    def __init__(self, net, scale):
        super().__init__(auto_prefix=False)
        self.forward = _Forward(net, scale)
        self.scale = scale
        self.optimizer = nn.Momentum(net.trainable_params(), _LEARNING_RATE, _MOMENTUM, loss_scale=scale)
        self.value_and_grad = ms.value_and_grad(self.forward, None, self.optimizer.parameters, has_aux=True)
        self.set_train()

    def construct(self, images, labels):
        (loss, logits), gradients = self.value_and_grad(images, labels)
        return ops.depend(loss / self.scale, self.optimizer(gradients)), logits


class _Forward(nn.Cell):
    """Images, labels (N,) -> the scaled loss, auxiliary heads included, and the logits in float32."""

    def __init__(self, net, scale):
        super().__init__(auto_prefix=False)
        self.net = net
        self.scale = scale
        self.loss = nn.CrossEntropyLoss()

    def construct(self, images, labels):
        outputs = self.net(images)
        if not isinstance(outputs, tuple):
            outputs = (outputs,)
        logits = outputs[0].astype(ms.float32)
        loss = self.loss(logits, labels)
        for aux in outputs[1:]:
            loss = loss + _AUX_WEIGHT * self.loss(aux.astype(ms.float32), labels)
        return self.scale * loss, logits


def _rounded(value):
    """Round to nine digits, which is all of a float32."""
    return float(f"{float(value):.9g}")


def _logit_figures(logits):
    logits = logits.asnumpy().astype(np.float64)
    return {"logits": _sample(logits), "all logits": [_norm([logits])]}


def _stage_figures(step):
    """Return samples of a gradient and a BN statistic of each stage, and the norms of all; after the first step."""
    found = {}
    # Momentum's buffers were 0 before the first step and are the gradients after it.
    for parameter, moment in zip(step.optimizer.parameters, step.optimizer.moments, strict=True):
        found.setdefault(f"gradients {_stage(parameter)}", []).append(moment.asnumpy().astype(np.float64))
    for parameter in step.forward.net.get_parameters():
        if parameter.name.endswith(("moving_mean", "moving_variance")):
            change = parameter.asnumpy() - parameter_value(parameter.name, parameter.shape).astype(np.float64)
            found.setdefault(f"statistics {_stage(parameter)}", []).append(change / _BN_RATE)
    figures = {}
    for label, arrays in found.items():
        figures[label] = _sample(arrays[0])
        figures[f"all {label}"] = [_norm(arrays)]
    return figures


def _stage(parameter):
    return parameter.name.partition(".")[0]


def _sample(array):
    """Return a few evenly spaced numbers of an array."""
    flat = array.ravel()
    return [_rounded(value) for value in flat[np.linspace(0, flat.size - 1, _SAMPLED).astype(int)]]


def _norm(arrays):
    return _rounded(math.sqrt(sum(float(np.vdot(array, array)) for array in arrays)))


def relative_differences(expected: dict[str, list], actual: dict[str, list]) -> dict[str, float]:
    """Compare numbers by quantity.

    Args:
        expected, actual: quantity -> numbers.

    Returns:
        Quantity -> the largest difference over the largest expected magnitude; NaN where a number is NaN.

    Raises:
        CheckFailed: one of the two lacks a quantity of the other.
    """
    if expected.keys() != actual.keys():
        raise CheckFailed(f"the quantities differ: {', '.join(sorted(expected.keys() ^ actual.keys()))}")
    return {label: difference(np.array(numbers), np.array(actual[label]))[1] for label, numbers in expected.items()}


def check_network(model: str, form: str, precision: str, reference: dict, coarse_float32=False):
    """Compare `network_figures` with the reference.

    Args:
        model, form, precision: see `network_figures`.
        reference: see `read_reference`.
        coarse_float32: whether float32 may be as coarse as float16.

    Returns:
        A line and figures, see `run_check`.
    """
    expected = reference["networks"].get(model, {}).get(form)
    if expected is None:
        raise CheckSkipped(f"the reference file has no numbers of {model} in {form} form")
    actual = network_figures(model, form, precision)
    found = relative_differences(expected, actual)
    worst, excess = _over_tolerance(found, precision)
    figures = {"differences": found, "measured": actual}
    line = f"differs most in {worst}, by {found[worst]:.1e}, in all logits by {found['all logits']:.1e}"
    if excess <= 1:
        return line, figures
    if precision == "float32" and _over_tolerance(found, "float16")[1] <= 1:
        line += ", as float16 or HF32 would"
        if coarse_float32:
            return line, figures
        raise CheckFailed(line, figures)
    raise CheckFailed(f"{line}: too much", figures)


def _over_tolerance(found, precision):
    """Return the quantity with the largest difference over its tolerance, and that ratio."""
    of_gradients, of_others = PRECISIONS[precision][2]
    ratios = {label: value / (of_gradients if "gradients" in label else of_others) for label, value in found.items()}
    # max() would overlook a NaN that does not come first.
    worst = list(ratios)[int(np.argmax(list(ratios.values())))]
    return worst, ratios[worst]


def record(models) -> dict:
    """Compute the reference for `models`: `network_figures` of both forms in float32, and what made it."""
    networks = {model: {form: network_figures(model, form) for form in PLAIN_FORMS} for model in models}
    return {
        "made_by": {**versions(), "device": ms.get_context("device_target"), "machine": platform.machine()},
        "rule": RULE,
        "networks": networks,
    }


# What a CPU computed, for `read_reference`.
REFERENCE = Path(__file__).with_name("ascend_reference.json")


def read_reference(path) -> dict:
    """Read a reference file that `record` made; raise UserError where it is another file, or of another rule."""
    content = read_regular(path, "a reference file", most=16 * MEGABYTE)
    try:
        reference = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(reference, dict) or not isinstance(reference.get("networks"), dict):
        raise UserError(f"{path} is no reference file; make one with --record")
    if reference.get("rule") != RULE:
        raise UserError(f"{path} was made by rule {reference.get('rule')}, this is rule {RULE}; make it anew")
    return reference


def checks(device: str, group: Ranks, models, precisions, reference: dict, coarse_float32=False):
    """Yield (name, check) for `run_check`, in their order. Nothing may have run on the device before.

    Args:
        device: 'CPU' or 'Ascend'.
        group: the processes of the run.
        models, precisions: the networks to check, and in which precisions.
        reference: see `read_reference`.
        coarse_float32: whether to leave the precision of float32 to the device's own settings.
    """
    if not coarse_float32:
        yield "float32 is asked for", functools.partial(request_float32, device)
    yield "collectives", functools.partial(check_collectives, group)
    yield "mean of gradients", functools.partial(check_gradient_mean, group)
    yield "overflow in float16", check_overflow
    for groups in (2, 4):
        for grouped in GROUPED:
            yield f"convolution of {groups} groups, {grouped}", functools.partial(check_grouped, groups, grouped)
    for opt in ("momentum", "adamw"):
        yield f"RepOptimizer's update, {opt}", functools.partial(check_repoptimizer, opt)
    yield "QAT per tensor with distillation", check_qat
    for dtype in DTYPES:
        yield f"fusion in {dtype}", functools.partial(check_mixed_precision, dtype, device)
    for model in models:
        for precision in precisions:
            for form in PLAIN_FORMS:
                name = f"{model} {form} {precision}"
                yield name, functools.partial(check_network, model, form, precision, reference, coarse_float32)
    if group.is_first:  # one process is enough for what is compiled on the host
        for name, kind in KINDS.items():
            yield f"OM file, {name}", functools.partial(check_om, kind)
