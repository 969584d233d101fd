"""Checkpoints: a network comes back as it was, with what is known of it, or is refused with the reason."""

import importlib.metadata
import shutil
from pathlib import Path

import mindspore
import numpy as np
import pytest
from mindspore import Parameter, Tensor
from support import SMALL, weights
from support.checkpoints import assert_equal_weights, refusal, small

import mindrepvgg
from mindrepvgg import create_model, load_checkpoint, load_weights, save_checkpoint
from mindrepvgg.errors import CheckpointError
from mindrepvgg.models.parameters import load_arrays
from mindrepvgg.models.qat import form_of
from mindrepvgg.reparam.layers import conv2d
from mindrepvgg.weights.checkpoint import load_checkpoint_and_state
from mindrepvgg.weights.containers import read_weights, write_weights

pytestmark = pytest.mark.compat

METADATA = {
    "image_size": [32, 48],
    "preprocessing": {"mean": [0.1307], "std": [0.3081], "crop_pct": 1.0, "interpolation": "bilinear"},
    "class_names": ["Größe", "猫", "zwei Wörter"],
    "dataset": "imagenet",
    "recipe": {"lr": 0.1, "decay_epochs": None, "scale": [0.08, 1.0]},
    "epoch": 7,
    "step": 70,
    "metrics": {"top1": 12.5},
}


def edit(path, description=None, drop=(), **arrays):
    """Rewrite a checkpoint with changes, as its own writer would: sealed, so that nothing but its content is wrong."""
    found = read_weights(path)
    kept = {name: array for name, array in {**found.arrays, **arrays}.items() if name not in drop}
    write_weights(path, kept, {**found.description, **(description or {})})


@pytest.fixture(params=[".ckpt", ".safetensors"])
def path(tmp_path, request):
    return tmp_path / f"net{request.param}"


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "net.ckpt"
    save_checkpoint(small(), path, **METADATA)
    return path


@pytest.fixture
def saved(saved_once, tmp_path):
    """A checkpoint of `small()`, to do with as one likes."""
    return Path(shutil.copy(saved_once, tmp_path))


