"""QARepVGG and MobileOne as files: ONNX equals the network in MindSpore, equalisation keeps it, INT8 is written."""

from collections import Counter

import numpy as np
import onnx
import pytest
from mindspore import Tensor
from support import OTHER_SMALL, images, randomise_bn, relative_difference
from support.exports import FACTS, SIZE, normalised, pixels
from support.onnx_files import session

from mindrepvgg import create_model, save_checkpoint, to_deploy
from mindrepvgg.deployment.export import export_checkpoint
from mindrepvgg.deployment.graph import GraphOptions, build_onnx
from mindrepvgg.deployment.int8.equalize import equalize
from mindrepvgg.deployment.int8.grids import IntegerOptions
from mindrepvgg.deployment.int8.integers import Quantizer, layer_nodes
from mindrepvgg.evaluation.torch_reference import TorchReference
from mindrepvgg.models.parameters import network_arrays

pytestmark = pytest.mark.usefixtures("few_photos")

EVERY_KIND = pytest.mark.parametrize("kind", OTHER_SMALL)


def make(kind):
    return randomise_bn(create_model(kind, 10, 3, **OTHER_SMALL[kind])).set_train(False)


@EVERY_KIND
def test_the_file_computes_what_the_branches_do(kind, tmp_path):
    net = make(kind)
    save_checkpoint(net, tmp_path / "net.ckpt", **FACTS)
    done = export_checkpoint(tmp_path / "net.ckpt", tmp_path / "out.onnx")
    assert done.check.passed
    assert done.fusion.passed
    assert (done.metadata["model"], done.metadata["model_args"]) == (kind, net.variant.model_args)
    for count in (1, 3):
        x = images(count, 3, *SIZE)
        assert relative_difference(session(tmp_path / "out.onnx")(x), net(Tensor(x))) < 1e-5
    model = onnx.load(tmp_path / "out.onnx")
    counts = Counter(node.op_type for node in model.graph.node)
    blocks, excited = len(net.variant.block_specs()), sum(spec.se is not None for spec in net.variant.block_specs())
    assert (blocks, excited) == {"qarepvgg": (7, 0), "mobileone": (13, 4), "repopt_vgg": (7, 7)}[kind]
    assert counts["Conv"] == blocks + 2 * excited
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    arrays = network_arrays(to_deploy(net))
    assert held.keys() == arrays.keys()
    assert all(np.array_equal(held[name], arrays[name]) for name in arrays)


@EVERY_KIND
def test_equalisation_keeps_the_logits(kind):
    """Depthwise kernels too: each of their channels is read by one of the next block's groups."""
    torch = pytest.importorskip("torch")
    net = make(kind)
    arrays, x = network_arrays(to_deploy(net)), images(2, 3, *SIZE)
    found = equalize(net.variant, arrays)
    assert found.largest > 1.5

    def logits(values):
        return TorchReference({name: torch.tensor(np.array(array)) for name, array in values.items()})(x)

    assert relative_difference(logits(found.arrays), logits(arrays)) < 1e-5
    # Negative control: one channel too much.
    found.arrays["stage1.0." + ("reparam_conv" if kind == "mobileone" else "rbr_reparam") + ".weight"][0] *= 1.1
    assert relative_difference(logits(found.arrays), logits(arrays)) > 1e-5


@EVERY_KIND
def test_all_layers_become_integer(kind, tmp_path):
    net = make(kind)
    options = GraphOptions()
    model = build_onnx(net.variant, network_arrays(to_deploy(net)), options)
    (tmp_path / "float.onnx").write_bytes(model.SerializeToString())
    nodes = layer_nodes(net.variant, options.output)
    batches = [normalised(pixels(4, *SIZE, 3)) for _ in range(2)]
    quantizer = Quantizer(tmp_path / "float.onnx", nodes, batches, IntegerOptions(weight_bits=7))
    shifts = quantizer.write(tmp_path / "int8.onnx", list(nodes), corrects=True)
    assert shifts.keys() == nodes.keys()
    written = onnx.load(tmp_path / "int8.onnx")
    kernels = [tensor for tensor in written.graph.initializer if tensor.data_type == onnx.TensorProto.INT8]
    assert len([tensor for tensor in kernels if len(tensor.dims) > 1]) == len(net.variant.block_specs()) + 1
    expected = session(tmp_path / "float.onnx")(batches[0])
    assert relative_difference(session(tmp_path / "int8.onnx")(batches[0]), expected) < 0.5
