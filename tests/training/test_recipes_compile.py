"""Every published recipe builds its network and takes a step in graph mode, on a few small images."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from mindspore import Tensor
from support import SMALL, context_mode, images

from mindrepvgg.recipe.provenance import COMMAND_LINE
from mindrepvgg.recipe.schema import KEYS
from mindrepvgg.recipe.sources import load_recipe
from mindrepvgg.reparam.finding import rep_blocks
from mindrepvgg.reparam.precision import check_precision
from mindrepvgg.runtime.ranks import Ranks
from mindrepvgg.training.assemble import build_learning_rates, build_network, build_step

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = sorted([*CONFIGS.glob("repvgg*.yaml"), *CONFIGS.glob("mindcv/*.yaml")])

# What the network and its step are made of; of recipes that agree in these, one stands for all.
PARTS = (
    *("model", "model_args", "num_classes", "in_channels", "freeze_stages", "freeze_bn", "sync_bn", "recompute"),
    *("opt", "momentum", "use_nesterov", "betas", "eps", "weight_decay", "weight_decay_filter", "loss"),
    *("label_smoothing", "aux_weight", "clip_grad", "clip_value", "gradient_accumulation_steps", "ema"),
    *("amp_level", "amp_dtype", "loss_scale_type", "loss_scale", "drop_overflow_update"),
)


def load(path):
    return load_recipe(path, {"data_dir": "nowhere"}).replace(
        COMMAND_LINE, batch_size=2, image_resize=32, num_classes=1000
    )


def distinct(paths):
    """(recipe, its name) of each step there is, the first file's of several."""
    found = {}
    for path in paths:
        recipe = load(path)
        values = recipe.to_dict()
        step = json.dumps([*(values[key] for key in PARTS), bool(recipe.mixup or recipe.cutmix)])
        found.setdefault(step, (recipe, str(path.relative_to(CONFIGS).with_suffix(""))))
    return found.values()


STEPS = [pytest.param(recipe, id=name, marks=pytest.mark.slow) for recipe, name in distinct(FILES)]
# The default suite compiles A0's recipe, of which most differ by the network alone, with a small one.
SMALL_STEP = load(CONFIGS / "repvgg_a0.yaml").replace(COMMAND_LINE, model="repvgg", model_args=SMALL["plain"])


def test_every_recipe_has_its_step():
    assert set(PARTS) <= set(KEYS)
    assert len(FILES) == 25
    assert {recipe.model for recipe in map(load, FILES)} == {parameter.values[0].model for parameter in STEPS}


def test_other_blocks_train_in_graph_mode():
    """QARepVGG's recipe with diverse branch blocks. Several steps: some of MindSpore's kernels fail after the first."""
    small = {"model": "qarepvgg", "model_args": {"num_blocks": [2, 1, 1, 1], "widths": [8, 8, 8, 8, 8]}}
    recipe = load_recipe(
        "qarepvgg_a0", {**small, "block": "dbb", "block_where": "stage1.*", "num_classes": 10, "data_dir": "nowhere"}
    )
    with context_mode("graph"):
        net = build_network(recipe, Ranks())
        kinds = {type(block).__name__ for block in rep_blocks(net).values()}
        assert kinds == {"QARepVGGBlock", "DiverseBranchBlock"}
        step = build_step(recipe, net, np.full(12, 0.05, np.float32), Ranks())
        batch = Tensor(images(4, 3, 32, 32)), Tensor(np.array([3, 9, 0, 1], np.int32))
        losses = [float(step(*batch)[0].asnumpy()) for _ in range(12)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("recipe", [pytest.param(SMALL_STEP, id="small"), *STEPS])
def test_it_takes_a_step(recipe):
    with context_mode("graph"):
        check_precision(recipe.amp_level, recipe.amp_dtype, "CPU")
        net = build_network(recipe, Ranks())
        step = build_step(recipe, net, build_learning_rates(recipe, 1, recipe.batch_size), Ranks())
        targets = np.array([3, recipe.num_classes - 1], np.int32)
        if recipe.mixup or recipe.cutmix:
            targets = (0.7 * np.eye(recipe.num_classes)[targets] + 0.3 / recipe.num_classes).astype(np.float32)
        head = net.linear.bias.asnumpy().copy()
        loss, done = step(Tensor(images(2, 3, 32, 32)), Tensor(targets))
        assert bool(done.asnumpy())
        # About that of a guess, with the auxiliary heads' share.
        guess = math.log(recipe.num_classes) * (1 + 3 * recipe.aux_weight * (recipe.model == "repvggplus_l2pse"))
        assert 0.5 * guess < float(loss.asnumpy()) < 2 * guess
        learns = build_learning_rates(recipe, 1, recipe.batch_size)[0] > 0
        assert (net.linear.bias.asnumpy() != head).any() == learns
