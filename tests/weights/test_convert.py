"""convert.py: any project's file in, any project's file out, and nothing when the result would not be the network."""

import importlib
import json
import sys

import mindcv
import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor
from safetensors.torch import load_file
from support import BOTH_FORMS, SMALL, contents, foreign, images, relative_difference, weights
from support.dialect_names import NAMES, VARIANTS, knows, shapes_in
from support.golden import FAMILY
from support.other_projects import other_project
from support.torch_reference import Network

from mindrepvgg import create_model, load_checkpoint, load_weights, save_checkpoint, to_deploy
from mindrepvgg.weights.recognise import recognise
from mindrepvgg.weights.rename import from_ours

pytestmark = pytest.mark.usefixtures("pynative_mode")  # which a conversion sets, and leaves

LARGE = ("repvgg_a0", "repvgg_b3g4", "repvgg_d2se", "repvggplus_l2pse")
OTHERS = [dialect for dialect in NAMES if dialect != "mindrepvgg"]
SUFFIX = {"mindcv": ".ckpt", "modelzoo": ".ckpt", "mmpretrain": ".pth", "repvggplus": ".pt", "basecls": ".pth"}


def read(path):
    """A file's tensors, read by the framework it belongs to, as bytes by name."""
    if path.suffix in (".pth", ".pt"):
        tensors = torch.load(path, weights_only=True)
    elif path.suffix == ".safetensors":
        tensors = load_file(path)
    else:
        tensors = {name: torch.from_numpy(p.asnumpy()) for name, p in ms.load_checkpoint(str(path)).items()}
    return tensors


def assert_same(found, expected):
    """The same names, shapes, types and bits; PyTorch's count of batches is not kept."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].shape, found[name].dtype) == (tensor.shape, tensor.dtype), name
        if "num_batches" in name:
            assert found[name] == 0
        else:
            assert torch.equal(found[name], tensor), name


@pytest.fixture
def source(tmp_path):
    """A function (dialect, kind): a file of a small network in a project's names."""

    def make(dialect="official", kind="plain", **options):
        return foreign.write(
            tmp_path / f"{dialect}_{kind}{SUFFIX.get(dialect, '.safetensors')}",
            foreign.theirs(dialect, kind, **options),
        )

    return make


# ---------------------------------------------------------------------------------------------------- what is written


@pytest.mark.compat
@pytest.mark.parametrize(
    ("dialect", "kind", "suffix"),
    [("official", "g4", ".ckpt"), ("timm", "d2se", ".safetensors"), ("repvggplus", "plus", ".ckpt")],
)
def test_by_default_our_deploy_form_proven(source, call, tmp_path, dialect, kind, suffix):
    status, out, err = call("convert", source(dialect, kind), tmp_path / f"fused{suffix}")
    assert (status, err) == (0, "")
    blocks = sum(foreign.variant_of(kind).num_blocks) + 1
    assert [line.split()[0] for line in out.splitlines()][: blocks + 2][:: blocks + 1] == ["block", "output"]
    assert "equivalent (tolerance 0.0001 of the largest output)\n" in out
    written = f"written: {tmp_path / f'fused{suffix}'} (deploy form, mindrepvgg's names)\n"
    size = f"{source(dialect, kind)} does not tell its picture size: 224x224 is taken wherever "
    assert written + size in out
    assert out.endswith("--image_resize there changes it, of export --image_size\n")
    net = load_checkpoint(tmp_path / f"fused{suffix}", form="deploy")
    assert foreign.same_logits(net, foreign.torch_network(kind))
    assert net.metadata["converted_from"] == source(dialect, kind).name
    assert 0 <= net.metadata["equivalence"]["max_rel"] <= 1e-4


# The kind whose names or shapes differ most from ours.
KINDS = {**dict.fromkeys(OTHERS, "d2se"), "basecls": "g4", "repvggplus": "plus"}


