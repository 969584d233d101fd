"""What a checkpoint of this package tells of its network: typed, and checked where it is read.

In the file it is a JSON mapping. `net.metadata` is the same mapping, for users.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping

from mindrepvgg.errors import CheckpointError, UserError
from mindrepvgg.models.network_spec import NetworkSpec
from mindrepvgg.models.networks import find_network
from mindrepvgg.models.preprocessing import LARGEST_SIDE, SMALLEST_CROP
from mindrepvgg.models.variant_check import MOST_CHANNELS, MOST_CLASSES
from mindrepvgg.models.variants import BN, DEPLOY, FORMS, QAT, TRAIN
from mindrepvgg.text import counted, listed, printable, quoted
from mindrepvgg.version import __version__, update_hint

# Our networks' classes: MindSpore's automatic mixed precision O1 writes them anew, as RepVGGOpt and RepVGGOpt_1.
_OURS = re.compile(r"(RepVGG(Plus|Features)?|MindCVClassifier)(Opt(_\d+)?)?")

# In the file, the forms 'bn' and 'qat' are the form 'train' with this key beside it.
_QUANTIZATION = "quantization"


def _is_count(value, least=0, most=math.inf) -> bool:
    return type(value) is int and least <= value <= most


def _is_number(value) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max  # neither NaN nor infinite


def _is_text(value) -> bool:
    return isinstance(value, str)


def _is_mapping(value) -> bool:
    return isinstance(value, Mapping)


def _is_list(value, is_item: Callable) -> bool:
    return isinstance(value, (list, tuple)) and all(map(is_item, value))


def _is_side(value) -> bool:
    return _is_count(value, 1, LARGEST_SIDE)


def _is_size(value) -> bool:
    return _is_side(value) or (_is_list(value, _is_side) and len(value) == 2)


# What an entry's value must pass, and what it must be in words.
_NETWORK = {
    "model": (_is_text, "the name of a network"),
    "num_classes": (lambda value: _is_count(value, 1, MOST_CLASSES), f"a whole number from 1 to {MOST_CLASSES}"),
    "in_channels": (lambda value: _is_count(value, 1, MOST_CHANNELS), f"a whole number from 1 to {MOST_CHANNELS}"),
}
_FORM = {"form": (lambda value: value in FORMS, f"one of {', '.join(FORMS)}")}
_OPTIONAL = {
    "cell": (_is_text, "the name of a class"),
    "features": (_is_mapping, "a mapping of a features network's out_indices and the others"),
    "class_names": (lambda value: _is_list(value, _is_text), "a list of names"),
    "dataset": (_is_text, "the name of a data set"),
    "image_size": (_is_size, f"a height and a width from 1 to {LARGEST_SIDE} pixels"),
    "preprocessing": (_is_mapping, "a mapping of mean, std, crop_pct and interpolation"),
    "recipe": (_is_mapping, "a mapping of a recipe's keys"),
    "epoch": (_is_count, "a whole number of at least 0"),
    "step": (_is_count, "a whole number of at least 0"),
    "metrics": (_is_mapping, "a mapping"),
    "position": (_is_mapping, "a mapping"),
    "versions": (_is_mapping, "a mapping"),
    "quantization_parameters": (_is_mapping, "a mapping of layers"),
}
_PREPROCESSING = {
    "mean": (lambda values: _is_list(values, _is_number), "a list of numbers"),
    "std": (
        lambda values: _is_list(values, lambda value: _is_number(value) and value > 0),
        "a list of numbers above 0",
    ),
    "crop_pct": (
        lambda value: _is_number(value) and SMALLEST_CROP <= value <= 1,
        f"a number from {SMALLEST_CROP} to 1",
    ),
    "interpolation": (_is_text, "the name of an interpolation"),
}


def _faults(values: Mapping) -> Iterator[str]:
    """What is wrong with a description's entries, each alone and with each other."""
    for key, (test, expected) in {**_NETWORK, **_FORM, **_OPTIONAL}.items():
        if key in values and not test(values[key]):
            yield f"{key} (={quoted(values[key])}) must be {expected}"
    prepared = values.get("preprocessing", {})
    for key, (test, expected) in _PREPROCESSING.items():
        if key in prepared and not test(prepared[key]):
            yield f"preprocessing's {key} (={quoted(prepared[key])}) must be {expected}"
    names = values.get("class_names")
    classes, channels = (values.get(key) for key in ("num_classes", "in_channels"))
    if names is not None and classes is not None and len(names) != classes:
        yield f"class_names holds {counted(len(names), 'name')}, the network has {counted(classes, 'class')}"
    if values.get("features") is not None and values.get("form") in (BN, QAT):
        yield f"a features network has no form {values['form']}"
    for key in ("mean", "std"):
        if key in prepared and channels is not None and len(prepared[key]) != channels:
            yield f"preprocessing's {key} holds {len(prepared[key])} numbers, the network has {channels} input channels"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """What a checkpoint tells; None where it tells nothing.

    Attributes:
        form: one of `variants.FORMS`.
        model, model_args: the network's name, and what that does not tell; together they are `variant`.
        num_classes, in_channels: the network's.
        features: of a network that gives maps and has no classes, which these are: see `feature_layout.FeatureLayout`.
        cell: the class of a network that holds our blocks and is none of ours. `model` is then empty; the numbers are 0
            unless its owner told them.
        class_names: in the order of the logits.
        dataset: the name of the data set it was trained on.
        image_size: (height, width) in pixels, or one number for both.
        preprocessing: mean and std by channel, crop_pct, interpolation; see `models.preprocessing.Preprocessing`.
        recipe: the recipe's keys.
        epoch, step: how long it was trained.
        metrics: what validation measured.
        position: where an unfinished run stopped.
        versions: of the packages that wrote the file.
        quantization_parameters: see `models.qat.quantization_parameters`.
        others: entries under all other keys, as a newer version may write them; they are kept.
    """

    form: str
    model: str = ""
    num_classes: int = 0
    in_channels: int = 0
    features: Mapping | None = None
    cell: str | None = None
    model_args: Mapping = dataclasses.field(default_factory=dict)
    class_names: list[str] | None = None
    dataset: str | None = None
    image_size: list[int] | None = None
    preprocessing: Mapping | None = None
    recipe: Mapping | None = None
    epoch: int | None = None
    step: int | None = None
    metrics: Mapping | None = None
    position: Mapping | None = None
    versions: Mapping | None = None
    quantization_parameters: Mapping | None = None
    others: Mapping = dataclasses.field(default_factory=dict)

    @classmethod
    def read(cls, values: Mapping, source) -> Description:
        """Check what a file tells.

        Args:
            values: the file's mapping.
            source: the file; it starts the message.

        Raises:
            CheckpointError: a necessary entry is missing, or an entry's value cannot be used.
        """
        if not values:
            raise CheckpointError(
                f"{source} does not say which network it is: it was not written by mindrepvgg.save_checkpoint; "
                f"mindrepvgg.load_weights reads the files of other projects"
            )
        values = dict(values)
        if _QUANTIZATION in values:
            values["form"] = values.pop(_QUANTIZATION)
        of_network = () if values.get("cell") is not None else _NETWORK
        no_classes = values.get("features") is not None
        necessary = [key for key in (*of_network, *_FORM) if not (no_classes and key == "num_classes")]
        missing = [key for key in necessary if key not in values]
        if missing:
            raise CheckpointError(f"{source} does not tell its {', '.join(missing)}: it was written by another program")
        told = [key for key in (*_NETWORK, *_OPTIONAL, "model_args") if values.get(key) is not None]
        known = {key: values.pop(key) for key in dict.fromkeys((*necessary, *told))}
        hint = _hint(known.get("versions"))
        for fault in _faults(known):
            raise CheckpointError(f"{source} is not described rightly: {fault}{hint}")
        description = cls(**known, others=values)
        try:
            if description.cell is None:
                description.variant  # noqa: B018 - checks model and model_args
        except (UserError, TypeError) as error:  # TypeError: model_args is no mapping of sizes
            raise CheckpointError(
                f"{source} describes a network that cannot be built: {printable(error, 300)}{hint}"
            ) from None
        return description

    @classmethod
    def of(cls, net, **more) -> Description:
        """Describe a network: what is read off it, over `more`, over `net.metadata`.

        Raises:
            CheckpointError: an entry's value cannot be used.
        """
        # They load MindSpore, which reading a description does without.
        from mindrepvgg.models.qat import form_of
        from mindrepvgg.reparam.finding import hidden_blocks, rep_blocks

        if type(net).__module__ == "mindspore.train.amp":  # what automatic mixed precision puts around a network
            net = net._backbone
        told = getattr(net, "metadata", None)
        values = {**told, **more} if isinstance(told, Mapping) else more
        for key in ("model", "model_args", "features", "cell", _QUANTIZATION):
            values.pop(key, None)
        packages = {package: importlib.metadata.version(package) for package in ("mindspore", "numpy")}
        values["versions"] = {"mindrepvgg": __version__, **packages}
        if _OURS.fullmatch(type(net).__name__) and isinstance(getattr(net, "variant", None), NetworkSpec):
            values |= {
                "model": net.variant.name,
                "model_args": net.variant.model_args,
                "in_channels": net.in_channels,
                "form": form_of(net),
            }
            if net.variant.features:
                values["features"] = net.variant.features.to_dict()
                values.pop("num_classes", None)
            else:
                values["num_classes"] = net.num_classes
        else:
            blocks = rep_blocks(net).values()
            hidden = hidden_blocks(net)
            if hidden:
                raise CheckpointError(
                    f"{type(net).__name__} keeps blocks where MindSpore sees no cells, and cannot save them: "
                    f"{listed(hidden)}; put them in a mindspore.nn.CellList or SequentialCell"
                )
            if not blocks:
                raise CheckpointError(
                    f"{type(net).__name__} holds no RepVGG block; mindspore.save_checkpoint saves other networks"
                )
            trained = any(not block.deploy for block in blocks)
            values |= {"cell": type(net).__qualname__, "form": TRAIN if trained else DEPLOY}
        return cls.read(values, "the checkpoint to be written")

    @property
    def network(self) -> tuple[NetworkSpec, int, int, str]:
        """Which network, classes, input channels and form, as `models.building.build_network` takes them."""
        return self.variant, self.num_classes, self.in_channels, self.form

    @property
    def variant(self) -> NetworkSpec:
        """Which network it is. Raises UserError for a `cell`, which is none of these."""
        return find_network(self.model, **self.model_args).with_features(self.features)

    def check_family(self, source):
        """Refuse a `cell` where the network is to be built.

        Raises:
            CheckpointError: says how it is loaded.
        """
        if self.cell is not None:
            raise CheckpointError(
                f"{source} holds a {printable(self.cell)}, none of this package's networks: build it and fill it with "
                f"mindrepvgg.load_checkpoint(path, net)"
            )

    def to_dict(self) -> dict:
        """The mapping that the file holds; entries that are None, and those a `cell` has not, are left out."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        others = values.pop("others")
        if self.form in (BN, QAT):
            values |= {"form": TRAIN, _QUANTIZATION: self.form}
        if self.cell is not None or self.features is not None:
            values = {key: value for key, value in values.items() if value or key not in ("model_args", *_NETWORK)}
        return {**others, **{key: value for key, value in values.items() if value is not None}}


def _hint(versions) -> str:
    """See `version.update_hint`."""
    return update_hint(versions.get("mindrepvgg")) if _is_mapping(versions) else ""
