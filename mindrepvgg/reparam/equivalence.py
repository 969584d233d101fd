"""The proof that the two forms of a network compute the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import NamedTuple

import mindspore as ms
import numpy as np
from mindspore import nn

from mindrepvgg.errors import EquivalenceError, UserError
from mindrepvgg.reparam.adapters import FusedCell, adapted
from mindrepvgg.reparam.compare import check_tolerance, leaves, magnitudes, relative, worst_difference
from mindrepvgg.reparam.finding import outer_blocks
from mindrepvgg.reparam.maps import folded_pair, is_norm
from mindrepvgg.reparam.precision import computes_in_half
from mindrepvgg.reparam.tracing import cannot_run, example_inputs
from mindrepvgg.runtime.device import execution_mode, inference_mode
from mindrepvgg.text import counted, table


@dataclass(frozen=True)
class BlockDifference:
    """One block's two forms on the same input; also those of a convolution and its BN, by the convolution's name.

    Attributes:
        name: the block's path in the network.
        max_abs: largest difference of the outputs.
        max_rel: the same over the train form's largest output.
        weight_rel: largest difference between the deploy convolution and the branches fused in float64, kernel or bias,
            over the largest weight; rounding alone leaves about 1e-7 in float32.
    """

    name: str
    max_abs: float
    max_rel: float
    weight_rel: float


@dataclass(frozen=True)
class EquivalenceReport:
    """What `verify_equivalence` measured.

    Attributes:
        blocks: in the network's order.
        max_abs: largest difference of the whole networks' outputs.
        max_rel: the same over the train form's largest output.
        class_agreement: share of inputs with the same predicted class; None where the output is not (N, classes).
        num_inputs: how many inputs were compared.
        rtol: the tolerance.
        failures: why the two are not equivalent; empty where they are.
    """

    blocks: tuple[BlockDifference, ...]
    max_abs: float
    max_rel: float
    class_agreement: float | None
    num_inputs: int
    rtol: float
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether the two are equivalent."""
        return not self.failures

    def to_dict(self) -> dict:
        """Plain types, for JSON."""
        return {**asdict(self), "passed": self.passed}

    def format(self) -> str:
        """A table for people: a line a block, then the whole network and the verdict."""
        rows: list[tuple[str, ...]] = [("block", "max abs", "max rel", "weights")]
        for block in self.blocks:
            rows.append((block.name, *(f"{value:.2e}" for value in (block.max_abs, block.max_rel, block.weight_rel))))
        lines = [table([*rows, ("output", f"{self.max_abs:.2e}", f"{self.max_rel:.2e}")])]
        if self.class_agreement is not None:
            lines.append(f"same class on {self.class_agreement:.2%} of {counted(self.num_inputs, 'input')}")
        verdict = f"equivalent (tolerance {self.rtol:g} of the largest output)"
        lines.append(verdict if self.passed else "NOT equivalent: " + "; ".join(self.failures))
        return "\n".join(lines)


def verify_equivalence(train_net, deploy_net, inputs, rtol=1e-4, raise_on_failure=True) -> EquivalenceReport:
    """Compare a network with its deploy form, block by block and at the end.

    Blocks are compared in PyNative mode, each pair on the train network's own activations; the whole networks in the
    current mode. Both are run in inference and left as they were. The deploy convolutions must also equal the branches
    fused in float64, to the rounding of their type.

    Args:
        train_net: in train form.
        deploy_net: in deploy form.
        inputs: what both networks are called with, a Tensor or array, or a tuple of arguments; None: see `trace`.
        rtol: what a block's and the network's outputs may differ by, over the train form's largest output. Half
            precision needs more than float32's 1e-4: `to_deploy` takes 2e-2.
        raise_on_failure: False leaves the verdict to the report.

    Raises:
        EquivalenceError: the two differ; it carries the report.
        UserError: `rtol` is negative, infinite or NaN, or the network cannot be run on the inputs.
        ValueError: the two are not the two forms of one network.
    """
    check_tolerance(rtol)
    arguments = example_inputs(train_net, inputs)
    folds = _folds(train_net, deploy_net)
    with inference_mode(train_net, deploy_net):
        try:
            expected = leaves(train_net(*arguments))
        except UserError:
            raise
        except Exception as error:
            raise cannot_run(train_net, inputs, arguments, error) from error
        blocks = _compare_blocks(train_net, folds, arguments)
        actual = leaves(deploy_net(*arguments))
    shapes = [[x.shape for x in output] for output in (expected, actual)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"the networks' outputs have shapes {shapes[0]} and {shapes[1]}: they do not compare")
    max_abs, max_rel = worst_difference(expected, actual)
    report = EquivalenceReport(
        blocks=blocks,
        max_abs=max_abs,
        max_rel=max_rel,
        class_agreement=_class_agreement(expected[0], actual[0]),
        num_inputs=len(arguments[0]),
        rtol=rtol,
        failures=_failures(blocks, folds, max_rel, rtol),
    )
    if raise_on_failure and not report.passed:
        half = "; they compute in half precision: give a larger rtol" if computes_in_half(train_net) else ""
        raise EquivalenceError(f"the two forms differ: {'; '.join(report.failures)}{half}", report)
    return report


class _Fold(NamedTuple):
    """What became one convolution: a block, another project's cell, or a convolution and its BN.

    Attributes:
        name: its path in the network.
        first, last: the cells of the train form that take its input and give its output; the same one for a block.
        deployed: the cell of the deploy form that does both.
        conv: the one convolution.
        by_rows: folds it in float64, see `FoldableBlock.fold_by_rows`.
    """

    name: str
    first: nn.Cell
    last: nn.Cell
    deployed: nn.Cell
    conv: nn.Cell
    by_rows: Callable[[Callable], list]