@pytest.mark.parametrize(("dialect", "kind"), KINDS.items())
def test_out_and_back_is_bit_exact(source, call, tmp_path, dialect, kind):
    """Ours, the project's, and ours again: at every step the very bits that an independent renaming gives."""
    expected = foreign.theirs(dialect, kind)
    ours, out, back = (
        tmp_path / name for name in ("ours.ckpt", f"out{SUFFIX.get(dialect, '.safetensors')}", "back.ckpt")
    )
    original = foreign.write(tmp_path / "original.ckpt", foreign.theirs("mindrepvgg", kind))
    for argv in ((original, ours), (ours, out, "--dialect", dialect), (out, back)):
        status, printed, err = call("convert", *argv, "--form", "train")
        assert (status, err) == (0, "")
        assert "equivalent" not in printed, "nothing is fused"
    assert_same(read(out), expected)
    expected = {name: tensor.numpy() for name, tensor in foreign.theirs("mindrepvgg", kind).items()}
    for path in (ours, back):
        found = weights(load_checkpoint(path, form="train"))
        assert {name: array.tobytes() for name, array in found.items()} == {n: a.tobytes() for n, a in expected.items()}


def numbered(shapes):
    """Arrays of these shapes that cost one number each: the first holds ones, the second twos..."""
    return {name: np.broadcast_to(np.float32(i), shape) for i, (name, shape) in enumerate(shapes.items(), 1)}


def has_form(dialect, variant, deploy):
    """Whether a project has a network in a form; what it has not is refused, see test_what_cannot_be_held."""
    no_such_form = deploy and (dialect == "mindcv" or (dialect == "mmpretrain" and variant.se))
    return knows(dialect, variant) and not no_such_form


@BOTH_FORMS
@pytest.mark.parametrize("dialect", NAMES)
def test_the_whole_family_out_and_back(dialect, deploy):
    """Each array of each network stands under its right name in every dialect, and under its own again afterwards."""
    for variant in map(foreign.variant_of, FAMILY):
        if not has_form(dialect, variant, deploy):
            continue
        ours = numbered(shapes_in("mindrepvgg", variant, deploy))
        values = {n: array.flat[0] for n, array in ours.items()}
        written = from_ours(ours, dialect, variant)
        named = [n for n in shapes_in(dialect, variant, deploy) if "num_batches" not in n]
        assert {n: written[n].flat[0] for n in named} == dict(zip(named, values.values(), strict=True))
        back = recognise(written).arrays
        assert {n: a.flat[0] for n, a in back.items()} == values
        assert all(np.ptp(a) == 0 for n, a in back.items() if a.size < 1e5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dialect"), [(n, d) for n in LARGE for d in OTHERS if knows(d, foreign.variant_of(n))]
)
def test_real_sizes_out_and_back(call, tmp_path, name, dialect):
    original = foreign.write(tmp_path / "original.ckpt", foreign.theirs("mindrepvgg", name))
    # Not .ckpt, which MindSpore reads back only while that much memory is wholly unused.
    out = tmp_path / f"out{'.safetensors' if dialect in ('mindcv', 'modelzoo') else '.pth'}"
    for argv in ((original, out, "--dialect", dialect), (out, tmp_path / "back.ckpt")):
        assert call("convert", *argv, "--form", "train")[0] == 0
    assert_same(read(out), foreign.theirs(dialect, name))
    back = weights(load_checkpoint(tmp_path / "back.ckpt"))
    assert_same({n: torch.from_numpy(a) for n, a in back.items()}, foreign.theirs("mindrepvgg", name))


@pytest.mark.parametrize("form", ["train", "deploy"])
@pytest.mark.parametrize("kind", ["g4", "d2se", "plus"])
def test_pytorch_files_load_strictly_into_the_authors_modules(source, call, tmp_path, kind, form):
    dialect, suffix = ("repvggplus", ".pt") if kind == "plus" else ("official", ".pth")
    given, path = source("mindrepvgg", kind), tmp_path / f"back{suffix}"
    assert call("convert", given, path, "--dialect", dialect, "--form", form)[0] == 0
    net = Network(VARIANTS[kind], 7, deploy=form == "deploy").eval()
    net.load_state_dict(torch.load(path, weights_only=True), strict=True)
    assert foreign.same_logits(load_weights(given), net)
    assert path.stat().st_mode & 0o444 == 0o444


