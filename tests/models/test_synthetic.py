"""The rule that parameters follow from."""

import numpy as np
import pytest

from mindrepvgg.models import synthetic


@pytest.mark.compat
def test_the_rule_gives_the_same_numbers_everywhere():
    numbers = synthetic.uniform("stage1.0.rbr_dense.conv.weight", (2, 2))
    assert numbers.tolist() == [[0.848532525176092, -0.29625929550253916], [0.34116659759376344, -0.7852072212998444]]
    many = synthetic.uniform("a", 10_000)
    assert -1 <= many.min() < -0.99 < 0.99 < many.max() < 1
    assert abs(many.mean()) < 0.02
    assert abs(np.corrcoef(many, synthetic.uniform("b", 10_000))[0, 1]) < 0.03


@pytest.mark.compat
def test_the_rules_parameters():
    weight = synthetic.parameter_value("stage1.0.rbr_dense.conv.weight", (64, 16, 3, 3))
    assert weight.dtype == np.float32
    assert weight.var() == pytest.approx(2 / (16 * 9), rel=0.05), "He's"
    gamma = synthetic.parameter_value("stage1.1.rbr_identity.gamma", (512,))
    assert 0.75 <= gamma.min() < gamma.max() <= 1.25
    assert synthetic.parameter_value("stage1.1.rbr_dense.bn.moving_variance", (512,)).min() >= 0.5
