"""What a device computes, held against what a CPU computed: a training step and an inference of each network.

Parameters, images and labels follow from their names by a rule, so that a few numbers a network are all that has to be
kept: losses, logits, gradients and BN statistics of every stage, in samples and norms.
"""

from __future__ import annotations

import functools
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, amp, nn, ops
from mindspore.nn.utils import no_init_parameters

from mindrepvgg.errors import UserError
from mindrepvgg.models import variants
from mindrepvgg.models.repvgg import create_model
from mindrepvgg.reparam.precision import set_precision
from mindrepvgg.runtime.environment import launched_processes
from mindrepvgg.runtime.ranks import Ranks, start
from mindrepvgg.version import __version__
from mindrepvgg.weights.checkpoint import DEPLOY, TRAIN, load_arrays

PASS, FAIL, SKIP = "PASS", "FAIL", "SKIP"
FORMS = (TRAIN, DEPLOY)
NETWORKS = tuple(name for name in variants.list_models() if name not in ("repvgg", "repvgg_nano"))
SMALLEST = ("repvgg_nano",)

# Of each precision: its level in `precision.set_precision`, the scale of its loss, and what may differ from the CPU's
# float32, over the largest magnitude of the quantity: of gradients, and of everything else. Gradients differ most: an
# input of a ReLU that rounding moves over zero turns its gradient on or off. With other instructions (SSE4.1, not AVX2)
# a CPU's float32 is off by 5e-4 and 4e-6 at most, its float16 by 0.23 and 7e-3.
PRECISIONS = {"float32": ("O0", 1.0, (1e-2, 1e-4)), "float16": ("O2", 1024.0, (0.5, 3e-2))}

# Counted up when a change of the rule makes older reference files meaningless.
RULE = 1
_BATCH, _SIZE, _SAMPLED = 4, 64, 8
_LEARNING_RATE, _MOMENTUM, _AUX_WEIGHT = 0.01, 0.9, 0.1
_GROUPED_TOLERANCE = 1e-2  # loose, for HF32; groups that are mixed up are off by the largest output
_BN_RATE = 0.1  # what a step's own statistics weigh in the moving ones

_VARIABLES = (
    *("ASCEND_HOME_PATH", "ASCEND_RT_VISIBLE_DEVICES", "HCCL_INTRA_ROCE_ENABLE", "HCCL_INTRA_PCIE_ENABLE"),
    *("MS_ASCEND_CHECK_OVERFLOW_MODE", "MS_COMPILER_CACHE_ENABLE", "ONEDNN_MAX_CPU_ISA", "RANK_TABLE_FILE"),
)
_MSRUN = "msrun --worker_num 8 --local_worker_num 8 --join True --log_dir msrun_log python tools/ascend_check.py"


@dataclass(frozen=True)
class Result:
    """A check's outcome: PASS, FAIL or SKIP, a line on it, the seconds it took, and what was measured, by name."""

    name: str
    status: str
    detail: str
    seconds: float = 0.0
    figures: dict | None = None

    def format(self) -> str:
        """The line people read."""
        return f"{self.status}  {self.name}: {self.detail}"


class CheckFailed(Exception):
    """A check came out wrong: the message is its line in the report, `figures` what was measured."""

    def __init__(self, message, figures=None):
        super().__init__(message)
        self.figures = figures


class CheckSkipped(Exception):
    """A check could not be made here; the message says why."""


def run_check(name: str, check: Callable) -> Result:
    """Call `check`, which returns (line, figures) or raises; whatever it raises is a FAIL, and the others still run."""
    begin = time.perf_counter()
    figures = None
    try:
        detail, figures = check()
        status = PASS
    except CheckSkipped as skipped:
        status, detail = SKIP, str(skipped)
    except CheckFailed as failure:
        status, detail, figures = FAIL, str(failure), failure.figures
    except Exception as error:  # a device may fail in any way; what it says belongs into the report
        lines = [line for line in str(error).splitlines() if line.strip(" -")]
        status, detail = FAIL, f"{type(error).__name__}: {lines[0].strip() if lines else 'no message'}"
    return Result(name, status, detail, time.perf_counter() - begin, figures)


