"""What a checkpoint of this package tells of its network: typed, and checked where it is read.

In the file it is a JSON mapping. `net.metadata` is the same mapping, for users.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Callable, Mapping

from mindrepvgg.errors import CheckpointError, UserError
from mindrepvgg.models.variants import BN, FORMS, QAT, TRAIN, Variant, find
from mindrepvgg.version import __version__

# In the file, the forms 'bn' and 'qat' are the form 'train' with this key beside it.
_QUANTIZATION = "quantization"


def _is_count(value, least=0) -> bool:
    return type(value) is int and value >= least


def _is_text(value) -> bool:
    return isinstance(value, str)


def _is_mapping(value) -> bool:
    return isinstance(value, Mapping)


def _is_list(value, is_item: Callable) -> bool:
    return isinstance(value, (list, tuple)) and all(map(is_item, value))


def _is_size(value) -> bool:
    return _is_count(value, 1) or (_is_list(value, lambda side: _is_count(side, 1)) and len(value) == 2)


def _is_preprocessing(value) -> bool:
    def is_number(item):
        return type(item) in (int, float)

    tests = {
        "mean": lambda values: _is_list(values, is_number),
        "std": lambda values: _is_list(values, is_number),
        "crop_pct": is_number,
        "interpolation": _is_text,
    }
    return _is_mapping(value) and all(test(value[key]) for key, test in tests.items() if key in value)


# What an entry's value must pass, and what it must be in words.
_NECESSARY = {
    "model": (_is_text, "the name of a network"),
    "num_classes": (lambda value: _is_count(value, 1), "a whole number of at least 1"),
    "in_channels": (lambda value: _is_count(value, 1), "a whole number of at least 1"),
    "form": (lambda value: value in FORMS, f"one of {', '.join(FORMS)}"),
}
_OPTIONAL = {
    "class_names": (lambda value: _is_list(value, _is_text), "a list of names"),
    "dataset": (_is_text, "the name of a data set"),
    "image_size": (_is_size, "a height and a width in pixels"),
    "preprocessing": (_is_preprocessing, "a mapping of mean, std, crop_pct and interpolation"),
    "recipe": (_is_mapping, "a mapping of a recipe's keys"),
    "epoch": (_is_count, "a whole number of at least 0"),
    "step": (_is_count, "a whole number of at least 0"),
    "metrics": (_is_mapping, "a mapping"),
    "position": (_is_mapping, "a mapping"),
    "versions": (_is_mapping, "a mapping"),
    "quantization_parameters": (_is_mapping, "a mapping of layers"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """What a checkpoint tells; None where it tells nothing.

    Attributes:
        model, model_args: the network's name, and for the name 'repvgg' its sizes; together they are `variant`.
        num_classes, in_channels: the network's.
        form: one of `variants.FORMS`.
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

    model: str
    num_classes: int
    in_channels: int
    form: str
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
                f"{source} does not say which network it is: it was not written by mindrepvgg.save_checkpoint"
            )
        values = dict(values)
        if _QUANTIZATION in values:
            values["form"] = values.pop(_QUANTIZATION)
        missing = [key for key in _NECESSARY if key not in values]
        if missing:
            raise CheckpointError(f"{source} does not tell its {', '.join(missing)}: it was written by another program")
        told = [key for key in (*_OPTIONAL, "model_args") if values.get(key) is not None]
        known = {key: values.pop(key) for key in (*_NECESSARY, *told)}
        for key, (test, expected) in {**_NECESSARY, **_OPTIONAL}.items():
            if key in known and not test(known[key]):
                raise CheckpointError(f"{source} is not described rightly: {key} (={known[key]!r}) must be {expected}")
        description = cls(**known, others=values)
        try:
            description.variant  # noqa: B018 - checks model and model_args
        except (UserError, TypeError) as error:  # TypeError: model_args is no mapping of sizes
            raise CheckpointError(f"{source} describes a network that cannot be built: {error}") from None
        return description

    @classmethod
    def of(cls, net, **more) -> Description:
        """Describe a network: what is read off it, over `more`, over `net.metadata`.

        Raises:
            CheckpointError: an entry's value cannot be used.
        """
        from mindrepvgg.models.qat import form_of  # loads MindSpore, which reading a description does without

        values = {key: value for key, value in {**net.metadata, **more}.items() if key != _QUANTIZATION}
        packages = {package: importlib.metadata.version(package) for package in ("mindspore", "numpy")}
        own = {
            "model": net.variant.name,
            "model_args": net.variant.to_dict() if net.variant.name == "repvgg" else {},
            "num_classes": net.num_classes,
            "in_channels": net.in_channels,
            "form": form_of(net),
            "versions": {"mindrepvgg": __version__, **packages},
        }
        return cls.read({**values, **own}, "the checkpoint to be written")

    @property
    def variant(self) -> Variant:
        """The network's layout."""
        return find(self.model, **self.model_args)

    def to_dict(self) -> dict:
        """The mapping that the file holds; entries that are None are left out."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        others = values.pop("others")
        if self.form in (BN, QAT):
            values |= {"form": TRAIN, _QUANTIZATION: self.form}
        return {**others, **{key: value for key, value in values.items() if value is not None}}
