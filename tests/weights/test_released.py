"""The lists of released weights: every name leads to a file, and what cannot be had is said."""

import re
from urllib.parse import urlsplit

import pytest

from mindrepvgg.errors import UserError
from mindrepvgg.models import variants
from mindrepvgg.weights import released


def test_every_network_of_the_paper_has_a_default_and_all_its_files_are_distinct():
    names = [item.name for item in released.RELEASED]
    assert len(set(names)) == len({item.address for item in released.RELEASED}) == len(names) == 33
    assert len({(item.source, item.file) for item in released.RELEASED}) == len(names)
    without = {name for name in variants.list_models() if not released.released_of(name)}
    others = {name for name in variants.list_models() if not name.startswith("repvgg")}
    assert others < without
    assert without - others == {"repvgg_b2g2", "repvgg_b3g2", "repvggplus_l2pse", "repvgg_nano", "repvgg"}
    assert {released.find_released(name).source for name in variants.list_models() if name not in without} == {
        "mmpretrain"
    }


def test_a_digest_is_given_where_the_name_carries_one_by_rule_and_nowhere_else():
    for item in released.RELEASED:
        if item.source == "mmpretrain":
            assert re.fullmatch(r".*-([0-9a-f]{8})\.pth", item.file)[1] == item.digest
        else:
            assert item.digest == ""


def test_a_source_publishes_about_what_the_authors_do():
    """A slip of a digit would be noticed."""
    for item in released.RELEASED:
        top1, size = released.AUTHORS_TOP1[item.model]
        assert abs(item.top1 - top1) < (0.7 if item.image_size == size else 2), item.name


@pytest.mark.parametrize(
    "path", ["runs/a/repvgg_a1", "repvgg_a1.ckpt", "best.ckpt", "", "/", "x" * 10**6, "nobody/repvgg_a1"]
)
def test_what_may_be_a_path_is_no_name(path):
    assert released.find_released(path) is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "timm/repvgg_b1g2",
            "timm has no weights of repvgg_b1g2; mmpretrain/repvgg_b1g2 and mindcv/repvgg_b1g2 are known",
        ),
        ("repvgg_b2g2", "no weights of 'repvgg_b2g2' are known; did you mean repvgg_b"),
        ("timm/repvgg_c1", "no weights of 'repvgg_c1' are known; did you mean repvgg_"),
        (
            "RepVGGplus-L2pse",
            "no weights of repvggplus_l2pse can be fetched by a plain request; get the authors' file with a browser, "
            f"from {released.AUTHORS}, and give its path",
        ),
    ],
)
def test_weights_that_cannot_be_had_are_said(name, text):
    with pytest.raises(UserError) as caught:
        released.find_released(name)
    assert str(caught.value).startswith(text)


def test_a_mirror_keeps_the_paths(monkeypatch):
    """A tree that `wget -x -nH` makes of the addresses is a mirror."""
    monkeypatch.setenv(released.MIRROR, "https://mirror.invalid/weights/")
    for item in released.RELEASED:
        assert item.mirrored() == f"https://mirror.invalid/weights{urlsplit(item.address).path}"
    assert len({item.mirrored() for item in released.RELEASED}) == len(released.RELEASED)
