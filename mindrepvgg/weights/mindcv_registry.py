"""Networks of this package in MindCV's registry, so that MindCV's functions and its trainer make them by name."""

from __future__ import annotations

from mindrepvgg.errors import UserError
from mindrepvgg.models.feature_layout import FEATURE_KEYS
from mindrepvgg.models.variants import SHAPE_KEYS, list_models
from mindrepvgg.runtime.optional import import_optional
from mindrepvgg.text import listed
from mindrepvgg.weights.load import create_model
from mindrepvgg.weights.released import released_of

# Before the name of a network that MindCV has too: MindCV's registry replaces what it has without a word.
PREFIX = "mindrepvgg_"

# MindCV reads here which of a module's networks have released weights.
default_cfgs: dict[str, dict] = {}


def register_in_mindcv() -> list[str]:
    """Let `mindcv.create_model` make this package's networks, and `mindcv.list_models` list them.

    A network that MindCV lacks gets its own name, such as 'repvgg_b2g2'. One that MindCV has, such as 'repvgg_a0', gets
    the prefix `mindrepvgg_`, and MindCV's stays what it was. With `pretrained=True` they have the released weights that
    `mindrepvgg weights` lists. A second call changes nothing.

    Returns:
        The names, sorted.

    Raises:
        UserError: MindCV is not installed.
    """
    registry = import_optional("mindcv.models.registry", None, "registering networks in MindCV")
    for model in list_models():
        if model in SHAPE_KEYS:  # it has no size of its own
            continue
        name = f"{PREFIX}{model}" if _is_others(registry, model) else model
        if not registry.is_model(name):
            default_cfgs[name] = _facts(model)
            # The registry puts the name into this module's `__all__`.
            globals()[name] = registry.register_model(_entry(name, model))
    return sorted(default_cfgs)


def _is_others(registry, name) -> bool:
    return registry.is_model(name) and name not in default_cfgs


def _facts(model) -> dict:
    """What MindCV keeps of a network; with an address where weights are released."""
    found = released_of(model)
    return {
        "url": found[0].address if found else "",
        "num_classes": 1000,
        "first_conv": "stage0.rbr_dense.conv",
        "classifier": "linear",
    }


def _entry(name, model):
    """The function that MindCV calls to make a network."""

    def make(pretrained=False, num_classes=1000, in_channels=3, features_only=False, out_indices=None, **options):
        from mindcv.models.helpers import build_model_with_cfg

        others = [key for key in FEATURE_KEYS if key in options]
        if others:  # MindCV keeps features_only and out_indices to itself
            raise UserError(
                f"{listed(others)} is not for mindcv.create_model, whose features have out_indices alone; "
                f"mindrepvgg.create_model('{model}', features_only=True, ...) takes it"
            )
        indices = {} if out_indices is None else {"out_indices": out_indices}
        return build_model_with_cfg(
            _network,
            False,  # this package fetches the weights itself
            default_cfgs[name],
            features_only,
            name=model,
            fill=pretrained,
            num_classes=num_classes,
            in_channels=in_channels,
            **indices,
            **options,
        )

    make.__name__ = make.__qualname__ = name
    return make


def _network(fill, **arguments):
    """A network; MindCV makes another of its cells for `features_only`, by its `feature_info`, with the same names."""
    return create_model(pretrained=fill, **arguments)
