"""The search for the layers that stay in float."""

import numpy as np
import pytest
from support.int8 import loader

from mindrepvgg.deployment.int8 import search
from mindrepvgg.deployment.int8.progress import Progress
from mindrepvgg.deployment.int8.repairs import Repairs
from mindrepvgg.deployment.int8.search import fewest
from mindrepvgg.evaluation.loop import Evaluation


@pytest.mark.parametrize("count", [1, 2, 3, 10, 47])
def test_fewest_is_the_least_that_passes(count):
    for least in range(count + 2):
        asked = []

        def passes(k, least=least, asked=asked):
            asked.append(k)
            assert 0 <= k < count
            return k >= least

        assert fewest(count, passes) == (least if least < count else None)
        assert len(asked) == len(set(asked)) <= 2 + np.log2(count)
        assert least in (0, *range(count, count + 2)) or {least, least - 1} <= set(asked), "both sides were asked"


def test_what_does_not_rise_evenly_still_gives_a_proven_place():
    accepted = {2, 5, 6, 7, 9}
    found = fewest(10, accepted.__contains__)
    assert found in accepted
    assert found - 1 not in accepted


def test_a_loss_of_just_the_target_is_kept(written):
    """97.07 - 96.57 is more than 0.5 in floating point."""
    evaluate = search.Evaluator(written.destination, loader(10), Progress())
    counts = {"num_images": 10000, "loss": 0.0, "top5": 100.0, "images_per_second": 1.0}
    evaluate.reference = Evaluation(top1=100 * (9707 / 10000), correct=9707, **counts)
    found = Evaluation(top1=100 * (9657 / 10000), correct=9657, **counts)
    evaluate._evaluate = lambda engine: (found, evaluate._classes)
    assert evaluate.reference.top1 - found.top1 > 0.5
    attempt = evaluate(written.destination, Repairs())
    assert (attempt.drop, attempt.agreement) == (0.5, 1)
