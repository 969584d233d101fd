"""Distillation from the float network, against NumPy."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, ops
from support import context_mode, images, randomise_bn
from support.steps import CLASSES, ONE_BLOCK

from mindrepvgg import create_model
from mindrepvgg.training.distillation import Distillation
from mindrepvgg.training.loss import build_loss
from mindrepvgg.training.step import NetworkWithLoss


def softmax(logits):
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


@pytest.fixture(scope="module")
def networks():
    with context_mode("pynative"):
        ms.set_seed(0)
        yield tuple(randomise_bn(create_model("repvgg", CLASSES, **ONE_BLOCK)).set_train(False) for _ in range(2))


def test_the_loss_has_a_share_of_the_divergence_from_the_teacher(networks):
    net, teacher = networks
    x, labels = images(4, 3, 32, 32), np.arange(4, dtype=np.int32)
    logits, known = (each(Tensor(x)).asnumpy().astype(np.float64) for each in (net, teacher))
    task = -np.log(softmax(logits)[np.arange(4), labels]).mean()
    apart = (softmax(known) * np.log(softmax(known) / softmax(logits))).sum(-1).mean()
    assert apart > 0.01
    for share in (0.0, 0.3, 1.0):
        cell = NetworkWithLoss(net, build_loss(), distillation=Distillation(teacher, share))
        found = float(cell(Tensor(x), Tensor(labels), Tensor(1.0)))
        assert found == pytest.approx((1 - share) * task + share * apart, rel=1e-4)


def test_the_teacher_is_a_copy_that_learns_nothing(networks):
    net, teacher = networks
    before = [parameter.asnumpy().copy() for parameter in teacher.get_parameters()]
    cell = NetworkWithLoss(net, build_loss(), distillation=Distillation(teacher, 0.5))
    names = [parameter.name for parameter in cell.get_parameters()]
    assert len(set(names)) == len(names)
    assert {parameter.name for parameter in cell.trainable_params()} == {p.name for p in net.trainable_params()}
    assert all(parameter.requires_grad for parameter in teacher.trainable_params())
    x, labels = Tensor(images(4, 3, 32, 32)), Tensor(np.arange(4, dtype=np.int32))
    gradients = ops.grad(cell, None, net.trainable_params())(x, labels, Tensor(1.0))
    assert all(np.isfinite(gradient.asnumpy()).all() for gradient in gradients)
    assert any(gradient.asnumpy().any() for gradient in gradients)
    for parameter, values in zip(teacher.get_parameters(), before, strict=True):
        np.testing.assert_array_equal(parameter.asnumpy(), values)


def test_a_network_that_says_what_its_teacher_says_has_no_divergence(networks):
    net, _ = networks
    x, labels = Tensor(images(4, 3, 32, 32)), Tensor(np.arange(4, dtype=np.int32))
    cell = NetworkWithLoss(net, build_loss(), distillation=Distillation(net, 1.0))
    assert float(cell(x, labels, Tensor(1.0))) == pytest.approx(0, abs=1e-5)
