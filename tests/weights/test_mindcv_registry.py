"""Our networks in MindCV: its registry, its features, its optimizer, loss, loader and trainer."""

import importlib.util

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from support import context_mode, images, randomise_bn, relative_difference, weights
from support.pictures import noise_picture

import mindrepvgg
from mindrepvgg.errors import UserError
from mindrepvgg.models.variants import SHAPE_KEYS, list_models
from mindrepvgg.weights import cache, mindcv_registry

mindcv = pytest.importorskip("mindcv")

# The RepVGGs of MindCV 0.3.
THEIRS = ("a0", "a1", "a2", "b0", "b1", "b1g2", "b1g4", "b2", "b2g4", "b3")


@pytest.fixture(autouse=True, scope="module")
def names():
    return mindrepvgg.register_in_mindcv()


def test_every_network_of_ours_has_a_name_and_none_of_mindcvs_is_replaced(names):
    ours = {name for name in list_models() if name not in SHAPE_KEYS}
    theirs = {f"repvgg_{size}" for size in THEIRS}
    assert set(names) == {f"mindrepvgg_{name}" if name in theirs else name for name in ours}
    assert {"repvgg_b2g2", "repvgg_nano", "mobileone_s4", "qarepvgg_a0", "mindrepvgg_repvgg_a0"} <= set(names)
    assert set(names) < set(mindcv.list_models())
    assert set(names) == set(mindcv.list_models(module="mindcv_registry"))
    for name in theirs:
        assert mindcv.models.model_entrypoint(name).__module__ == "mindcv.models.repvgg"


def test_a_second_call_changes_nothing(names):
    before = {name: mindcv.models.model_entrypoint(name) for name in mindcv.list_models()}
    assert mindrepvgg.register_in_mindcv() == names
    assert {name: mindcv.models.model_entrypoint(name) for name in mindcv.list_models()} == before
    everything = {}
    exec("from mindrepvgg.weights.mindcv_registry import *", everything)
    assert set(names) <= set(everything)


def test_mindcv_makes_our_network():
    net = mindcv.create_model("repvgg_nano", num_classes=7, in_channels=1)
    assert isinstance(net, mindrepvgg.RepVGG)
    assert (net.num_classes, net.in_channels) == (7, 1)
    with pytest.raises(UserError, match="create_model does not know drop_rate"):
        mindcv.create_model("repvgg_nano", drop_rate=0.5)


def test_mindcv_loads_a_checkpoint_of_ours(tmp_path):
    net = randomise_bn(mindrepvgg.create_model("repvgg_nano", 7))
    mindrepvgg.save_checkpoint(net, tmp_path / "nano.ckpt")
    found = mindcv.create_model("repvgg_nano", num_classes=7, checkpoint_path=str(tmp_path / "nano.ckpt"))
    got, want = weights(found), weights(net)
    assert all(np.array_equal(got[name], want[name]) for name in want)


def test_pretrained_goes_through_our_cache(monkeypatch):
    asked = []

    def local_file(spec, *_):
        asked.append(spec)
        raise UserError("no network")

    monkeypatch.setattr(cache, "local_file", local_file)
    with pytest.raises(UserError, match="no network"):
        mindcv.create_model("mindrepvgg_repvgg_b2g4", pretrained=True)
    assert asked == ["repvgg_b2g4"]
    listed = mindcv.list_models(pretrained=True)
    assert {"repvgg_b3g4", "repvgg_d2se", "mindrepvgg_repvgg_a0"} <= set(listed)
    assert not {"repvgg_b2g2", "repvgg_nano"} & set(listed)


@pytest.mark.parametrize("name", ["repvgg_nano", pytest.param("mobileone_s0", marks=pytest.mark.slow)])
def test_features_are_the_outputs_of_the_stages(name):
    net = randomise_bn(mindcv.create_model(name, features_only=True, out_indices=[1, 3, 4])).set_train(False)
    whole = mindrepvgg.create_model(name).set_train(False)
    widths = whole.variant.widths
    assert net.out_channels == [widths[i] for i in (1, 3, 4)]
    ms.load_param_into_net(whole, {p.name: p for p in net.get_parameters()})
    x = Tensor(images(1, 3, 64, 64))
    with context_mode("pynative"):
        found, last = net(x), whole.forward_features(x)
        fused = mindrepvgg.to_deploy(net)(x)
    assert [f.shape for f in found] == [(1, widths[i], s, s) for i, s in ((1, 16), (3, 4), (4, 2))]
    assert np.array_equal(found[-1].asnumpy(), last.asnumpy())
    for one, other in zip(fused, found, strict=True):
        assert relative_difference(one, other) < 1e-5


