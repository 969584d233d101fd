"""The proof that the two forms of a network compute the same."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor

from mindrepvgg.errors import EquivalenceError
from mindrepvgg.reparam.compare import check_tolerance, difference, leaves, worst_difference
from mindrepvgg.reparam.foldable import rep_blocks
from mindrepvgg.runtime.device import execution_mode, inference_mode
from mindrepvgg.text import counted, table


@dataclass(frozen=True)
class BlockDifference:
    """One block's two forms on the same input.

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
        inputs: what both networks are called with: a Tensor or array (N, C, H, W), or a tuple of arguments.
        rtol: what a block's and the network's outputs may differ by, over the train form's largest output.
        raise_on_failure: False leaves the verdict to the report.

    Raises:
        EquivalenceError: the two differ; it carries the report.
        UserError: `rtol` is negative, infinite or NaN.
        ValueError: the two are not the two forms of one network.
    """
    check_tolerance(rtol)
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    arguments = tuple(x if isinstance(x, Tensor) else Tensor(x) for x in arguments)
    pairs = _pair_blocks(train_net, deploy_net)
    with inference_mode(train_net, deploy_net):
        blocks = _compare_blocks(train_net, pairs, arguments)
        expected = leaves(train_net(*arguments))
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
        failures=_failures(blocks, pairs, max_rel, rtol),
    )
    if raise_on_failure and not report.passed:
        raise EquivalenceError(f"the two forms differ: {'; '.join(report.failures)}", report)
    return report


def _pair_blocks(train_net, deploy_net):
    """(name, train block, deploy block) of two networks, which must be the two forms of one layout."""
    train_blocks, deploy_blocks = rep_blocks(train_net), rep_blocks(deploy_net)
    if not train_blocks or list(train_blocks) != list(deploy_blocks):
        odd = ", ".join(sorted(set(train_blocks) ^ set(deploy_blocks))[:3]) or "every one"
        raise ValueError(f"the networks do not have the same RepVGG blocks; they differ at {odd}")
    # A block that was in deploy form from the start has no branches to compare with; the outputs cover it.
    pairs = [(name, block, deploy_blocks[name]) for name, block in train_blocks.items() if not block.deploy]
    if not pairs or any(not block.deploy for block in deploy_blocks.values()):
        raise ValueError("the first network must be in train form, the second in deploy form")
    for name, block, deploy_block in pairs:
        shapes = block.rbr_dense.conv.weight.shape, deploy_block.rbr_reparam.weight.shape
        if shapes[0] != shapes[1]:
            raise ValueError(f"block {name} has a kernel of {shapes[0]} in one network and {shapes[1]} in the other")
    return pairs


def _compare_blocks(train_net, pairs, arguments):
    """Run the train network; at every block, run its deploy form on the same input and keep the differences only."""
    found = {}

    def hook_for(name, deploy_block):
        def compare(block, inputs, output):
            measured = worst_difference(leaves(output), leaves(deploy_block(*inputs)))
            # A block that is called more than once counts with its worst call.
            found[name] = max(found.get(name, (0.0, 0.0)), measured, key=lambda d: np.inf if np.isnan(d[1]) else d[1])

        return compare

    handles = [block.register_forward_hook(hook_for(name, deploy_block)) for name, block, deploy_block in pairs]
    try:
        with execution_mode(ms.PYNATIVE_MODE):
            train_net(*arguments)
    finally:
        for handle in handles:
            handle.remove()
    return tuple(
        BlockDifference(name, found[name][0], found[name][1], _weight_difference(block, deploy_block))
        for name, block, deploy_block in pairs
        if name in found
    )


def _weight_difference(block, deploy_block):
    """Largest relative difference between a deploy convolution and its train block fused in float64."""
    conv = deploy_block.rbr_reparam
    fused = block.fused_kernel_bias()
    # In place: a large kernel in float64 is enough to keep at a time.
    differences = [difference(a, b.asnumpy(), out=a)[1] for a, b in zip(fused, (conv.weight, conv.bias), strict=True)]
    return float(np.max(differences))


def _failures(blocks, pairs, max_rel, rtol):
    """The reasons why two forms are not equivalent. Comparisons are written so that NaN fails."""
    rounding = {name: 4 * _epsilon(block.rbr_dense.conv.weight) for name, block, _ in pairs}
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
