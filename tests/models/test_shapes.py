"""Names and shapes told without building, against the built cells; misfits and non-finite values in words."""

import numpy as np
import pytest
from mindspore.nn.utils import no_init_parameters
from support import FORM, SMALL
from support.golden import FAMILY

from mindrepvgg import create_model
from mindrepvgg.errors import CheckpointError
from mindrepvgg.models.qat import to_fake_quantized, to_trainable_deploy
from mindrepvgg.models.shapes import check_finite, find_misfits, parameter_shapes

# The default suite builds one network of each kind of the family.
QUICK = ("repvgg_a0", "repvgg_b1g4", "repvgg_d2se", "repvggplus_l2pse")
NETWORKS = [
    *(pytest.param(name, {}, id=name, marks=() if name in QUICK else pytest.mark.slow) for name in FAMILY),
    *(pytest.param("repvgg", SMALL[kind], id=f"small-{kind}") for kind in SMALL),
]


def built(name, deploy, *sizes, **shape):
    with no_init_parameters():  # gigabytes of random numbers would be made only to be counted
        net = create_model(name, *sizes, deploy=deploy, **shape)
    return net, {parameter.name: tuple(parameter.shape) for parameter in net.get_parameters()}


@pytest.mark.parametrize("deploy", [False, True], ids=["train", "deploy"])
@pytest.mark.parametrize(("name", "shape"), NETWORKS)
def test_shapes_are_those_of_the_built_network(name, shape, deploy):
    net, expected = built(name, deploy, **shape)
    assert parameter_shapes(net.variant, FORM[deploy]) == expected


@pytest.mark.parametrize("deploy", [False, True], ids=["train", "deploy"])
def test_classes_and_input_channels_count_in_every_head_and_the_stem(deploy):
    net, expected = built("repvgg", deploy, 7, 4, **SMALL["plus"])
    assert parameter_shapes(net.variant, FORM[deploy], 7, 4) == expected


@pytest.mark.parametrize("kind", ["plain", "d2se"])
def test_the_forms_of_training_for_int8(kind):
    inserted = to_trainable_deploy(create_model("repvgg", deploy=True, **SMALL[kind]))
    for form, other in (("bn", inserted), ("qat", to_fake_quantized(inserted))):
        expected = {parameter.name: tuple(parameter.shape) for parameter in other.get_parameters()}
        assert parameter_shapes(inserted.variant, form) == expected


def test_auxiliary_heads_can_be_left_out():
    net, _ = built("repvgg", False, **SMALL["plus"])
    net.drop_aux_heads()
    expected = {parameter.name: tuple(parameter.shape) for parameter in net.get_parameters()}
    assert parameter_shapes(net.variant, "train", aux_heads=False) == expected


def test_misfits_tell_each_kind_and_the_first_few():
    expected = {"a": (1,), "b": (2,), "c": (3,), "d": (4,), "e": (5,)}
    found = find_misfits(expected, {"e": np.zeros(6), "x\n": np.zeros((2, 2))})
    assert found.count == 6
    assert found.text() == (
        "4 missing: a (1,), b (2,), c (3,), and 1 more; 1 unexpected: x\\n (2, 2); "
        "1 of another shape: e (6,), expected (5,)"
    )
    assert find_misfits(expected, {name: np.zeros(shape) for name, shape in expected.items()}).count == 0


def test_non_finite_weights_are_named():
    arrays = {"a": np.ones(3), "b": np.array([1, np.nan, np.inf], np.float16), "n": np.int64(3), "c": np.array(-np.inf)}
    with pytest.raises(CheckpointError) as caught:
        check_finite(arrays)
    assert "2 of 4 tensors hold NaN or infinite values: b (2 of 3), c (1 of 1); the training" in str(caught.value)
    check_finite({"a": arrays["a"], "n": np.arange(3), "empty": np.zeros(0)})