@pytest.mark.parametrize("dialect", ["mindcv", "official"])
def test_mindcv_takes_its_checkpoint(call, tmp_path, dialect):
    """Everything is loaded and it answers alike; written in another project's names, MindCV's network stays empty."""
    given = foreign.write(tmp_path / "a0.safetensors", foreign.theirs("timm", "repvgg_a0"))
    assert call("convert", given, tmp_path / "a0.ckpt", "--dialect", dialect, "--form", "train")[0] == 0
    net = mindcv.create_model("repvgg_a0", num_classes=7).set_train(False)
    missing, unused = ms.load_param_into_net(net, ms.load_checkpoint(str(tmp_path / "a0.ckpt")), strict_load=True)
    net.in_channels = 3
    assert (missing == unused == [] and foreign.same_logits(net, foreign.torch_network("repvgg_a0"))) is (
        dialect == "mindcv"
    )


def test_averaged_weights(tmp_path, call):
    path = foreign.wrapped_file(tmp_path, "main.py")
    for kind, seed in (("raw", 0), ("ema", 1)):
        assert call("convert", path, tmp_path / f"{kind}.ckpt", "--weights", kind)[0] == 0
        assert foreign.same_logits(
            load_checkpoint(tmp_path / f"{kind}.ckpt"), foreign.torch_network("plain", seed=seed)
        )


def test_what_our_file_knows_stays_with_it(tmp_path, call, source):
    net = load_weights(source())
    save_checkpoint(net, tmp_path / "ours.ckpt", class_names=list("abcdefg"), image_size=[64, 48], epoch=3)
    for form in ("train", "deploy"):
        path = tmp_path / f"{form}.safetensors"
        assert call("convert", tmp_path / "ours.ckpt", path, "--form", form)[0] == 0
        known = load_checkpoint(path).metadata
        assert (known["class_names"], known["image_size"], known["epoch"]) == (list("abcdefg"), [64, 48], 3)
        assert (known["form"], known["converted_from"]) == (form, "ours.ckpt")
        assert ("equivalence" in known) == (form == "deploy")


def test_what_another_projects_file_cannot_hold_stands_beside_it(tmp_path, call, source):
    net = load_weights(source())
    save_checkpoint(net, tmp_path / "ours.ckpt", class_names=list("abcdefg"), image_size=[64, 48])
    status, out, _ = call("convert", tmp_path / "ours.ckpt", tmp_path / "o.safetensors", "--dialect", "timm")
    assert (status, "picture size" in out) == (0, False)
    assert "train form, timm's names" in out
    assert_same(read(tmp_path / "o.safetensors"), foreign.theirs("timm", "plain"))
    told = json.loads((tmp_path / "o.safetensors.json").read_text())
    expected = {"class_names": list("abcdefg"), "image_size": [64, 48], "num_classes": 7, "form": "train"}
    assert {key: told[key] for key in expected} == expected


def test_the_lines_that_load_a_file_in_timm_do(tmp_path, call):
    given = foreign.write(tmp_path / "a0.pth", foreign.theirs("official", "repvgg_a0"))
    _, out, _ = call("convert", given, tmp_path / "a0.safetensors", "--dialect", "timm")
    create = f'"repvgg_a0", num_classes=7, in_chans=3, checkpoint_path={str(tmp_path / "a0.safetensors")!r}'
    assert out.splitlines()[-3:] == ["import timm", f"net = timm.create_model({create})", "net.eval()"]
    other_project("timm")
    space: dict = {}
    exec("\n".join(out.splitlines()[-3:]), space)
    x = torch.from_numpy(images(2, 3, 64, 64))
    with torch.no_grad():
        torch.testing.assert_close(space["net"](x), foreign.torch_network("repvgg_a0")(x), rtol=1e-4, atol=1e-4)