def uniform(name: str, shape) -> np.ndarray:
    """Numbers in [-1, 1) as float64 that depend on the name alone, on every machine and in every version of NumPy.

    Philox's raw stream is guaranteed to stay; the distributions NumPy draws from it are not.
    """
    raw = np.random.Philox(key=zlib.crc32(name.encode())).random_raw(int(np.prod(shape)))
    return ((raw >> 11) * 2.0**-52 - 1).reshape(shape)


def parameter_value(name: str, shape) -> np.ndarray:
    """The rule: a float32 array for the parameter called `name`.

    Weights have He's variance; BN has a history. Rounding must not grow with depth, or a device could not be told from
    a broken one: the identity weighs more than the other branches, BN keeps four in five of a ReLU's inputs positive
    (one that changes sides switches its gradient on or off), and SE lets most of the map pass.
    """
    numbers = uniform(name, shape)
    leaf = name.rpartition(".")[2]
    if leaf == "weight":
        numbers *= math.sqrt(6 / np.prod(shape[1:]))
    elif leaf == "gamma":
        numbers = (4 + numbers) / (4 if "rbr_identity" in name else 16)
    elif leaf == "moving_variance":
        numbers = 1 + numbers / 2
    elif name.endswith("rbr_dense.bn.beta"):
        numbers = 1 + numbers / 10
    elif name.endswith("se.up.bias"):
        numbers = 2 + numbers
    else:
        numbers /= 10
    return numbers.astype(np.float32)


def _images():
    """Noise of unit variance; every image has a colour of its own."""
    shape = (_BATCH, 3, _SIZE, _SIZE)
    return (math.sqrt(3) * uniform("images", shape) + uniform("colours", (*shape[:2], 1, 1))).astype(np.float32)


def measure(model: str, form: str, precision: str = "float32") -> dict[str, list[float]]:
    """Run one network on the current device, in graph mode; numbers by what they are of.

    train: 'loss' before and after an update; 'logits' before it; 'gradients' and BN 'statistics' of every stage.
    deploy: 'logits'. Samples of 8 numbers; 'all ...' is the norm of all of a kind.
    The parameters are the rule's, the images noise of 64x64.
    """
    with no_init_parameters():
        net = create_model(model, deploy=form == DEPLOY)
    load_arrays(net, {p.name: parameter_value(p.name, p.shape) for p in net.get_parameters()}, "the rule")
    level, scale, _ = PRECISIONS[precision]
    set_precision(net, level)
    images = Tensor(_images())
    if form == DEPLOY:
        return _logit_figures(net.set_train(False)(images))
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
    """Scaled loss, with that of auxiliary heads, and the logits in float32."""

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
    """Nine digits are all of a float32."""
    return float(f"{float(value):.9g}")


def _logit_figures(logits):
    logits = logits.asnumpy().astype(np.float64)
    return {"logits": _sample(logits), "all logits": [_norm([logits])]}


def _stage_figures(step):
    """After the first step: samples of one gradient and one BN statistic of a stage, and the norms of all of them."""
    found = {}
    # Momentum's buffers, from 0, have become the gradients.
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
    """A few evenly spaced numbers of an array."""
    flat = array.ravel()
    return [_rounded(value) for value in flat[np.linspace(0, flat.size - 1, _SAMPLED).astype(int)]]


def _norm(arrays):
    return _rounded(math.sqrt(sum(float(np.vdot(array, array)) for array in arrays)))


def differences(expected: dict[str, list], actual: dict[str, list]) -> dict[str, float]:
    """The largest difference of each quantity over its largest expected magnitude; NaN where a number is none.

    Raises CheckFailed when one of the two has a quantity the other has not.
    """
    if expected.keys() != actual.keys():
        raise CheckFailed(f"the quantities differ: {', '.join(sorted(expected.keys() ^ actual.keys()))}")
    found = {}
    for label, wanted in expected.items():
        wanted, given = np.array(wanted), np.array(actual[label])
        found[label] = float(np.abs(wanted - given).max() / np.abs(wanted).max())
    return found