class TestRoundTrip:
    @pytest.mark.parametrize("kind", SMALL)
    def test_every_kind_and_form(self, path, kind):
        """Each kind in both forms, each form in both containers."""
        deploy = (path.suffix == ".ckpt") == (kind in ("plain", "plus"))
        net = small(kind, deploy=deploy)
        save_checkpoint(net, path)
        found = load_checkpoint(path)
        assert_equal_weights(weights(found), weights(net))
        assert type(found) is type(net)
        assert found.variant == net.variant
        assert (found.num_classes, found.in_channels, form_of(found)) == (3, 1, "deploy" if deploy else "train")
        assert not any(cell.training for _, cell in found.cells_and_names())

    def test_a_network_of_the_family(self, path):
        net = create_model("RepVGG-nano", num_classes=5)
        save_checkpoint(net, path)
        found = load_checkpoint(path)
        assert_equal_weights(weights(found), weights(net))
        assert (found.metadata["model"], found.metadata["model_args"]) == ("repvgg_nano", {})

    def test_metadata(self, path):
        save_checkpoint(small(), path, **METADATA)
        known = load_checkpoint(path).metadata
        assert {key: known[key] for key in METADATA} == METADATA

    def test_what_is_read_off_the_network(self, path):
        save_checkpoint(small("plus"), path)
        known = load_checkpoint(path).metadata
        assert {key: known[key] for key in ("model", "num_classes", "in_channels", "form")} == {
            "model": "repvgg",
            "num_classes": 3,
            "in_channels": 1,
            "form": "train",
        }
        lists = {key: list(SMALL["plus"][key]) for key in ("num_blocks", "widths")}
        assert known["model_args"] == {**SMALL["plus"], **lists} | {"group_size": 1}
        assert known["versions"] == {
            "mindrepvgg": mindrepvgg.__version__,
            "mindspore": importlib.metadata.version("mindspore"),
            "numpy": np.__version__,
        }

    def test_metadata_cannot_contradict_the_network(self, path):
        save_checkpoint(small(), path, num_classes=99, model="repvgg_a0", form="deploy")
        assert load_checkpoint(path).num_classes == 3

    def test_metadata_stays_over_generations(self, path):
        save_checkpoint(small(), path, **METADATA)
        net = load_checkpoint(path)
        save_checkpoint(net, path, epoch=8, note="again")
        known = load_checkpoint(path).metadata
        assert {key: known[key] for key in METADATA} == {**METADATA, "epoch": 8}
        assert known["note"] == "again"

    def test_saving_leaves_the_network_as_it_was(self, path):
        net = small()
        before = weights(net)
        save_checkpoint(net, path, epoch=3)
        assert_equal_weights(weights(net), before)
        assert net.metadata == {}

    def test_training_state_stands_apart(self, path):
        state = {"momentum": np.float32(0.9), "global_step": np.array([7], np.int32), "linear.bias": np.ones(3)}
        net = small()
        save_checkpoint(net, path, training_state=state)
        found, found_state = load_checkpoint_and_state(path)
        assert_equal_weights(weights(found), weights(net))
        assert set(found_state) == set(state)
        for name, value in state.items():
            assert found_state[name].dtype == value.dtype
            assert found_state[name].shape == value.shape, "a scalar must stay one"
            np.testing.assert_array_equal(found_state[name], value)
        assert_equal_weights(weights(load_checkpoint(path)), weights(net))

    def test_no_training_state(self, path):
        save_checkpoint(small(), path)
        assert load_checkpoint_and_state(path)[1] == {}

    def test_into_a_network(self, saved):
        net = small(seed=5)
        assert load_checkpoint(saved, net=net) is net
        assert_equal_weights(weights(net), weights(small()))
        assert net.metadata["epoch"] == 7

    def test_the_loaded_network_can_be_trained(self, saved):
        """Its arrays are its own, not views of a read-only file."""
        net = load_checkpoint(saved)
        net.linear.bias.set_data(net.linear.bias + 1)
        np.testing.assert_array_equal(
            net.linear.bias.asnumpy(), load_checkpoint(saved).linear.bias.asnumpy() + np.float32(1)
        )


class TestStrictness:
    """Nothing is loaded unless everything fits."""

    @pytest.fixture
    def net(self):
        return small(seed=5)

    def refused(self, path, net):
        """The refusal's text; the network must not have changed in a single bit."""
        before, metadata = weights(net), dict(net.metadata)
        text = refusal(path, net=net)
        assert_equal_weights(weights(net), before)
        assert net.metadata == metadata
        return text

    def test_missing(self, saved, net):
        edit(saved, drop=["linear.bias", "stage3.1.rbr_identity.gamma"])
        text = self.refused(saved, net)
        assert text.endswith("does not fit the network: 2 missing: stage3.1.rbr_identity.gamma (16,), linear.bias (3,)")

    def test_unexpected(self, saved, net):
        edit(saved, **{"head.weight": np.zeros((3, 4), np.float32), "stage9.x": np.zeros(2)})
        assert self.refused(saved, net).endswith("2 unexpected: head.weight (3, 4), stage9.x (2,)")

    @pytest.mark.parametrize("shape", [(1, 3), (4,), (), (0,)])
    def test_shape(self, saved, net, shape):
        edit(saved, **{"linear.bias": np.zeros(shape, np.float32)})
        assert self.refused(saved, net).endswith(f"1 of another shape: linear.bias {shape}, expected (3,)")

    def test_all_kinds_at_once(self, saved, net):
        edit(saved, drop=["linear.weight"], **{"more": np.zeros(2), "linear.bias": np.zeros(4)})
        text = self.refused(saved, net)
        for part in (
            "1 missing: linear.weight (3, 32)",
            "1 unexpected: more (2,)",
            "1 of another shape: linear.bias (4,), expected (3,)",
        ):
            assert part in text

    def test_every_name_of_a_long_list_is_there(self, saved, net):
        names = [name for name in weights(net) if name.startswith("stage3")]
        edit(saved, drop=names)
        text = self.refused(saved, net)
        assert f"{len(names)} missing: " in text
        assert all(f"{name} (" in text for name in names)

    def test_the_last_array_is_checked_before_the_first_is_loaded(self, net):
        arrays = weights(small())
        arrays["linear.bias"] = arrays["linear.bias"][:2]
        before = weights(net)
        with pytest.raises(
            CheckpointError, match=r"^somewhere does not fit the network: 1 of another shape: linear.bias \(2,\)"
        ):
            load_arrays(net.get_parameters(), arrays, "somewhere")
        assert_equal_weights(weights(net), before)
        # The other arrays would have changed it.
        load_arrays(net.get_parameters(), weights(small()), "somewhere")
        assert any((weights(net)[name] != array).any() for name, array in before.items())


