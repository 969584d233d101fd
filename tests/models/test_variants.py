"""The family's table: names, sizes, refusals; counts against the published ones and against built networks."""

import pytest
from support import OTHER_SMALL, SMALL
from support.golden import GOLDEN, OTHER_GOLDEN

from mindrepvgg.errors import UserError
from mindrepvgg.models import variants

pytestmark = pytest.mark.compat


def test_the_golden_table_covers_the_family():
    assert variants.list_models() == [
        *(*GOLDEN, *OTHER_GOLDEN, "repvgg_nano", "repvgg", "qarepvgg", "mobileone", "repopt_vgg")
    ]
    assert variants.published_models() == [*GOLDEN, *OTHER_GOLDEN]


def test_the_layout_follows_the_paper():
    specs = variants.find("repvgg_b1g4").block_specs()
    assert len(specs) == 28
    assert [i for i, spec in enumerate(specs) if spec.groups == 4] == list(range(2, 27, 2))
    assert specs[0] == ("stage0", 3, 64, 2, 1, 3, "repvgg", 1, None, "repvgg", 1, True)
    assert [spec.name for spec in specs if spec.stride == 2] == ["stage0", *(f"stage{s}.0" for s in (1, 2, 3, 4))]
    assert variants.find("repvgg_a0").widths == (48, 48, 96, 192, 1280)


def test_plus_splits_stage_3_in_two_halves():
    stages = variants.find("repvggplus_l2pse").stages
    assert [(s.name, s.num_blocks, s.stride, s.aux) for s in stages] == [
        ("stage1", 8, 2, True),
        ("stage2", 14, 2, True),
        ("stage3_first", 12, 2, True),
        ("stage3_second", 12, 1, False),
        ("stage4", 1, 2, False),
    ]


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("repvgg_b1g4", "repvgg_b1g4"),
        ("RepVGG-B1g4", "repvgg_b1g4"),
        ("RepVGG-D2se", "repvgg_d2se"),
        (" RepVGGplus-L2pse ", "repvggplus_l2pse"),
    ],
)
def test_both_spellings_are_known(spelling, name):
    assert variants.find(spelling).name == name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("repvgg_a3", "model (='repvgg_a3') is not a network of the family; did you mean repvgg_b3 or repvgg_a2"),
        ("RepVGG-B1g8", "did you mean repvgg_b1g4 or repvgg_b1g2 or "),
        ("repvgplus_l2pse", "did you mean repvggplus_l2pse"),
        ("xyz", "is not a network of the family; known: repvgg_a0, repvgg_a1, "),
    ],
)
def test_unknown_names_are_told_the_nearest(name, text):
    with pytest.raises(UserError) as caught:
        variants.find(name)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"num_blocks": (1, 1, 1)}, "num_blocks (=(1, 1, 1)) must be 4 whole numbers of at least 1"),
        ({"num_blocks": (1, 0, 1, 1)}, "num_blocks (=(1, 0, 1, 1)) must be 4 whole numbers of at least 1"),
        ({"num_blocks": (1, True, 1, 1)}, "num_blocks (=(1, True, 1, 1)) must be 4 whole numbers"),
        ({"num_blocks": 4}, "num_blocks (=4) must be a list of whole numbers"),
        ({"num_blocks": None}, "repvgg needs num_blocks (four numbers, stages 1-4) and widths (five numbers"),
        ({"num_blocks": (1, 10**9, 1, 1)}, "num_blocks (=(1, 1000000000, 1, 1)) must be 4 whole numbers of at least 1"),
        ({"num_blocks": (1,) * 10**6}, "num_blocks (=(1, 1, 1, 1, 1"),
        ({"widths": (8, 8, 8, 8, 800_000)}, "widths (=(8, 8, 8, 8, 800000)) must be 5 whole numbers of at least 1"),
        ({"widths": (8, 8, 8, 8)}, "widths (=(8, 8, 8, 8)) must be 5 whole numbers of at least 1"),
        ({"widths": (8, 8, 8, 8.0, 8)}, "widths (=(8, 8, 8, 8.0, 8)) must be 5 whole numbers"),
        ({"widths": "88888"}, "widths (='88888') must be a list of whole numbers"),
        ({"group_size": 0}, "group_size (=0) must be a whole number of at least 1"),
        ({"group_size": 3}, "group_size (=3) must divide the channels of stage1.1 (8 -> 8)"),
        ({"se": "before"}, "se (='before') must be None, 'pre' or 'post'"),
        ({"se": "pre", "se_ratio": 16}, "se_ratio (=16) must be a whole number from 1 to the narrowest width (8)"),
        ({"se_ratio": 0}, "se_ratio (=0) must be a whole number from 1 to the narrowest width (8)"),
        ({"aux_heads": 1}, "aux_heads (=1) must be true or false"),
        ({"aux_heads": True, "num_blocks": (2, 2, 1, 1)}, "aux_heads needs at least two blocks in stage 3 to split"),
        ({"strides": (1, 2, 3, 2, 2)}, "strides (=(1, 2, 3, 2, 2)) must be 5 numbers, each 1 or 2, for stages 0-4"),
        ({"strides": (1, 1)}, "strides (=(1, 1)) must be 5 numbers"),
        ({"strides": 2}, "strides (=2) must be a list of whole numbers"),
        ({"depth": 3, "bn": 1}, "repvgg does not know bn, depth; it takes num_blocks, widths, group_size, se, "),
    ],
)
def test_custom_shapes_that_cannot_be_built_are_refused(change, text):
    sizes = {"num_blocks": (2, 2, 2, 1), "widths": (8, 8, 8, 8, 8), **change}
    with pytest.raises(UserError) as caught:
        variants.find("repvgg", **sizes)
    assert text in str(caught.value)


