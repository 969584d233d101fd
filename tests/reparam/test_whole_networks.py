"""Whole networks against PyTorch in float64: folding adds no more to float32's rounding than the branches have."""

import numpy as np
import pytest
from mindspore import Tensor
from support import OTHER_SMALL, SMALL, images, noise, randomise_bn, relative_difference
from support.torch_networks import in_float64, outputs

from mindrepvgg import create_model, reparam, to_deploy
from mindrepvgg.reparam.finding import rep_blocks

pytestmark = pytest.mark.usefixtures("pynative_mode")

# The least that is asked of the deploy form, over the largest output, and what float32 makes of the branches at most.
DEPLOY, TRAIN = 1e-5, 1e-4


def inserted(name, kind, sizes, where="*.rbr_dense.conv"):
    """A network with a block of another kind in a branch of each of its own."""
    return reparam.insert(create_model(name, 10, **sizes), kind, where, images())


NETWORKS = {
    "mobileone": lambda: create_model("mobileone", 10, **OTHER_SMALL["mobileone"]),
    "qarepvgg": lambda: create_model("qarepvgg", 10, **OTHER_SMALL["qarepvgg"]),
    "repvgg with dbb": lambda: inserted("repvgg", "dbb", SMALL["g4"]),
    "repvgg with acb": lambda: inserted("repvgg", "acb", SMALL["d2se"]),
}
REAL = {
    "mobileone_s0": lambda: create_model("mobileone_s0"),
    "qarepvgg_a0": lambda: create_model("qarepvgg_a0"),
    "repvgg_a0 with dbb": lambda: inserted("repvgg_a0", "dbb", {}),
    "repvgg_a0 with acb": lambda: inserted("repvgg_a0", "acb", {}),
}


@pytest.mark.parametrize(
    "make", [*NETWORKS.values(), *(pytest.param(make, marks=pytest.mark.slow) for make in REAL.values())],
    ids=[*NETWORKS, *REAL],
)  # fmt: skip
def test_both_forms_are_as_near_to_float64(make):
    net = randomise_bn(make()).set_train(False)
    for parameter in net.get_parameters():
        if parameter.name.endswith("idconv1.weight"):  # a 1x1 that starts as the identity has moved
            parameter.set_data(Tensor(noise(*parameter.shape) / parameter.shape[1]))
    x = images(2, 3, 64, 64)
    expected = outputs(in_float64(net), x)
    deployed = to_deploy(net)
    train, deploy = (relative_difference(form(Tensor(x)), expected) for form in (net, deployed))
    assert np.abs(expected).max() > 1e-3
    assert np.abs(expected[0] - expected[1]).max() > 1e-2 * np.abs(expected).max(), "the pictures count"
    assert train < TRAIN
    assert deploy <= max(DEPLOY, 2 * train)
    # Negative control: one kernel of all, off by a thousandth.
    kernel = list(rep_blocks(deployed).values())[-1].fused.weight
    kernel.set_data(kernel * 1.001)
    assert relative_difference(deployed(Tensor(x)), expected) > max(DEPLOY, 2 * train)