def check_network(model: str, form: str, precision: str, reference: dict, coarse_float32=False):
    """Hold `measure` against the numbers kept in `reference['networks']`; (line, figures), see `run_check`.

    coarse_float32: float32 may be as coarse as float16.
    """
    expected = reference["networks"].get(model, {}).get(form)
    if expected is None:
        raise CheckSkipped(f"the reference file has no numbers of {model} in {form} form")
    actual = measure(model, form, precision)
    found = differences(expected, actual)
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
    """(the quantity that comes nearest to its tolerance or exceeds it most, its difference over the tolerance)."""
    of_gradients, of_others = PRECISIONS[precision][2]
    ratios = {label: value / (of_gradients if "gradients" in label else of_others) for label, value in found.items()}
    # Not max(), which passes over a NaN that does not come first.
    worst = list(ratios)[int(np.argmax(list(ratios.values())))]
    return worst, ratios[worst]


def record(models) -> dict:
    """The reference for `models`: `measure` of both forms in float32, and which versions and machine made it."""
    networks = {model: {form: measure(model, form) for form in FORMS} for model in models}
    return {
        "made_by": {**versions(), "device": ms.get_context("device_target"), "machine": platform.machine()},
        "rule": RULE,
        "networks": networks,
    }


def read_reference(path) -> dict:
    """A reference file, as `record` made it; raises UserError when it is none, or of another rule."""
    try:
        reference = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(reference, dict) or not isinstance(reference.get("networks"), dict):
        raise UserError(f"{path} is no reference file; make one with --record")
    if reference.get("rule") != RULE:
        raise UserError(f"{path} was made by rule {reference.get('rule')}, this is rule {RULE}; make it anew")
    return reference


def request_float32(device: str):
    """Ask Ascend to compute float32 in float32: convolutions may use HF32 otherwise, and O2 float16."""
    if device != "Ascend":
        raise CheckSkipped(f"{device} knows no other")
    ms.device_context.ascend.op_precision.precision_mode("must_keep_origin_dtype")
    ms.device_context.ascend.op_precision.conv_allow_hf32(False)
    return "precision_mode must_keep_origin_dtype, HF32 off in convolutions", None


def checks(device: str, group: Ranks, models, precisions, reference: dict, coarse_float32=False):
    """(name, check) of everything `run_check` is to call, in order; nothing may have run on the device before.

    coarse_float32: leave the precision of float32 to the device's own settings.
    """
    if not coarse_float32:
        yield "float32 is asked for", functools.partial(request_float32, device)
    yield "collectives", functools.partial(check_collectives, group)
    yield "overflow in float16", check_overflow
    for groups in (2, 4):
        yield f"convolution of {groups} groups", functools.partial(check_grouped, groups)
    for model in models:
        for precision in precisions:
            for form in FORMS:
                name = f"{model} {form} {precision}"
                yield name, functools.partial(check_network, model, form, precision, reference, coarse_float32)


class _ConvGradients(nn.Cell):
    """A 3x3 convolution (N, C, H, W) -> its output, and the gradients of its product with `probe`: input, weight."""

    def __init__(self, weight, groups):
        super().__init__()
        out_channels, per_group = weight.shape[:2]
        self.conv = nn.Conv2d(
            per_group * groups, out_channels, 3, pad_mode="pad", padding=1, group=groups, weight_init=Tensor(weight)
        )
        self.gradients = ms.grad(self._product, 0, ms.ParameterTuple([self.conv.weight]))

    def _product(self, x, probe):
        return (self.conv(x) * probe).sum()

    def construct(self, x, probe):
        by_input, by_weight = self.gradients(x, probe)
        return self.conv(x), by_input, by_weight[0]