def test_a_fixed_network_takes_no_shape():
    with pytest.raises(UserError, match="repvgg_a0 has a fixed shape and takes no se, widths; the name 'repvgg' does"):
        variants.find("RepVGG-A0", widths=(8,) * 5, se="pre")


@pytest.mark.parametrize("kind", SMALL)
def test_to_dict_rebuilds_the_shape(kind):
    variant = variants.find("repvgg", **SMALL[kind])
    assert variants.custom(**variant.to_dict()) == variant


def test_mobileone_alternates_depthwise_and_1x1_blocks():
    variant = variants.find("MobileOne-S4")
    specs = variant.block_specs()
    assert variant.widths == (64, 192, 448, 896, 2048)
    assert [(stage.name, stage.num_blocks) for stage in variant.stages] == [
        *(("stage1", 4), ("stage2", 16), ("stage3", 20), ("stage4", 2))
    ]
    assert specs[1][1:6] == (64, 64, 2, 64, 3)
    assert specs[2][1:6] == (64, 192, 1, 1, 1)
    assert specs[3][:6] == ("stage1.2", 192, 192, 1, 192, 3)
    excited = [spec.name for spec in specs if spec.se]
    assert excited == [*(f"stage3.{i}" for i in range(10, 20)), "stage4.0", "stage4.1"]
    branches = [spec.branches for spec in variants.find("mobileone_s0").block_specs()]
    assert branches == [1, *[4] * 42]


@pytest.mark.parametrize("kind", OTHER_SMALL)
def test_networks_of_other_blocks_have_sizes_of_ones_own_too(kind):
    variant = variants.find(kind, **OTHER_SMALL[kind])
    assert (variant.name, variant.family) == (kind, kind)
    assert variants.find(kind, **variant.model_args) == variant
    size = {"qarepvgg": "a0", "mobileone": "s0", "repopt_vgg": "b1"}[kind]
    assert variants.find(f"{kind}_{size}").model_args == {}


