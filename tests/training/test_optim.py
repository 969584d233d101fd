"""The optimizers: which parameters decay, by names written out here; test_optim_steps.py has their steps."""

import numpy as np
import pytest

from mindrepvgg import create_model
from mindrepvgg.training.optim import build_optimizer, decay_groups, format_parameter_groups, parameter_groups

pytestmark = pytest.mark.compat

# repvgg_nano has blocks (2, 2, 3, 1) in stages 1 to 4; a stage's first block has stride 2 and so no identity branch.
NANO_BLOCKS = ["stage0", "stage1.0", "stage1.1", "stage2.0", "stage2.1", "stage3.0", "stage3.1", "stage3.2", "stage4.0"]
NANO_IDENTITY = ["stage1.1", "stage2.1", "stage3.1", "stage3.2"]


def names_of(blocks, with_identity, se=None):
    """(kernels, dense and 1x1 gammas, identity gammas, betas, biases) of the blocks, SE's kernels among the kernels."""
    branches = [f"{block}.{branch}" for block in blocks for branch in ("rbr_dense", "rbr_1x1")]
    kernels = [f"{branch}.conv.weight" for branch in branches]
    gammas = [f"{branch}.bn.gamma" for branch in branches]
    betas = [f"{branch}.bn.beta" for branch in branches] + [f"{block}.rbr_identity.beta" for block in with_identity]
    identity_gammas = [f"{block}.rbr_identity.gamma" for block in with_identity]
    biases = []
    if se:
        squeezers = [f"{block}.{se}.{leaf}" for block in blocks for leaf in ("down", "up")]
        kernels += [f"{name}.weight" for name in squeezers]
        biases += [f"{name}.bias" for name in squeezers]
    return kernels, gammas, identity_gammas, betas, biases


def nano():
    kernels, gammas, identity_gammas, betas, biases = names_of(NANO_BLOCKS, NANO_IDENTITY)
    return create_model("repvgg_nano", 10, 1), (
        [*kernels, "linear.weight"],
        gammas,
        identity_gammas,
        betas,
        [*biases, "linear.bias"],
    )


def d2se_like():
    blocks = ["stage0", "stage1.0", "stage2.0", "stage3.0", "stage3.1", "stage4.0"]
    kernels, gammas, identity_gammas, betas, biases = names_of(blocks, ["stage3.1"], se="se")
    net = create_model("repvgg", 5, num_blocks=(1, 1, 2, 1), widths=(16, 16, 16, 16, 32), se="pre")
    return net, ([*kernels, "linear.weight"], gammas, identity_gammas, betas, [*biases, "linear.bias"])


def plus_like():
    blocks = ["stage0", "stage1.0", "stage2.0", "stage3_first.0", "stage3_second.0", "stage4.0"]
    kernels, gammas, identity_gammas, betas, biases = names_of(blocks, ["stage3_second.0"], se="post_se")
    heads = ["stage1_aux", "stage2_aux", "stage3_first_aux"]
    net = create_model(
        "repvgg", 5, num_blocks=(1, 1, 2, 1), widths=(8, 8, 8, 8, 16), se="post", se_ratio=4, aux_heads=True
    )
    return net, (
        [
            *kernels,
            *(f"{head}.{leaf}.weight" for head in heads for leaf in ("downsample.conv", "linear")),
            "linear.weight",
        ],
        [*gammas, *(f"{head}.downsample.bn.gamma" for head in heads)],
        identity_gammas,
        [*betas, *(f"{head}.downsample.bn.beta" for head in heads)],
        [*biases, *(f"{head}.linear.bias" for head in heads), "linear.bias"],
    )