def test_deploy_form_stays_as_it_is(source, call, tmp_path):
    """From deploy form to deploy form nothing is fused, so that the bits stay, and no proof is printed."""
    status, out, _ = call("convert", source("timm", "d2se", deploy=True), tmp_path / "out.pth", "--dialect", "official")
    beside = f"what it does not tell itself: {tmp_path / 'out.pth.json'}\n"
    assert (status, out) == (0, f"written: {tmp_path / 'out.pth'} (deploy form, official's names)\n{beside}")
    assert_same(read(tmp_path / "out.pth"), foreign.theirs("official", "d2se", deploy=True))


# --------------------------------------------------------------------------------------------- what is told of a file


def report_of(path):
    return json.loads(path.with_suffix(".report.json").read_text())


def test_the_report(source, call, tmp_path):
    given, path = source("timm", "d2se"), tmp_path / "fused.pth"
    status, out, _ = call("convert", given, path, "--dialect", "official", "--report")
    assert status == 0
    assert out.endswith(f"report: {tmp_path / 'fused.report.json'}\n")
    report = report_of(path)
    assert report["destination"] == {"path": str(path), "dialect": "official", "form": "deploy"}
    found = report["source"]
    told = {key: found[key] for key in ("path", "container", "dialect", "model", "form", "num_classes", "in_channels")}
    assert told == {
        **{"path": str(given), "container": "safetensors", "dialect": "timm", "model": "repvgg", "form": "train"},
        **{"num_classes": 7, "in_channels": 3},
    }
    assert found["model_args"] == VARIANTS["d2se"].to_dict()
    assert found["parameters"] == sum(p.numel() for p in foreign.torch_network("d2se").parameters())
    equivalence = report["equivalence"]
    assert equivalence["passed"] is True
    assert equivalence["failures"] == []
    assert 0 < equivalence["max_rel"] < equivalence["rtol"] == 1e-4
    assert len(equivalence["blocks"]) == sum(VARIANTS["d2se"].num_blocks) + 1
    assert all(0 < block["weight_rel"] < 1e-6 for block in equivalence["blocks"])


def test_the_report_of_what_was_not_fused(source, call, tmp_path):
    assert call("convert", source(), tmp_path / "ours.ckpt", "--form", "train", "--report")[0] == 0
    assert report_of(tmp_path / "ours.ckpt")["equivalence"] is None


INSPECTED = [
    ("official", "g4", False, {"dialect": "the official repository", "container": "safetensors", "form": "train"}),
    ("timm", "d2se", True, {"dialect": "timm", "form": "deploy", "parameters": "12903", "wrapper": ""}),
    ("mmpretrain", "plain", False, {"dialect": "mmpretrain", "container": "torch", "averaged_weights": "False"}),
    ("mindcv", "plain", False, {"dialect": "MindCV", "container": "ckpt", "num_classes": "7", "in_channels": "3"}),
    ("repvggplus", "plus", False, {"dialect": "the official RepVGGplus", "auxiliary_heads": "True"}),
    ("basecls", "g4", False, {"dialect": "MegEngine basecls", "model": "repvgg"}),
]


def told(out):
    """The lines `key: value` as a dict."""
    return dict(line.split(": ", 1) if ": " in line else (line.rstrip(":"), "") for line in out.splitlines())


@pytest.mark.parametrize(("dialect", "kind", "deploy", "expected"), INSPECTED, ids=lambda value: str(value)[:20])
def test_inspect(source, call, dialect, kind, deploy, expected):
    before = contents(source(dialect, kind, deploy=deploy).parent)
    path = source(dialect, kind, deploy=deploy)
    status, out, err = call("convert", path, "--inspect")
    assert (status, err) == (0, "")
    found = told(out)
    if "parameters" in expected:
        expected = {
            **expected,
            "parameters": str(sum(p.numel() for p in foreign.torch_network(kind, deploy).parameters())),
        }
    assert found.items() >= expected.items()
    assert found["path"] == str(path)
    assert found["model_args"] == str(VARIANTS[kind].to_dict())
    assert contents(path.parent) == before