def check_grouped(groups: int, channels: int = 64, size: int = 16):
    """A grouped convolution and its gradients against one plain convolution a group, on the same device."""
    shape = (_BATCH, channels, size, size)
    x, probe = (uniform(name, shape).astype(np.float32) for name in ("grouped x", "grouped probe"))
    weight = parameter_value("grouped.weight", (channels, channels // groups, 3, 3))
    actual = [y.asnumpy() for y in _ConvGradients(weight, groups)(Tensor(x), Tensor(probe))]
    parts = []
    for i in range(groups):
        part = slice(i * channels // groups, (i + 1) * channels // groups)
        inputs = (Tensor(np.ascontiguousarray(a[:, part])) for a in (x, probe))
        parts.append([y.asnumpy() for y in _ConvGradients(weight[part], 1)(*inputs)])
    expected = [np.concatenate(pieces, axis) for pieces, axis in zip(zip(*parts, strict=True), (1, 1, 0), strict=True)]
    names = ("output", "gradient of the input", "gradient of the weight")
    found = {
        name: float(np.abs(a - b).max() / np.abs(b).max()) for name, a, b in zip(names, actual, expected, strict=True)
    }
    line = ", ".join(f"{name} {difference:.1e}" for name, difference in found.items())
    if not max(found.values()) <= _GROUPED_TOLERANCE:
        raise CheckFailed(f"differs from {groups} plain convolutions: {line}", found)
    return f"differs from {groups} plain convolutions by: {line}", found


class _Overflow(nn.Cell):
    """x + x, and whether `amp.all_finite` takes it for finite."""

    def construct(self, x):
        total = x + x
        return total, amp.all_finite((total,))


def check_overflow():
    """A float16 sum that overflows must be noticed, whether the device makes infinity of it or its largest number."""
    total, finite = _Overflow()(Tensor(np.full(16, 60000, np.float16)))
    value = float(total.asnumpy()[0])
    line = f"60000 + 60000 in float16 is {value:g} ({'INF/NaN' if np.isinf(value) else 'saturation'})"
    if bool(finite.asnumpy()):
        raise CheckFailed(f"{line} and was taken for finite: loss scaling would not notice")
    return f"{line} and was noticed", {"value": value}


class _Sum(nn.Cell):
    """The sum of a tensor over the processes."""

    def __init__(self):
        super().__init__()
        self.all_reduce = ops.AllReduce()

    def construct(self, x):
        return self.all_reduce(x)


def join(device: str) -> tuple[Result, Ranks]:
    """Meet the other processes of an msrun, as training does; after a failure this one goes on alone."""
    group = Ranks()

    def meet():
        nonlocal group
        if launched_processes() is None:
            raise CheckSkipped(f"one process; for the collectives: {_MSRUN}")
        group = start(device=device)
        return f"rank {group.rank} of {group.size}", None

    return run_check("processes meet", meet), group


def check_collectives(group: Ranks, elements: int = 14_092_264, rounds: int = 5):
    """All-reduce and broadcast over the processes of `group`, and the speed of an all-reduce of `elements` float32.

    elements: as many as repvgg_a1 has gradients. The line names every rank that got something else.
    """
    if group.size == 1:
        raise CheckSkipped("one process")
    values = [uniform(f"rank {rank}", (4096,)).astype(np.float32) for rank in range(group.size)]
    total = _Sum()(Tensor(values[group.rank])).asnumpy()
    sent = Parameter(Tensor(values[group.rank]), name="sent")
    group.broadcast([sent])
    wanted = np.sum(values, axis=0, dtype=np.float64)
    wrong = [
        float(np.abs(total - wanted).max() / np.abs(wanted).max()),
        float(np.abs(sent.asnumpy() - values[0]).max()),
    ]
    by_rank = group.gather(np.array(wrong, np.float32))
    figures = {"all-reduce": by_rank[:, 0].tolist(), "broadcast": by_rank[:, 1].tolist()}
    complaints = []
    for kind, tolerance in (("all-reduce", 1e-5), ("broadcast", 0.0)):
        ranks = [str(rank) for rank, error in enumerate(figures[kind]) if not error <= tolerance]
        if ranks:
            complaints.append(f"{kind} is wrong on rank {', '.join(ranks)}")
    if complaints:
        raise CheckFailed("; ".join(complaints), figures)
    seconds = _all_reduce_seconds(elements, rounds)
    size = 4e-6 * elements
    figures["all_reduce_seconds"], figures["all_reduce_megabytes"] = seconds, size
    return f"{group.size} ranks agree; {size:.1f} MB all-reduced in {1e3 * seconds:.1f} ms", figures


def _all_reduce_seconds(elements, rounds):
    """The median time of an all-reduce, after one that is not counted."""
    cell, gradients = _Sum(), Tensor(np.ones(elements, np.float32))
    cell(gradients).asnumpy()
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        cell(gradients)[:1].asnumpy()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def versions() -> dict[str, str]:
    """Of this package and what it runs on."""
    return {
        "mindrepvgg": __version__,
        "mindspore": ms.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def environment(device: str, jit_level: str, ascend_root="/usr/local/Ascend") -> dict[str, str]:
    """What a report has to say of the machine: versions, the device and its software, variables that matter.

    jit_level: the compile level, in words.
    """
    facts = {
        **versions(),
        "platform": platform.platform(),
        "cores": str(os.cpu_count()),
        "device": device,
        "device files": str(len(list(Path("/dev").glob("davinci[0-9]*")))),
        "jit_level": jit_level,
        "processes": str(launched_processes() or 1),
        "command": " ".join(sys.argv),
    }
    for place, version in _software(ascend_root).items():
        facts[place] = version
    for name in _VARIABLES:
        if name in os.environ:
            facts[name] = os.environ[name]
    return facts


def _software(root):
    """The versions CANN, driver and firmware wrote down, by file."""
    home = os.environ.get("ASCEND_HOME_PATH")
    candidates = [Path(home, "compiler", "version.info")] if home else []
    for pattern in (
        "driver/version.info",
        "firmware/version.info",
        "*/latest/compiler/version.info",
        "cann*/compiler/version.info",
    ):
        candidates += sorted(Path(root).glob(pattern))
    found = {}
    for path in candidates:
        if path.is_file():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            found[str(path)] = next((line for line in lines if line.lower().startswith("version=")), "no Version=")
    return found


def npu_smi() -> str:
    """What `npu-smi info` prints; why not, where it does not."""
    command = shutil.which("npu-smi")
    if command is None:
        return "npu-smi is not on PATH"
    try:
        done = subprocess.run([command, "info"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"npu-smi info: {error}"
    return (done.stdout + done.stderr).strip()


def report(facts: dict, results: list[Result], smi: str, under_way: str = "") -> str:
    """The report as markdown; `under_way` names the check that was running when it was written."""
    counts = ", ".join(f"{sum(r.status == status for r in results)} {status}" for status in (PASS, FAIL, SKIP))
    lines = ["# Self-check of mindrepvgg", "", counts, ""]
    if under_way:
        lines += [f"Unfinished: {under_way} was running when this was written.", ""]
    lines += ["| status | check | result | seconds |", "|---|---|---|---|"]
    for result in results:
        detail = result.detail.replace("|", "\\|")
        lines.append(f"| {result.status} | {result.name} | {detail} | {result.seconds:.1f} |")
    lines += ["", "| environment | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())]
    lines += ["", "```", smi, "```", ""]
    return "\n".join(lines)


def report_json(facts: dict, results: list[Result], smi: str, under_way: str = "") -> dict:
    """The same with every figure, for programs; a number that is none as text, which JSON has no other way for."""
    found = {"environment": facts, "results": [asdict(r) for r in results], "npu_smi": smi, "under_way": under_way}
    return json.loads(json.dumps(found), parse_constant=str)
