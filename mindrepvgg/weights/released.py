"""The weights that projects have released for the family: files, addresses, digests and published accuracies.

The addresses are those that the projects' own lists give. Nobody has fetched them from here: docs/weights.md.
Loads no MindSpore.
"""

from __future__ import annotations

import os
import posixpath
from dataclasses import dataclass
from urllib.parse import urlsplit

from mindrepvgg.errors import UserError
from mindrepvgg.models.variants import list_models, normalise_name
from mindrepvgg.text import nearest, quoted

MIRROR = "MINDREPVGG_MIRROR"
_HUB = "HF_ENDPOINT"  # the Hugging Face hub's own variable
_HUB_ADDRESS = "https://huggingface.co"
_HUB_SUFFIX = ".rvgg_in1k"  # of a timm repository's name


@dataclass(frozen=True)
class Source:
    """Who released files.

    Attributes:
        name: what stands before the network's name: 'timm' of 'timm/repvgg_a1'.
        digest: what is known of the digests of its files.
        note: what these weights are, and why this source is taken before or after others.
    """

    name: str
    digest: str
    note: str


# The first that has a network is the default.
SOURCES = (
    Source(
        "mmpretrain",
        "SHA-256 begins in the name",
        "trained anew by mmpretrain; first, because its name tells whether the file is whole",
    ),
    Source(
        "timm",
        "SHA-256 told by the hub",
        "the authors' weights; after mmpretrain's, because only the server that gives the file tells its digest",
    ),
    Source(
        "mindcv",
        "recorded at the first download",
        "trained anew by MindCV on Ascend 910; last, because nothing tells the file's digest beforehand",
    ),
)
AUTHORS = "https://drive.google.com/drive/folders/1Avome4KvNp0Lqh2QwhXO6L5URQjzCjUq"

_MMPRETRAIN = "https://download.openmmlab.com/mmclassification/v0/repvgg"
_MINDCV = "https://download.mindspore.cn/toolkits/mindcv/repvgg"

# Network: top-1 that the authors published, in percent, at (pixels).
AUTHORS_TOP1 = {
    "repvgg_a0": (72.41, 224),
    "repvgg_a1": (74.47, 224),
    "repvgg_a2": (76.48, 224),
    "repvgg_b0": (75.14, 224),
    "repvgg_b1": (78.37, 224),
    "repvgg_b1g2": (77.79, 224),
    "repvgg_b1g4": (77.58, 224),
    "repvgg_b2": (78.78, 224),
    "repvgg_b2g4": (79.38, 224),
    "repvgg_b3": (80.52, 224),
    "repvgg_b3g4": (80.22, 224),
    "repvgg_d2se": (83.55, 320),
    "repvggplus_l2pse": (84.06, 320),
}

# The same at 224x224, as printed, of networks of other blocks. QARepVGG: A0 the paper's, B0 the log that its repository
# has; RepOpt-VGG and MobileOne: the papers'.
PAPERS_TOP1 = {
    "qarepvgg_a0": "72.2",
    "qarepvgg_b0": "74.84",
    "repopt_vgg_b1": "78.62",
    "repopt_vgg_b2": "79.68",
    "repopt_vgg_l1": "79.82",
    "repopt_vgg_l2": "80.47",
    "mobileone_s0": "71.4",
    "mobileone_s1": "75.9",
    "mobileone_s2": "77.4",
    "mobileone_s3": "78.1",
    "mobileone_s4": "79.4",
}


@dataclass(frozen=True)
class Released:
    """A file with a network's weights, in train form, for ImageNet's 1,000 classes.

    Attributes:
        model: the network.
        source: the name of its `Source`.
        address: where the project has the file.
        file: what the file is called in the cache.
        top1: what the source published for the file, in percent, measured at `image_size` pixels a side.
        digest: the beginning of the file's SHA-256; empty where it is not known beforehand.
        note: what is to be known of this file alone.
    """

    model: str
    source: str
    address: str
    file: str
    top1: float
    image_size: int = 224
    digest: str = ""
    note: str = ""

    @property
    def name(self) -> str:
        """As it is asked for: 'timm/repvgg_a1'."""
        return f"{self.source}/{self.model}"

    def mirrored(self) -> str:
        """The address to ask: that of a mirror where the environment names one, with the file's path behind it.

        Raises:
            UserError: the environment names something that is no address.
        """
        variable = MIRROR
        if not os.environ.get(variable) and self.address.startswith(_HUB_ADDRESS):
            variable = _HUB
        base = os.environ.get(variable, "")
        if not base:
            return self.address
        if not base.startswith(("http://", "https://")):
            raise UserError(f"{variable} (={quoted(base)}) must be an address that begins with https:// or http://")
        return base.rstrip("/") + urlsplit(self.address).path


