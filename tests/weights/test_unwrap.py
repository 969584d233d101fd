"""The weights are found in what training scripts of every project save around them."""

import numpy as np
import pytest
from support.dialect_names import VARIANTS, random_arrays, real_shapes, shapes_in

from mindrepvgg.errors import CheckpointError
from mindrepvgg.weights.pickles import Opaque
from mindrepvgg.weights.recognise import recognise
from mindrepvgg.weights.unwrap import unwrap

# Stands for any network's state dict, and its average.
OFFICIAL = random_arrays(shapes_in("official", VARIANTS["plain"], False, 4))
AVERAGED = random_arrays(shapes_in("official", VARIANTS["plain"], False, 4), seed=1)


def prefixed(state, prefix):
    return {f"{prefix}{name}": array for name, array in state.items()}


def same(state, expected):
    return state.keys() == expected.keys() and all(state[name] is expected[name] for name in state)


def swapped(state):
    """As mmengine's EMA hook saves the raw weights: with a prefix, and a counter beside them."""
    return {"steps": np.array(3), **prefixed(state, "module.")}


@pytest.mark.parametrize(
    ("content", "wrapper", "prefix", "averaged", "ignored"),
    [
        (OFFICIAL, "", "", False, ()),
        (prefixed(OFFICIAL, "module.module."), "", "module.", False, ()),
        ({"state_dict": {**prefixed(OFFICIAL, "model."), "steps": np.ones(1), "model.steps": np.ones(1)}},
            "state_dict", "model.", False, ("state_dict: steps", "state_dict: model.steps")),
        (
            {"model": OFFICIAL, "optimizer": {}, "ema": AVERAGED, "config": Opaque("yacs.config.CfgNode", ())},
            "model, ema", "", True, ("optimizer", "config"),
        ),
        ({"model": OFFICIAL, "ema": None, "epoch": 3}, "model", "", False, ("ema", "epoch")),
        ({"epoch": 1, "state_dict": prefixed(OFFICIAL, "module.")}, "state_dict", "module.", False, ("epoch",)),
        (
            {"arch": "x", "state_dict": prefixed(OFFICIAL, "_orig_mod."), "state_dict_ema": AVERAGED},
            "state_dict, state_dict_ema", "_orig_mod.", True, ("arch",),
        ),
        ({"state_dict": OFFICIAL, "model_ema": prefixed(AVERAGED, "module._orig_mod.")},
            "state_dict, model_ema", "module._orig_mod.", True, ()),
        ({"meta": {}, "state_dict": OFFICIAL, "optimizer": {}}, "state_dict", "", False, ("meta", "optimizer")),
        (
            {"meta": {}, "state_dict": AVERAGED, "ema_state_dict": swapped(OFFICIAL)},
            "ema_state_dict, state_dict", "module.", True, ("meta", "ema_state_dict: steps"),
        ),
        ({"state_dict": OFFICIAL, "ema_state_dict": AVERAGED}, "state_dict, ema_state_dict", "", True, ()),
        ({"state_dict": OFFICIAL, "acc1": 72.4}, "state_dict", "", False, ("acc1",)),
    ],
    ids=["bare", "ddp-twice", "lightning", "main.py", "main.py-no-ema", "pth.tar", "timm", "timm-model_ema",
         "mmpretrain", "mmengine-ema", "ema_state_dict", "basecls"],
)  # fmt: skip
def test_wrappers(content, wrapper, prefix, averaged, ignored):
    found = unwrap(content)
    assert same(found.weights, OFFICIAL)
    assert same(found.averaged, AVERAGED) if averaged else found.averaged is None
    assert (found.wrapper, found.prefix, found.ignored) == (wrapper, prefix, ignored)