def test_the_two_halves_of_repvggplus_are_one_stage(monkeypatch):
    small = mindrepvgg.create_model(
        "repvgg", num_blocks=[1, 1, 2, 1], widths=[4, 4, 8, 8, 16], se="post", se_ratio=4, aux_heads=True
    )
    monkeypatch.setattr(mindcv_registry, "create_model", lambda **_: small)
    net = mindcv.create_model("repvggplus_l2pse", features_only=True)
    with context_mode("pynative"):
        found = net(Tensor(images(2, 3, 64, 64)))
    assert [f.shape[1:] for f in found] == [(4, 32, 32), (4, 16, 16), (8, 8, 8), (8, 4, 4), (16, 2, 2)]


def test_features_of_b2g2_after_one_call():
    net = mindcv.create_model("repvgg_b2g2", features_only=True)
    assert net.out_channels == [64, 160, 320, 640, 2560]


@pytest.mark.parametrize("key", ["output_stride", "strides", "dilations", "frozen_stages", "norm_eval"])
def test_features_that_mindcv_has_no_argument_for_are_refused_in_a_line(key):
    told = rf"^{key} is not for mindcv\.create_model, .*mindrepvgg\.create_model\('repvgg_nano', features_only=True"
    with pytest.raises(UserError, match=told):
        mindcv.create_model("repvgg_nano", features_only=True, **{key: 8})


def train(name, folder, **settings):
    """What MindCV's train.py does, which its package lacks: the same functions of it in the same order."""
    from mindcv.utils import StateMonitor

    for split in ("train", "val"):
        for i in range(8):
            noise_picture(folder / "data" / split / f"class{i % 2}" / f"{i}.png", 40, 40, i)
    loaders = {}
    for split in ("train", "val"):
        data = mindcv.create_dataset(root=str(folder / "data"), split=split, num_parallel_workers=1)
        made = mindcv.create_transforms(is_training=split == "train", image_resize=32)
        loaders[split] = mindcv.create_loader(data, 4, is_training=split == "train", transform=made, num_classes=2)
    net = mindcv.create_model(name, num_classes=2)
    rates = mindcv.create_scheduler(2, "constant", lr=0.1, num_epochs=1)
    loss = mindcv.create_loss("CE", label_smoothing=0.1)
    optimizer = mindcv.create_optimizer(net, opt="momentum", lr=rates, weight_decay=1e-4, weight_decay_filter="auto")
    trainer = mindcv.utils.create_trainer(
        net, loss, optimizer, mindcv.utils.get_metrics(2), "O0", None, "fixed", **settings
    )
    monitor = StateMonitor(
        trainer,
        model_name=name,
        dataset_val=loaders["val"],
        metric_name=["Top_1_Accuracy"],
        ckpt_save_dir=str(folder),
        summary_dir=str(folder / "summary"),
    )
    before = weights(net)
    trainer.train(1, loaders["train"], callbacks=[monitor], dataset_sink_mode=False)
    return net, before


@pytest.mark.parametrize("name", ["repvgg_nano", pytest.param("repvgg_b2g2", marks=pytest.mark.slow)])
def test_mindcvs_trainer_trains_our_network(name, tmp_path):
    net, before = train(name, tmp_path)
    after = weights(net)
    still = [name for name in before if np.array_equal(before[name], after[name])]
    assert still == []
    saved = next(tmp_path.glob(f"{name}*.ckpt"))
    # What MindCV's trainer wrote is read here as well, and fused.
    found = mindrepvgg.load_weights(saved)
    got = weights(found)
    assert all(np.array_equal(got[name], after[name]) for name in after)


def test_without_mindcv_one_line_says_so(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError) as caught:
        mindrepvgg.register_in_mindcv()
    assert str(caught.value) == "registering networks in MindCV needs the package mindcv: pip install mindcv 'numpy<2'"