def _folds(train_net, deploy_net) -> list[_Fold]:
    """What was fused, of two networks, which must be the two forms of one layout."""
    cells = dict(train_net.cells_and_names())
    folds, inside = [], set()
    for path, deployed in deploy_net.cells_and_names():
        cell, bn = cells.get(path), cells.get(getattr(deployed, "folded_bn", None))
        if isinstance(deployed, FusedCell) and not isinstance(cell, FusedCell):
            known = None if cell is None else adapted(cell)
            if cell is None or known is None:
                raise ValueError(f"the first network has no cell {path or 'at its top'} that an adapter knows")
            folds.append(_Fold(path, cell, cell, deployed, deployed.deploy_conv, _at_once(known.exact)))
            inside |= {id(inner) for _, inner in cell.cells_and_names()}
        elif bn is not None and is_norm(bn):
            if cell is None:
                raise ValueError(f"the first network has no convolution {path}")
            folds.append(_Fold(path, cell, bn, deployed, deployed, _at_once(folded_pair, cell, bn)))
    train_blocks = {path: block for path, block in outer_blocks(train_net).items() if id(block) not in inside}
    deploy_blocks = outer_blocks(deploy_net)
    if list(train_blocks) != list(deploy_blocks) or not (train_blocks or folds):
        odd = ", ".join(sorted(set(train_blocks) ^ set(deploy_blocks))[:3]) or "every one"
        raise ValueError(f"the networks do not have the same blocks; they differ at {odd}")
    # A block that was in deploy form from the start has no branches to compare with; the outputs cover it.
    pairs = [(path, block, deploy_blocks[path]) for path, block in train_blocks.items() if not block.deploy]
    if not (pairs or folds) or any(not block.deploy for block in deploy_blocks.values()):
        raise ValueError("the first network must be in train form, the second in deploy form")
    for path, block, deployed in pairs:
        folds.append(_Fold(path, block, block, deployed, deployed.fused, block.fold_by_rows))
    for fold in folds:
        shapes = getattr(fold.first, "kernel_shape", fold.conv.weight.shape), fold.conv.weight.shape
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"block {fold.name} has a kernel of {shapes[0]} in one network and {shapes[1]} in the other"
            )
    order = {path: place for place, path in enumerate(cells)}
    return sorted(folds, key=lambda fold: order[fold.name])


def _compare_blocks(train_net, folds, arguments):
    """Run the train network; wherever something was fused, run its deploy form on the same input, and keep the
    differences only.
    """
    found, given = {}, {}

    def before(name):
        def take(_cell, inputs):
            given[name] = inputs

        return take

    def after(name, deployed):
        def compare(_cell, _inputs, output):
            measured = worst_difference(leaves(output), leaves(deployed(*given.pop(name))))
            # A block that is called more than once counts with its worst call.
            found[name] = max(found.get(name, (0.0, 0.0)), measured, key=lambda d: np.inf if np.isnan(d[1]) else d[1])

        return compare

    handles = [fold.first.register_forward_pre_hook(before(fold.name)) for fold in folds]
    handles += [fold.last.register_forward_hook(after(fold.name, fold.deployed)) for fold in folds]
    try:
        with execution_mode(ms.PYNATIVE_MODE):
            train_net(*arguments)
    finally:
        for handle in handles:
            handle.remove()
    return tuple(
        BlockDifference(fold.name, found[fold.name][0], found[fold.name][1], _weight_difference(fold))
        for fold in folds
        if fold.name in found
    )


def _at_once(fold, *arguments):
    """What makes a whole kernel and bias, as a function that folds by rows."""

    def by_rows(take):
        kernel, bias, *_ = fold(*arguments)
        return [take(slice(None), kernel, bias)]

    return by_rows


def _weight_difference(fold):
    """Largest relative difference between a deploy convolution and what it stands for, fused in float64."""
    weight, bias = fold.conv.weight.asnumpy(), fold.conv.bias.asnumpy()

    def compare(rows, exact_kernel, exact_bias):
        return magnitudes(exact_kernel, weight[rows]), magnitudes(exact_bias, bias[rows])

    # Of each part, scale and difference of the weight and of the bias; np.max passes a NaN on.
    worst = np.max(fold.by_rows(compare), axis=0)
    return float(np.max([relative(max_abs, scale) for scale, max_abs in worst.tolist()]))


def _failures(blocks, folds, max_rel, rtol):
    """The reasons why two forms are not equivalent. Comparisons are written so that NaN fails."""
    rounding = {fold.name: 4 * _epsilon(fold.conv.weight) for fold in folds}
    failures = []
    for block in blocks:
        if not block.weight_rel <= rounding[block.name]:
            failures.append(f"{block.name}: the weights differ from the fused branches by {block.weight_rel:.1e}")
        if not block.max_rel <= rtol:
            failures.append(f"{block.name}: the outputs differ by {block.max_rel:.1e} of the largest")
    if not max_rel <= rtol:
        text = f"the networks' outputs differ by {max_rel:.1e} of the largest"
        if not failures and np.isfinite(max_rel):
            worst = max((block.max_rel for block in blocks), default=0.0)
            text += (
                f", and every block agrees to {worst:.1e}: either cells outside the blocks differ, or this network "
                "multiplies rounding, and a larger rtol accepts it (convert: --rtol)"
            )
        failures.append(text)
    return tuple(failures)


def _epsilon(parameter):
    """The rounding unit of a parameter's type."""
    return float(np.finfo(parameter.asnumpy().dtype).eps)


def _class_agreement(expected, actual):
    if expected.ndim != 2:
        return None
    return float((expected.argmax(1) == actual.argmax(1)).mean())