def test_inspect_the_family(tmp_path, call):
    status, out, _ = call(
        "convert", foreign.write(tmp_path / "x", foreign.theirs("timm", "repvgg_a0"), "legacy"), "--inspect"
    )
    assert status == 0
    assert told(out).items() >= {"model": "repvgg_a0", "container": "torch", "tensors": "290"}.items()
    assert "model_args" not in told(out)


@pytest.mark.parametrize(
    ("project", "expected"),
    [
        ("main.py", {"wrapper": "model, ema", "averaged_weights": "True", "prefix": ""}),
        ("timm", {"wrapper": "state_dict, state_dict_ema", "averaged_weights": "True", "prefix": "_orig_mod."}),
        ("mmpretrain", {"wrapper": "ema_state_dict, state_dict", "averaged_weights": "True", "prefix": "module."}),
        ("MindCV", {"wrapper": "", "averaged_weights": "True", "prefix": "network._backbone."}),
        ("pth.tar", {"wrapper": "state_dict", "averaged_weights": "False", "prefix": "module."}),
    ],
)  # fmt: skip
def test_inspect_training_files(tmp_path, call, project, expected):
    status, out, _ = call("convert", foreign.wrapped_file(tmp_path, project), "--inspect")
    assert status == 0
    assert told(out).items() >= {"raw_weights": "True", **expected}.items()
    ignored = {"main.py": "config", "timm": "args", "mmpretrain": "optimizer", "MindCV": "moments.*", "pth.tar": "arch"}
    assert ignored[project] in told(out)["ignored"]


def test_inspect_our_own(tmp_path, call, source):
    save_checkpoint(load_weights(source()), tmp_path / "ours.ckpt", epoch=3, dataset="imagenet", image_size=[64, 48])
    status, out, _ = call("convert", tmp_path / "ours.ckpt", "--inspect")
    assert status == 0
    expected = {"dialect": "mindrepvgg", "epoch": "3", "dataset": "imagenet", "image_size": "[64, 48]"}
    assert told(out).items() >= expected.items()


# ------------------------------------------------------------------------------------------------- what is refused


# Source (dialect, kind, options of `foreign.theirs`), the rest of the command, and the error; {t} is the folder.
PLAIN = ("timm", "plain", {})
REFUSED = [
    (
        ("timm", "d2se", {}),
        "{t}/o.ckpt --dialect mindcv",
        "in deploy form cannot be written for MindCV: its deploy form",
    ),
    (PLAIN, "{t}/o.ckpt --dialect mindcv", "cannot be built (pad_mode 'zeros'); possible: official, timm, "),
    (("timm", "d2se", {}), "{t}/o.pth --dialect mmpretrain", "for mmpretrain: its deploy form leaves SE out"),
    (("repvggplus", "plus", {}), "{t}/o.pth --dialect official", "for the official repository: it has no RepVGGplus"),
    (PLAIN, "{t}/o.pth --dialect repvggplus", "for the official RepVGGplus: it has RepVGGplus only"),
    (("timm", "plain", {"channels": 1}), "{t}/o.pth --dialect official", "it takes 3 input channels, not 1"),
    (PLAIN, "{t}/o.pth", "o.pth: a PyTorch file needs a PyTorch project's names; add --dialect official"),
    (
        PLAIN,
        "{t}/o.onnx",
        "o.onnx must end in one of .ckpt, .safetensors, .pth, .pt: the suffix says how it is written",
    ),
    (PLAIN, "{t}/o", "o must end in one of .ckpt, .safetensors, .pth, .pt"),
    (PLAIN, "{t}/o.ckpt --dialect tim", "dialect (='tim') is unknown; did you mean timm? known: official, repvggplus"),
    (("timm", "plain", {"deploy": True}), "{t}/o.ckpt --form train", "is in deploy form: its branches are fused and "),
    (PLAIN, "{t}/o.ckpt --num_classes 1000", "is for 7 classes, expected 1000"),
    (PLAIN, "{t}/o.ckpt --weights ema", "holds no averaged (EMA) weights; take the others with --weights raw"),
    (PLAIN, "{t}/timm_plain.safetensors", "timm_plain.safetensors is the source itself; give the result another name"),
    (PLAIN, "{t}/o.ckpt --inspect", "give either DST, the file to write, or --inspect"),
    (PLAIN, "", "give either DST, the file to write, or --inspect"),
    (PLAIN, "{t}/o.ckpt --form fused", "argument --form: invalid choice: 'fused'"),
]


