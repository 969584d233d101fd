"""Parts of a model between two tensors: one after the other they are the model."""

import numpy as np
import onnx
import pytest
from support.onnx_files import session

from mindrepvgg.deployment.int8.sessions import Parts, session_of


def test_two_parts_compute_what_the_model_does(float_path):
    x = np.random.default_rng(0).standard_normal((2, 1, 16, 16)).astype(np.float32)
    parts = Parts(onnx.load(str(float_path)))
    first, second = parts.between("images", ["stage2.0.relu"]), parts.between("stage2.0.relu", ["logits", "pool"])
    assert len(first.graph.node) + len(second.graph.node) == len(onnx.load(str(float_path)).graph.node)
    middle = session_of(first).run(None, {"images": x})[0]
    logits, pooled = session_of(second).run(None, {"stage2.0.relu": middle})
    np.testing.assert_allclose(logits, session(float_path)(x), rtol=1e-5, atol=1e-6)
    assert pooled.shape == (2, 64, 1, 1)
    with pytest.raises(ValueError, match=r"images is not computed of stage2\.0\.relu"):
        parts.between("stage2.0.relu", ["stage1.0.relu"])


def test_weights_can_be_others(float_path):
    model = onnx.load(str(float_path))
    bias = onnx.numpy_helper.from_array(np.full(10, 7, np.float32), "linear.bias")
    weight = onnx.numpy_helper.from_array(np.zeros((10, 64), np.float32), "linear.weight")
    changed = Parts(model, {"linear.bias": bias, "linear.weight": weight}).between("images", ["logits"])
    logits = session_of(changed).run(None, {"images": np.zeros((1, 1, 16, 16), np.float32)})[0]
    assert (logits == 7).all()