# Which of (kernels, gammas, identity gammas, betas, biases) decay.
RULES = {
    "paper": (True, False, True, False, False),
    "norm_and_bias": (True, False, False, False, False),
    "norm": (True, False, False, False, True),
    "all": (True, True, True, True, True),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("network", [nano, d2se_like, plus_like])
def test_groups(network, rule):
    net, kinds = network()
    expected = {True: set(), False: set()}
    for names, decays in zip(kinds, RULES[rule], strict=True):
        assert names, "a kind without members would not be checked"
        expected[decays] |= set(names)
    decayed, free = ([p.name for p in group] for group in decay_groups(net, rule))
    assert set(decayed) == expected[True]
    assert set(free) == expected[False]
    assert len(decayed) + len(free) == len(net.trainable_params()), "every parameter is in one group, once"


def test_no_moving_statistic_is_trained():
    names = [p.name for group in decay_groups(create_model("repvgg_nano"), "all") for p in group]
    assert not [name for name in names if "moving" in name]


def test_frozen_parameters_are_left_out():
    net = create_model("repvgg_nano")
    net.linear.weight.requires_grad = False
    assert "linear.weight" not in [p.name for group in decay_groups(net, "all") for p in group]


@pytest.mark.parametrize(("rule", "opt"), [*((rule, "momentum") for rule in RULES), ("paper", "adamw")])
def test_the_optimizer_decays_those_groups(rule, opt):
    net = create_model("repvgg_nano")
    decayed, free = decay_groups(net, rule)
    optimizer = build_optimizer(net, np.full(3, 0.1, np.float32), opt=opt, weight_decay=1e-4, weight_decay_filter=rule)
    # MindSpore keeps them group by group, or in the network's order, which order_params asks for: gradients come so.
    assert [p.name for p in optimizer.parameters] == [p.name for p in net.trainable_params()]
    names = {p.name: decay for p, decay in zip(optimizer.parameters, np.ravel(optimizer.weight_decay), strict=True)}
    assert {name for name, decay in names.items() if decay} == {p.name for p in decayed}
    assert {name for name, decay in names.items() if not decay} == {p.name for p in free}


@pytest.mark.parametrize("rule", RULES)
def test_rows_of_the_table(rule):
    net = create_model("repvgg_nano")
    net.linear.weight.requires_grad = False
    rows = parameter_groups(net, 1e-4, rule)
    # In the network's order, every parameter once, BN's statistics left out.
    assert [row.name for row in rows] == [p.name for p in net.get_parameters() if ".moving_" not in p.name]
    decayed, free = ([p.name for p in group] for group in decay_groups(net, rule))
    assert [row.name for row in rows if row.weight_decay == 1e-4] == decayed
    assert [row.name for row in rows if row.weight_decay == 0] == free
    assert [row.name for row in rows if row.weight_decay is None] == ["linear.weight"]
    first = rows[0]
    assert (first.name, first.shape, first.size) == ("stage0.rbr_dense.conv.weight", (16, 3, 3, 3), 432)


def test_the_table():
    net = create_model("repvgg", 5, num_blocks=(1, 1, 1, 1), widths=(8, 8, 8, 8, 300))
    for block in (net.stage1, net.stage2, net.stage3, net.stage4):
        for parameter in block.get_parameters():
            parameter.requires_grad = False
    lines = format_parameter_groups(parameter_groups(net, 4e-5, "norm_and_bias")).splitlines()
    assert lines[:5] == [
        "parameter                       shape      weight decay",
        "stage0.rbr_dense.conv.weight    8x3x3x3    4e-05",
        "stage0.rbr_dense.bn.gamma       8          0",
        "stage0.rbr_dense.bn.beta        8          0",
        "stage0.rbr_1x1.conv.weight      8x3x1x1    4e-05",
    ]
    assert lines[-3:-1] == [
        "linear.weight                   5x300      4e-05",
        "linear.bias                     5          0",
    ]
    assert "stage4.0.rbr_dense.conv.weight  300x8x3x3  frozen" in lines
    # stage0 and the head: kernels 8 * 3 * 10 and 5 * 300, four BN vectors of 8 and 5 biases; frozen: 3 blocks of
    # 8 * 8 * 10 + 32 and one of 300 * 8 * 10 + 1200, of 6 parameters each.
    assert lines[-1] == "parameters (elements) a weight decay: 4e-05: 3 (1,740), 0: 5 (37), frozen: 24 (27,216)"
