"""Checkpoints of a user's own network that holds one of ours."""

import mindspore
import numpy as np
import pytest
from mindspore import nn
from support import weights
from support.checkpoints import assert_equal_weights, refusal, small

from mindrepvgg import load_checkpoint, load_weights, save_checkpoint, to_deploy
from mindrepvgg.errors import CheckpointError
from mindrepvgg.models.repvgg import RepVGG
from mindrepvgg.weights.checkpoint import load_checkpoint_and_state

pytestmark = pytest.mark.compat


@pytest.fixture(params=[".ckpt", ".safetensors"])
def path(tmp_path, request):
    return tmp_path / f"net{request.param}"


class Detector(nn.Cell):
    """A network of a user's own, in which ours is the backbone."""

    def __init__(self, seed=0):
        super().__init__()
        self.backbone = small(seed=seed)
        self.box = nn.Dense(3, 4)

    def construct(self, x):
        return self.box(self.backbone(x))


class Shifted(RepVGG):
    """Computes something else with RepVGG's parameters."""

    def construct(self, x):
        return super().construct(x + 1)


class TestACellOfOnesOwn:
    @pytest.mark.parametrize("form", ["train", "deploy"])
    def test_round_trip(self, path, form):
        def make(seed):
            return to_deploy(Detector(seed)) if form == "deploy" else Detector(seed)

        net, other = make(0), make(1)
        save_checkpoint(net, path, training_state={"step": np.int32(3)}, class_names=["a", "b"], note="kept")
        found, state = load_checkpoint_and_state(path, net=other)
        assert found is other
        assert state == {"step": 3}
        assert_equal_weights(weights(found), weights(net))
        told = {key: found.metadata[key] for key in found.metadata.keys() - {"versions"}}
        assert told == {"cell": "Detector", "form": form, "class_names": ["a", "b"], "note": "kept"}
        save_checkpoint(found, path)
        assert load_checkpoint(path, net=make(2)).metadata["note"] == "kept"

    def test_how_to_fill_it_is_said(self, path):
        save_checkpoint(Detector(), path)
        words = f"{path} holds a Detector, none of this package's networks: build it and fill it with mindrepvgg."
        for load in (load_checkpoint, load_weights):
            with pytest.raises(CheckpointError) as caught:
                load(path)
            assert str(caught.value) == f"{words}load_checkpoint(path, net)"

    def test_what_does_not_fit(self, path):
        save_checkpoint(Detector(), path)
        text = refusal(path, net=to_deploy(Detector()))
        assert text.endswith("train form, the network it is loaded into in deploy form; fill it in train form")
        assert " unexpected: backbone." in refusal(path, net=small())
        save_checkpoint(small(), path)
        assert " missing: backbone.stage0.rbr_dense" in refusal(path, net=Detector())

    def test_a_subclass_is_not_taken_for_its_base(self, path):
        variant = small().variant
        net, other = Shifted(variant, 3, 1), Shifted(variant, 3, 1)
        save_checkpoint(net, path)
        assert "holds a Shifted, none of this package's networks" in refusal(path)
        assert_equal_weights(weights(load_checkpoint(path, net=other)), weights(net))
        save_checkpoint(small(), path)  # as 0.1 described a subclass
        assert_equal_weights(weights(load_checkpoint(path, net=other)), weights(small()))

    def test_an_attribute_of_that_name_is_its_owner_s(self, path):
        net = Detector()
        net.metadata = "mine"
        save_checkpoint(net, path)
        assert load_checkpoint(path, net=net).metadata == "mine"

    @pytest.mark.parametrize("kind", ["O1", "O2"])
    def test_mindspore_s_mixed_precision_is_no_network_of_one_s_own(self, path, kind):
        """O1 writes the class anew, under such a name; O2 puts a cell around the network."""
        if kind == "O1":
            net = type("RepVGGOpt_1", (RepVGG,), {})(small().variant, 3, 1)
        else:
            net = mindspore.amp.auto_mixed_precision(small(), kind)
        save_checkpoint(net, path)
        assert_equal_weights(weights(load_checkpoint(path)), weights(net))

    def test_blocks_that_mindspore_does_not_see(self, path):
        net = Detector()
        net.more = [small().stage0]
        with pytest.raises(
            CheckpointError, match=r"^Detector keeps blocks where MindSpore sees no cells, and cannot s"
        ):
            save_checkpoint(net, path)
        assert not path.exists()

    def test_without_a_block_of_ours(self, path):
        with pytest.raises(CheckpointError, match=r"^Dense holds no RepVGG block; mindspore.save_checkpoint saves"):
            save_checkpoint(nn.Dense(2, 2), path)
        assert not path.exists()
