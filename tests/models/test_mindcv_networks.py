"""MindCV's networks in this package: named, built, given blocks, folded, and built again in both forms."""

import numpy as np
import pytest
from mindspore import Tensor
from support import images, randomise_bn, relative_difference, weights
from support.mindcv_networks import register

from mindrepvgg import to_deploy
from mindrepvgg.errors import CheckpointError, FusionError, UserError
from mindrepvgg.models.building import build_network
from mindrepvgg.models.networks import find_network
from mindrepvgg.models.variants import find
from mindrepvgg.reparam.finding import rep_blocks

mindcv = pytest.importorskip("mindcv")


@pytest.fixture(scope="module")
def tiny():
    return register()


def refusal(function, *arguments, **options):
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


class TestNames:
    def test_every_network_of_mindcv_has_one(self):
        for name in mindcv.list_models():
            spec = find_network(f"mindcv/{name}")
            assert (spec.name, spec.model_args) == (f"mindcv/{name}", {})

    def test_the_arguments_make_the_same_network_again(self):
        spec = find_network("mindcv/resnet18", block="acb", block_where="layer1.*", drop_path_rate=0.1)
        assert spec.model_args == {"block": "acb", "block_where": ["layer1.*"], "drop_path_rate": 0.1}
        assert find_network(spec.name, **spec.model_args) == spec
        assert spec.file_name == "mindcv_resnet18"

    def test_other_names_are_the_familys(self):
        assert find_network("RepVGG-A0") is find("repvgg_a0")
        assert find("repvgg_a0").family_layout("this") is find("repvgg_a0")

    @pytest.mark.parametrize(
        ("name", "arguments", "told"),
        [
            ("resnet19", {}, "model (='mindcv/resnet19') is no network of the installed MindCV; did you mean"),
            ("resnet18", {"block": "abc"}, "block (='abc') must be one of"),
            ("resnet18", {"block_where": "layer1.*"}, "block_where (='layer1.*') needs block"),
            ("resnet18", {"block": "acb", "block_where": []}, "block_where (=[]) must be a pattern"),
            (
                "resnet18",
                {"checkpoint_path": "x"},
                "mindcv/resnet18 takes no checkpoint_path; a network of MindCV takes",
            ),
            ("resnet18", {"drop_rate": 2}, "drop_rate (=2) must be a number of at least 0 and below 1"),
        ],
    )
    def test_what_cannot_be_used_is_refused(self, name, arguments, told):
        assert told in refusal(find_network, f"mindcv/{name}", **arguments)

    def test_a_fused_repvgg_of_mindcv_is_laid_out_as_ours(self):
        assert find_network("mindcv/repvgg_a0").deploy_layout("this") == find("repvgg_a0")
        for spec in (find_network("mindcv/repvgg_a0", block="acb"), find_network("mindcv/resnet18")):
            text = refusal(spec.deploy_layout, "writing ONNX", "write .mindir")
            assert text == (
                f"writing ONNX is for this package's own networks, and {spec.name} is MindCV's; write .mindir"
            )


@pytest.mark.parametrize(
    ("options", "blocks"),
    [
        ({}, []),
        ({"block": "acb"}, ["conv1", "conv2"]),
        ({"block": "dbb", "block_where": "conv[23]"}, ["conv2", "conv3"]),
    ],
    ids=["plain", "acb", "dbb"],
)
def test_both_forms_are_built_again_from_their_arrays(tiny, options, blocks):
    spec = find_network(tiny, **options)
    net = randomise_bn(build_network(spec, 5, 1)).set_train(False)
    assert list(rep_blocks(net)) == [f"network.{path}" for path in blocks]
    assert (net.variant, net.num_classes, net.in_channels, net.deploy) == (spec, 5, 1, False)
    x = Tensor(images(2, 1, 32, 32))
    deployed = to_deploy(net)
    assert deployed.deploy
    assert not net.deploy
    assert not [name for name in weights(deployed) if "moving_mean" in name]
    assert relative_difference(deployed(x), net(x)) < 1e-5
    for one, form in ((net, "train"), (deployed, "deploy")):
        again = build_network(spec, 5, 1, form, weights(one)).set_train(False)
        assert again.deploy == one.deploy
        assert np.array_equal(again(x).asnumpy(), one(x).asnumpy())


def test_parameters_are_called_as_mindcv_calls_them(tiny):
    net = build_network(find_network(tiny), 5, 1)
    assert set(weights(net)) == set(weights(mindcv.create_model("tiny_residual", num_classes=5, in_channels=1)))


def test_a_network_without_anything_to_fold_has_a_deploy_form_all_the_same():
    net = build_network(find_network("mindcv/squeezenet1_0"), 5, 3).set_train(False)
    deployed = to_deploy(net).set_train(False)
    assert deployed.deploy
    assert set(weights(deployed)) == set(weights(net))


def test_mindcvs_own_repvgg_becomes_a_deploy_form_under_our_names(monkeypatch):
    from mindcv.models import repvgg

    small = repvgg.RepVGG([1, 1, 2, 1], 5, 3, [0.125, 0.125, 0.125, 0.125])
    monkeypatch.setattr(mindcv, "create_model", lambda *_, **__: small)
    net = randomise_bn(build_network(find_network("mindcv/repvgg_a0"), 5, 3)).set_train(False)
    deployed = to_deploy(net)
    names = {
        f"{stage}.rbr_reparam.{leaf}"
        for stage in ("stage0", "stage1.0", "stage2.0", "stage3.0", "stage3.1", "stage4.0")
        for leaf in ("weight", "bias")
    }
    assert set(weights(deployed)) == {*names, "linear.weight", "linear.bias"}
    x = Tensor(images(2, 3, 64, 64))
    assert relative_difference(deployed(x), net(x)) < 1e-4


class TestRefused:
    def test_arrays_of_another_network(self, tiny):
        spec = find_network(tiny)
        arrays = weights(build_network(spec, 5, 1))
        del arrays["conv2.weight"]
        with pytest.raises(CheckpointError, match=r"x\.ckpt does not fit the network: 1 missing: conv2\.weight"):
            build_network(spec, 5, 1, "train", arrays, source="x.ckpt")

    def test_a_number_of_classes_that_no_array_has(self, tiny):
        spec = find_network(tiny)
        arrays = weights(build_network(spec, 5, 1))
        assert "none of its arrays is for num_classes 1000000" in refusal(
            build_network, spec, 1_000_000, 1, "train", arrays
        )

    def test_a_form_for_int8(self, tiny):
        assert "has no qat form" in refusal(build_network, find_network(tiny), 5, 1, "qat")

    def test_an_argument_that_mindcvs_function_does_not_take(self):
        text = refusal(build_network, find_network("mindcv/resnet18", drop_rate=0.1), 10, 3)
        assert text.startswith("MindCV cannot make its resnet18 with num_classes 10, in_channels 3, drop_rate 0.1: ")

    def test_a_block_that_fits_no_convolution(self, tiny):
        with pytest.raises(FusionError, match="no convolution was replaced"):
            build_network(find_network(tiny, block="acb", block_where="none"), 5, 1)

    def test_what_is_no_image(self, tiny):
        assert "takes a mindspore.Tensor of images (N, 1, H, W)" in refusal(
            build_network(find_network(tiny), 5, 1), Tensor(images(2, 3, 32, 32))
        )


def test_dropout_is_given_to_mindcvs_network(tiny):
    net = build_network(find_network(tiny, drop_rate=0.25), 5, 1)
    assert net.network.dropout.p == 0.25
