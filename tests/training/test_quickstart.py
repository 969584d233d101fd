"""The quick start as it is published: real digits, learnt well enough, and as well after fusion."""

from pathlib import Path

import pytest
from support import context_mode

from mindrepvgg import load_checkpoint, to_deploy, verify_equivalence
from mindrepvgg.data.loaders import eval_loader
from mindrepvgg.evaluation.loop import evaluate
from mindrepvgg.recipe.network import recipe_of
from mindrepvgg.recipe.sources import load_recipe
from mindrepvgg.training.trainer import Trainer

pytestmark = pytest.mark.slow

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


def test_quickstart_reads_97_of_100_digits(tmp_path):
    with context_mode("graph"):
        result = Trainer(load_recipe(QUICKSTART, {"ckpt_save_dir": str(tmp_path)})).run()
        assert result.finished
        assert result.best_top1 >= 97
        assert result.evaluation.top1 >= result.best_top1 - 1, "the last epoch is about as good as the best"
        net = load_checkpoint(result.best)
        loader = eval_loader(recipe_of(net, {}))
        judged = evaluate(net, loader)
        assert judged.top1 == result.best_top1
        deployed = to_deploy(net)
        images = next(iter(loader))[0]
        assert verify_equivalence(net, deployed, images).class_agreement == 1
        assert evaluate(deployed, loader).correct == judged.correct
