"""The family's table: names, sizes, refusals; counts against the published ones and against built networks."""

import pytest
from support import SMALL
from support.golden import GOLDEN

from mindrepvgg.errors import UserError
from mindrepvgg.models import variants

pytestmark = pytest.mark.compat


def test_the_golden_table_covers_the_family():
    assert variants.list_models() == [*GOLDEN, "repvgg_nano", "repvgg"]


def test_the_layout_follows_the_paper():
    specs = variants.find("repvgg_b1g4").block_specs()
    assert len(specs) == 28
    assert [i for i, spec in enumerate(specs) if spec.groups == 4] == list(range(2, 27, 2))
    assert specs[0] == ("stage0", 3, 64, 2, 1)
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