def mindcv_training_names(*, prefix=""):
    """As MindCV 0.3 writes them with momentum and EMA; with gradient accumulation, `optimizer.` before the learned."""
    weights = random_arrays(shapes_in("mindcv", VARIANTS["plain"], False, 4))
    averaged = random_arrays(shapes_in("mindcv", VARIANTS["plain"], False, 4), seed=1)
    learned = [name for name in weights if "moving" not in name]
    content = {f"{prefix if name in learned else ''}{name}": array for name, array in weights.items()}
    content |= {f"{prefix}moments.{name}": weights[name] for name in learned}
    content |= prefixed(averaged, "ema.")
    for name in (f"{prefix}global_step", f"{prefix}learning_rate", f"{prefix}momentum", "updates", "scale_sense"):
        content[name] = np.array(0.5)
    if prefix:
        content |= {f"grad_accumulation.{prefix}{name}": weights[name] for name in learned}
    return content, weights, averaged


@pytest.mark.parametrize("prefix", ["", "optimizer."])
def test_mindcv_s_training_checkpoints(prefix):
    content, weights, averaged = mindcv_training_names(prefix=prefix)
    found = unwrap(content)
    assert same(found.weights, weights)
    assert same(found.averaged, averaged)
    assert found.prefix == prefix
    assert {"updates", "scale_sense", f"{prefix}global_step", f"{prefix}momentum", "moments.* (48)"} <= {*found.ignored}
    assert recognise(found.weights).variant == recognise(found.averaged).variant == VARIANTS["plain"]


def test_mindcv_s_names_match_its_training_cell():
    repvgg, utils = pytest.importorskip("mindcv.models.repvgg"), pytest.importorskip("mindcv.utils")
    from mindspore import nn

    net = repvgg.RepVGG([1, 1, 2, 1], width_multiplier=[0.25] * 4, num_classes=3)
    expected = sorted(real_shapes(net))
    loss, optimizer = nn.CrossEntropyLoss(), nn.Momentum(net.trainable_params(), 0.1, 0.9)
    options = {"amp_level": "O0", "amp_cast_list": "[]", "loss_scale_type": "fixed", "drop_overflow_update": False}
    trainer = utils.create_trainer(net, loss, optimizer, {}, **options, ema=True, gradient_accumulation_steps=2)
    content = {p.name: p.asnumpy() for p in trainer.train_network.get_parameters()}
    assert "grad_accumulation.optimizer.linear.bias" in content
    found = unwrap(content)
    assert sorted(found.weights) == sorted(found.averaged) == expected
    assert recognise(found.weights).dialect == "mindcv"


def test_cells_around_parts_of_the_network():
    content = {
        name.replace("rbr_1x1.", "rbr_1x1._backbone."): array for name, array in prefixed(OFFICIAL, "network.").items()
    }
    found = unwrap(content)
    assert same(found.weights, OFFICIAL)
    assert found.prefix == "network._backbone."


def test_our_unfinished_runs():
    state = {"training_state.moments.linear.bias": np.zeros(4), "training_state.global_step": np.zeros(1)}
    found = unwrap({**OFFICIAL, **state})
    assert same(found.weights, OFFICIAL)
    assert found.ignored == ("training_state.* (2)",)


def test_averaged_weights_alone():
    found = unwrap({"state_dict_ema": AVERAGED})
    assert found.weights is None
    assert same(found.averaged, AVERAGED)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (Opaque("repvgg.RepVGG", ()), "holds a pickled network (repvgg.RepVGG), which needs its program to be read; "),
        ({"model": Opaque("repvgg.RepVGG", ()), "epoch": 3}, "holds a pickled network (repvgg.RepVGG)"),
        ([OFFICIAL], "holds a list, expected weights by name"),
        ({"epoch": 3, 4: {}}, "holds no weights by name; its entries: epoch, 4"),
        ({"lr": np.zeros(3)}, "holds no weights by name; its entries: lr"),
        ({}, "holds no weights by name"),
        ({"model": OFFICIAL, "state_dict": OFFICIAL}, "holds several state dicts (state_dict, model)"),
        ({**OFFICIAL, "module.linear.bias": np.zeros(4)}, "holds both linear.bias and module.linear.bias, which are "),
    ],
)  # fmt: skip
def test_what_cannot_be_unwrapped(content, text):
    with pytest.raises(CheckpointError) as caught:
        unwrap(content)
    assert text in str(caught.value)