class TestRefusals:
    def test_another_network(self, saved):
        net = create_model("repvgg_nano", 3, 1)
        assert refusal(saved, net=net).endswith(
            "holds model repvgg, the network it is loaded into has model repvgg_nano"
        )

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"num_classes": 4}, "holds num_classes 3, the network it is loaded into has num_classes 4"),
            ({"in_channels": 3}, "holds in_channels 1, the network it is loaded into has in_channels 3"),
            ({"kind": "g4"}, "'group_size': 1"),
            ({"deploy": True}, "is in train form, a deploy checkpoint is needed; make one with mindrepvgg convert"),
        ],
    )
    def test_another_size_or_form(self, saved, options, words):
        net = small(**options)
        before = weights(net)
        assert words in refusal(saved, net=net)
        assert_equal_weights(weights(net), before)

    def test_a_deploy_checkpoint_where_the_train_form_is_needed(self, tmp_path):
        save_checkpoint(small(deploy=True), tmp_path / "net.ckpt")
        words = "its branches are fused and cannot be recovered; give the train-form checkpoint it was converted from"
        assert words in refusal(tmp_path / "net.ckpt", form="train")
        assert words in refusal(tmp_path / "net.ckpt", net=small())
        assert form_of(load_checkpoint(tmp_path / "net.ckpt", form="deploy")) == "deploy"

    def test_a_train_checkpoint_where_the_deploy_form_is_needed(self, saved):
        assert "a deploy checkpoint is needed; make one with mindrepvgg convert" in refusal(saved, form="deploy")
        assert form_of(load_checkpoint(saved, form="train")) == "train"

    def test_a_file_that_says_nothing_of_itself(self, tmp_path):
        write_weights(tmp_path / "net.ckpt", weights(small()), None)
        text = refusal(tmp_path / "net.ckpt")
        assert "does not say which network it is: it was not written by mindrepvgg.save_checkpoint; " in text
        assert text.endswith("mindrepvgg.load_weights reads the files of other projects")
        assert_equal_weights(weights(load_weights(tmp_path / "net.ckpt")), weights(small()))

    def test_mindspore_s_own_file(self, tmp_path):
        mindspore.save_checkpoint(small(), str(tmp_path / "net.ckpt"))
        assert "mindrepvgg.load_weights reads the files" in refusal(tmp_path / "net.ckpt")

    def test_a_file_of_pytorch(self, tmp_path):
        torch = pytest.importorskip("torch")
        torch.save({name: torch.tensor(array) for name, array in weights(small()).items()}, tmp_path / "net.pth")
        words = "is a file of PyTorch or a pickle; mindrepvgg.load_weights reads it"
        assert refusal(tmp_path / "net.pth").endswith(words)

    def test_a_file_of_another_program(self, tmp_path):
        write_weights(tmp_path / "net.ckpt", weights(small()), {"model": "repvgg", "form": "train"})
        assert "does not tell its num_classes, in_channels: it was written by another program" in refusal(
            tmp_path / "net.ckpt"
        )

    @pytest.mark.parametrize(
        ("lie", "words"),
        [
            ({"num_classes": 4, "class_names": None}, "linear.weight (3, 32), expected (4, 32)"),
            (
                {"in_channels": 3, "preprocessing": {}},
                "stage0.rbr_dense.conv.weight (8, 1, 3, 3), expected (8, 3, 3, 3)",
            ),
            ({"form": "deploy"}, " missing: stage0.rbr_reparam.weight (8, 1, 3, 3)"),
            ({"model": "repvgg_nano", "model_args": {}}, " missing: stage1.1.rbr"),
            ({"num_classes": 10**12, "class_names": None}, "num_classes (=1000000000000) must be a whole number"),
            ({"model": "repvgg_nano"}, "describes a network that cannot be built: repvgg_nano has a fixed shape"),
            ({"model": "resnet50", "model_args": {}}, "'resnet50') is not a network of the family"),
            ({"model": None}, "model (=None) must be the name of a network"),
            ({"num_classes": "3"}, "num_classes (='3') must be a whole number from 1"),
            ({"num_classes": 0}, "num_classes (=0) must be a whole number from 1"),
            ({"in_channels": 1.0}, "in_channels (=1.0) must be a whole number from 1"),
            ({"model_args": {"num_blocks": [1, 1], "widths": [8] * 5}}, "num_blocks (=(1, 1)) must be 4"),
            ({"model_args": {}}, "repvgg needs num_blocks"),
            ({"model_args": [1, 2]}, "describes a network that cannot be built"),
            ({"model_args": None}, "describes a network that cannot be built"),
            ({"model_args": {"deploy": True}}, "describes a network that cannot be built"),
            ({"model_args": {"depth": 3}}, "repvgg does not know depth"),
            ({"form": "fused"}, "form (='fused') must be one of train, deploy, bn, qat"),
        ],
        ids=str,
    )
    def test_a_description_that_lies(self, saved, lie, words):
        edit(saved, lie)
        assert words in refusal(saved)

    def test_damage_is_refused_here_too(self, saved):
        content = bytearray(saved.read_bytes())
        content[-1] ^= 1
        saved.write_bytes(content)
        assert "was altered after it was written" in refusal(saved)


