"""The family in PyTorch, against a reference that shares no code with it."""

import pytest
import torch
from support import OTHER_SMALL, SMALL, images, randomise_bn, relative_difference

from mindrepvgg import create_model, to_deploy
from mindrepvgg.evaluation.torch_reference import TorchReference
from mindrepvgg.measure import torch_network
from mindrepvgg.measure.contest import measure
from mindrepvgg.measure.settings import Settings
from mindrepvgg.models import variants
from mindrepvgg.models.parameters import network_arrays


@pytest.fixture
def _one_torch_thread():
    """For networks so small that threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_one_torch_thread")
@pytest.mark.parametrize("kind", [*SMALL, *OTHER_SMALL])
def test_torch_computes_the_network(kind):
    """In both forms and half precision too, against a reference that shares no code."""
    name, shape = (kind, OTHER_SMALL[kind]) if kind in OTHER_SMALL else ("repvgg", SMALL[kind])
    net = randomise_bn(create_model(name, 10, 3, **shape))
    x = images(2, 3, 33, 17)
    if net.variant.aux_heads:
        net.drop_aux_heads()
    for form in (net, to_deploy(net)):
        arrays = network_arrays(form)
        expected = TorchReference({name: torch.tensor(array) for name, array in arrays.items()})(x)
        found = {
            precision: torch_network.torch_call(torch_network.torch_network(net.variant, arrays), x, precision)()
            for precision in ("float32", "float16")
        }
        assert relative_difference(found["float32"], expected) < 1e-5
        assert 1e-5 < relative_difference(found["float16"], expected) < 5e-2
        shifts = [
            name
            for name in arrays
            if name.startswith(("stage4.0.r", "stage4.0.bn")) and name.endswith(("bias", "beta"))
        ]
        arrays[shifts[-1]][0] += 1
        changed = torch_network.torch_call(torch_network.torch_network(net.variant, arrays), x)()
        assert relative_difference(changed, expected) > 1e-4


def test_torch_refuses_arrays_that_do_not_fit():
    arrays = network_arrays(create_model("repvgg", 10, deploy=True, **SMALL["plain"]))
    del arrays["stage1.1.rbr_reparam.bias"]
    with pytest.raises(RuntimeError, match=r"Missing key.*stage1\.1\.rbr_reparam\.bias"):
        torch_network.torch_network(variants.custom(**SMALL["plain"]), arrays)


@pytest.mark.slow
def test_compiled_it_computes_the_same():
    """In the contest, in a process of its own, beside the eager network, which it must agree with."""
    engines = "torch,torch.compile"
    *_, found = measure(
        Settings("repvgg_nano", forms="deploy", engines=engines, batch_sizes="2", image_size=32, rounds=1)
    )
    assert not found.left_out
    assert [result.contestant.engine for result in found.results] == engines.split(",")
    assert found.results[1].max_rel < 1e-5
    assert "torch.compile" in found.markdown()