def _mmpretrain(model, stem, top1, recipe="8xb32_in1k_20221213", note="") -> Released:
    """One of mmpretrain's; its publishing tool ends a file's name with eight digits of its SHA-256."""
    address = f"{_MMPRETRAIN}/repvgg-{model.removeprefix('repvgg_').capitalize()}_{recipe}-{stem}.pth"
    file = posixpath.basename(address)
    return Released(model, "mmpretrain", address, file, top1, digest=stem, note=note)


def _timm(model, top1, image_size=224) -> Released:
    repository = f"{model}{_HUB_SUFFIX}"
    address = f"{_HUB_ADDRESS}/timm/{repository}/resolve/main/model.safetensors"
    return Released(model, "timm", address, f"{repository}.safetensors", top1, image_size)


def _mindcv(model, stem, top1) -> Released:
    """One of MindCV's. The digits in the name look like a digest; nothing says of what, so nothing is held to them."""
    file = f"{model}-{stem}.ckpt"
    return Released(model, "mindcv", f"{_MINDCV}/{file}", file, top1)


RELEASED = (
    _mmpretrain("repvgg_a0", "60ae8e23", 72.37),
    _mmpretrain("repvgg_a1", "f81bf3df", 74.23),
    _mmpretrain("repvgg_a2", "a8767caf", 76.49),
    _mmpretrain("repvgg_b0", "5091ecc7", 75.27),
    _mmpretrain("repvgg_b1", "d17c45e7", 78.19),
    _mmpretrain("repvgg_b1g2", "ae6428fd", 77.87),
    _mmpretrain("repvgg_b1g4", "a7a4aaea", 77.81),
    _mmpretrain("repvgg_b2", "d8b420ef", 78.58),
    _mmpretrain("repvgg_b2g4", "0c1990eb", 79.44),
    _mmpretrain("repvgg_b3", "927a329a", 80.58),
    _mmpretrain("repvgg_b3g4", "e01cb280", 80.26),
    _mmpretrain(
        "repvgg_d2se",
        "cf3139b7",
        81.81,
        "3rdparty_4xb64-autoaug-lbs-mixup-coslr-200e_in1k_20210909",
        "the authors' weights, converted by mmpretrain; 83.55 at 320, as the authors publish it",
    ),
    _timm("repvgg_a0", 72.426),
    _timm("repvgg_a1", 74.474),
    _timm("repvgg_a2", 76.488),
    _timm("repvgg_b0", 75.158),
    _timm("repvgg_b1", 78.370),
    _timm("repvgg_b1g4", 77.608),
    _timm("repvgg_b2", 78.788),
    _timm("repvgg_b2g4", 79.396),
    _timm("repvgg_b3", 80.528),
    _timm("repvgg_b3g4", 80.224),
    _timm("repvgg_d2se", 83.55, 320),
    _mindcv("repvgg_a0", "6e71139d", 72.19),
    _mindcv("repvgg_a1", "539513ac", 74.19),
    _mindcv("repvgg_a2", "cdc90b11", 76.63),
    _mindcv("repvgg_b0", "54d5862c", 74.99),
    _mindcv("repvgg_b1", "4673797", 78.81),
    _mindcv("repvgg_b1g2", "f0dc714f", 78.03),
    _mindcv("repvgg_b1g4", "bd93230e", 77.64),
    _mindcv("repvgg_b2", "7c91ccd4", 79.29),
    _mindcv("repvgg_b2g4", "e79eeadd", 78.80),
    _mindcv("repvgg_b3", "30b35f52", 80.46),
)


def released_of(model: str) -> list[Released]:
    """A network's files, the default first."""
    return [item for source in SOURCES for item in RELEASED if (item.model, item.source) == (model, source.name)]


def find_released(name: str) -> Released | None:
    """The file that a name means; None for a text that is no such name, and may be a path.

    Args:
        name: a network, 'repvgg_a1' or 'RepVGG-A1', which means its default source; or with the source in front,
            'timm/repvgg_a1'.

    Raises:
        UserError: the name is one, and there are no such weights.
    """
    source, slash, model = name.rpartition("/")
    model = normalise_name(model).removesuffix(_HUB_SUFFIX)
    names = [source.name for source in SOURCES]
    if slash and source not in names:
        return None
    if not slash and model not in list_models():
        return None
    found = [item for item in released_of(model) if source in ("", item.source)]
    if found:
        return found[0]
    others = [item.name for item in released_of(model)]
    if others:
        raise UserError(f"{source} has no weights of {model}; {' and '.join(others)} are known")
    if model in AUTHORS_TOP1:
        raise UserError(
            f"no weights of {model} can be fetched by a plain request; get the authors' file with a browser, from "
            f"{AUTHORS}, and give its path"
        )
    near = nearest(model, AUTHORS_TOP1)
    hint = f"did you mean {near}?" if near and near != model else "mindrepvgg weights lists those that are known"
    raise UserError(f"no weights of {quoted(model)} are known; {hint}")