class TestSaving:
    def test_another_suffix(self, tmp_path):
        with pytest.raises(CheckpointError, match=r"net\.pth must end in \.ckpt or \.safetensors"):
            save_checkpoint(small(), tmp_path / "net.pth")
        assert list(tmp_path.iterdir()) == []

    def test_two_parameters_of_one_name(self, saved):
        net = small()
        before = saved.read_bytes()
        net.linear.bias.name = "linear.weight"
        with pytest.raises(
            ValueError, match=r"two parameters of the network are called linear\.weight; a file can keep"
        ):
            save_checkpoint(net, saved)
        assert saved.read_bytes() == before

    def test_a_part_replaced_by_hand_is_noticed(self, tmp_path):
        """A cell put in after construction names its parameters without what is around it."""
        net = small()
        net.stage1[0].rbr_dense.conv = conv2d(8, 8, 3, 2)
        net.stage2[0].rbr_dense.conv = conv2d(8, 8, 3, 2)
        with pytest.raises(ValueError, match="two parameters of the network are called"):
            save_checkpoint(net, tmp_path / "net.ckpt")
        assert list(tmp_path.iterdir()) == []

    def test_a_failing_write_keeps_the_old_checkpoint(self, path, monkeypatch):
        save_checkpoint(small(), path, epoch=1)
        before = path.read_bytes()

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("mindrepvgg.files.os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            save_checkpoint(small(seed=1), path, epoch=2)
        assert path.read_bytes() == before
        assert [file.name for file in path.parent.iterdir()] == [path.name]
        monkeypatch.undo()
        save_checkpoint(small(seed=1), path, epoch=2)
        assert load_checkpoint(path).metadata["epoch"] == 2

    def test_half_precision(self, path):
        net = small()
        net.linear.weight = Parameter(Tensor(net.linear.weight.asnumpy().astype(np.float16)), name="linear.weight")
        save_checkpoint(net, path)
        assert read_weights(path).arrays["linear.weight"].dtype == np.float16
        # Loading fills the types of the network it builds.
        found = load_checkpoint(path)
        np.testing.assert_array_equal(found.linear.weight.asnumpy(), net.linear.weight.asnumpy().astype(np.float32))
