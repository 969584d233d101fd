"""Networks of QARepVGG's, RepOpt-VGG's and MobileOne's blocks: shapes without building, forms, checkpoints, proofs."""

import numpy as np
import pytest
from mindspore import Tensor
from mindspore.nn.utils import no_init_parameters
from support import FORM, OTHER_SMALL, context_mode, randomise_bn, relative_difference, weights
from support.golden import OTHER_GOLDEN

from mindrepvgg import create_model, load_checkpoint, load_weights, save_checkpoint, to_deploy, verify_equivalence
from mindrepvgg.models.qat import fold_bn, to_fake_quantized, to_trainable_deploy
from mindrepvgg.models.shapes import parameter_shapes

pytestmark = pytest.mark.usefixtures("pynative_mode")

QUICK = ("qarepvgg_a0", "mobileone_s0")
NETWORKS = [
    *(pytest.param(name, {}, id=name, marks=() if name in QUICK else pytest.mark.slow) for name in OTHER_GOLDEN),
    *(pytest.param(kind, shape, id=f"small-{kind}") for kind, shape in OTHER_SMALL.items()),
]
EVERY_KIND = pytest.mark.parametrize("kind", OTHER_SMALL)


def make(kind, **options):
    return randomise_bn(create_model(kind, 7, **OTHER_SMALL[kind], **options)).set_train(False)


def images(count=2, side=33, seed=0):
    return Tensor(np.random.default_rng(seed).normal(size=(count, 3, side, side)).astype(np.float32))


def shapes(net):
    return {parameter.name: tuple(parameter.shape) for parameter in net.get_parameters()}


@pytest.mark.parametrize("deploy", [False, True], ids=["train", "deploy"])
@pytest.mark.parametrize(("name", "shape"), NETWORKS)
def test_shapes_are_those_of_the_built_network(name, shape, deploy):
    with no_init_parameters():
        net = create_model(name, deploy=deploy, **shape)
    expected = shapes(net)
    assert parameter_shapes(net.variant, FORM[deploy]) == expected
    if not shape:
        learned = sum(parameter.size for parameter in net.trainable_params())
        assert learned == OTHER_GOLDEN[name][deploy]


@EVERY_KIND
def test_a_checkpoint_keeps_the_network_in_both_forms(kind, tmp_path):
    net = make(kind)
    for form, kept in (("train", net), ("deploy", to_deploy(net))):
        path = tmp_path / f"{form}.ckpt"
        save_checkpoint(kept, path)
        for found in (load_checkpoint(path), load_weights(path)):
            assert type(found) is type(net)
            assert found.variant == net.variant
            assert found.metadata["form"] == form
            assert all(np.array_equal(array, weights(kept)[name]) for name, array in weights(found).items())


@EVERY_KIND
def test_the_deploy_form_computes_the_same(kind):
    net = make(kind)
    deployed = to_deploy(net)
    report = verify_equivalence(net, deployed, images())
    assert report.passed
    assert len(report.blocks) == len(net.variant.block_specs())
    parameter = deployed.stage1[1].fused.weight
    parameter.set_data(Tensor(parameter.asnumpy() * np.float32(1.01)))
    assert not verify_equivalence(net, deployed, images(), raise_on_failure=False).passed


@pytest.mark.slow
@EVERY_KIND
def test_graph_mode_computes_what_pynative_does(kind):
    net, found = make(kind), {}
    for mode in ("pynative", "graph"):
        with context_mode(mode):
            found[mode] = net(images())
    assert relative_difference(found["graph"], found["pynative"]) < 1e-5


@EVERY_KIND
def test_the_forms_of_training_for_int8(kind):
    net = to_deploy(make(kind))
    inserted = to_trainable_deploy(net)
    for form, other in (("bn", inserted), ("qat", to_fake_quantized(inserted))):
        assert parameter_shapes(net.variant, form, 7) == shapes(other)
    expected = net(images()).asnumpy()
    folded = fold_bn(inserted)
    assert shapes(folded) == shapes(net)
    assert relative_difference(folded(images()), expected) < 1e-5