@pytest.mark.parametrize(
    ("given", "rest", "text"), REFUSED, ids=[f"{g[0]}-{g[1]} {rest[4:]}" for g, rest, _ in REFUSED]
)
def test_what_cannot_be_held(source, call, tmp_path, given, rest, text):
    dialect, kind, options = given
    path = source(dialect, kind, **options)
    before = contents(tmp_path)
    status, out, err = call("convert", path, *rest.format(t=tmp_path).split())
    assert status == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert text in err
    assert "written" not in out
    assert contents(tmp_path) == before


def test_auxiliary_heads_are_left_out_of_the_deploy_form_only(source, call, tmp_path):
    given = source("repvggplus", "plus")
    for form, expected in (("train", True), ("deploy", False)):
        path = tmp_path / f"{form}.pth"
        assert call("convert", given, path, "--dialect", "repvggplus", "--form", form)[0] == 0
        assert any("_aux" in name for name in read(path)) is expected


def test_the_authors_deploy_form_still_holds_its_auxiliary_heads(call, tmp_path, caplog):
    """Their conversion fuses the blocks and leaves the heads as they are; here they are left out, with a notice."""
    bare = foreign.theirs("repvggplus", "plus", deploy=True)
    heads = {name: tensor for name, tensor in foreign.theirs("repvggplus", "plus").items() if "_aux" in name}
    path, out = foreign.write(tmp_path / "mixed.pth", {**bare, **heads}), tmp_path / "out.pt"
    assert call("convert", path, out, "--dialect", "repvggplus")[0] == 0
    assert_same(read(out), bare)
    notice = f"{path} is fused and still holds auxiliary heads, which inference does not use: left out"
    assert caplog.messages == [notice]
    count = sum("num_batches" not in name for name in heads)
    assert f"auxiliary heads ({count})" in call("convert", path, "--inspect")[1]

    more = {**bare, **heads, "stage4_aux.0.conv.weight": heads[min(heads)]}
    path = foreign.write(tmp_path / "more.pth", more)
    status, _, err = call("convert", path, tmp_path / "no.ckpt")
    assert (status, "1 unexpected: stage4_aux.0.conv.weight" in err) == (2, True)


def test_a_plus_without_heads_stays_without(call, tmp_path):
    given = foreign.write(tmp_path / "bare.pth", foreign.without_aux(foreign.theirs("repvggplus", "plus")))
    path = tmp_path / "out.pth"
    assert call("convert", given, path, "--dialect", "repvggplus", "--form", "train")[0] == 0
    assert_same(read(path), foreign.without_aux(foreign.theirs("repvggplus", "plus")))


