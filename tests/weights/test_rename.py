"""Every project's names, written out in `support.dialect_names` a second time: renamed exactly, or refused in words.

Arrays of the real sizes have zero strides, so that RepVGG-B3 costs one number; exactness is tested on small networks.
"""

import dataclasses
from functools import partial

import numpy as np
import pytest
from mindspore.nn.utils import no_init_parameters
from support import BOTH_FORMS, FORM
from support.dialect_names import NAMES, VARIANTS, knows, random_arrays, real_shapes, shapes_in, zeros
from support.golden import FAMILY
from support.other_projects import other_project

from mindrepvgg.errors import CheckpointError, UserError
from mindrepvgg.models import variants
from mindrepvgg.models.shapes import parameter_shapes
from mindrepvgg.weights.dialects import DIALECTS, find_dialect
from mindrepvgg.weights.recognise import recognise
from mindrepvgg.weights.rename import from_ours, to_ours
from mindrepvgg.weights.torchfile import read_torch_file
from mindrepvgg.weights.unwrap import unwrap


@BOTH_FORMS
@pytest.mark.parametrize("dialect", NAMES)
def test_every_network_is_written_under_the_project_s_names_or_refused(dialect, deploy):
    for variant in filter(partial(knows, dialect), map(variants.find, FAMILY)):
        arrays = zeros(parameter_shapes(variant, FORM[deploy]))
        no_such_form = deploy and (dialect == "mindcv" or (dialect == "mmpretrain" and variant.se))
        if no_such_form:
            with pytest.raises(CheckpointError, match="in deploy form cannot be written for "):
                from_ours(arrays, dialect, variant)
        else:
            written = from_ours(arrays, dialect, variant)
            assert {n: a.shape for n, a in written.items()} == shapes_in(dialect, variant, deploy)


@pytest.mark.parametrize(
    ("dialect", "name", "train", "deploy"),
    [
        ("official", "repvgg_a0", 351, 46),
        ("official", "repvgg_b3g4", 453, 58),
        ("official", "repvgg_d2se", 985, 290),
        ("timm", "repvgg_a0", 351, 46),
        ("mmpretrain", "repvgg_d2se", 985, None),
        ("mindcv", "repvgg_a0", 290, None),
    ],
)
def test_published_numbers_of_tensors(dialect, name, train, deploy):
    variant = variants.find(name)
    assert len(from_ours(zeros(parameter_shapes(variant, "train")), dialect, variant)) == train
    if deploy:
        assert len(from_ours(zeros(parameter_shapes(variant, "deploy")), dialect, variant)) == deploy


@BOTH_FORMS
@pytest.mark.parametrize(
    ("dialect", "kind"), [(d, kind) for d in NAMES for kind in VARIANTS if knows(d, VARIANTS[kind])]
)
def test_each_value_lands_under_its_name_and_comes_back_bit_for_bit(dialect, kind, deploy):
    variant = VARIANTS[kind]
    theirs = random_arrays(shapes_in(dialect, variant, deploy, 7))
    ours = to_ours(theirs, dialect)
    renamed = [name for name in theirs if "batches" not in name]
    for name, original in zip(shapes_in("mindrepvgg", variant, deploy, 7), renamed, strict=True):
        assert ours[name].tobytes() == theirs[original].tobytes(), (name, original)
    found = recognise(theirs)
    assert found.variant == variant
    assert found.arrays.keys() == ours.keys()
    if DIALECTS[dialect].refusal(variant, deploy) is None:
        back = from_ours(ours, dialect, variant)
        assert back.keys() == theirs.keys()
        for name, array in theirs.items():
            assert (back[name].shape, back[name].dtype) == (array.shape, array.dtype)
            assert back[name].tobytes() == array.tobytes()


def test_other_dtypes_stay_and_the_batch_count_can_be_given():
    variant = VARIANTS["plain"]
    ours = {n: a.astype(np.float16) for n, a in random_arrays(parameter_shapes(variant, "train")).items()}
    written = from_ours(ours, "official", variant, batches_tracked=400)
    counts = [array for name, array in written.items() if name.endswith("num_batches_tracked")]
    assert len(counts) == 2 * 7 + 2  # two in each block, and two identity branches
    assert all(count.shape == () and count.dtype == np.int64 and count == 400 for count in counts)
    assert {array.dtype for array in to_ours(written, "official").values()} == {np.dtype(np.float16)}


def test_megengine_s_flat_bn_is_read_too():
    variant = VARIANTS["g4"]
    theirs = random_arrays(shapes_in("basecls", variant, False))
    flat = {n: a.reshape(-1) if a.shape[:1] == (1,) else a for n, a in theirs.items()}
    assert {n: a.shape for n, a in recognise(flat).arrays.items()} == parameter_shapes(variant, "train")


def test_plus_without_auxiliary_heads_is_read_and_written():
    variant = variants.find("repvggplus_l2pse")
    shapes = shapes_in("repvggplus", variant, False, aux=False)
    found = recognise(zeros(shapes))
    assert (found.variant, found.deploy, found.has_aux) == (variant, False, False)
    assert from_ours(found.arrays, "repvggplus", variant).keys() == shapes.keys()


@pytest.mark.parametrize("name", ["repvgg_a0", "repvgg_b1g4"])
def test_mindcv_s_own_networks(name):
    mindcv = pytest.importorskip("mindcv")
    with no_init_parameters():
        net = mindcv.create_model(name)
    assert real_shapes(net) == shapes_in("mindcv", variants.find(name), False)