@pytest.mark.parametrize(
    ("name", "change", "text"),
    [
        ("mobileone", {"branches": 0}, "branches (=0) must be a whole number of at least 1"),
        ("mobileone", {"se_blocks": (0, 0, 2, 0)}, "se_blocks (=(0, 0, 2, 0)) must be 4 whole numbers, none above"),
        ("mobileone", {"se_blocks": (0, 0, 1)}, "se_blocks (=(0, 0, 1)) must be 4 whole numbers"),
        ("mobileone", {"se_blocks": 1}, "se_blocks (=1) must be a list of whole numbers"),
        ("mobileone", {"group_size": 2}, "mobileone does not know group_size; it takes num_blocks, widths, branches, "),
        ("qarepvgg", {"aux_heads": True}, "qarepvgg does not know aux_heads; it takes num_blocks, "),
        ("qarepvgg_a0", {"se": "pre"}, "qarepvgg_a0 has a fixed shape and takes no num_blocks, se, widths; the name "),
    ],
)
def test_shapes_of_other_blocks_that_cannot_be_built_are_refused(name, change, text):
    with pytest.raises(UserError) as caught:
        variants.find(name, **{"num_blocks": (1, 1, 1, 1), "widths": (16,) * 5, **change})
    assert text in str(caught.value)


def test_strides_are_told_where_they_are_not_the_published_ones():
    """What version 0.1 wrote has none, and 0.1 reads what has none."""
    published = variants.find("repvgg", **SMALL["plain"])
    assert "strides" not in published.model_args
    small = variants.find("repvgg", **SMALL["plain"], strides=[1, 1, 2, 2, 2])
    assert small.model_args == {**published.model_args, "strides": [1, 1, 2, 2, 2]}
    assert variants.find("repvgg", **small.model_args) == small
    assert variants.find("repvgg", **SMALL["plain"], strides=(2,) * 5) == published


def test_blocks_of_another_kind_are_chosen_by_name():
    variant = variants.find("qarepvgg_a0", block="dbb", block_where=["stage2.*", "stage0"])
    kinds = {spec.name: spec.kind for spec in variant.block_specs()}
    assert [name for name, kind in kinds.items() if kind == "dbb"] == ["stage0", *(f"stage2.{i}" for i in range(4))]
    assert set(kinds.values()) == {"dbb", "qarepvgg"}
    assert variant.model_args == {"block": "dbb", "block_where": ["stage2.*", "stage0"]}
    assert variants.find("qarepvgg_a0", **variant.model_args) == variant
    assert variant.label == "qarepvgg_a0 with dbb blocks at stage2.*, stage0"
    assert variants.find("repvgg_a0", block="repvgg") == variants.find("repvgg_a0")
    assert {spec.branches for spec in variants.find("repvgg_a0", block="mobileone").block_specs()} == {4}


@pytest.mark.parametrize(
    ("name", "choice", "text"),
    [
        ("repvgg_a0", {"block": "acbb"}, "block (='acbb') must be one of repvgg, qarepvgg, mobileone, acb, dbb, plain"),
        ("repvgg_a0", {"block": "acbb"}, "; did you mean acb?"),
        ("repvgg_a0", {"block": ["acb"]}, "block (=['acb']) must be one of"),
        (
            "repvgg_a0",
            {"block": "acb", "block_where": "stage5.*"},
            "'stage5.*') matches no block of repvgg_a0; they are ",
        ),
        ("repvgg_a0", {"block": "acb", "block_where": ["stage1.*", "x"]}, "block_where (='x') matches no block"),
        (
            "repvgg_a0",
            {"block": "acb", "block_where": []},
            "block_where (=[]) must be a pattern of blocks' names, or a ",
        ),
        ("repvgg_a0", {"block": "acb", "block_where": 3}, "block_where (=3) must be a pattern of blocks' names, or a "),
        ("repvgg_a0", {"block_where": "stage1.*"}, "block_where (='stage1.*') needs block"),
        ("mobileone_s0", {"block": "acb"}, "mobileone_s0 takes no block (='acb'): its layout, pairs of a depthwise"),
    ],
)
def test_blocks_that_cannot_be_are_refused(name, choice, text):
    with pytest.raises(UserError) as caught:
        variants.find(name, **choice)
    assert text in str(caught.value)
