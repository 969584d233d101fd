"""mindrepvgg convert: what it writes, and that it writes nothing when the two forms differ."""

import pytest
from support import contents

import mindrepvgg
from mindrepvgg import load_checkpoint, to_deploy
from mindrepvgg.weights.containers import read_weights


def test_what_is_written(files, call):
    status, out, _ = call("convert", files / "run_last.ckpt", files / "new/fused.ckpt")
    assert status == 0
    assert "equivalent (tolerance 0.0001 of the largest output)" in out
    assert out.count("stage") == 5, "a line a block"
    net = load_checkpoint(files / "new/fused.ckpt", form="deploy")
    known = net.metadata
    assert known["converted_from"] == "run_last.ckpt"
    assert known["class_names"] == list("0123456789")
    assert known["versions"]["mindrepvgg"] == mindrepvgg.__version__
    assert 0 <= known["equivalence"]["max_rel"] <= known["equivalence"]["rtol"] == 1e-4
    names = set(read_weights(files / "new/fused.ckpt").arrays)
    assert names == {p.name for p in net.get_parameters()}, "nothing of the optimizer goes along"


def test_a_deploy_checkpoint_only_changes_its_container(files, call):
    status, out, err = call("convert", files / "deploy.ckpt", files / "again.safetensors")
    assert (status, err) == (0, "")
    assert "equivalent" not in out, "nothing was fused, so nothing was proven"
    found, expected = (read_weights(files / name).arrays for name in ("again.safetensors", "deploy.ckpt"))
    assert {k: a.tobytes() for k, a in found.items()} == {k: a.tobytes() for k, a in expected.items()}


def test_converting_again_replaces_the_result(files, call):
    (files / "fused.ckpt").write_text("an older result")
    assert call("convert", files / "train.ckpt", files / "fused.ckpt")[0] == 0
    load_checkpoint(files / "fused.ckpt", form="deploy")


@pytest.mark.compat
@pytest.mark.parametrize("existing", [False, True])
def test_a_difference_writes_nothing(files, call, monkeypatch, existing):
    def damaged(net):
        deployed = to_deploy(net)
        bias = deployed.stage2[0].rbr_reparam.bias
        bias.set_data(bias + 0.1)
        return deployed

    if existing:
        (files / "fused.ckpt").write_text("an older result")
    before = contents(files)
    monkeypatch.setattr("mindrepvgg.weights.convert.to_deploy", damaged)
    status, out, err = call("convert", files / "train.ckpt", files / "fused.ckpt")
    assert status == 1
    assert err.startswith("error: the two forms differ: stage2.0: the weights differ from the fused branches by ")
    assert err.count("\n") == 1
    assert "NOT equivalent" in out
    assert "written" not in out
    assert contents(files) == before
    # Undamaged, the same command works.
    monkeypatch.undo()
    assert call("convert", files / "train.ckpt", files / "fused.ckpt")[0] == 0


def test_a_tolerance_of_nothing_is_not_met(files, call):
    before = contents(files)
    status, _, err = call("convert", files / "train.ckpt", files / "fused.ckpt", "--rtol", "0")
    assert (status, contents(files)) == (1, before)
    assert err.startswith("error: the two forms differ: ")


@pytest.mark.parametrize("name", ["train.ckpt", "../files/train.ckpt", "link.ckpt"])
def test_onto_itself(files, call, name):
    (files / "link.ckpt").symlink_to("train.ckpt")
    before = contents(files)
    status, _, err = call("convert", files / "train.ckpt", files / name)
    assert status == 2
    assert err == f"error: {files / name} is the source itself; give the result another name\n"
    assert contents(files) == before