@pytest.mark.compat
@pytest.mark.parametrize(
    ("name", "options", "existing"),
    [
        ("o.pth", "--dialect official", True),
        ("o.safetensors", "--dialect timm --form deploy", False),
        ("o.ckpt", "", True),
    ],
)
def test_a_failed_equivalence_writes_nothing(source, call, tmp_path, monkeypatch, name, options, existing):
    def off_by_one_kernel_element(net):
        deployed = to_deploy(net)
        weight = deployed.stage3[1].rbr_reparam.weight
        kernel = weight.asnumpy().copy()
        kernel[0, 0, 2, 2] += 0.01
        weight.set_data(Tensor(kernel))
        return deployed

    given = source()
    if existing:
        (tmp_path / name).write_text("an older result")
    before = contents(tmp_path)
    command = ("convert", given, tmp_path / name, *options.split(), "--report")
    with monkeypatch.context() as patch:
        patch.setattr("mindrepvgg.weights.convert.to_deploy", off_by_one_kernel_element)
        status, out, err = call(*command)
    assert status == 1
    assert err.startswith("error: the two forms differ: stage3.1: the weights differ from the fused branches by ")
    assert err.count("\n") == 1
    assert "NOT equivalent: stage3.1: " in out
    assert contents(tmp_path) == before
    assert call(*command)[0] == 0, "undamaged, the same command works"


def test_numbers_that_are_none(source, call, tmp_path):
    """Refused; where they are allowed they are kept, but never proven equivalent."""
    tensors = {**foreign.theirs("timm", "plain"), "head.fc.bias": torch.full((7,), torch.inf)}
    path, out = foreign.write(tmp_path / "inf.safetensors", tensors), tmp_path / "out.ckpt"
    status, _, err = call("convert", path, out)
    assert (status, out.exists()) == (2, False)
    assert f"1 of {len(tensors)} tensors hold NaN or infinite values: head.fc.bias (7 of 7)" in err
    status, _, err = call("convert", path, out, "--allow_nonfinite")
    assert (status, out.exists()) == (1, False)
    assert err.startswith("error: the two forms differ: the networks' outputs differ by nan of the largest")
    assert call("convert", path, out, "--allow_nonfinite", "--form", "train")[0] == 0
    assert np.isinf(weights(load_checkpoint(out))["linear.bias"]).all()


def test_without_pytorch(source, call, tmp_path, monkeypatch):
    """Everything but .pth goes without PyTorch; .pth is refused before anything is read."""
    given = source("official", "plain")
    legacy = foreign.write(tmp_path / "legacy.pth", foreign.theirs("official", "plain"), "legacy")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError):
        importlib.import_module("torch")
    status, _, err = call("convert", tmp_path / "missing.pth", tmp_path / "out.pth", "--dialect", "official")
    assert status == 2
    assert err == (
        f"error: {tmp_path / 'out.pth'}: writing .pth needs the package torch: "
        "pip install torch 'numpy<2' (extra: torch); writing .safetensors does not\n"
    )
    for path in (given, legacy):
        assert call("convert", path, tmp_path / "out.safetensors", "--dialect", "official")[0] == 0


@pytest.mark.compat
def test_from_the_official_file_to_our_checkpoint_and_on_to_timm(source, call, tmp_path):
    """The README's way: official weights in, fused, out; compared at the end with the beginning."""
    given = source("official", "d2se")
    steps = (
        (given, tmp_path / "ours.ckpt", "--form", "train"),
        (tmp_path / "ours.ckpt", tmp_path / "fused.ckpt"),
        (tmp_path / "fused.ckpt", tmp_path / "timm.safetensors", "--dialect", "timm"),
    )
    for step in steps:
        assert call("convert", *step)[0] == 0
    x = images(2, 3, 64, 48)
    found = create_model("repvgg", 7, deploy=True, weights=tmp_path / "timm.safetensors", **SMALL["d2se"])
    with torch.no_grad():
        expected = foreign.torch_network("d2se")(torch.from_numpy(x))
    assert relative_difference(found.set_train(False)(Tensor(x)), expected) < 1e-4
    assert (
        read(tmp_path / "timm.safetensors").keys()
        == foreign.renamed(
            foreign.official_state(foreign.torch_network("d2se", deploy=True)), "timm", VARIANTS["d2se"], deploy=True
        ).keys()
    )