def test_mindcv_s_own_network_with_se():
    repvgg = pytest.importorskip("mindcv.models.repvgg")
    variant = variants.custom((1, 1, 2, 1), (16, 16, 32, 64, 128), se="pre")
    net = repvgg.RepVGG([1, 1, 2, 1], width_multiplier=[0.25] * 4, use_se=True, num_classes=3)
    written = from_ours(zeros(parameter_shapes(variant, "train", 3)), "mindcv", variant)
    assert real_shapes(net) == {name: array.shape for name, array in written.items()}


TIMMS = [name for name in FAMILY if name not in ("repvgg_b1g2", "repvgg_b2g2", "repvgg_b3g2", "repvggplus_l2pse")]


@pytest.mark.slow
def test_timm_has_these_networks():
    assert sorted(other_project("timm").list_models("repvgg_*")) == sorted(TIMMS)


@pytest.mark.parametrize("name", [TIMMS[0], *(pytest.param(name, marks=pytest.mark.slow) for name in TIMMS[1:])])
def test_timm_s_own_networks(name):
    timm, torch = other_project("timm"), pytest.importorskip("torch")
    with torch.device("meta"):  # shapes without values
        net = timm.create_model(name)
    state = {key: tuple(tensor.shape) for key, tensor in net.state_dict().items()}
    assert state == shapes_in("timm", variants.find(name), False)
    if name in ("repvgg_a0", "repvgg_d2se"):
        fused = timm.utils.reparameterize_model(timm.create_model(name)).state_dict()
        assert {key: tuple(t.shape) for key, t in fused.items()} == shapes_in("timm", variants.find(name), True)


@pytest.mark.parametrize(
    ("dialect", "kind", "deploy", "text"),
    [
        ("timm", "plus", False, "repvgg in train form cannot be written for timm: it has no RepVGGplus; possible: "),
        ("repvggplus", "plain", False, "it has RepVGGplus only; possible: official, timm, mmpretrain, mindcv, "),
        ("mindcv", "plain", True, "for MindCV: its deploy form cannot be built (pad_mode 'zeros'); possible: official"),
        ("mmpretrain", "d2se", True, "its deploy form leaves SE out and computes something else"),
        ("official", "se4", False, "its SE squeezes to channels // 16, not // 4; possible: timm, mmpretrain, "),
        ("timm", "post", False, "it has no SE after the ReLU; possible: mindrepvgg"),
        ("official", "stem", False, "its stage 0 before a stage 1 of width 32 is 32 wide, not 8; possible: timm, "),
    ],
)  # fmt: skip
def test_what_a_project_cannot_hold_is_refused_with_those_that_can(dialect, kind, deploy, text):
    odd = {
        "se4": dataclasses.replace(VARIANTS["d2se"], se_ratio=4),
        "post": dataclasses.replace(VARIANTS["d2se"], se="post"),
        "stem": variants.custom((1, 1, 1, 1), (8, 32, 32, 32, 32)),
    }
    variant = {**VARIANTS, **odd}[kind]
    with pytest.raises(CheckpointError) as caught:
        from_ours(zeros(parameter_shapes(variant, FORM[deploy])), dialect, variant)
    assert text in str(caught.value)


def test_four_input_channels_are_refused_where_the_stem_takes_three():
    variant = VARIANTS["plain"]
    arrays = zeros(parameter_shapes(variant, "deploy", in_channels=4))
    with pytest.raises(CheckpointError, match="it takes 3 input channels, not 4; possible: timm, mmpretrain"):
        from_ours(arrays, "official", variant)
    assert from_ours(arrays, "timm", variant)["stem.reparam_conv.weight"].shape == (8, 4, 3, 3)


def test_auxiliary_heads_in_deploy_form_are_left_out_and_never_written():
    variant = VARIANTS["plus"]
    heads = {name: shape for name, shape in parameter_shapes(variant, "train").items() if "_aux." in name}
    arrays = zeros({**parameter_shapes(variant, "deploy"), **heads})
    with pytest.raises(CheckpointError, match=r"no repvgg in deploy form: 21 unexpected: stage1_aux\.downsample"):
        from_ours(arrays, "repvggplus", variant)
    found = recognise(arrays)
    assert (found.form, found.has_aux, len(found.left_out)) == ("deploy", False, 21)
    assert found.arrays.keys() == parameter_shapes(variant, "deploy").keys()


def test_an_incomplete_network_is_not_written():
    variant = VARIANTS["plain"]
    for missing in ("stage3.1.rbr_1x1.bn.beta", "stage0.rbr_dense.conv.weight", "linear.weight"):
        arrays = zeros(parameter_shapes(variant, "train"))
        del arrays[missing]
        with pytest.raises(CheckpointError, match=f"1 missing: {missing}"):
            from_ours(arrays, "official", variant)


def test_unknown_dialects_and_foreign_names_are_named():
    with pytest.raises(UserError, match=r"dialect \(='tim'\) is unknown; did you mean timm\? known: official, "):
        find_dialect("tim")
    with pytest.raises(CheckpointError, match="1 names are not timm's: stages"):
        to_ours({"stages.0.00.identity.weight": np.zeros(3)}, "timm")


def test_from_a_file_to_another_dialect(tmp_path):
    torch = pytest.importorskip("torch")
    arrays = random_arrays(shapes_in("official", VARIANTS["plain"], False, 4))
    state = {f"module.{name}": torch.from_numpy(np.asarray(array)) for name, array in arrays.items()}
    torch.save({"model": state, "epoch": 3}, tmp_path / "any.name")
    found = recognise(unwrap(read_torch_file(tmp_path / "any.name")).weights)
    assert (found.dialect, found.variant, found.num_classes) == ("official", VARIANTS["plain"], 4)
    written = from_ours(found.arrays, "timm", found.variant)
    assert np.array_equal(written["stages.2.1.conv_1x1.bn.bias"], arrays["stage3.1.rbr_1x1.bn.bias"])
